"""Benchmarks: a file of `configs/benchmark/` says where one lies and what it should contain.

A benchmark is named by its file (`amc23`), or is the user's own (`file:my.jsonl`, or a mapping
with the keys of `BenchmarkSpec`). Several are named by a group (`math`, `all`), or by a text file
with one of them per line (`list.txt`).
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
from bandpo.data.choices import Choices
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
    also: tuple[Source, ...] = Field(
        default=(), description="further sources, whose problems follow"
    )
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
    context: str | None = Field(
        default=None, description="column with a text to put before the problem, where it has one"
    )
    tolerance: str | None = Field(
        default=None,
        description="column with the error that an answer may have; it is reported, not applied",
    )
    choices: Choices | None = Field(
        default=None, description="of a multiple-choice benchmark, whose answers become letters"
    )
    gated: bool = Field(default=False, description="the hub asks for consent before it is loaded")


@dataclass(frozen=True)
class Benchmark:
    """Problems to evaluate on, with their origin and content hash.

    The answers of a `multiple_choice` benchmark are letters of choices in the problems' texts.
    """

    name: str
    problems: tuple[Problem, ...]
    origin: str
    sha256: str
    warnings: tuple[str, ...] = ()
    multiple_choice: bool = False

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
    expected becomes a warning, and so do problems that a set of the hub repeats: it is evaluated as
    published. Raises `UserError` for duplicates in other data, answers of the wrong type and
    unreadable data.
    """
    wanted = benchmark_spec(spec)
    local = _local_copy(wanted, root)
    sources = [local] if local else [wanted.source, *wanted.also]
    problems = _read(sources, wanted, root)
    if wanted.context:
        problems = [_in_context(problem, wanted.context) for problem in problems]
    if wanted.choices:
        problems = _lettered(problems, wanted.choices, wanted.name)
    if wanted.answer_type == "integer":
        problems = _integer_answers(problems, wanted.name)
    repeated = _duplicates(problems)
    if repeated and not isinstance(sources[0], HubSource):
        raise UserError.join(f"benchmark {wanted.name}: duplicated problems", repeated[:20])
    digest = content_sha256(problems)
    origin = " + ".join(map(_origin, sources))
    warnings = _tolerances(problems, wanted.tolerance) if wanted.tolerance else []
    warnings += [f"{origin}: {fault}" for fault in repeated[:20]]
    if wanted.size is not None and len(problems) != wanted.size:
        warnings.append(f"{origin} has {len(problems)} problems, expected {wanted.size}")
    if wanted.sha256 is not None and digest != wanted.sha256:
        warnings.append(
            f"{origin} is not the copy that bandpo was tested with: content sha256 "
            f"{digest[:12]}…, expected {wanted.sha256[:12]}…"
        )
    choices = wanted.choices is not None
    return Benchmark(wanted.name, tuple(problems), origin, digest, tuple(warnings), choices)


def load_benchmarks(
    specs: Sequence[str | Mapping[str, Any]],
    root: Path | None = None,
    columns: Mapping[str, Any] | None = None,
) -> list[Benchmark]:
    """All benchmarks of a list, groups included; `columns` are those of the files among them.

    Raises `UserError` if two have the same name, or columns are named and there is no file.
    """
    specs, named = expanded(specs), columns or {}
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
            "the groups math and all, and file:my.jsonl (or .parquet, .csv) for your own"
        )
    source = parse_source(spec)
    return _validated({"name": source.name, "source": source}, spec)


def _of_columns(spec: str | Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    own = benchmark_spec(spec)
    return {"name": own.name, "source": with_columns(own.source, columns)}


def registered() -> list[str]:
    """Names of all benchmarks in `configs/benchmark/`."""
    return sorted(path.stem for path in (config_dir() / "benchmark").glob("*.yaml"))


def groups() -> dict[str, list[str]]:
    """The benchmarks of each group: `all` that are on the hub, and `math` without choices."""
    specs = [benchmark_spec(name) for name in registered()]
    hub = [spec for spec in specs if isinstance(spec.source, HubSource)]
    return {
        "all": [spec.name for spec in hub],
        "math": [spec.name for spec in hub if spec.choices is None],
    }


def expanded(specs: Sequence[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """The specs with groups and list files replaced by what they name, each once.

    A list file is a text file (`.txt`) with a benchmark per line; `#` begins a comment. Raises
    `UserError` for one that cannot be read or names nothing.
    """
    found: list[str | Mapping[str, Any]] = []
    for spec in specs:
        if isinstance(spec, str) and (members := _members(spec)) is not None:
            found += [name for name in members if name not in specs and name not in found]
        else:
            found.append(spec)
    return found


def _members(spec: str) -> Sequence[str] | None:
    """The benchmarks that a group or a list file names; None where the spec is neither."""
    if spec in ("all", "math"):
        return groups()[spec]
    path = Path(spec.removeprefix("file:")).expanduser()
    if path.suffix.lower() != ".txt":
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no readable list of benchmarks: {error}") from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise UserError(f"{path}: names no benchmark; write one per line, such as math500")
    return names


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
    if found and spec.choices and isinstance(spec.source, HubSource):
        return FileSource(path=found, columns=spec.source.columns)  # it needs the wrong ones too
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
    columns = "problem and answer (id is optional)"
    if spec.choices and isinstance(spec.source, HubSource):
        own = spec.source.columns
        columns = ", ".join([own.problem, own.answer, *spec.choices.wrong])
    consent = (
        "The hub's set is gated: accept its terms on its page and log in (hf auth login). "
        if spec.gated
        else ""
    )
    return (
        f"{consent}A local copy would be {_either(local_names(spec))} in {place}, with the columns "
        f"{columns}."
    )


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _origin(source: Any) -> str:
    if isinstance(source, FileSource):
        return str(source.path)
    if isinstance(source, HubSource):
        return f"{source.hub}@{source.revision or 'newest'}/{source.split}"
    return str(source.name)


def _read(sources: Sequence[Source], spec: BenchmarkSpec, root: Path | None) -> Sequence[Problem]:
    """The problems of all sources; ids of more than one have their source's name before them."""
    problems: list[Problem] = []
    for source in sources:
        try:
            rows = source.problems()
        except UserError as error:
            if isinstance(source, HubSource):
                where = _where(spec, root)
                raise UserError(f"benchmark {spec.name}: {error}\n{where}") from error
            raise
        if len(sources) > 1:
            name = source.name.rpartition("/")[2]
            rows = [dataclasses.replace(row, id=f"{name}/{row.id}") for row in rows]
        problems += rows
    return problems


def _in_context(problem: Problem, column: str) -> Problem:
    """The problem after the text that its column has, if any."""
    context = str(problem.meta.get(column) or "").strip()
    text = f"{context}\n\n{problem.problem}" if context else problem.problem
    return dataclasses.replace(problem, problem=text)


def _lettered(problems: Sequence[Problem], choices: Choices, name: str) -> list[Problem]:
    """The problems with their choices; raises one `UserError` for those that lack some."""
    faults: list[str] = []
    found: list[Problem] = []
    for problem in problems:
        try:
            found.append(choices.lettered(problem))
        except KeyError as missing:
            faults.append(f"problem {problem.id!r}: no choice in column {missing}")
    if faults:
        raise UserError.join(f"benchmark {name}: choices are missing", faults[:20])
    return found


def _tolerances(problems: Sequence[Problem], column: str) -> list[str]:
    """A warning about problems whose answers may have an error, which is not applied."""
    with_one = [p.id for p in problems if str(p.meta.get(column) or "").strip() not in ("", "0")]
    if not with_one:
        return []
    return [
        f"the answers of {len(with_one)} problems have a tolerance (column {column}), which is not "
        f"applied, so that only exact ones are right: {', '.join(with_one[:10])}"
        + ("…" if len(with_one) > 10 else "")
    ]


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


def _duplicates(problems: Sequence[Problem]) -> list[str]:
    """The problems that occur more than once, by their ids."""
    same: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        same[_canonical(problem.conversation).casefold()].append(problem.id)
    return [f"the same problem under ids {', '.join(ids)}" for ids in same.values() if ids[1:]]
