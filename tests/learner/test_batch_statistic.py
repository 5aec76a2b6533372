"""Statistics of the whole batch before an update: the same whatever ranks and micro-batches."""

from pathlib import Path

import pytest
import torch
from gradients import assert_same
from sample_batch import TEMPERATURE, make_samples

from bandpo.batching import totals_of
from bandpo.learner.layouts import PackedBatch, PaddedBatch, SharedPromptBatch
from bandpo.learner.memory import PLACEHOLDER
from bandpo.loss import BandKL

WORKER = Path(__file__).parent / "statistic_worker.py"


def plain_loss_and_gradients(folder: Path):
    """Sample by sample, from full logits and the written-out formula over all tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    samples, total, logps = make_samples(), torch.zeros(()), []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
        table = logits.log_softmax(-1)
        logps.append(table[range(len(sample.completion_ids)), sample.completion_ids])
    old = torch.cat([sample.old_logp for sample in samples])
    gaps = (torch.cat(logps).detach() - old).abs().sort().values
    place = int(0.9 * len(gaps))
    limit, mean = gaps[place : place + 2].mean(), old.double().mean()
    for index, (sample, logp) in enumerate(zip(samples, logps, strict=True)):
        advantage = 0.0 if index in (2, 3) else sample.advantage
        ratio = (logp - sample.old_logp).exp()
        low, high = BandKL(0.05)(sample.old_logp)
        clipped = torch.maximum(torch.minimum(ratio, high.clamp(max=10.0)), low)
        objective = torch.minimum(ratio * advantage, clipped * advantage)
        if advantage < 0:
            objective = objective.clamp(min=10.0 * advantage)
        objective = torch.where((logp - sample.old_logp).abs() <= limit, objective, 0.0)
        weight = 1 + (sample.old_logp > mean).float()
        total = total - (weight * objective).mean() / len(samples)
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, launch, untrained, tmp_path_factory):
    target = tmp_path_factory.mktemp("statistic") / "results.pt"
    launch(WORKER, request.param, str(untrained()), str(target))
    return torch.load(target)


def test_gradients_are_those_of_the_whole_batch_whatever_the_split(results, untrained):
    loss, gradients = plain_loss_and_gradients(untrained())
    assert len(results["gradients"]) == 12
    for split, result in results["gradients"].items():
        assert_same(result, loss, gradients, split)


def test_a_pass_is_made_only_where_a_part_asks_for_what_is_not_known(results):
    """Tokens without a gradient: of `prepare`, of the first update, and of two on others."""
    prepared, *updates = results["passes"]["plain"]
    assert prepared > 0 and updates == [0, 0, 0]
    # On policy a ratio is 1, and after one update it is not any more.
    found, *updates = results["passes"]["of ratios"]
    assert found == prepared and updates[0] == 0 and updates[1] == updates[2] > 0
    # Log-probabilities themselves are known of the samples that `prepare` scored.
    for name in ("both", "both, sharded"):
        found, *updates = results["passes"][name]
        assert found == prepared and updates[0] == updates[1] == updates[2] > 0


@pytest.mark.parametrize("layout", [PaddedBatch, PackedBatch, SharedPromptBatch])
def test_a_samples_values_are_repeated_over_its_tokens(layout):
    samples = make_samples()
    plain = totals_of(samples)
    batch = layout.of(layout.ordered(samples))
    tokens = batch.token_batch(batch.values["old_logp"], None, 1)
    assert tokens.weight is tokens.pass_rate is tokens.dual is None
    for index, sample in enumerate(samples):
        sample.pass_rate, sample.dual = index / 8, 1 + index
    samples[4].weight = 0.5
    batch = layout.of(layout.ordered(samples))
    tokens = batch.token_batch(batch.values["old_logp"], None, 1).neutral()
    for row, sample in enumerate(batch.samples):
        length = len(sample.completion_ids)
        assert (tokens.weight[row, :length] == (sample.weight or 1.0)).all()
        assert (tokens.pass_rate[row, :length] == sample.pass_rate).all()
        assert (tokens.dual[row, :length] == sample.dual).all()
        assert (tokens.dual[row, length:] == 0).all()
    assert totals_of(samples) == plain
    samples[0].dual = None
    assert "dual" not in layout.of(samples).constants


def test_a_rank_without_samples_has_all_that_a_part_may_read():
    batch = PackedBatch.of([PLACEHOLDER], weightless=True)
    tokens = batch.token_batch(batch.values["old_logp"], None, 1)
    missing = [name for name, value in vars(tokens).items() if value is None]
    assert missing == ["new_entropy", "weight"]
