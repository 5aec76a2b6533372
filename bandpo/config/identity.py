"""Which settings make a run the run it is, and which may change between its parts."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from bandpo.config.composition import defaults
from bandpo.config.schema import Config
from bandpo.redaction import redacted

# What keys and values in files of earlier versions mean: `true` filtered by reward there.
RENAMED = {"learner.warmup_steps": "learner.warmup_updates"}
FORMERLY: Mapping[str, Mapping[Any, Any]] = {"rollout.filter_groups": {True: "reward"}}

Effect = Literal["determining", "rounding", "harmless"]
Settings = Mapping[str, Any]


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as `{"learner.lr": 1e-6, …}`."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def effect_of(key: str) -> Effect:
    """What a change of `learner.lr`, say, does to a run; unmarked keys determine it.

    The marks are in the schema, `bandpo/config/schema.py`, at a field or a section of fields.
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
    """A hash over the settings that determine a run: equal hashes, equal rollouts and weights.

    Left out are harmless settings (names, logging, evaluation, and how many steps are taken) and
    those that change the rounding alone. Accepts the content of a config.yaml as well; a key that
    it lacks has the schema's default.
    """
    values = {k: v for k, v in _complete(settings).items() if effect_of(k) == "determining"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Changes(NamedTuple):
    """`key: was → is` of two configurations, by what a change does to a run that goes on."""

    determining: tuple[str, ...]
    rounding: tuple[str, ...]


def changes(was: Config | Settings, now: Config | Settings) -> Changes:
    """What differs between two configurations, harmless settings left out."""
    before, after = _complete(was), _complete(now)
    found: dict[Effect, list[str]] = {"determining": [], "rounding": [], "harmless": []}
    for key in sorted(before.keys() | after.keys()):
        old, new = (v.get(key, "not set") for v in (before, after))
        if old != new:
            found[effect_of(key)].append(f"{key}: {old} → {new}")
    return Changes(tuple(found["determining"]), tuple(found["rounding"]))


def _complete(settings: Config | Settings) -> dict[str, Any]:
    """Flat and as JSON knows it, with the schema's defaults for keys that are not there.

    Secrets are hidden, as they are in files: a new key does not make another run.
    """
    tree = settings.model_dump(mode="json") if isinstance(settings, Config) else settings
    own = {RENAMED.get(key, key): value for key, value in flat(redacted(tree)).items()}
    values = flat(defaults(Config)) | own
    formerly = {k: names.get(values[k], values[k]) for k, names in FORMERLY.items()}
    return values | formerly
