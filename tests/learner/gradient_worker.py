"""Loss and gradient of one optimizer update, for ZeRO 0 to 3, micro-batch sizes and layouts.

Arguments: folder of a policy, file for the results, shares (`even`, `uneven`) of samples a rank.
"""

import sys

import torch
from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

folder, target, *shares = sys.argv[1:]
ranks = Ranks()
samples = make_samples(longest=300)
# Uneven: the second rank is left with one sample, and with fewer micro-batches.
uneven = (samples[:-1], samples[-1:])
SETTINGS = [
    # (ZeRO stage, micro-batch tokens, packing, attention, gradient checkpointing)
    *((stage, budget, True, "sdpa", False) for stage in (0, 1, 2, 3) for budget in (32, 4096)),
    *((0, budget, False, "sdpa", False) for budget in (32, 4096)),
    *((0, 4096, packing, "eager", False) for packing in (True, False)),
    *((stage, 4096, True, "sdpa", True) for stage in (0, 3)),
]


def update(share, stage, budget, packing, attention, checkpointing):
    config = LearnerConfig(
        zero_stage=stage,
        lr=1e-3,
        packing=packing,
        micro_batch_tokens=budget,
        logits_chunk=7,
        max_grad_norm=0,
    )
    model = ModelConfig(path=folder, attention=attention, gradient_checkpointing=checkpointing)
    learner = DeepSpeedLearner(config, model, folder, LOSS, ranks, TEMPERATURE)
    unscored = ranks.share(make_samples(longest=300))
    for sample in unscored:
        sample.old_logp = sample.entropy = sample.ref_logp = None
    learner.prepare([[], unscored])
    gradients = {}

    def capture():
        if learner.engine.is_gradient_accumulation_boundary():
            for name, parameter in learner.lm.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).clone()

    learner.engine.step = capture
    mine = uneven[ranks.rank] if share == "uneven" else ranks.share(samples)
    result = learner.update(mine, step=0)
    return {
        "loss": result.loss,
        "padding_frac": result.padding_frac,
        "imbalance": result.imbalance,
        "gradients": gradients,
        "scored": [(s.old_logp, s.ref_logp, s.entropy) for s in unscored],
    }


results = {share: {settings: update(share, *settings) for settings in SETTINGS} for share in shares}
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
