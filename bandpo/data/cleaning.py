"""Filters of a training set; each takes problems and returns those that it keeps."""

from __future__ import annotations

import dataclasses
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Protocol

from bandpo.data.benchmarks import Benchmark, load_benchmarks
from bandpo.data.overlap import BenchmarkIndex, normalised
from bandpo.errors import UserError
from bandpo.types import Problem

logger = logging.getLogger(__name__)

LISTED = 20  # values of a column spelled out in one message
# Letters of scripts other than Latin and Greek: Cyrillic, Hebrew, Arabic, Indic and Thai, Hangul,
# kana and Han.
_OTHER_SCRIPTS = re.compile(
    "[\u0400-\u052f\u0590-\u06ff\u0900-\u0e7f\u1100-\u11ff\u3040-\u30ff"
    "\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)

_LINE_END = re.compile(r"\r?\n[ \t]*")
_LEADING_ZEROS = re.compile(r"^(-?)0+(?=\d)")


class Filter(Protocol):
    """One step of cleaning; a frozen dataclass, whose repr names it and its settings."""

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems that are kept, in their order."""
        ...


@dataclass(frozen=True)
class DropControlCharacters:
    r"""Drops rows with control characters, which are mangled LaTeX: \frac read as form feed + rac.

    Line ends and indentation are kept; a tab inside a line is the \t of \text or \times.
    """

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems without them."""
        return [p for p in problems if not self._mangled(f"\n{p.conversation}\n{p.answer}")]

    def _mangled(self, text: str) -> bool:
        rest = _LINE_END.sub("", text)
        return any(unicodedata.category(char) in ("Cc", "Cs") for char in rest)


@dataclass(frozen=True)
class EnglishOnly:
    """Drops rows with letters of another script than Latin or Greek."""

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems without them; other languages in Latin script are not recognised."""
        return [p for p in problems if not _OTHER_SCRIPTS.search(p.conversation + p.answer)]


@dataclass(frozen=True)
class KeepValues:
    """Drops rows whose column has another value than these; rows without the column are kept.

    Values are compared as numbers where they are: 5, 5.0, "5" and, in a column `level`, "Level 5"
    are equal.
    """

    column: str
    values: Sequence[Any]

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems with one of the values, or without the column.

        Dropped rows are logged by value, and so are values and columns that no row has. Raises
        `UserError` where all rows that have the column would be dropped.
        """
        wanted = {self._plain(value) for value in self.values}
        found = [self._value(problem) for problem in problems]
        there = Counter(value for value in found if value is not None)
        dropped = Counter({v: rows for v, rows in there.items() if self._plain(v) not in wanted})
        if there and len(dropped) == len(there):
            raise UserError(f"{self}: no row has one of these values; there are {_counted(there)}")
        self._log(problems, there, dropped)
        return [p for p, value in zip(problems, found, strict=True) if value not in dropped]

    def _value(self, problem: Problem) -> Any:
        return problem.source if self.column == "source" else problem.meta.get(self.column)

    def _plain(self, value: Any) -> Decimal | str:
        """A value as a number where it is one, else as its words in lower case."""
        text = " ".join(str(value).split()).casefold()
        number = text.removeprefix(self.column.rpartition(".")[2].casefold()).strip()
        try:
            return Decimal(number) if Decimal(number).is_finite() else text
        except InvalidOperation:
            return text

    def _log(self, problems: Sequence[Problem], there: Counter[Any], dropped: Counter[Any]) -> None:
        known = {self._plain(value) for value in there}
        missing = [value for value in self.values if self._plain(value) not in known]
        if not there:
            columns = ", ".join(sorted({"source", *(key for p in problems for key in p.meta)}))
            logger.warning("%s drops nothing: no row has this column, but %s", self, columns)
        elif missing:
            logger.warning("%s: no row has %s; there are %s", self, missing, _counted(there))
        elif dropped:
            logger.info("%s drops %s", self, _counted(dropped))


def _counted(values: Counter[Any]) -> str:
    """The most frequent values with their numbers of rows."""
    shown = [f"{value!r} ({rows} rows)" for value, rows in values.most_common(LISTED)]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class DropConflicts:
    """Drops every row of a problem that occurs with different answers."""

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems whose copies, if any, agree."""
        answers: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for problem in problems:
            answer = _LEADING_ZEROS.sub(r"\1", "".join(problem.answer.split()))
            answers[normalised(problem.conversation)].add(answer)
        return [p for p in problems if len(answers[normalised(p.conversation)]) == 1]


@dataclass(frozen=True)
class Deduplicate:
    """Keeps the first row of each problem, equal once normalised."""

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems without their later copies."""
        first: dict[tuple[str, ...], Problem] = {}
        for problem in problems:
            first.setdefault(normalised(problem.conversation), problem)
        return list(first.values())


@dataclass(frozen=True)
class Decontaminate:
    """Drops training problems that occur in a benchmark (`bandpo.data.overlap`)."""

    benchmarks: Sequence[Any]
    root: str | None = None
    n: int = 10
    threshold: float = 0.5

    def __call__(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems that match no benchmark problem."""
        index = BenchmarkIndex(self.n, self.threshold)
        for benchmark in self.loaded():
            index.add(benchmark.name, benchmark.problems)
        return [problem for problem in problems if index.match(problem) is None]

    def loaded(self) -> list[Benchmark]:
        """The benchmarks themselves; raises `UserError` if one cannot be read."""
        root = None if self.root is None else Path(self.root)
        return load_benchmarks(self.benchmarks, root)


def settings(step: Filter) -> dict[str, Any]:
    """A filter as plain values; benchmarks by their content, wherever they lie."""
    found: dict[str, Any] = {"filter": type(step).__name__}
    if dataclasses.is_dataclass(step) and not isinstance(step, type):
        found |= dataclasses.asdict(step)
    if isinstance(step, Decontaminate):
        found |= {"root": None, "benchmarks": {b.name: b.sha256 for b in step.loaded()}}
    return found
