"""How a run put problems to its policy, for evaluations of its checkpoints outside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bandpo.config.composition import defaults
from bandpo.config.sections.prompting import PLAIN
from bandpo.config.sections.sampling import AlteredSection
from bandpo.errors import UserError
from bandpo.model.generation import (
    FILE,
    SAMPLING,
    GenerationSettings,
    generation_settings,
    in_words,
)
from bandpo.model.source import find_model

# Keys of `bandpo eval`, and those of the run that they are taken from. The limit of prompts is not
# among them: it changes no number, and other benchmarks may have longer prompts.
INHERITED = {
    "eval.template": "data.template",
    "eval.max_tokens": "eval.max_tokens",
    "eval.temperature": "eval.temperature",
    "eval.top_p": "eval.top_p",
    "eval.top_k": "eval.top_k",
    "eval.stop": "eval.stop",
    **{f"eval.{name}": f"eval.{name}" for name in AlteredSection.model_fields},
    "dtype": "model.dtype",
    "eval.system_prompt": "data.system_prompt",
    "eval.chat_template": "data.chat_template",
    "eval.chat_template_kwargs": "data.chat_template_kwargs",
}
# Not inherited where they have no effect, nor printed.
NO_EFFECT = defaults(AlteredSection) | {"stop": [], "top_k": 0}
_LONGEST = 60
"""Characters of a value that are printed."""


@dataclass(frozen=True)
class Inheritance:
    """Settings of the run in `folder`, by their key in `bandpo eval`.

    `chat_template` is the run's where its hf/ carries another than the base model's: then it is the
    tokenizer's own.
    """

    folder: Path
    settings: Mapping[str, Any]
    chat_template: str | None = None

    def besides(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The settings that the overrides do not name."""
        named = _named(overrides)
        return {key: value for key, value in self.settings.items() if key not in named}

    def lines(self, overrides: Sequence[str], now: Mapping[str, Any]) -> list[str]:
        """Lines for the user: the inherited settings, and those that an override replaces.

        `now` has the settings of the evaluation, by their keys.
        """
        same = [key for key in self.besides(overrides) if now[key] == self.settings[key]]
        told = [f"{key}={_shown(now[key])}" for key in same if now[key] not in (None, {})]
        if self.chat_template and "eval.chat_template" in same:
            told.append(f"chat template {self.chat_template} (in hf/)")
        return [
            *([f"from {self.folder}: {', '.join(told)}"] if told else []),
            *(
                f"! {key}={_shown(now[key])}, while {self.folder} was trained and evaluated with "
                f"{_shown(value)}: its accuracy may differ for that alone"
                for key, value in self.settings.items()
                if now[key] != value
            ),
        ]


def inheritance(model: str | None, gpu: bool) -> Inheritance | None:
    """The settings that an evaluation inherits from the run of `model`; None without a run.

    `model` is a run's folder, one of its checkpoints or a checkpoint's hf/. Without a GPU weights
    are computed in float32, which is no slower there.
    """
    folder = Path(model).expanduser() if model else None
    if folder is None or not folder.is_dir():
        return None
    place = folder.parent if folder.name == "hf" else folder
    tree = _settings(place / "config.yaml")
    found = {
        key: tree[section][name]
        for key, own in INHERITED.items()
        for section, _, name in [own.partition(".")]
        if name in (tree.get(section) or {})
    }
    if found.get("eval.stop") is None:
        found["eval.stop"] = (tree.get("rollout") or {}).get("stop", [])
    for name, value in NO_EFFECT.items():
        if found.get(f"eval.{name}") == value:
            del found[f"eval.{name}"]
    if not gpu and found.get("dtype") == "bfloat16":
        del found["dtype"]
    carried = None
    if found.get("eval.chat_template") not in (None, PLAIN):
        carried, found["eval.chat_template"] = found["eval.chat_template"], None
    return Inheritance(place, found, carried) if found else None


@dataclass(frozen=True)
class ModelSampling:
    """A model's own sampling settings, for `eval.sampling=model`; arguments go before them."""

    settings: GenerationSettings

    def besides(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Those that the overrides do not name, by their key in `bandpo eval`."""
        named = _named(overrides)
        own = {f"eval.{name}": value for name, value in self.settings.sampling.items()}
        return {key: value for key, value in own.items() if key not in named}

    def lines(self, overrides: Sequence[str]) -> list[str]:
        """Lines for the user: the settings that are taken, and all others of the file."""
        taken = self.besides(overrides)
        replaced = {k: v for k, v in self.settings.sampling.items() if f"eval.{k}" not in taken}
        ignored = replaced | dict(self.settings.others)
        return [
            f"from {FILE}: {in_words(taken) or 'nothing'}",
            *([f"not used of {FILE}: {in_words(ignored)}"] if ignored else []),
        ]


def model_sampling(model: str, allow_pickle: bool = False) -> ModelSampling:
    """The model's sampling settings; raises UserError where its files hold none."""
    found = generation_settings(find_model(model, allow_pickle=allow_pickle).path)
    if not found.sampling:
        raise UserError(
            f"eval.sampling=model: {model} has no {FILE} with {', '.join(SAMPLING)}; set "
            "eval.temperature and the others yourself"
        )
    return ModelSampling(found)


def model_of(overrides: Sequence[str]) -> str | None:
    """The model that the overrides of `bandpo eval` name."""
    named = _named(overrides).get("model")
    return named.strip("'\"") if named else None


def _named(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value) if " " in str(value) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a run; {} where the file is none of a run."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    is_of_a_run = isinstance(content, Mapping) and {"data", "rollout", "learner"} <= content.keys()
    return dict(content) if is_of_a_run else {}
