"""Loss and gradient of an update on groups whose truncated samples are masked.

Arguments: folder of a policy, file for the results.
"""

import dataclasses
import sys
from types import SimpleNamespace

import torch
from cut_off_groups import cut_off_groups
from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE

from bandpo.advantage import group_advantages
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.learner.updates.result import update_metrics
from bandpo.loss import ConstantNorm, SequenceMeanTokenMean, TokenMean
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.draws import Draws
from bandpo.run.job import Job

AGGREGATES = {
    "tokens": TokenMean(),
    "sequences": SequenceMeanTokenMean(),
    "constant": ConstantNorm(24),
}
PLAIN = dataclasses.replace(LOSS, reference_kl=None)

folder, target = sys.argv[1:]
ranks = Ranks()


def batches_of(learner, groups, updates, in_baseline):
    """What a step hands to its updates, by way of `Job.batches`."""
    rollout = RolloutConfig(
        engine={},
        group_size=4,
        prompts_per_step=len(groups),
        max_tokens=24,
        truncated="mask",
        truncated_in_baseline=in_baseline,
    )
    draws = Draws(rollout, None, None, ranks)
    draws.add(ranks.share(groups))
    settings = SimpleNamespace(updates_per_rollout=updates, epochs_per_rollout=1, prune=0.0)
    job = SimpleNamespace(
        config=SimpleNamespace(rollout=rollout, learner=settings, seed=0),
        learner=learner,
        ranks=ranks,
        _advantages=group_advantages,
    )
    return Job.batches(job, draws.rollout().groups, 1)


def learner_of(stage, budget, aggregate):
    config = LearnerConfig(
        zero_stage=stage, lr=1e-2, micro_batch_tokens=budget, logits_chunk=7, max_grad_norm=0
    )
    loss = dataclasses.replace(PLAIN, aggregate=AGGREGATES[aggregate])
    return DeepSpeedLearner(config, ModelConfig(path=folder), folder, loss, ranks, TEMPERATURE)


def update(stage, budget, aggregate, in_baseline):
    learner = learner_of(stage, budget, aggregate)
    (batch,) = batches_of(learner, cut_off_groups(), 1, in_baseline)
    for sample in batch:  # as at a later update: the old policy is the one that sampled
        sample.old_logp, sample.entropy = sample.rollout_logp, torch.zeros_like(sample.rollout_logp)
    gradients = {}

    def capture():
        if learner.engine.is_gradient_accumulation_boundary():
            for name, parameter in learner.lm.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).clone()

    learner.engine.step = capture
    result = learner.update(batch, step=0)
    return {"loss": result.loss, "gradients": gradients}


def all_masked():
    """Three minibatches on two groups with samples to learn from, and two without any."""
    learner = learner_of(2, 4096, "tokens")
    before = {name: tensor.clone() for name, tensor in learner.weights()}
    groups = cut_off_groups()
    results = []
    for chosen in ([groups[2]], [groups[2], groups[0]]):
        batches = batches_of(learner, chosen, len(chosen), True)
        learner.prepare(batches)
        updates = [learner.update(batch, 1) for batch in batches]
        after = {name: tensor.clone() for name, tensor in learner.weights()}
        moved = max(float((after[name] - before[name]).abs().max()) for name in before)
        results.append((moved, update_metrics(updates), learner.take_metrics()))
    return results


results = {
    (stage, budget, aggregate, in_baseline): update(stage, budget, aggregate, in_baseline)
    for stage, budget in ((0, 32), (2, 4096))
    for aggregate in AGGREGATES
    for in_baseline in (True, False)
}
results["all masked"] = all_masked()
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
