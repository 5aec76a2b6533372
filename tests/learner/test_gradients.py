"""One loss, whatever the split: micro-batches, packing, ranks and ZeRO stages change nothing."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sample_batch import TEMPERATURE, make_samples

from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import BandKL

WORKER = Path(__file__).parent / "gradient_worker.py"


def plain_loss_and_gradients(folder: Path):
    """The loss sample by sample, from full logits and the written-out formula; also each logp."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    samples = make_samples(longest=300)
    total = torch.zeros(())
    logps = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
        logp = logits.log_softmax(-1)[range(len(sample.completion_ids)), sample.completion_ids]
        logps.append(logp.detach())
        ratio = (logp - sample.old_logp).exp()
        low, high = BandKL(0.05)(sample.old_logp)
        clipped = torch.maximum(torch.minimum(ratio, high.clamp(max=10.0)), low)
        objective = torch.minimum(ratio * sample.advantage, clipped * sample.advantage)
        if sample.advantage < 0:
            objective = objective.clamp(min=10.0 * sample.advantage)
        x = sample.ref_logp - logp
        total = total - (objective - 0.1 * (x.exp() - x - 1)).mean() / len(samples)
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}, logps


@pytest.fixture(scope="module")
def expected(untrained):
    return plain_loss_and_gradients(untrained())


@pytest.fixture(scope="module")
def found(launch, untrained, tmp_path_factory):
    """By number of ranks: what these found by share of samples and by split."""

    @cache
    def of(ranks):
        target = tmp_path_factory.mktemp("gradients") / "results.pt"
        launch(WORKER, ranks, str(untrained()), str(target), "even", *["uneven"][: ranks - 1])
        return torch.load(target)

    return of


@pytest.mark.parametrize(("ranks", "share"), [(1, "even"), (2, "even"), (2, "uneven")])
def test_loss_and_gradients_do_not_depend_on_the_split(found, expected, ranks, share):
    results = found(ranks)[share]
    assert len(results) == 14
    loss, gradients, logps = expected
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-2
    for split, result in results.items():
        packing, alone = split[2], ranks == 1 or share == "even"
        # Packed rows hold nothing but samples; padding to the longest of them would be most of it.
        if split[1] == 4096 and alone:
            assert (result["padding_frac"] == 0) if packing else (result["padding_frac"] > 0.6)
        assert (
            result["imbalance"] == pytest.approx(0, abs=1e-9)
            if ranks == 1
            else 0.05 < result["imbalance"] < 1
        )
        assert result["loss"] == pytest.approx(loss, abs=1e-6), split
        # Policy and reference start from the same weights; the first rank's share was kept.
        for (old, ref, entropy), logp in zip(result["scored"], logps[::ranks], strict=True):
            torch.testing.assert_close(old, logp, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ref, old, atol=1e-6, rtol=0)
            assert (entropy > 5).all()  # near log(262)
        for name, gradient in gradients.items():
            gap = (result["gradients"][name] - gradient).abs().max()
            assert gap <= 1e-6, (split, name)


def test_a_rank_without_samples_reduces_tensors_of_the_same_type():
    seen = []
    ranks = SimpleNamespace(device="cpu", size=2, sum=lambda t: seen.append(t.dtype) or t + 1)
    ranks.max = lambda t: seen.append(t.dtype) or t + 1
    learner = SimpleNamespace(ranks=ranks, cost=float)
    for samples in ([], make_samples(2)):
        DeepSpeedLearner._imbalance(learner, samples)
    assert set(seen) == {torch.float32}
