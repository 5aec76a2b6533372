"""Contamination: training problems that occur in a benchmark, by normalised text or n-grams."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bandpo.types import Problem

# Layout, font and delimiter commands: the same problem is written with and without them.
_LAYOUT = re.compile(
    r"\\(?:[,;:!> ()\[\]]|(?:left|right|big+[lr]?|displaystyle|limits|text(?:bf|it|rm)?"
    r"|math(?:rm|bf|it|sf)|rm|bf|quad|qquad|hspace)(?![a-z]))"
)
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s\\${}.,;:?~_]")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")


@dataclass(frozen=True)
class Overlap:
    """A training problem and the benchmark problem that it shares the most with.

    `share` is the share of the benchmark problem's n-grams that the training problem contains;
    1 also where the normalised texts are equal.
    """

    train_id: str
    benchmark: str
    problem_id: str
    share: float
    equal: bool


def normalised(text: str) -> tuple[str, ...]:
    """A problem as words, numbers and signs, without layout, fonts, case or punctuation.

    Signs such as + and < count: 1+2 and 1−2 are different problems.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return tuple(_TOKEN.findall(_LAYOUT.sub(" ", _FRACTION.sub(r"\\frac", plain))))


def ngrams(tokens: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """All sequences of n consecutive tokens; none if there are fewer."""
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


class BenchmarkIndex:
    """Benchmark problems by their n-grams, to compare training problems with.

    A training problem overlaps if it contains at least `threshold` of a benchmark problem's
    n-grams, or equals it, or has a turn that does, once both are normalised (the only criterion for
    problems shorter than n tokens).
    """

    def __init__(self, n: int = 10, threshold: float = 0.5) -> None:
        self.n, self.threshold = n, threshold
        self._owners: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._whole: dict[tuple[str, ...], int] = {}
        self._entries: list[tuple[str, str, int]] = []  # (benchmark, problem id, n-grams)

    def add(self, benchmark: str, problems: Iterable[Problem]) -> None:
        """Adds a benchmark's problems."""
        for problem in problems:
            tokens = normalised(problem.conversation)
            grams = ngrams(tokens, self.n)
            for gram in grams:
                self._owners[gram].append(len(self._entries))
            self._whole[tokens] = len(self._entries)
            self._entries.append((benchmark, problem.id, len(grams)))

    def match(self, problem: Problem) -> Overlap | None:
        """The benchmark problem that this one contains in any of its turns, or None."""
        tokens = normalised(problem.conversation)
        said = (problem.problem, *(turn.content for turn in problem.turns))
        for whole in (tokens, *map(normalised, said)):
            if whole in self._whole:
                benchmark, problem_id, _ = self._entries[self._whole[whole]]
                return Overlap(problem.id, benchmark, problem_id, 1.0, True)
        shared = Counter(
            owner for gram in ngrams(tokens, self.n) for owner in self._owners.get(gram, ())
        )
        shares = {owner: count / self._entries[owner][2] for owner, count in shared.items()}
        if not shares:
            return None
        best = max(shares, key=lambda owner: shares[owner])
        if shares[best] < self.threshold:
            return None
        benchmark, problem_id, _ = self._entries[best]
        return Overlap(problem.id, benchmark, problem_id, shares[best], False)

    def overlaps(self, problems: Iterable[Problem]) -> list[Overlap]:
        """Every training problem that contains a benchmark problem."""
        return [found for problem in problems if (found := self.match(problem))]
