"""Benchmarks: a file of `configs/benchmark/` says where one lies and what it should contain.

A benchmark is named by its file (`amc23`), or is the user's own (`file:my.jsonl`, or a mapping
with the keys of `BenchmarkSpec`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bandpo.config.composition import config_dir
from bandpo.data.conversations import spoken
from bandpo.data.readers import is_data_file
from bandpo.data.sources import FileSource, HubSource, Source, parse_source, with_columns
from bandpo.errors import UserError
from bandpo.types import Problem

logger = logging.getLogger(__name__)

LOCAL = (".jsonl", ".parquet", ".csv")
"""Extensions of local copies under `data.root`."""


class BenchmarkSpec(BaseModel):
    """One file of `configs/benchmark/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="its name in metrics and files", pattern=r"^[\w.-]+$")
    source: Source = Field(description="hub dataset, file or generator")
    file: str | None = Field(
        default=None,
        description="another name, without extension, of a local copy under data.root, with the "
        "columns id, problem and answer; the benchmark's own name will do as well",
    )
    size: int | None = Field(default=None, ge=1, description="how many problems to expect")
    sha256: str | None = Field(
        default=None, description="content_sha256 of the copy this project was tested with"
    )
    answer_type: Literal["integer", "expression"] = Field(
        default="expression", description="integer: every answer must be one, and 073 means 73"
    )


@dataclass(frozen=True)
class Benchmark:
    """Problems to evaluate on, with their origin and content hash."""

    name: str
    problems: tuple[Problem, ...]
    origin: str
    sha256: str
    warnings: tuple[str, ...] = ()

    def head(self, limit: int | None) -> Benchmark:
        """The first `limit` problems as a benchmark of their own, with their own hash."""
        if limit is None or limit >= len(self.problems):
            return self
        problems = self.problems[:limit]
        warning = f"only the first {limit} of {len(self.problems)} problems"
        return dataclasses.replace(
            self,
            problems=problems,
            sha256=content_sha256(problems),
            warnings=(*self.warnings, warning),
        )


def load_benchmark(spec: str | Mapping[str, Any], root: Path | None = None) -> Benchmark:
    """The benchmark that a name, `file:` path or mapping means.

    A local copy under `root` comes before the spec's source. A size or content other than
    expected becomes a warning. Raises `UserError` for duplicated problems, answers of the wrong
    type and unreadable data.
    """
    wanted = benchmark_spec(spec)
    source = _local_copy(wanted, root) or wanted.source
    try:
        problems = source.problems()
    except UserError as error:
        if isinstance(source, HubSource):
            raise UserError(f"benchmark {wanted.name}: {error}\n{_where(wanted, root)}") from error
        raise
    if wanted.answer_type == "integer":
        problems = _integer_answers(problems, wanted.name)
    _refuse_duplicates(problems, wanted.name)
    digest = content_sha256(problems)
    origin = _origin(source)
    warnings = []
    if wanted.size is not None and len(problems) != wanted.size:
        warnings.append(f"{origin} has {len(problems)} problems, expected {wanted.size}")
    if wanted.sha256 is not None and digest != wanted.sha256:
        warnings.append(
            f"{origin} is not the copy that bandpo was tested with: content sha256 "
            f"{digest[:12]}…, expected {wanted.sha256[:12]}…"
        )
    return Benchmark(wanted.name, tuple(problems), origin, digest, tuple(warnings))


def load_benchmarks(
    specs: Sequence[str | Mapping[str, Any]],
    root: Path | None = None,
    columns: Mapping[str, Any] | None = None,
) -> list[Benchmark]:
    """All benchmarks of a list; `columns` are those of the files among them.

    Raises `UserError` if two have the same name, or columns are named and there is no file.
    """
    named = columns or {}
    files = [s for s in specs if isinstance(s, str) and s not in registered()]
    if named and not files:
        raise UserError(
            f"data.columns.{next(iter(named))} names a column of benchmarks that are files "
            "(file:my.jsonl); there is none"
        )
    wanted = [_of_columns(spec, named) if spec in files else spec for spec in specs]
    benchmarks = [load_benchmark(spec, root) for spec in wanted]
    names = [benchmark.name for benchmark in benchmarks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"benchmarks named twice: {', '.join(twice)}; give each its own name")
    return benchmarks


def benchmark_spec(spec: str | Mapping[str, Any]) -> BenchmarkSpec:
    """The spec that a name, `file:` path or mapping means; raises `UserError` if there is none."""
    if isinstance(spec, Mapping):
        return _validated(spec, "benchmark")
    config = config_dir() / "benchmark" / f"{spec}.yaml"
    if config.is_file():
        content = {"name": spec, **yaml.safe_load(config.read_text(encoding="utf-8"))}
        return _validated(content, str(config))
    if not spec.startswith("file:") and not is_data_file(spec):
        raise UserError(
            f"no benchmark {spec!r}; there are {', '.join(registered())}, "
            "and file:my.jsonl (or .parquet, .csv) for your own"
        )
    source = parse_source(spec)
    return _validated({"name": source.name, "source": source}, spec)


def _of_columns(spec: str | Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    own = benchmark_spec(spec)
    return {"name": own.name, "source": with_columns(own.source, columns)}


def registered() -> list[str]:
    """Names of all benchmarks in `configs/benchmark/`."""
    return sorted(path.stem for path in (config_dir() / "benchmark").glob("*.yaml"))


def content_sha256(problems: Sequence[Problem]) -> str:
    """A hash of the problems and their reference answers.

    sha256 over the sorted (turns, problem, answer) in Unicode NFC with white space collapsed; ids,
    other columns and the order of rows do not matter.
    """
    rows = ((*spoken(p.turns), p.problem, p.answer) for p in problems)
    lines = sorted("\0".join(map(_canonical, row)) + "\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _canonical(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _validated(content: Mapping[str, Any], place: str) -> BenchmarkSpec:
    try:
        return BenchmarkSpec.model_validate(dict(content))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError.join(f"{place}: not a benchmark", faults) from error


def _local_copy(spec: BenchmarkSpec, root: Path | None) -> FileSource | None:
    if root is None:
        return None
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder")
    found = next((root / name for name in local_names(spec) if (root / name).is_file()), None)
    if found is None and isinstance(spec.source, HubSource):
        logger.info(
            "%s: no %s in %s, so the hub is asked for %s",
            spec.name,
            _either(local_names(spec)),
            root,
            spec.source.hub,
        )
    return FileSource(path=found) if found else None


def local_names(spec: BenchmarkSpec) -> list[str]:
    """The names under which a local copy of a benchmark is looked for in `data.root`."""
    stems = dict.fromkeys((spec.file or spec.name, spec.name))
    return [f"{stem}{extension}" for stem in stems for extension in LOCAL]


def _where(spec: BenchmarkSpec, root: Path | None) -> str:
    place = f"data.root={root}" if root else "the folder of data.root=…"
    return (
        f"A local copy would be {_either(local_names(spec))} in {place}, with the columns problem "
        "and answer (id is optional)."
    )


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _origin(source: Any) -> str:
    if isinstance(source, FileSource):
        return str(source.path)
    if isinstance(source, HubSource):
        return f"{source.hub}@{source.revision or 'newest'}/{source.split}"
    return str(source.name)


def _integer_answers(problems: Sequence[Problem], name: str) -> list[Problem]:
    """Answers such as 073, 1,000 or 27.0 as plain integers."""
    faults: list[str] = []
    plain: list[Problem] = []
    for problem in problems:
        text = problem.answer.replace(",", "").removesuffix(".0")
        try:
            plain.append(dataclasses.replace(problem, answer=str(int(text))))
        except ValueError:
            faults.append(f"problem {problem.id!r}: answer {problem.answer!r} is no integer")
    if faults:
        raise UserError.join(f"benchmark {name}: answers of the wrong type", faults[:20])
    return plain


def _refuse_duplicates(problems: Sequence[Problem], name: str) -> None:
    same: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        same[_canonical(problem.conversation).casefold()].append(problem.id)
    faults = [f"the same problem under ids {', '.join(ids)}" for ids in same.values() if ids[1:]]
    if faults:
        raise UserError.join(f"benchmark {name}: duplicated problems", faults[:20])
