"""The questions of the page, with their answers as values for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bandpo
from bandpo.errors import UserError
from bandpo.watch import clipping, records
from bandpo.watch.log import log_of
from bandpo.watch.runs import Library, number_or_word, signature
from bandpo.watch.series import AXES, SeriesFile, folded
from bandpo.watch.settings import differences, settings_of, telling

MOST_CHOSEN = 32
"""Runs in one view."""
MOST_METRICS = 40
MOST_POINTS = 600
"""Of a curve: as many as a wide screen has room for."""


class NotFound(UserError):
    """There is no such run, sample or question."""


@dataclass(frozen=True)
class Query:
    """The parameters of a question; raises UserError for what they may not be."""

    values: Mapping[str, Sequence[str]]

    def text(self, name: str, default: str = "") -> str:
        """The last value of a parameter."""
        return self.values.get(name, [default])[-1]

    def whole(self, name: str, default: int = 0) -> int:
        """A whole number that is not negative."""
        text = self.text(name) or str(default)
        if not text.isascii() or not text.isdecimal() or len(text) > 15:
            raise UserError(f"{name}={text}: not a whole number")
        return int(text)

    def number(self, name: str, default: float) -> float:
        """A number."""
        try:
            return float(self.text(name) or default)
        except ValueError:
            raise UserError(f"{name}={self.text(name)}: not a number") from None

    def several(self, name: str, most: int) -> list[str]:
        """All values of a parameter, each once."""
        found = list(dict.fromkeys(self.values.get(name, [])))
        if len(found) > most:
            raise UserError(f"{len(found)} × {name}=: at most {most} at once")
        return found


class Api:
    """Answers from the runs of one folder."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._answers: Mapping[str, Callable[[Query], Any]] = {
            "runs": self._runs,
            "curves": self._curves,
            "clipping": self._clipping,
            "settings": self._settings,
            "sources": lambda query: records.sources(self._folder(query)),
            "samples": self._samples,
            "sample": self._sample,
            "problems": self._problems,
            "log": lambda query: log_of(self._folder(query)),
        }

    def answer(self, question: str, query: Query) -> Any:
        """The answer to a question; raises UserError, NotFound for what is not there."""
        if question not in self._answers:
            raise NotFound(f"no question {question!r}")
        try:
            return self._answers[question](query)
        except OSError as error:
            raise NotFound(f"{question}: {error.strerror or error}") from None

    def version(self, question: str, query: Query) -> str | None:
        """The same as long as the answer is, without finding the answer; None where unknown."""
        if question == "runs":  # states change with time alone
            return None
        folders = self._library.folders()
        chosen = [folders[id] for id in query.values.get("run", []) if id in folders]
        return repr((len(chosen), [signature(folder) for folder in chosen]))

    def _runs(self, query: Query) -> Any:
        runs = self._library.overview()
        return {"folder": self._library.name, "version": bandpo.__version__, "runs": runs}

    def _chosen(self, query: Query) -> dict[str, Path]:
        folders = self._library.folders()
        ids = query.several("run", MOST_CHOSEN)
        return {id: folders[id] for id in ids if id in folders}  # one may have been deleted

    def _folder(self, query: Query) -> Path:
        folder = self._library.folders().get(query.text("run"))
        if folder is None:
            raise NotFound(f"no run {query.text('run')!r}")
        return folder

    def _curves(self, query: Query) -> Any:
        wanted = query.several("metric", MOST_METRICS)
        axis = query.text("x", "step")
        names: dict[str, None] = {}

        def curves(metrics: SeriesFile) -> Any:
            names.update(dict.fromkeys(metrics.series))
            return {name: _curve(metrics, name, axis) for name in wanted if name in metrics.series}

        found = {id: self._library.metrics(id, curves) for id in self._chosen(query)}
        return {"names": sorted(names), "runs": found}

    def _clipping(self, query: Query) -> Any:
        measure = query.text("measure", clipping.MEASURES[0])
        if measure not in clipping.MEASURES:
            raise UserError(f"measure={measure}: one of {', '.join(clipping.MEASURES)}")
        last = query.whole("last")
        return {
            id: self._library.metrics(id, lambda m: clipping.rates(m, measure, last))
            for id in self._chosen(query)
        }

    def _settings(self, query: Query) -> Any:
        chosen = self._chosen(query)
        rows = differences([settings_of(folder) for folder in chosen.values()])
        keys = telling(rows)
        labels = {id: {key: rows[key][place] for key in keys} for place, id in enumerate(chosen)}
        return {"runs": list(chosen), "rows": rows, "labels": labels}

    def _samples(self, query: Query) -> Any:
        choice = records.Choice(
            verdict=query.text("verdict"),
            problem=query.text("problem"),
            query=query.text("query"),
            least=query.number("least", -float("inf")),
            most=query.number("most", float("inf")),
            order=query.text("order", "file"),
        )
        of, step, page = query.text("of", "train"), query.whole("step"), query.whole("page")
        return records.samples(self._folder(query), of, step, choice, page)

    def _sample(self, query: Query) -> Any:
        of, step = query.text("of", "train"), query.whole("step")
        return records.sample(self._folder(query), of, step, query.whole("line"))

    def _problems(self, query: Query) -> Any:
        of, sort = query.text("of", "train"), query.text("sort", "hardest")
        page = query.whole("page")
        return records.problems(self._folder(query), of, sort, query.text("query"), page)


def _curve(metrics: SeriesFile, name: str, axis: str) -> dict[str, Any]:
    """The points of a metric; on another axis than the step with their steps, to smooth by."""
    steps, values = metrics.points(name)
    curve: dict[str, Any] = folded(metrics.points(name, axis)[0], values, MOST_POINTS)
    if axis in AXES:
        curve["step"] = folded(steps, values, MOST_POINTS)["x"]
    return curve | {"last": number_or_word(float(values[-1]))}
