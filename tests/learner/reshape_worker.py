"""Losses of updates after a checkpoint of as many ranks, and of another number, for ZeRO 0 to 3.

Arguments: folder of a policy, folder of checkpoints, number of ranks whose checkpoints to load
(0: none, make and save them).
"""

import json
import resource
import sys
from pathlib import Path

from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

policy, root, saved_ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ranks = Ranks()
samples = ranks.share(make_samples())


def updates(learner: DeepSpeedLearner, steps: range) -> list[float]:
    return [learner.update(samples, step).loss for step in steps]


def refused(learner: DeepSpeedLearner, folder: Path) -> str | None:
    """What every rank is told when the last one may write no more than 4 KiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == ranks.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        ranks.agree(lambda: learner.save(folder))
    except OSError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return None


results = {}
for stage in (0, 1, 2, 3):
    config = LearnerConfig(zero_stage=stage, lr=1e-3, micro_batch_tokens=64, warmup_updates=6)
    learner = DeepSpeedLearner(config, ModelConfig(path=policy), policy, LOSS, ranks, TEMPERATURE)
    found = {}
    if saved_ranks:
        learner.load(root / f"{saved_ranks}-{stage}", saved_ranks)
    else:
        updates(learner, range(2))
        folder = root / f"{ranks.size}-{stage}"
        found["refused"] = refused(learner, root / "refused")
        ranks.agree(lambda learner=learner, folder=folder: learner.save(folder))
    results[str(stage)] = found | {"losses": updates(learner, range(2, 5))}
if ranks.is_first:
    print("RESULT " + json.dumps(results), flush=True)
ranks.close()
