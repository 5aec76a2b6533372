"""The losses of three updates with weights or optimizer state in the CPU's memory, and without.

Arguments: folder of a policy, `all` or `states` (without DeepSpeed's CPU optimizer). Prints them by
dtype, ZeRO stage and what is offloaded.
"""

import json
import sys

from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

FOLDER = sys.argv[1]
CASES = [(stage, "between_updates") for stage in (1, 2)]
if sys.argv[2] == "all":
    CASES += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]


def losses(dtype, stage, offload):
    config = LearnerConfig(lr=1e-3, zero_stage=stage, offload=offload, micro_batch_tokens=64)
    model = ModelConfig(path=FOLDER, dtype=dtype)
    learner = DeepSpeedLearner(config, model, FOLDER, LOSS, ranks, TEMPERATURE)
    learner.prepare([make_samples()])
    found = []
    for step in range(3):
        learner.rest()
        found.append(learner.update(make_samples(), step).loss)
    learner.rest()
    return found


with Ranks() as ranks:
    found = {
        f"{dtype} {stage} {what}": [losses(dtype, stage, offload) for offload in ("none", what)]
        for dtype in ("float32", "bfloat16")
        for stage, what in CASES
    }
    print("RESULT " + json.dumps(found), flush=True)
