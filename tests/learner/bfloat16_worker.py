"""Updates in bfloat16 under ZeRO 0 to 3, beside the same in float32.

Argument: folder of a policy. Prints the losses of three updates for every stage and dtype; and the
gradient of one sample over and over, a micro-batch each, as a multiple of that of the sample once,
by stage and parameter: 1 where sums are exact.
"""

import dataclasses
import json
import sys

from deepspeed.utils import safe_get_full_grad
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

FOLDER, REPEATS = sys.argv[1], 320


def learner_with(dtype, **settings):
    config = LearnerConfig(lr=1e-3, max_grad_norm=0, **settings)
    model = ModelConfig(path=FOLDER, dtype=dtype)
    loss = dataclasses.replace(LOSS, reference_kl=None)
    return DeepSpeedLearner(config, model, FOLDER, loss, ranks, TEMPERATURE)


def losses(stage, dtype):
    learner = learner_with(dtype, zero_stage=stage)
    return [learner.update(ranks.share(make_samples()), step).loss for step in range(3)]


def growth(stage):
    learner = learner_with("bfloat16", zero_stage=stage, micro_batch_tokens=1)
    norms = {}

    def capture():
        if learner.engine.is_gradient_accumulation_boundary():
            for name, parameter in learner.lm.named_parameters():
                norms.setdefault(name, []).append(safe_get_full_grad(parameter).float().norm())
            learner.optimizer.param_groups[0]["lr"] = 0.0
        step()

    step, learner.engine.step = learner.engine.step, capture
    for count in (1, REPEATS):
        learner.update([make_samples(1)[0] for _ in range(count)], step=0)
    return {name: float(many / once) for name, (once, many) in norms.items()}


with Ranks() as ranks:
    found = {
        "losses": {f"{d} {s}": losses(s, d) for s in range(4) for d in ("float32", "bfloat16")},
        "growth": {stage: growth(stage) for stage in (2, 3)},
    }
    print("RESULT " + json.dumps(found), flush=True)
