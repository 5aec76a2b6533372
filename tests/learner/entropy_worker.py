"""Gradients of updates with an entropy bonus and sample weights, and a floor after a checkpoint.

Arguments: folder of a policy, file for the results, folder for checkpoints.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import EntropyBonus
from bandpo.ranks.collectives import Ranks

folder, target, root = sys.argv[1:]
ranks = Ranks()
PLAIN = dataclasses.replace(LOSS, reference_kl=None)
COEFFICIENT, WEIGHTS = 0.3, {1: 0.5, 4: 2.0, 6: 0.0}
SETTINGS = [
    # (ZeRO stage, micro-batch tokens, packing, attention)
    *((stage, budget, True, "sdpa") for stage in (0, 1, 2, 3) for budget in (32, 4096)),
    (0, 4096, False, "sdpa"),
    *((0, 4096, packing, "eager") for packing in (True, False)),
]


def the_samples():
    samples = make_samples()
    for index, sample in enumerate(samples):
        sample.weight, sample.entropy = WEIGHTS.get(index), None
        if index in (2, 3):
            sample.advantage = 0.0
    return ranks.share(samples)


def learner_of(loss, stage=0, budget=4096, packing=True, attention="sdpa"):
    config = LearnerConfig(
        zero_stage=stage,
        lr=1e-2,
        packing=packing,
        micro_batch_tokens=budget,
        logits_chunk=7,
        max_grad_norm=0,
    )
    model = ModelConfig(path=folder, attention=attention)
    return DeepSpeedLearner(config, model, folder, loss, ranks, TEMPERATURE)


def gradients(loss, settings=()):
    learner, found = learner_of(loss, *settings), {}

    def capture():
        if learner.engine.is_gradient_accumulation_boundary():
            for name, parameter in learner.lm.named_parameters():
                found[name] = safe_get_full_grad(parameter).clone()

    learner.engine.step = capture
    return {"loss": learner.update(the_samples(), 0).loss, "gradients": found}


def rollout(learner, step):
    """The metrics of one with two updates."""
    for _ in range(2):
        learner.update(the_samples(), step)
    found = learner.take_metrics()
    return {name: found.get(name) for name in ("entropy/coef", "policy/entropy", "ratio/max")}


def weights(learner):
    return torch.cat([tensor.detach().flatten().clone() for _, tensor in learner.weights()])


def with_floor(stage, floor):
    """Four rollouts, and the last two of them once more from a checkpoint."""
    bonus = EntropyBonus(0.0, floor, increment=0.05, maximum=0.12)
    learner = learner_of(dataclasses.replace(PLAIN, entropy=bonus), stage)
    metrics = [rollout(learner, 1), rollout(learner, 2)]
    place = Path(root) / f"{ranks.size}-{stage}-{floor}"
    learner.save(place)
    ranks.barrier()
    metrics += [rollout(learner, 3), rollout(learner, 4)]
    again = learner_of(learner.loss, stage)
    again.load(place, ranks.size)
    resumed = [rollout(again, 3), rollout(again, 4)]
    return {
        "metrics": metrics,
        "resumed": resumed,
        "same": torch.equal(weights(learner), weights(again)),
        "ranks": ranks.gather([metrics[i]["entropy/coef"] for i in range(4)]),
        "weights": weights(learner),
    }


def undisturbed(stage):
    learner = learner_of(PLAIN, stage)
    metrics = [rollout(learner, step) for step in (1, 2, 3, 4)]
    return {"metrics": metrics, "weights": weights(learner)}


bonus = dataclasses.replace(PLAIN, entropy=EntropyBonus(COEFFICIENT))
none = dataclasses.replace(PLAIN, entropy=EntropyBonus(0.0))
results = {
    "bonus": {settings: gradients(bonus, settings) for settings in SETTINGS},
    "none": gradients(none),
    "without": gradients(PLAIN),
    # The untrained policy's entropy is below ln 262 = 5.57.
    "floor": {stage: with_floor(stage, 6.0) for stage in (0, 2, 3)},
    "low": {stage: with_floor(stage, 0.0) for stage in (0, 2)},
    "undisturbed": {stage: undisturbed(stage) for stage in (0, 2)},
}
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
