"""Gradients of a loss whose parts ask for statistics of the batch, and the passes that these cost.

Arguments: folder of a policy, file for the results.
"""

import dataclasses
import sys

import torch
from asking_parts import AboveMean, QuantileMask
from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

folder, target = sys.argv[1:]
ranks = Ranks()
PLAIN = dataclasses.replace(LOSS, reference_kl=None)
OF_RATIOS = dataclasses.replace(PLAIN, surrogate=QuantileMask(LOSS.surrogate))
BOTH = dataclasses.replace(OF_RATIOS, correction=AboveMean())


def the_samples(uneven=False):
    samples = make_samples()
    for index in (2, 3):
        samples[index].advantage = 0.0
    if not uneven:
        return ranks.share(samples)
    return samples if ranks.is_first else []


def learner_of(loss, stage, budget):
    config = LearnerConfig(
        zero_stage=stage, lr=1e-2, micro_batch_tokens=budget, logits_chunk=7, max_grad_norm=0
    )
    return DeepSpeedLearner(config, ModelConfig(path=folder), folder, loss, ranks, TEMPERATURE)


def gradients(stage, budget, uneven):
    learner, found = learner_of(BOTH, stage, budget), {}

    def capture():
        if learner.engine.is_gradient_accumulation_boundary():
            for name, parameter in learner.lm.named_parameters():
                found[name] = safe_get_full_grad(parameter).clone()

    learner.engine.step = capture
    return {"loss": learner.update(the_samples(uneven), 0).loss, "gradients": found}


def passes(loss, stage=0):
    """Tokens without a gradient of two updates on the same samples, which the first sees anew."""
    learner, tokens = learner_of(loss, stage, 4096), []

    def count(module, arguments, output):
        if not output.requires_grad:
            tokens.append(arguments[0].shape[1])

    learner.lm.base_model.layers[0].register_forward_hook(count)
    fresh, others = the_samples(), the_samples()
    for sample in (*fresh, *others):
        sample.old_logp = sample.entropy = sample.ref_logp = None
        sample.advantage = 1.0
    learner.prepare([fresh, others, others])
    found = [sum(tokens)]
    for batch in (fresh, others, others):
        tokens.clear()
        learner.update(batch, 0)
        found.append(sum(tokens))
    return found


results = {
    "gradients": {
        (stage, budget, uneven): gradients(stage, budget, uneven)
        for stage in (0, 2, 3)
        for budget in (16, 4096)
        for uneven in (False, True)
    },
    "passes": {
        "plain": passes(PLAIN),
        "of ratios": passes(OF_RATIOS),
        "both": passes(BOTH),
        "both, sharded": passes(BOTH, stage=3),
    },
}
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
