"""Loss and gradient of one optimizer update, for ZeRO 0 to 3 and two micro-batch sizes.

Arguments: folder of a policy, file for the results, share (`even` or `uneven`) of samples a rank.
"""

import sys

import torch
from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config import LearnerConfig, ModelConfig
from bandpo.learner.deepspeed import DeepSpeedLearner
from bandpo.learner.ranks import Ranks

folder, target, share = sys.argv[1:]
ranks = Ranks()
samples = make_samples()
# Uneven: the second rank is left with one sample, and with fewer micro-batches.
uneven = (samples[:-1], samples[-1:])
mine = uneven[ranks.rank] if share == "uneven" else ranks.share(samples)
results = {}
for stage in (0, 1, 2, 3):
    for budget in (32, 4096):
        config = LearnerConfig(
            zero_stage=stage, lr=1e-3, micro_batch_tokens=budget, logits_chunk=7, max_grad_norm=0
        )
        learner = DeepSpeedLearner(
            config, ModelConfig(path=folder), folder, LOSS, ranks, TEMPERATURE
        )
        unscored = ranks.share(make_samples())
        for sample in unscored:
            sample.old_logp = sample.entropy = sample.ref_logp = None
        learner.prepare([[], unscored])
        scored = [(s.old_logp, s.ref_logp, s.entropy) for s in unscored]
        gradients = {}

        def capture(learner=learner, gradients=gradients):
            if learner.engine.is_gradient_accumulation_boundary():
                for name, parameter in learner.lm.named_parameters():
                    gradients[name] = safe_get_full_grad(parameter).clone()

        learner.engine.step = capture
        loss = learner.update(mine, step=0).loss
        results[f"{stage}/{budget}"] = {"loss": loss, "gradients": gradients, "scored": scored}
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
