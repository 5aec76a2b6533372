"""Recipes: `recipes/<name>/recipe.yaml` describes a table, models × methods × seeds.

A recipe holds only settings that differ from `bandpo train`'s defaults; with
`extends: ../paper.yaml` it overrides another file. A file with a hydra `_target_` is a study of its
own kind (`Study`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, field_validator

from bandpo.config.composition import validate
from bandpo.config.section import Section
from bandpo.config.targets import reason
from bandpo.errors import UserError

FILE = "recipe.yaml"
_PLAIN = re.compile(r"[\w./:+-]+")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Seeds = int | tuple[int, ...]


class Study(Protocol):
    """A recipe that is not models × methods; its `_target_` names the class."""

    def run(self, folder: Path, smoke: bool) -> None:
        """Writes table.md and figures into `folder` and prints their paths.

        With `smoke`, a small version that shows that everything works.
        """
        ...


class MethodRow(Section):
    """A row of the table; its name is a file of configs/method unless `overrides` sets `method`."""

    overrides: dict[str, Any] = Field({}, description="Keys of `bandpo train` and their values.")
    seeds: Seeds | None = Field(None, description="Instead of the recipe's.")


class ModelRow(Section):
    """A group of rows."""

    overrides: dict[str, Any] = Field({}, description="Keys of `bandpo train` and their values.")
    mean_tokens: int | None = Field(
        None, ge=1, description="Expected completion, for the estimate of hours; null: the longest."
    )


class Smoke(Section):
    """The settings of `--smoke`: a table in minutes that shows that everything works."""

    methods: tuple[str, ...] = Field((), description="These alone; empty: all.")
    models: tuple[str, ...] = Field((), description="These alone; empty: all.")
    seeds: Seeds = 2
    notice: str | None = Field(None, description="Instead of the recipe's.")
    overrides: dict[str, Any] = Field({}, description="Over everything else.")


class Recipe(Section):
    """A table: models × methods × seeds of `bandpo train`."""

    title: str = Field(min_length=1)
    notice: str | None = Field(
        None, description="Printed before anything runs: how long it takes, what it downloads."
    )
    protocol: Literal["paper32", "release16", "small", "smollm2"] | None = Field(
        None,
        description="A file of configs/protocol: the release's settings with G = 32 or 16, or "
        "those of a study on CPU cores.",
    )
    overrides: dict[str, Any] = Field({}, description="For every run, over the protocol.")
    models: dict[str, ModelRow] = Field(min_length=1)
    methods: dict[str, MethodRow] = Field(min_length=1, description="The first is compared with.")
    seeds: Seeds = 3
    expected: str | None = Field(None, description="Published values, relative to the recipe.")
    cluster: str | None = Field(None, description="GPUs of a run, such as 8xH200; null: a CPU.")
    launcher: dict[str, Any] | None = Field(
        None, description="hydra `_target_` of a Launcher; null: one process per run."
    )
    smoke: Smoke | None = None

    def smoked(self) -> Recipe:
        """The small version; raises UserError where the file has none."""
        if self.smoke is None:
            raise UserError("this recipe has no small version: its file has no `smoke`")
        smoke = self.smoke
        unknown = {*smoke.models} - self.models.keys() | {*smoke.methods} - self.methods.keys()
        if unknown:
            raise UserError(f"smoke: {', '.join(sorted(unknown))} is not a row of the recipe")
        return self.model_copy(
            update={
                "models": {k: v for k, v in self.models.items() if k in (smoke.models or (k,))},
                "methods": {
                    name: row.model_copy(update={"seeds": None})
                    for name, row in self.methods.items()
                    if name in (smoke.methods or (name,))
                },
                "seeds": smoke.seeds,
                "notice": smoke.notice,
                "overrides": {**self.overrides, **smoke.overrides},
            }
        )

    @field_validator("seeds")
    @classmethod
    def _has_seeds(cls, seeds: Seeds) -> Seeds:
        if not seed_list(seeds):
            raise ValueError("names no seed")
        return seeds

    @field_validator("models", "methods")
    @classmethod
    def _names_are_folders(cls, rows: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name in rows if not re.match(_NAME, name)]
        if bad:
            raise ValueError(f"{', '.join(bad)}: a name is letters, digits, '.', '_' and '-'")
        return rows


def seed_list(seeds: Seeds) -> tuple[int, ...]:
    """`3` → (0, 1, 2); a list is itself."""
    return tuple(range(seeds)) if isinstance(seeds, int) else seeds


@dataclass(frozen=True)
class RecipeFolder:
    """A recipe's folder, with recipe.yaml and README.md, and the content of the former."""

    path: Path
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def is_study(self) -> bool:
        """Whether the file names a class of its own."""
        return "_target_" in self.content

    def study(self, overrides: Sequence[str] = ()) -> Study:
        """The study with `key=value` settings changed; raises UserError for wrong ones."""
        try:
            settings = OmegaConf.merge(self.content, OmegaConf.from_dotlist(list(overrides)))
        except OmegaConfBaseException as error:
            raise UserError(f"{self.path / FILE}: {str(error).splitlines()[0]}") from None
        study: Study = self.built(settings)
        if not callable(getattr(study, "run", None)):
            raise UserError(
                f"{self.path / FILE}: {self.content['_target_']} is not a study: it has no "
                "run(folder, smoke)"
            )
        return study

    def built(self, settings: Any) -> Any:
        """The object that a `_target_` of the file names; raises UserError if it cannot be made."""
        try:
            if str(self.path) not in sys.path:  # a study's Python lies beside its recipe.yaml
                sys.path.insert(0, str(self.path))
            return instantiate(settings)
        except UserError:
            raise
        except Exception as error:  # whatever the class raises, its settings are the user's
            raise UserError(f"{self.path / FILE}: {reason(error)}") from None

    def recipe(self) -> Recipe:
        """The table; raises UserError with every problem of the file."""
        try:
            return validate(self.content, Recipe)
        except UserError as error:
            raise UserError(f"{self.path / FILE}: {error}") from None

    def expected(self) -> dict[str, Any]:
        """Published values: model → method → benchmark → metric → percent, or null; {}: none."""
        name = self.content.get("expected")
        if name is None:
            return {}
        path = self.path / name
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["values"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: no published values: {error!r}") from None
        return values


def find_recipe(place: str) -> RecipeFolder:
    """A recipe by the name of its folder in ./recipes, or by path.

    Raises UserError if there is none, or if its file cannot be read.
    """
    candidates = (Path("recipes") / place, Path(place), Path(place).parent)
    for folder in candidates:
        if (folder / FILE).is_file():
            return RecipeFolder(folder.resolve(), _read(folder / FILE))
    known = ", ".join(sorted(path.parent.name for path in Path("recipes").glob(f"*/{FILE}")))
    raise UserError(
        f"no recipe {place!r}: neither recipes/{place}/{FILE} nor {place}/{FILE} exists; "
        f"recipes here: {known or 'none (run it in the folder that holds recipes/)'}"
    )


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file merged over those that it extends; `above` are the files that extend it."""
    if path.resolve() in above:
        raise UserError(f"{path}: extends itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of keys to values")
    base = content.pop("extends", None)
    if base is None:
        return content
    try:
        merged = OmegaConf.merge(_read(path.parent / str(base), (*above, path.resolve())), content)
        return OmegaConf.to_container(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def override_of(key: str, value: Any) -> str:
    """`key=value` as hydra reads it: `override_of("a.b", [1, None])` → `a.b=[1,null]`."""
    return f"{key}={_hydra_value(value)}"


def _hydra_value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return "{" + ",".join(f"{k}:{_hydra_value(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_hydra_value, value)) + "]"
        case str() if not (_PLAIN.fullmatch(value) or "${" in value):
            return QuotedString(value, Quote.single).with_quotes()
        case _:
            return str(value)
