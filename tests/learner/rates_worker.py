"""Rates and steps of updates under a schedule, for ZeRO 0 to 3, and after a checkpoint.

Arguments: folder of a policy, folder for checkpoints.
"""

import json
import sys
from pathlib import Path

import torch
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

policy, root = sys.argv[1], Path(sys.argv[2])
ranks = Ranks()
samples = ranks.share(make_samples())
poisoned = ranks.share(make_samples())
for sample in poisoned:
    sample.old_logp = sample.old_logp * torch.nan


def learner_of(stage: int, **settings) -> DeepSpeedLearner:
    config = LearnerConfig(zero_stage=stage, lr=1e-2, max_grad_norm=0, **settings)
    model = ModelConfig(path=policy)
    return DeepSpeedLearner(config, model, policy, LOSS, ranks, TEMPERATURE, rollouts=8)


def weights(learner: DeepSpeedLearner) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().clone() for _, tensor in learner.weights()])


def largest_step(stage: int, step: int) -> float:
    """AdamW's first update moves the weights with a gradient by the learning rate."""
    learner = learner_of(stage, schedule="linear")
    before = weights(learner)
    learner.update(samples, step)
    return float((weights(learner) - before).abs().max())


def resumed(stage: int) -> dict:
    """Six rollouts of two updates, and the last three of them once more from a checkpoint."""
    settings = {"schedule": "cosine", "warmup_rollouts": 1, "updates_per_rollout": 2}
    learner, found = learner_of(stage, **settings), []
    folder = root / f"{ranks.size}-{stage}"
    for step in range(1, 7):
        for batch in (samples, poisoned if step == 3 else samples):
            result = learner.update(batch, step)
            found.append([result.lr, result.skipped])
        if step == 3:
            learner.save(folder)
            ranks.barrier()
    again = learner_of(stage, **settings)
    again.load(folder, ranks.size)
    rates = [again.update(samples, step).lr for step in (4, 5, 6) for _ in range(2)]
    return {"updates": found, "again": rates, "same": torch.equal(weights(learner), weights(again))}


results = {
    str(stage): {
        "steps": [largest_step(stage, step) for step in (1, 6)],
        **resumed(stage),
    }
    for stage in (0, 1, 2, 3)
}
if ranks.is_first:
    print("RESULT " + json.dumps(results), flush=True)
ranks.close()
