"""Masked samples are out of loss and gradient, whatever the split: the formula, written out."""

from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from cut_off_groups import GROUPS, cut_off_groups
from gradients import assert_same
from sample_batch import TEMPERATURE

from bandpo.loss import BandKL

WORKER = Path(__file__).parent / "truncation_worker.py"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, launch, untrained, tmp_path_factory):
    target = tmp_path_factory.mktemp("truncation") / "results.pt"
    launch(WORKER, request.param, str(untrained()), str(target))
    return torch.load(target)


def written_out(folder, aggregate, in_baseline):
    """Loss and gradient of the samples that were not cut off, from full logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    values, lengths = [], []
    for item, spec in zip(cut_off_groups(), GROUPS, strict=True):
        counted = [reward for reward, cut in spec if in_baseline or not cut]
        for completion, (reward, cut) in zip(item.group.completions, spec, strict=True):
            if cut:
                continue
            advantage = (reward - fmean(counted)) / (stdev(counted) + 1e-6)
            prompt, answer = item.group.prompt.token_ids, completion.token_ids.tolist()
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            logp = (logits / TEMPERATURE).log_softmax(-1)[range(len(answer)), answer]
            old = torch.from_numpy(completion.logprobs)
            ratio = (logp - old).exp()
            low, high = BandKL(0.05)(old)
            clipped = torch.maximum(torch.minimum(ratio, high.clamp(max=10.0)), low)
            objective = torch.minimum(ratio * advantage, clipped * advantage)
            if advantage < 0:
                objective = objective.clamp(min=10.0 * advantage)
            values.append(-objective)
            lengths.append(len(answer))
    loss = {
        "tokens": sum(v.sum() for v in values) / sum(lengths),
        "sequences": sum(v.mean() for v in values) / len(values),
        "constant": sum(v.sum() for v in values) / (len(values) * 24),
    }[aggregate]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("in_baseline", [True, False])
@pytest.mark.parametrize("aggregate", ["tokens", "sequences", "constant"])
def test_the_update_is_that_of_the_other_samples_alone(results, untrained, aggregate, in_baseline):
    loss, gradients = written_out(untrained(), aggregate, in_baseline)
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-2
    found = {k: v for k, v in results.items() if k[2:] == (aggregate, in_baseline)}
    assert len(found) == 2
    for split, result in found.items():
        assert_same(result, loss, gradients, split)


def test_a_minibatch_of_masked_samples_takes_no_step(results):
    none, some = results["all masked"]
    assert none == (0.0, {"learn/updates": 0.0, "learn/skipped": 0.0}, {})
    moved, updates, metrics = some
    assert moved > 0 and updates["learn/updates"] == 1 and updates["grad/norm"] > 0
    assert metrics["policy/entropy"] > 5
