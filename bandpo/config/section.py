"""The base of every part of a configuration: strict about keys, lenient about single items."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.config import JsonDict

# The effect of a changed setting on a run that resumes (`bandpo.config.identity`). An unmarked key
# makes it another run; the keys of a mapping may be marked one by one.
HARMLESS: JsonDict = {"resume": "harmless"}  # the same rollouts, batches and weights, bitwise
ROUNDING: JsonDict = {"resume": "rounding"}  # the same up to floating-point rounding


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors, and so are NaN and infinity.

    A single item where a list is wanted (`tracking.trackers=wandb`) is a list of one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_item_is_a_list(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {k: [v] if _is_item(v, kinds.get(k)) else v for k, v in values.items()}


def _is_item(value: Any, annotation: Any) -> bool:
    """Whether a text or mapping stands where a field has only lists of such."""
    kind = str if isinstance(value, str) else dict if isinstance(value, Mapping) else None
    if not kind or not value:
        return False
    choices = _members(annotation)
    of_items = any(
        get_origin(choice) is tuple and Ellipsis in get_args(choice) and kind in _kinds(choice)
        for choice in choices
    )
    return of_items and not any(value in get_args(c) for c in choices if get_origin(c) is Literal)


def _kinds(sequence: Any) -> set[Any]:
    """The types of the items of a `tuple[…, ...]`."""
    return {get_origin(member) or member for member in _members(get_args(sequence)[0])}


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)
