"""Updates with faults in between, beside updates without them, for ZeRO 0 to 3.

Arguments: folder of a policy, file for the results.
"""

import dataclasses
import sys

import torch
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

SETTINGS = [*(("float32", stage) for stage in range(4)), ("bfloat16", 0), ("bfloat16", 2)]
# Rank 1 of 2 has 50 and 7 tokens: the last micro-batch, whose backward pass communicates, fits.
BUDGET, LIMIT = 56, 40


class NoGradient(torch.autograd.Function):
    """The same value with a gradient of NaN."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


def advantage_is_nan(learner, samples):
    if learner.ranks.rank == learner.ranks.size - 1:
        samples[0].advantage = float("nan")


def loss_is_infinite(learner, samples):
    change_loss(learner, lambda loss: loss + torch.inf)


def gradient_is_nan(learner, samples):
    change_loss(learner, NoGradient.apply)


def change_loss(learner, change):
    """Changes the loss of every micro-batch on the last rank."""
    if learner.ranks.rank == learner.ranks.size - 1:
        learner.loss = lambda batch, totals: dataclasses.replace(
            output := LOSS(batch, totals), loss=change(output.loss)
        )


def learner_of(folder, dtype, stage, budget=BUDGET):
    config = LearnerConfig(
        zero_stage=stage, lr=1e-2, micro_batch_tokens=budget, logits_chunk=7, warmup_updates=2
    )
    model = ModelConfig(path=folder, dtype=dtype)
    return DeepSpeedLearner(config, model, folder, LOSS, ranks, TEMPERATURE)


def weights_of(learner):
    return {name: tensor.clone() for name, tensor in learner.weights()}


def mine(first, last):
    samples = make_samples()[first:last]
    for index, sample in enumerate(samples):
        sample.id = f"p/{first + index}"
    return ranks.share(samples)


def skips(folder, dtype, stage):
    """Three updates of which the middle one is nonfinite, and the two others alone."""
    quiet = learner_of(folder, dtype, stage)
    expected = [quiet.update(mine(0, 5), 1), quiet.update(mine(5, 9), 3)]
    found = {}
    for fault in (advantage_is_nan, loss_is_infinite, gradient_is_nan):
        learner = learner_of(folder, dtype, stage)
        first = learner.update(mine(0, 5), 1)
        middle = mine(2, 8)
        fault(learner, middle)
        skipped = learner.update(middle, 2)
        learner.loss = LOSS
        second = learner.update(mine(5, 9), 3)
        found[fault.__name__] = {
            "skipped": dataclasses.asdict(skipped),
            "others": [dataclasses.asdict(r) for r in (first, second)],
            "weights": weights_of(learner),
            "metrics": learner.take_metrics(),
        }
    return {
        "faults": found,
        "others": [dataclasses.asdict(r) for r in expected],
        "weights": weights_of(quiet),
        "metrics": quiet.take_metrics(),
    }


def starve(learner, backward=False):
    """Micro-batches of more than LIMIT tokens do not fit on the last rank."""
    if learner.ranks.rank < learner.ranks.size - 1:
        return []
    layer = learner.lm.base_model.layers[1]

    def fail(module, inputs, *_):
        if inputs[0].shape[:2].numel() > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory. (injected)")

    def fail_backward(module, inputs, output):
        if inputs[0].shape[:2].numel() > LIMIT:
            output.register_hook(lambda gradient: fail(module, inputs))

    if backward:
        return [layer.register_forward_hook(fail_backward)]
    return [layer.register_forward_pre_hook(fail)]


def memory(folder, stage, backward=False):
    """An update that halves its micro-batches on the way, and one that starts with small ones."""
    learner = learner_of(folder, "float32", stage)
    hooks = starve(learner, backward)
    seen = []
    learner.observers.append(lambda output: seen.append(int(output.batch.mask.sum())))
    samples = mine(0, 9)
    for sample in samples:
        sample.old_logp = None
    if not backward:
        learner.score(samples)
    found = learner.update(samples, 1)
    budget = learner.micro_batches.tokens
    for hook in hooks:
        hook.remove()
    quiet = learner_of(folder, "float32", stage, budget)
    again = mine(0, 9)
    for sample in again:
        sample.old_logp = None
    if not backward:
        quiet.score(again)
    expected = quiet.update(again, 1)
    return {
        "budget": budget,
        "results": [dataclasses.asdict(found), dataclasses.asdict(expected)],
        "weights": [weights_of(learner), weights_of(quiet)],
        "metrics": [learner.take_metrics(), quiet.take_metrics()],
        "seen": sum(seen),
        "tokens": sum(len(sample.completion_ids) for sample in samples),
    }


folder, target = sys.argv[1:]
ranks = Ranks()
results = {f"skip/{d}/{s}": skips(folder, d, s) for d, s in SETTINGS}
stages = range(4) if ranks.size == 1 else range(3)
results |= {f"memory/forward/{stage}": memory(folder, stage) for stage in stages}
results["memory/backward/0"] = memory(folder, 0, backward=True)
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
