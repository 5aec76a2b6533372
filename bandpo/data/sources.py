"""Where problems come from: local files, hub datasets and generators.

A source is a value that a config can spell: `{path: my.jsonl}`, `{hub: org/name, split: test}`,
`{_target_: module.function, …}`, or in short `my.jsonl`, `file:my.jsonl`, `org/name`. Several with
weights are `{sources: [{path: my.jsonl, weight: 3}, {hub: org/name, weight: 1}]}`.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from bandpo.config.targets import reason, why_not_imported
from bandpo.data.columns import Columns
from bandpo.data.readers import Rows, file_rows, hub_rows, name_of
from bandpo.data.rows import BadRows, parse_rows, unusable
from bandpo.disk.paths import looks_like_path
from bandpo.errors import UserError
from bandpo.types import Problem

logger = logging.getLogger(__name__)


class FileSource(BaseModel):
    """A local file with a problem per row, a folder of such files, or a pattern that they match."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="file, folder or pattern; extensions tell the format")
    columns: Columns = Columns()
    bad_rows: BadRows = Field(default="error", description="drop: skip and log them")

    @property
    def name(self) -> str:
        """The name of the dataset in summaries."""
        return name_of(self.path)

    @property
    def place(self) -> str:
        """The source in messages."""
        return str(self.path)

    def rows(self) -> Rows:
        """Every row as it is in the file; raises `UserError` for files that cannot be read."""
        return file_rows(self.path)

    def problems(self) -> list[Problem]:
        """Every row as a `Problem`; raises one `UserError` that names each bad line."""
        return parse_rows(self.rows(), self.columns, self.place, self.name, self.bad_rows)


class HubSource(BaseModel):
    """One split of a dataset on the Hugging Face hub, or in its local cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str = Field(description="dataset id, org/name")
    split: str = Field(default="train", description="split to read")
    subset: str | None = Field(
        default=None, description="configuration of the dataset, where it has some"
    )
    revision: str | None = Field(
        default=None, description="commit, tag or branch; the newest without one"
    )
    columns: Columns = Columns()
    bad_rows: BadRows = Field(default="error", description="drop: skip and log them")

    @property
    def name(self) -> str:
        """The name of the dataset in summaries."""
        return self.hub

    @property
    def place(self) -> str:
        """The source in messages."""
        return f"{self.hub} (split {self.split}, revision {self.revision or 'newest'})"

    def rows(self) -> Rows:
        """Every row as the hub has it; raises `UserError` if it has no such data."""
        return hub_rows(self.hub, self.subset, self.split, self.revision, self.place)

    def problems(self) -> list[Problem]:
        """Every row as a `Problem`; raises `UserError` if the hub has no such data."""
        return parse_rows(self.rows(), self.columns, self.place, self.name, self.bad_rows)


class GeneratedSource(BaseModel):
    """Problems made by a function: `_target_` is its dotted name, other keys its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    target: str = Field(alias="_target_", description="dotted name; returns a list of Problem")

    @property
    def name(self) -> str:
        """The name of the dataset in summaries."""
        return self.target

    def problems(self) -> list[Problem]:
        """The problems that the function returns.

        Raises `UserError` if it cannot be called with these arguments, or returns anything but
        problems with distinct ids, texts and answers.
        """
        if problem := why_not_imported(self.target):
            raise UserError(f"data source {self.target}: {problem}")
        try:
            function = get_method(self.target)
            arguments = instantiate(self.model_extra or {}, _convert_="all")
            inspect.signature(function).bind(**arguments)
        except (ImportError, ValueError, TypeError, InstantiationException) as error:
            raise UserError(f"data source {self.target}: {reason(error)}") from error
        problems = list(function(**arguments))
        uses: Counter[Any] = Counter(getattr(problem, "id", None) for problem in problems)
        faults = [
            f"item {i}: {fault}" for i, p in enumerate(problems) if (fault := _fault(p, uses))
        ]
        if faults:
            raise unusable(f"data source {self.target}", faults, len(problems))
        return problems


def _fault(problem: Any, uses: Counter[Any]) -> str | None:
    """The reason why an item that a function returned is not a problem of a dataset."""
    if not isinstance(problem, Problem):
        return f"expected a Problem, got {type(problem).__name__}"
    if uses[problem.id] > 1:
        return f"id {problem.id!r} is used {uses[problem.id]} times"
    empty = [name for name in ("problem", "answer") if not getattr(problem, name).strip()]
    return f"no {empty[0]}" if empty else None


def _spelled_out(spec: Any) -> Any:
    """The mapping or source that a short string stands for."""
    if isinstance(spec, Path):
        return FileSource(path=spec)
    if not isinstance(spec, str):
        return spec
    explicit = spec.removeprefix("file:")
    is_file = explicit != spec or looks_like_path(spec) or Path(spec).exists()
    return FileSource(path=Path(explicit).expanduser()) if is_file else HubSource(hub=spec)


def _kind(spec: Any) -> Any:
    """Picks the source class by its identifying key, so that errors concern that class alone."""
    spec = _spelled_out(spec)
    if not isinstance(spec, Mapping):
        return spec
    kinds: dict[str, type[BaseModel]] = {
        "path": FileSource,
        "hub": HubSource,
        "_target_": GeneratedSource,
    }
    keys = [key for key in kinds if key in spec]
    if len(keys) != 1:
        raise ValueError(f"a data source needs exactly one of {', '.join(kinds)}")
    return kinds[keys[0]].model_validate(dict(spec))


Source = Annotated[FileSource | HubSource | GeneratedSource, BeforeValidator(_kind)]
_SOURCE: TypeAdapter[FileSource | HubSource | GeneratedSource] = TypeAdapter(Source)


def parse_source(spec: Any) -> FileSource | HubSource | GeneratedSource:
    """The source that a string, path or mapping means; raises `UserError` if it means none."""
    try:
        return _SOURCE.validate_python(spec)
    except ValidationError as error:
        raise _not_a_source(spec, error) from error


def _not_a_source(spec: Any, error: ValidationError) -> UserError:
    faults = [
        ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"])))
        for e in error.errors(include_url=False)
    ]
    return UserError.join(f"data source {spec!r}:", faults)


def with_columns(spec: Any, columns: Mapping[str, Any]) -> Any:
    """The source with some of its columns named; raises `UserError` for one that has none."""
    source = parse_source(spec)
    if not columns:
        return source
    if isinstance(source, GeneratedSource):
        raise UserError(
            f"data.columns.{next(iter(columns))}: {source.name} has no columns; they are of a file "
            "or of one dataset of the hub"
        )
    return source.model_copy(update={"columns": source.columns.but(columns)})


def distinct(names: Sequence[str]) -> list[str]:
    """The names, repeated ones with a number: `a/train.jsonl`, `b/train.jsonl`: train, train-2."""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        free = (other for other in numbered if other not in names and other not in taken)
        taken.append(next(free) if name in taken else name)
    return taken


class WeightedSource(BaseModel):
    """A source with its weight among others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _beside_its_keys(cls, spec: Any) -> Any:
        """`{path: a.jsonl, weight: 3}`, or a source without a weight."""
        if isinstance(spec, cls):
            return spec
        if not isinstance(spec, Mapping):
            return {"source": spec}
        weight = {"weight": spec["weight"]} if "weight" in spec else {}
        return {"source": {k: v for k, v in spec.items() if k != "weight"}, **weight}


def _named(specs: Any) -> Any:
    """The mapping by name that a list of sources means."""
    if isinstance(specs, Mapping) or not isinstance(specs, Sequence) or isinstance(specs, str):
        return specs
    sources = [WeightedSource.model_validate(spec) for spec in specs]
    names = distinct([item.source.name for item in sources])
    return dict(zip(names, sources, strict=True))


class MixtureSource(BaseModel):
    """Sources of which prompts are drawn in shares by their weights (`bandpo.data.sampling`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: Annotated[dict[str, WeightedSource], BeforeValidator(_named)] = Field(
        min_length=1, description="by name, or a list; each with a `weight` beside its own keys"
    )

    def problems(self) -> list[Problem]:
        """Those of all sources; ids begin with the source's name, which is their `source`."""
        return [
            replace(problem, id=f"{name}/{problem.id}", source=name)
            for name, item in self.sources.items()
            for problem in item.source.problems()
        ]


def mixture_of(spec: Any) -> MixtureSource | None:
    """The mixture that `{sources: …}` means, None for another source; raises `UserError`."""
    if not isinstance(spec, Mapping) or "sources" not in spec or "_target_" in spec:
        return None
    try:
        return MixtureSource.model_validate(dict(spec))
    except ValidationError as error:
        raise _not_a_source(spec, error) from error


def weights_of(spec: Any) -> dict[str, float]:
    """Source → weight of a mixture; empty for every other source."""
    mixture = mixture_of(spec)
    return {name: item.weight for name, item in mixture.sources.items()} if mixture else {}


def load_problems(spec: Any, columns: Mapping[str, Any] | None = None) -> list[Problem]:
    """All problems of a source (string, path, mapping or source object).

    `columns` name those that hold id, problem or answer, over the source's own (`Columns`). Raises
    `UserError` with every bad row of the file, up to the first 20 and their count.
    """
    mixture = mixture_of(spec)
    if mixture and columns:
        raise UserError(
            f"data.columns.{next(iter(columns))}: data.train has several sources; name the columns "
            "of each in data.train.sources (columns: {…})"
        )
    return (mixture or with_columns(spec, columns or {})).problems()
