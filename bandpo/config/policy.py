"""The settings that `bandpo train` begins from: the embedded policy's own, or those of real models.

configs/train.yaml suits models of 100 M parameters and more. The embedded policy of 0.25 M needs
others (configs/policy/embedded.yaml), which would ruin a real model without an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GROUP = "policy"
NAMES_A_MODEL = {GROUP, "protocol", "model", "model.path"}
NAMES_DATA = {"data", "data.train", "data.train.path"}
ARITHMETIC = "bandpo.data.arithmetic.problems"


def _keys(overrides: Iterable[str]) -> set[str]:
    return {override.partition("=")[0].lstrip("+~") for override in overrides}


def is_left_open(overrides: Iterable[str]) -> bool:
    """Whether no override says what to train, so that it is the embedded policy."""
    return _keys(overrides).isdisjoint(NAMES_A_MODEL)


def is_embedded(path: object) -> bool:
    """Whether a `model.path` means the embedded policy or a variant of it."""
    return str(path).partition(":")[0] == "embedded"


def model_given(overrides: Sequence[str]) -> str | None:
    """The `model.path` of the overrides; None where they have none, or only a reference."""
    paths = [o.partition("=")[2] for o in overrides if o.lstrip("+").startswith("model.path=")]
    return None if not paths or "${" in paths[-1] else paths[-1].strip("'\"")


def suited_to(model_path: object, overrides: Sequence[str]) -> list[str]:
    """The overrides with the settings that suit this model, unless they choose some themselves."""
    chosen = GROUP in _keys(overrides) or model_path is None or is_embedded(model_path)
    return [*overrides] if chosen else [f"~{GROUP}", *overrides]


def unintended(overrides: Sequence[str], data: object) -> str | None:
    """The problem of data that would train the embedded policy because no model is named."""
    given = [override for override in overrides if _keys([override]) & NAMES_DATA]
    train = data.get("train") if isinstance(data, Mapping) else None
    own = isinstance(train, Mapping) and train.get("_target_") == ARITHMETIC
    if own or not given or not is_left_open(overrides):
        return None
    return (
        f"{given[0]}: no model is named, and the embedded policy, which is trained without one, "
        "has 0.25 M parameters and knows arithmetic alone; choose model.path=<folder or hub id>, "
        "such as model.path=Qwen/Qwen2.5-0.5B-Instruct (or model.path=embedded, if it is meant)"
    )


def introduction(overrides: Sequence[str], model: Any) -> str | None:
    """The line that says what is trained where no override does."""
    if not is_left_open(overrides) or not is_embedded(model.path):
        return None
    return (
        "no model.path: this trains the embedded policy (0.25 M parameters) on arithmetic, with "
        "its own settings (configs/policy/embedded.yaml); your model: bandpo train "
        "model.path=<folder or hub id> data.train=<file>"
    )
