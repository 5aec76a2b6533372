"""Where problems come from: local files, hub datasets and generators.

A source is a value that a config can spell: `{path: my.jsonl}`, `{hub: org/name, split: test}`,
`{_target_: module.function, …}`, or in short `my.jsonl`, `file:my.jsonl`, `org/name`.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

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
        faults = [
            ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"])))
            for e in error.errors(include_url=False)
        ]
        raise UserError.join(f"data source {spec!r}:", faults) from error


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


def load_problems(spec: Any, columns: Mapping[str, Any] | None = None) -> list[Problem]:
    """All problems of a source (string, path, mapping or source object).

    `columns` name those that hold id, problem or answer, over the source's own (`Columns`). Raises
    `UserError` with every bad row of the file, up to the first 20 and their count.
    """
    return with_columns(spec, columns or {}).problems()
