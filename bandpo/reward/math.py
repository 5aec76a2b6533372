"""The math verifier: correct, impossible to hang, and overlapping with generation."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from bandpo.errors import UserError
from bandpo.reward import notation
from bandpo.reward.extract import Extraction, extract
from bandpo.reward.futures import gather, resolved, then
from bandpo.reward.pool import Limits, Reply, Request, WorkerPool
from bandpo.reward.restating import restates
from bandpo.reward.score import DETAILS, Closing, LowestForm, Score, Status, has_bad_gold

if TYPE_CHECKING:  # bandpo.types imports torch, which verifier workers must not load
    from bandpo.types import Group, Problem

logger = logging.getLogger(__name__)

_STATUS: dict[str, Status] = {
    "equal": "correct",
    "timeout": "timeout",
    "crashed": "crashed",
    "bad_gold": "bad_gold",
}

# Towers and large factorials: late because they are meant to be, not because mathematics is hard.
_HUGE = re.compile(r"\^.{0,40}\^|\^\s*\{?\s*-?\d{4,}|\d{4,}\s*\)?\s*!|!.{0,3}!|\d\s*[eE]\s*\d{3,}")

# Raised by whatever changes a verdict: scores saved under another number are of another verifier.
COMPARISON = 3


def verifier_version() -> dict[str, str]:
    """Name and version of the verifier, for run.json: the parser's, and that of the comparison."""
    parser = importlib.metadata.version("math-verify")
    return {"name": "math-verify", "version": f"{parser}+bandpo.{COMPARISON}"}


@dataclass(frozen=True)
class Attempt:
    """A completion to score, with its reference answer and the text that the model was shown."""

    completion: str
    gold: str
    problem: str = ""
    prompt: str = ""


# A worker has about 65 MiB mapped before it reads its first answer.
_LEAST = {"timeout": 0.05, "workers": 1, "memory_mib": 256, "cache_size": 1}


def _check(**limits: float) -> None:
    problems = [
        f"reward.{name} is {value}: it must be at least {_LEAST[name]}"
        for name, value in limits.items()
        if not value >= _LEAST[name]
    ]
    if problems:
        raise UserError.join("the verifier cannot work with these limits:", problems)


def _lowest_form(value: object) -> LowestForm:
    """The setting, of which configurations of earlier versions have true and false."""
    named = {True: "strict", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if named not in get_args(LowestForm):
        raise UserError(f"reward.lowest_form is {value!r}: it must be restated, strict or off")
    return named  # type: ignore[return-value]


class MathVerifier(Closing):
    """Scores completions against reference answers with math-verify, outside this process.

    The answer is found by `bandpo.reward.extract` and compared by `bandpo.reward.equality` in a
    pool of worker processes, each item under a wall-clock limit, a memory limit and bounds on
    its size. Plain integers and decimals need no worker: they are compared by value
    (`fast_path`). Equal (answer, reference) pairs are
    verified once. Threads may share a verifier; workers start with the first item that needs one.

    `timeout` is in seconds per item; `free_extraction` lets math-verify search the end of a text
    without a box or "Answer:" line; `lowest_form` says which answers that equal the reference are
    left unevaluated (`bandpo.reward.equality.form`): `restated` refuses what the problem says and
    plain arithmetic (`37+14` for 51), `strict` all but numerals (`2^{10}` for 1024), `off` nothing.
    True and False are `strict` and `off`. Raises UserError for limits that are too small for a
    worker and for another `lowest_form`.
    """

    def __init__(
        self,
        *,
        timeout: float = 3.0,
        workers: int = 2,
        memory_mib: int = 512,
        free_extraction: bool = False,
        lowest_form: LowestForm | bool = "restated",
        fast_path: bool = True,
        cache_size: int = 65536,
        correct: float = 1.0,
        wrong: float = 0.0,
    ) -> None:
        _check(timeout=timeout, workers=workers, memory_mib=memory_mib, cache_size=cache_size)
        self.free_extraction, self.lowest_form = free_extraction, _lowest_form(lowest_form)
        self.fast_path = fast_path
        self.correct, self.wrong = correct, wrong
        self._pool = WorkerPool(workers, Limits(timeout=timeout, memory_mib=memory_mib))
        self._cache: OrderedDict[Request, Future[Reply]] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()

    def score(
        self, pairs: Sequence[tuple[str, str]], problems: Sequence[str] | None = None
    ) -> list[Score]:
        """Scores (completion, reference) pairs, in order.

        `problems` are the problems' texts: an answer that only echoes one, or restates an
        expression of it, earns nothing.
        """
        texts = [""] * len(pairs) if problems is None else problems
        attempts = [
            Attempt(completion, gold, text, text)
            for (completion, gold), text in zip(pairs, texts, strict=True)
        ]
        return gather([self.submit(attempt) for attempt in attempts]).result()

    def submit(self, attempt: Attempt) -> Future[Score]:
        """Starts scoring one completion."""
        found = extract(attempt.completion, attempt.prompt, free=self.free_extraction)
        request = Request(found.answer or "", attempt.gold, found.free, self.lowest_form)
        return then(self._reply(request), lambda reply: self._score(attempt, found, reply))

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each answer equals the other one, taken as its reference; unevaluated ones too.

        Both are answers as extracted: nothing is searched for in them.
        """
        replies = [self._reply(Request(answer, gold, False, "off")) for answer, gold in pairs]
        return [reply.verdict == "equal" for reply in gather(replies).result()]

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def _reply(self, request: Request) -> Future[Reply]:
        certain = self._certain(request)
        if certain is not None:
            return resolved(certain)
        # An answer that is too large for the parser is not sent: only the reference is checked.
        if notation.too_large(request.answer):
            request = replace(request, answer="")
        if notation.too_large(request.gold):
            return resolved(Reply("bad_gold"))
        with self._lock:
            if request in self._cache:
                self._cache.move_to_end(request)
                return self._cache[request]
            reply = self._cache[request] = self._pool.submit(request)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        reply.add_done_callback(lambda done: self._forget_failure(request, done))
        return reply

    def _certain(self, request: Request) -> Reply | None:
        gold = notation.certain_value(request.gold)
        if not self.fast_path or gold is None or request.free:
            return None
        if not request.answer or notation.too_large(request.answer):
            return Reply("unparsed")
        answer = notation.certain_value(request.answer)
        if answer is None:
            return None
        return Reply("equal" if answer == gold else "different")

    def _forget_failure(self, request: Request, reply: Future[Reply]) -> None:
        """A timeout or a crash may be the machine's fault: it is not cached."""
        failed = reply.cancelled() or reply.exception() is not None
        if failed or reply.result().verdict in ("timeout", "crashed"):
            with self._lock:
                self._cache.pop(request, None)

    def _score(self, attempt: Attempt, found: Extraction, reply: Reply) -> Score:
        answer, verdict = found.answer, reply.verdict
        if verdict == "equal" and self._restates(attempt, answer or ""):
            verdict = "restated"
        if verdict == "unparsed" and answer is not None and notation.too_large(answer):
            verdict = "too_large"
        status = _STATUS.get(verdict, "wrong")
        detail = verdict if verdict in DETAILS else reply.detail
        if status == "timeout":
            detail = "hostile" if _HUGE.search(answer or "") else "hard"
        if answer is None and status != "bad_gold":
            status, detail = "truncated" if found.truncated else "no_answer", ""
        value = self.correct if status == "correct" else self.wrong
        return Score(value, status, answer, reply.seconds, detail)

    def _restates(self, attempt: Attempt, answer: str) -> bool:
        return self.lowest_form != "off" and restates(answer, attempt.gold, attempt.problem)


class MathReward(Closing):
    """The verifier as a reward: one attempt per completion of a group.

    A group whose reference answer cannot be read gets `bad_gold` for every completion; it is
    reported once per problem and must be kept out of the gradient.
    """

    name = "math"

    def __init__(self, verifier: MathVerifier | None = None) -> None:
        self.verifier = MathVerifier() if verifier is None else verifier
        self._reported: set[str] = set()
        self._lock = threading.Lock()

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts verifying the group's completions; call it as soon as the group is complete."""
        problem = group.problem
        attempts = [
            Attempt(completion.text, problem.answer, problem.conversation, group.prompt.text)
            for completion in group.completions
        ]
        scores = gather([self.verifier.submit(attempt) for attempt in attempts])
        return then(scores, lambda scores: self._of_group(group, scores))

    def _of_group(self, group: Group, scores: list[Score]) -> list[Score]:
        if has_bad_gold(scores):
            self._report(group.problem)
            wrong = self.verifier.wrong
            return [Score(wrong, "bad_gold", s.extracted, s.seconds) for s in scores]
        return [
            replace(score, status="truncated")
            if score.status == "no_answer" and completion.truncated
            else score
            for score, completion in zip(scores, group.completions, strict=True)
        ]

    def _report(self, problem: Problem) -> None:
        with self._lock:
            first = problem.id not in self._reported
            self._reported.add(problem.id)
        if first:
            logger.warning(
                "problem %s: the reference answer %r cannot be read by math-verify; its groups "
                "are skipped (bandpo data check lists all such rows)",
                problem.id,
                problem.answer,
            )

    def close(self) -> None:
        """Ends the verifier's workers."""
        self.verifier.close()


def bad_golds(
    problems: Sequence[Problem], verifier: MathVerifier | None = None
) -> list[tuple[Problem, str]]:
    """The problems whose reference is unreadable or earns nothing as an answer, with reasons."""
    with contextlib.nullcontext(verifier) if verifier else MathVerifier() as checker:
        scores = gather(
            [
                checker.submit(Attempt(rf"\boxed{{{problem.answer}}}", problem.answer))
                for problem in problems
            ]
        )
        return [
            (problem, _reason(problem.answer, score))
            for problem, score in zip(problems, scores.result(), strict=True)
            if not score.correct
        ]


def _reason(gold: str, score: Score) -> str:
    if not gold.strip():
        return "the answer is empty"
    if notation.too_large(gold):
        return f"the answer is too large to parse ({len(gold)} characters)"
    if score.status == "bad_gold":
        return f"math-verify cannot read the answer {gold!r}"
    return f"the answer {gold!r}, boxed, is found {score.status} {score.detail}".strip()
