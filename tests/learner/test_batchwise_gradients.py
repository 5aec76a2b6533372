"""Rules of the whole batch and pruned steps: gradients of a policy, whatever the split."""

import dataclasses
from pathlib import Path

import pytest
import torch
from batch_rules import RULES, batch_samples, loss_of
from cut_off_groups import GROUPS, cut_off_groups
from sample_batch import LOSS, TEMPERATURE

from bandpo.advantage import group_advantages
from bandpo.batching import prune
from bandpo.loss import TokenBatch
from bandpo.types import BatchTotals

WORKER = Path(__file__).parent / "batchwise_worker.py"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, launch, untrained, tmp_path_factory):
    target = tmp_path_factory.mktemp("batchwise") / "results.pt"
    launch(WORKER, request.param, str(untrained()), str(target))
    return torch.load(target)


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def whole(folder: Path, samples: list, loss, totals=None, **values):
    """Loss and gradients of all samples in one padded batch, from full logits."""
    from transformers import AutoModelForCausalLM

    model, logps = AutoModelForCausalLM.from_pretrained(folder), []
    for prompt, answer in ((list(s.prompt_ids), list(s.completion_ids)) for s in samples):
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        logps.append((logits / TEMPERATURE).log_softmax(-1)[range(len(answer)), answer])
    mask = padded([torch.ones_like(logp) for logp in logps])
    repeated = {
        name: torch.tensor(value)[:, None].expand_as(mask).float() for name, value in values.items()
    }
    old = padded([s.old_logp for s in samples])
    batch = TokenBatch(padded(logps), old, mask=mask, step=5, **repeated)
    if loss.needs_reference:
        batch = dataclasses.replace(batch, ref_logp=padded([s.ref_logp for s in samples]))
    value = loss(batch, totals).loss
    value.backward()
    return value.item(), {name: p.grad for name, p in model.named_parameters()}


def check(result, loss, gradients, note) -> None:
    assert result["loss"] == pytest.approx(loss, abs=2e-6), note
    for name, gradient in gradients.items():
        gap = (result["gradients"][name] - gradient).abs().max()
        assert gap <= 2e-6, (note, name)


@pytest.mark.parametrize("name", RULES)
def test_gradients_are_those_of_the_whole_batch_whatever_the_split(name, results, untrained):
    samples = batch_samples()
    values = {key: [getattr(s, key) for s in samples] for key in ("pass_rate", "dual", "number")}
    advantages = [sample.advantage for sample in samples]
    expected = whole(untrained(), samples, loss_of(RULES[name]), advantages=advantages, **values)
    assert max(float(g.abs().max()) for g in expected[1].values()) > 1e-3
    splits = [split for split in results if split[0] == name]
    assert len(splits) == 4
    for split in splits:
        check(results[split], *expected, note=split)


def test_a_minibatch_of_which_nothing_is_left_is_no_update(results):
    assert results["all pruned"] == [None, None]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_pruned_step_is_the_others_weighted_in_the_totals_of_all(share, results, untrained):
    groups = cut_off_groups()
    rewards = torch.tensor([[reward for reward, _ in group] for group in GROUPS])
    advantages = group_advantages(rewards).tolist()
    ids = [[f"{g.group.problem.id}/{j}" for j in range(4)] for g in groups]
    gone, weights = prune(advantages, ids, share, "0/1")
    assert (len(gone) > 0) == (share > 0)
    samples, weight, kept = [], [], []
    lengths = [len(c.token_ids) for g in groups for c in g.group.completions]
    for (i, item), j in ((pair, j) for pair in enumerate(groups) for j in range(4)):
        if (i, j) in gone:
            continue
        item, completion = item.group, item.group.completions[j]
        old = torch.from_numpy(completion.logprobs)
        found = batch_samples()[0]
        found.prompt_ids, found.completion_ids = item.prompt.token_ids, completion.token_ids
        found.old_logp, found.ref_logp, found.advantage = old, old - 0.1, advantages[i][j]
        samples.append(found)
        weight.append(weights.get((i, j), 1.0))
        right = sum(reward == 1 for reward, _ in GROUPS[i]) / 4
        kept.append((ids[i][j], weights.get((i, j)), right))
    result = results["pruned", share]
    assert result["samples"] == sorted(kept)
    assert result["share"] == len(gone) / 16
    totals = BatchTotals(16.0, float(sum(lengths)))
    values = {"advantages": [s.advantage for s in samples], "weight": weight}
    check(result, *whole(untrained(), samples, LOSS, totals, **values), note=share)
