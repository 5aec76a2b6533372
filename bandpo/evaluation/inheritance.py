"""How a run put problems to its policy, for evaluations of its checkpoints outside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bandpo.config.composition import defaults
from bandpo.config.identity import flat
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
    "eval.stop": "eval.stop",
    **{f"eval.{name}": f"eval.{name}" for name in AlteredSection.model_fields},
    "dtype": "model.dtype",
}
# Not inherited where they have no effect, nor printed.
NO_EFFECT = defaults(AlteredSection) | {"stop": []}


@dataclass(frozen=True)
class Inheritance:
    """Settings of the run in `folder`, by their key in `bandpo eval`."""

    folder: Path
    settings: Mapping[str, Any]

    def besides(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The settings that the overrides do not name."""
        named = _named(overrides)
        return {key: value for key, value in self.settings.items() if key not in named}

    def lines(self, overrides: Sequence[str], now: Mapping[str, Any]) -> list[str]:
        """Lines for the user: the inherited settings, and those that an override replaces.

        `now` has the settings of the evaluation, by their keys.
        """
        taken = self.besides(overrides)
        said = ", ".join(f"{key}={value}" for key, value in taken.items())
        other = {k: v for k, v in self.settings.items() if k not in taken and now[k] != v}
        return [
            *([f"from {self.folder}: {said}"] if said else []),
            *(
                f"! {key}={now[key]}, while {self.folder} was trained and evaluated with {value}: "
                "its accuracy may differ for that alone"
                for key, value in other.items()
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
    values = _settings(place / "config.yaml")
    if values.get("eval.stop") is None:
        values["eval.stop"] = values.get("rollout.stop", [])
    found = {key: values[own] for key, own in INHERITED.items() if own in values}
    for name, value in NO_EFFECT.items():
        if found.get(f"eval.{name}") == value:
            del found[f"eval.{name}"]
    if not gpu and found.get("dtype") == "bfloat16":
        del found["dtype"]
    return Inheritance(place, found) if found else None


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


def _settings(path: Path) -> dict[str, Any]:
    """The flat settings of a run; {} where the file is none of a run."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    is_of_a_run = isinstance(content, Mapping) and {"data", "rollout", "learner"} <= content.keys()
    return flat(content) if is_of_a_run else {}
