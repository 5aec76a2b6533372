"""The gradient of one sample over and over, a micro-batch each, and of it once; in bfloat16.

Arguments: folder of a policy, ZeRO stage, how often the sample is repeated. Prints, for each
parameter, the ratio of the lengths of the two gradients: 1 where sums are exact.
"""

import dataclasses
import json
import sys

from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config import LearnerConfig, ModelConfig
from bandpo.learner.deepspeed import DeepSpeedLearner
from bandpo.learner.ranks import Ranks

folder, stage, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ranks = Ranks()
config = LearnerConfig(zero_stage=stage, lr=1e-30, micro_batch_tokens=1, max_grad_norm=0)
model = ModelConfig(path=folder, dtype="bfloat16")
loss = dataclasses.replace(LOSS, reference_kl=None)
learner = DeepSpeedLearner(config, model, folder, loss, ranks, TEMPERATURE)
sample = make_samples(1)[0]
gradients = {}


def capture():
    if learner.engine.is_gradient_accumulation_boundary():
        for name, parameter in learner.lm.named_parameters():
            gradients.setdefault(name, []).append(safe_get_full_grad(parameter).float().norm())
    step()


step, learner.engine.step = learner.engine.step, capture
for count in (1, repeats):
    learner.update([dataclasses.replace(sample) for _ in range(count)], step=0)
ratios = {name: float(many / once) for name, (once, many) in gradients.items()}
if ranks.is_first:
    print("RESULT " + json.dumps(ratios), flush=True)
ranks.close()
