"""Gradients of rules of the whole batch, and of a step with pruned samples.

Arguments: folder of a policy, file for the results.
"""

import sys
from types import SimpleNamespace

import torch
from batch_rules import RULES, batch_samples, loss_of
from cut_off_groups import cut_off_groups
from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE

from bandpo.advantage import group_advantages
from bandpo.batching import Minibatch
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.draws import Draws
from bandpo.run.minibatches import minibatches_of
from bandpo.types import BatchTotals

folder, target = sys.argv[1:]
ranks = Ranks()


def learner_of(loss):
    config = LearnerConfig(zero_stage=2, lr=1e-2, logits_chunk=7, max_grad_norm=0)
    return DeepSpeedLearner(config, ModelConfig(path=folder), folder, loss, ranks, TEMPERATURE)


def update(learner, samples):
    """The update's loss and gradients; the weights stay as they are."""
    gradients, step = {}, learner.engine.step

    def capture():
        if learner.engine.is_gradient_accumulation_boundary():
            for name, parameter in learner.lm.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).clone()
            learner.engine.optimizer.zero_grad()
        step()

    learner.engine.step = capture
    learner.optimizer.param_groups[0]["lr"] = 0.0
    result = learner.update(samples, step=5)
    learner.engine.step = step
    return {"loss": result.loss, "gradients": gradients}


def pruned(learner, share):
    """A step's only minibatch, by way of its scored groups."""
    rollout = RolloutConfig(engine={}, group_size=4, prompts_per_step=4, max_tokens=24)
    draws = Draws(rollout, None, None, ranks)
    draws.add(ranks.share(cut_off_groups()))
    config = SimpleNamespace(
        rollout=rollout,
        learner=SimpleNamespace(updates_per_rollout=1, epochs_per_rollout=1, prune=share),
        seed=0,
    )
    groups = draws.rollout().groups
    (batch,) = minibatches_of(config, group_advantages, learner.cost, ranks, groups, 1)
    for sample in batch:
        sample.old_logp, sample.entropy = sample.rollout_logp, torch.zeros_like(sample.rollout_logp)
        sample.ref_logp = sample.rollout_logp - 0.1
    found = update(learner, batch)
    samples = ranks.gather([(s.id, s.weight, s.pass_rate) for s in batch])
    found["samples"] = sorted(chosen for mine in samples for chosen in mine)
    return found | {"share": batch.pruned_share}


results = {}
for name, rule in RULES.items():
    learner = learner_of(loss_of(rule))
    for budget in (40, 4096):
        for uneven in (False, True):
            learner.micro_batches.tokens = budget
            samples = batch_samples()
            mine = (samples if ranks.is_first else []) if uneven else ranks.share(samples)
            results[name, budget, uneven] = update(learner, mine)
learner = learner_of(LOSS)
for share in (0.0, 0.5, 0.9):
    results["pruned", share] = pruned(learner, share)
nothing = Minibatch([], pruned=BatchTotals(4.0, 20.0), pruned_share=1.0)
asking = learner_of(loss_of(RULES["m2po"]))
results["all pruned"] = [part.update(nothing, 5) for part in (learner, asking)]
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
