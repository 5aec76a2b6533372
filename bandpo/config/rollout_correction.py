"""The rollout correction of a run, whose configuration may leave it to the precision at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

AUTO, NONE, DEFAULT = "auto", "none", "token_tis"
NAMES = (AUTO, NONE, DEFAULT, "sequence_tis", "sequence_mask", "icepop", "geometric_mask", "kpop")
"""The values of `method.correction`; `bandpo.loss.correction.PRESETS` has all but the first."""
# Settings of vLLM by which its weights or its cache are coarser than the dtype says.
QUANTISED = ("quantization", "kv_cache_dtype")


class Choice(NamedTuple):
    """A name of `NAMES` other than auto, and the reason for it."""

    name: str
    reason: str


def quantised(engine: Mapping[str, Any]) -> list[str]:
    """The settings of `rollout.engine` that quantise the engine's weights or cache, `key=value`."""
    found = {key: engine.get(key) for key in QUANTISED}
    return [f"rollout.engine.{k}={v}" for k, v in found.items() if v not in (None, "auto")]


def is_to_the_sampler(loss: Mapping[str, Any]) -> bool:
    """Whether a loss takes its ratio to the policy that sampled, which leaves no gap to weigh."""
    ratio = loss.get("ratio")
    return isinstance(ratio, Mapping) and ratio.get("_target_") == "bandpo.loss.BehaviourRatio"


def by_precision(dtype: str, engine: Mapping[str, Any], loss: Mapping[str, Any]) -> Choice:
    """The choice of auto: token_tis where engine and learner cannot agree to float32's precision.

    From `model.dtype`, `rollout.engine` and `method.loss`, whose own correction is left alone.
    """
    engine_dtype = engine.get("dtype") or dtype
    if loss.get("correction") is not None:
        return Choice(NONE, "method.loss.correction is set")
    if is_to_the_sampler(loss):
        return Choice(NONE, "the ratio is to the policy that sampled")
    if coarse := quantised(engine):
        return Choice(DEFAULT, coarse[0])
    if engine_dtype != dtype:
        return Choice(DEFAULT, f"the engine computes in {engine_dtype}, the learner in {dtype}")
    if dtype != "float32":
        return Choice(DEFAULT, f"model.dtype={dtype}")
    return Choice(NONE, "engine and learner compute in float32")


def name_of(correction: str | Mapping[str, Any]) -> str:
    """A correction for the reader: its name, or the `_target_` of one's own."""
    return correction if isinstance(correction, str) else str(correction.get("_target_"))


def correction_in(settings: Mapping[str, Any]) -> Any:
    """The correction that the content of a config.yaml means: a name other than auto, or a mapping.

    Earlier versions, which had no such key, had none.
    """
    method = settings.get("method") or {}
    found = method.get("correction", NONE)
    if found != AUTO:
        return found
    engine = settings["rollout"]["engine"]
    return by_precision(settings["model"]["dtype"], engine, method.get("loss") or {}).name
