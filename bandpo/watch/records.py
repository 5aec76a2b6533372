"""Samples to read and problems by pass rate, of training and of evaluations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.watch.files import lines_of, opened, shown
from bandpo.watch.series import record_in

PROBLEMS = "problems.jsonl"
LONGEST_TEXT = 20_000
"""Characters of a prompt or a completion in a list."""
LONGEST_WHOLE = 4_000_000
LARGEST_SUMMARY = 256 * 2**20  # bytes
PAGE = 50
_STEP = re.compile(r"step_(\d{1,12})\.jsonl")


def sources(folder: Path) -> list[dict[str, Any]]:
    """Where samples can be read: steps of training, and benchmarks of evaluations."""
    steps = [_STEP.fullmatch(name) for name in _names(folder / "samples")]
    found = [{"of": "train", "step": int(match[1])} for match in steps if match]
    for step in _names(folder / "eval"):
        if step.isdecimal():
            names = _names(folder / "eval" / step)
            found += [
                {"of": name.removesuffix(".jsonl"), "step": int(step)}
                for name in names
                if name.endswith(".jsonl")
            ]
    return sorted(found, key=lambda source: (source["of"] != "train", source["of"], source["step"]))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir()) if not folder.is_symlink() else []
    except OSError:
        return []


def _parts_of(of: str, step: int) -> tuple[str, ...]:
    if of == "train":
        return ("samples", f"step_{step:06d}.jsonl")
    return ("eval", f"{step:06d}", f"{of}.jsonl")


@dataclass(frozen=True)
class Choice:
    """Which samples of a source are shown, and in which order.

    verdict        the verifier's, `unparsed` for a wrong answer that could not be read
    problem        an id
    query          in the prompt, the completion or the answer, in any case
    least, most    of the reward; samples of evaluations have 1 where they are right and 0 else
    order          a key of `ORDERS`
    """

    verdict: str = ""
    problem: str = ""
    query: str = ""
    least: float = -float("inf")
    most: float = float("inf")
    order: str = "file"

    def takes(self, record: Mapping[str, Any]) -> bool:
        """Whether a sample is shown."""
        texts = (record.get(key) for key in ("prompt", "completion", "answer", "extracted"))
        query = self.query.casefold()
        return (
            self.verdict in ("", verdict_of(record))
            and self.problem in ("", str(record.get("problem_id")))
            and self.least <= reward_of(record) <= self.most
            and (not query or any(query in str(text).casefold() for text in texts))
        )


ORDERS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "file": lambda record: 0.0,
    "lowest": lambda record: reward_of(record),
    "highest": lambda record: -reward_of(record),
    "longest": lambda record: -_number(record.get("tokens")),
    "shortest": lambda record: _number(record.get("tokens")),
}


def samples(folder: Path, of: str, step: int, choice: Choice, page: int = 0) -> dict[str, Any]:
    """A page of the samples of a source, how many there are, and how many by verdict.

    Raises UserError where there is no such source.
    """
    order = ORDERS.get(choice.order, ORDERS["file"])
    verdicts: Counter[str] = Counter()
    found: list[tuple[float, int]] = []
    with _source(folder, of, step) as file:
        for offset, line in lines_of(file):
            if record := record_in(line):
                verdicts[verdict_of(record)] += 1
                if choice.takes(record):
                    found.append((order(record), offset))
        found.sort()
        shown_ones = []
        for _, offset in found[page * PAGE : (page + 1) * PAGE]:
            file.seek(offset)
            line = next(lines_of(file))[1]
            shown_ones.append({"line": offset, **_sample(record_in(line), LONGEST_TEXT)})
    total = sum(verdicts.values())
    return {
        "samples": shown_ones,
        "found": len(found),
        "total": total,
        "page": page,
        "pages": max(1, -(-len(found) // PAGE)),
        "verdicts": dict(verdicts.most_common()),
    }


def sample(folder: Path, of: str, step: int, line: int) -> dict[str, Any]:
    """One sample with its whole text, by the offset of its line."""
    with _source(folder, of, step) as file:
        file.seek(line)
        record = next((record_in(data) for _, data in lines_of(file)), {})
    return {"line": line, **_sample(record, LONGEST_WHOLE)}


def _source(folder: Path, of: str, step: int) -> Any:
    return opened(folder, *_parts_of(of, step))


def verdict_of(record: Mapping[str, Any]) -> str:
    """The verifier's status, or `unparsed` for a wrong answer that could not be read."""
    status, detail = record.get("status"), record.get("detail")
    return "unparsed" if status == "wrong" and detail == "unparsed" else str(status or "unknown")


def reward_of(record: Mapping[str, Any]) -> float:
    """A training sample's reward; 1 for a right sample of an evaluation and 0 for another."""
    return _number(record.get("value", float(record.get("status") == "correct")))


def _number(value: Any) -> float:
    """A finite number; 0 for everything else."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else 0.0


def _sample(record: Mapping[str, Any], longest: int) -> dict[str, Any]:
    texts = {key: shown(record.get(key), longest) for key in ("prompt", "completion")}
    short = ("problem_id", "answer", "extracted", "detail")
    parts = record.get("parts")
    return {
        **texts,
        **{key: shown(record.get(key), 2000) for key in short},
        "verdict": shown(verdict_of(record), 40),
        "reward": float(f"{reward_of(record):.6g}"),
        "parts": {shown(k, 80): float(f"{_number(v):.6g}") for k, v in parts.items()}
        if isinstance(parts, Mapping)
        else {},
        "tokens": int(_number(record.get("tokens"))),
        "truncated": bool(record.get("truncated")),
        "cut": any(len(str(record.get(key) or "")) > longest for key in texts),
    }


@dataclass(frozen=True)
class Problem:
    """A problem's groups: the share of right samples in each of them, the last one last."""

    id: str
    rates: tuple[float, ...]
    samples: int
    step: int
    answer: str = ""
    state: str = ""

    @property
    def rate(self) -> float:
        """The share of right samples in the last group."""
        return self.rates[-1]

    @property
    def change(self) -> float:
        """By how much the last pass rate is above the first one known."""
        return self.rates[-1] - self.rates[0]


SORTS: Mapping[str, Callable[[Problem], float]] = {
    "hardest": lambda problem: problem.rate,
    "easiest": lambda problem: -problem.rate,
    "gained": lambda problem: -problem.change,
    "lost": lambda problem: problem.change,
    "latest": lambda problem: -problem.step,
}


def problems(
    folder: Path, of: str, sort: str = "hardest", query: str = "", page: int = 0
) -> dict[str, Any]:
    """A page of the problems of training or of a benchmark, and a histogram of pass rates.

    Raises OSError where nothing is known of them.
    """
    every = list(_trained(folder) if of == "train" else _evaluated(folder, of))
    wanted = query.casefold()
    found = [p for p in every if wanted in p.id.casefold() or wanted in p.answer.casefold()]
    found.sort(key=SORTS.get(sort, SORTS["hardest"]))
    tenths = Counter(min(9, int(10 * problem.rate)) for problem in every)
    return {
        "problems": [_row(problem) for problem in found[page * PAGE : (page + 1) * PAGE]],
        "found": len(found),
        "total": len(every),
        "page": page,
        "pages": max(1, -(-len(found) // PAGE)),
        "never": sum(problem.rate == 0 for problem in every),
        "always": sum(problem.rate == 1 for problem in every),
        "histogram": [tenths[i] for i in range(10)],
    }


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "id": shown(problem.id, 200),
        "rate": problem.rate,
        "change": problem.change,
        "rates": problem.rates,
        "samples": problem.samples,
        "step": problem.step,
        "answer": shown(problem.answer, 200),
        "state": shown(problem.state, 40),
    }


def _trained(folder: Path) -> Iterator[Problem]:
    with opened(folder, PROBLEMS) as file:
        for _, line in lines_of(file):
            record = record_in(line)
            recent = record.get("recent")
            rates = tuple(map(_share, recent)) if isinstance(recent, list) else ()
            if rates and record.get("id") is not None:
                samples, step = (int(_number(record.get(key))) for key in ("samples", "step"))
                state = str(record.get("state") or "")
                yield Problem(str(record["id"]), rates, samples, step, state=state)


def _evaluated(folder: Path, of: str) -> Iterator[Problem]:
    """The results of all evaluations, by problem."""
    rates: dict[str, list[float]] = {}
    last: dict[str, tuple[int, int, str]] = {}
    for step in _names(folder / "eval"):
        for result in _results(folder, step, of):
            n = int(_number(result.get("n")))
            if n > 0:
                id = str(result.get("id"))
                rates.setdefault(id, []).append(_share(_number(result.get("correct")) / n))
                last[id] = (n, int(step), str(result.get("answer") or ""))
    if not rates:
        raise FileNotFoundError("no evaluation of it is finished")
    for id, of_one in rates.items():
        n, at, answer = last[id]
        yield Problem(id, tuple(of_one), n, at, answer)


def _results(folder: Path, step: str, of: str) -> list[Mapping[str, Any]]:
    if not step.isdecimal():
        return []
    try:
        with opened(folder, "eval", step, "summary.json") as file:
            summary = record_in(file.read(LARGEST_SUMMARY)).get(of)
    except OSError:
        return []
    found = summary.get("problems") if isinstance(summary, Mapping) else None
    return [result for result in found or [] if isinstance(result, Mapping)]


def _share(value: Any) -> float:
    return min(1.0, max(0.0, round(_number(value), 6)))
