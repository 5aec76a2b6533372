"""Evaluation protocols by name: sampling and prompts of a publication, and deviations from them.

`eval.preset=r1` stands for the settings in `configs/preset/r1.yaml`, each of which an argument may
still replace; the summary names the protocol and every such deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from bandpo.config.composition import config_dir
from bandpo.config.sections.sampling import AlteredSection
from bandpo.errors import UserError, did_you_mean
from bandpo.evaluation.eval_config import EvalSection

KEY = "eval.preset"
PROTOCOL = (
    *("template", "choice_template", "system_prompt", "chat_template", "chat_template_kwargs"),
    *("n", "temperature", "top_p", "top_k", "max_tokens", "stop", *AlteredSection.model_fields),
)
"""The settings of `eval` that make a protocol."""
_DEFAULTS = {
    key: EvalSection.model_fields[key].get_default(call_default_factory=True) for key in PROTOCOL
}


class Preset(BaseModel):
    """One file of `configs/preset/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str = Field(min_length=1, description="the publication or code that it is taken from")
    eval: Mapping[str, Any] = Field(min_length=1, description="settings of the section `eval`")

    def words(self, named: Sequence[str]) -> list[str]:
        """Its settings as overrides, without the keys that are named by themselves."""
        pairs = ((f"eval.{key}", value) for key, value in self.eval.items())
        return [f"{key}={_in_words(value)}" for key, value in pairs if key not in named]

    def deviations(self, section: EvalSection) -> list[str]:
        """`key=value instead of value` for every setting of a protocol that departs from it.

        Those that it does not name have their defaults in it.
        """
        changed = [
            f"eval.{key}={_in_words(getattr(section, key))} instead of {_in_words(value)}"
            for key, value in {**_DEFAULTS, **self.eval}.items()
            if getattr(section, key) != value
        ]
        limit = section.limit
        return [*changed, *([f"eval.limit={limit} instead of all problems"] if limit else [])]


def _in_words(value: Any) -> str:
    """A value as hydra reads it in an override."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_in_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_in_words, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def preset_names() -> list[str]:
    """The presets that there are."""
    return sorted(path.stem for path in (config_dir() / "preset").glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """A preset by its name; raises `UserError` with the names where there is none."""
    names = preset_names()
    if name not in names:
        raise UserError(
            f"{KEY}={name}: no such preset{did_you_mean(name, names)} (there are "
            f"{', '.join(names)})"
        )
    content = yaml.safe_load((config_dir() / "preset" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Preset.model_validate({"name": name, **content})


def with_preset(overrides: Sequence[str]) -> list[str]:
    """The overrides of `bandpo eval`, with a preset's settings before the word that names it.

    Raises `UserError` if there is no such preset.
    """
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    if KEY not in keys:
        return list(overrides)
    place = len(keys) - 1 - keys[::-1].index(KEY)
    name = overrides[place].partition("=")[2].strip("'\"")
    if name in ("null", ""):
        return list(overrides)
    return [*overrides[:place], *read_preset(name).words(keys), *overrides[place:]]
