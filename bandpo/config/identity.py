"""The settings that identify a run, and those that may change between its parts."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from bandpo.config.composition import defaults
from bandpo.config.keys import leaves
from bandpo.config.rollout_correction import correction_in
from bandpo.config.schema import Config
from bandpo.redaction import redacted

# Meanings of keys and values in files of earlier versions, where `true` filtered by reward.
RENAMED = {"learner.warmup_steps": "learner.warmup_updates"}
FORMERLY: Mapping[str, Mapping[Any, Any]] = {
    "rollout.filter_groups": {True: "reward"},
    "reward.lowest_form": {"strict": True, "off": False},  # hashes stay those of true and false
    "rollout.engine.gpu_memory_utilization": {0.6: None},  # the default was a fixed share
}
# Keys that came later, at the values that mean what was done without them: they are neither
# compared nor hashed, so that a run stays the one it was.
UNCHANGED: Mapping[str, Any] = {
    "learner.schedule": "constant",
    "learner.min_lr_ratio": 0.0,
    "learner.decay_share": 0.2,
    "learner.prune": 0.0,
    "method.entropy_coef": 0.0,
    "method.entropy_floor": None,
    "method.entropy_coef_step": 1e-4,
    "method.entropy_coef_max": 5e-3,
    "method.loss.entropy._target_": "bandpo.loss.EntropyBonus",
    "method.loss.entropy.coefficient": 0.0,
    "method.loss.entropy.floor": None,
    "method.loss.entropy.increment": 1e-4,
    "method.loss.entropy.maximum": 5e-3,
    "method.correction": "none",
    "rollout.engine.dtype": None,
}

Effect = Literal["determining", "rounding", "harmless"]
Settings = Mapping[str, Any]


def effect_of(key: str) -> Effect:
    """The effect on a run of changing a key such as `learner.lr`; unmarked keys determine the run.

    `bandpo/config/sections/` marks single fields and sections.
    """
    return next(_marks(Config, key.split(".")), "determining")


def _marks(schema: type[BaseModel], path: list[str]) -> Iterator[Effect]:
    """The marks on the way from the schema to a key, outermost first."""
    field = schema.model_fields.get(path[0])
    if field is None:
        return
    extra = field.json_schema_extra
    mark: Any = extra.get("resume") if isinstance(extra, Mapping) else None
    if isinstance(mark, str):
        yield mark  # type: ignore[misc]
    elif isinstance(mark, Mapping) and path[1:] and path[1] in mark:
        yield mark[path[1]]
    if path[1:] and inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
        yield from _marks(field.annotation, path[1:])


def config_hash(settings: Config | Settings) -> str:
    """A hash of the settings that determine a run: equal hashes, equal rollouts and weights.

    It omits harmless settings (names, logging, evaluation, and how many steps are taken, unless
    learning rates depend on that) and those that only change rounding. Accepts the content of a
    config.yaml as well, with the schema's defaults for missing keys.
    """
    complete = _complete(settings)
    values = {k: v for k, v in complete.items() if effect_of(k) == "determining"}
    if "learner.schedule" in complete:
        values["trainer.steps"] = complete.get("trainer.steps")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Changes(NamedTuple):
    """`key: was → is` of two configurations, by the effect of a change on a run that resumes."""

    determining: tuple[str, ...]
    rounding: tuple[str, ...]


def changes(was: Config | Settings, now: Config | Settings) -> Changes:
    """The differences between two configurations, without harmless settings."""
    before, after = _complete(was), _complete(now)
    found: dict[Effect, list[str]] = {"determining": [], "rounding": [], "harmless": []}
    for key in sorted(before.keys() | after.keys()):
        old, new = (v.get(key, UNCHANGED.get(key, "not set")) for v in (before, after))
        if old != new:
            found[effect_of(key)].append(f"{key}: {old} → {new}")
    return Changes(tuple(found["determining"]), tuple(found["rounding"]))


def _complete(settings: Config | Settings) -> dict[str, Any]:
    """Flat JSON values, with the schema's defaults for missing keys and without `UNCHANGED` ones.

    Secrets are hidden, as in files: a new password does not make another run.
    """
    tree = settings.model_dump(mode="json") if isinstance(settings, Config) else settings
    method = {**(tree.get("method") or {}), "correction": correction_in(tree)}
    tree = {**tree, "method": method}
    own = {RENAMED.get(key, key): value for key, value in leaves(redacted(tree)).items()}
    values = leaves({**defaults(Config), "method": {}}) | own  # a method says all of its own
    formerly = {k: names.get(values[k], values[k]) for k, names in FORMERLY.items() if k in values}
    values |= formerly
    return {key: v for key, v in values.items() if key not in UNCHANGED or v != UNCHANGED[key]}
