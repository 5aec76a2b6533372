"""Whatever a user's reward does wrong is an error that names it and the sample; nothing hangs."""

import asyncio
import decimal
import functools
import logging
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from fractions import Fraction

import numpy as np
import pytest
import torch

from bandpo.errors import UserError
from bandpo.reward import FunctionReward, Part, Score, Shaped, WeightedSum, checked
from bandpo.rollout import scoring
from bandpo.rollout.engine import Sampling
from bandpo.rollout.scoring import RewardFailed, rollout, try_reward
from bandpo.types import Completion, Group, Problem, Prompt

SECONDS = 20  # a call that hangs fails the test, not the machine


def group(*lengths):
    completions = tuple(Completion("x", tuple(range(n)), (0.0,) * n, "stop") for n in lengths)
    return Group(Prompt(Problem("p", "?", "1"), "?", ()), completions)


class Engine:
    """One group of two samples."""

    def generate(self, prompts, sampling):
        yield group(1, 2)


def failure_of(reward):
    """The error with which a step's rollout ends."""
    with pytest.raises(RewardFailed) as told:
        rollout(Engine(), reward, [group(1, 2).prompt], Sampling(n=2))
    assert isinstance(pickle.loads(pickle.dumps(told.value)), RewardFailed)  # as ranks send it
    return str(told.value)


class Odd:
    """Cannot be shown, nor be a number."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __float__(self):
        raise AttributeError("no number")


WRONG_VALUES = {
    "nothing": None,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": np.float64("-inf"),
    "text": "1.0",
    "NumPy's text": np.str_("1.0"),
    "bytes": b"1.0",
    "a byte array": bytearray(b"1.0"),
    "a list": [1.0],
    "two numbers": np.array([1.0, 2.0]),
    "a tensor of two": torch.tensor([1.0, 2.0]),
    "a tensor of NaN": torch.tensor(float("nan")),
    "a complex number": 1 + 2j,
    "NumPy's complex number": np.complex64(1 + 2j),
    "an integer beyond floats": 10**400,
    "a decimal NaN": decimal.Decimal("nan"),
    "an odd object": Odd(),
    "no parts": {},
    "a part that is NaN": {"a": 1.0, "b": float("nan")},
    "parts whose sum overflows": {"a": 1e308, "b": 1e308},
    "infinite parts that cancel": {"a": float("inf"), "b": float("-inf")},
    "a part without a name": {"": 1.0},
    "a part with a number's name": {1: 1.0},
    "a list of parts": [("a", 1.0)],
    "a very long text": "x" * 10_000,
}


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("name", WRONG_VALUES)
def test_a_wrong_value_is_named_with_its_sample(name, kind):
    def odd(problem, completion):
        return WRONG_VALUES[name] if len(completion.token_ids) == 2 else 1.0

    async def later(problem, completion):
        return odd(problem, completion)

    function = later if kind == "async" else odd
    with FunctionReward(function) as reward:
        said = failure_of(reward)
    assert f"{function.__qualname__} returned " in said and "for sample p/1: " in said
    assert "must return a finite number" in said and len(said) < 500


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 1, np.int8(1), np.float16(1), torch.tensor(1.0), Fraction(1)]
)
def test_numbers_of_all_libraries_count_as_parts_too(value):
    with FunctionReward(lambda problem, completion: {"a": value, "b": 1.0}) as reward:
        (score,) = reward.submit(group(1)).result(timeout=SECONDS)
    assert score.value == 2.0 and type(score.parts[0].value) is float


class Unpicklable(Exception):
    """Holds what cannot be sent to other ranks."""

    def __init__(self):
        super().__init__("holds a lock", threading.Lock())


class Unsayable(Exception):
    """Fails when it is shown."""

    def __str__(self):
        raise RuntimeError("no words")


ERRORS = {
    "a lookup": (KeyError("no such key"), "raised KeyError: 'no such key' for sample p/1"),
    "a loop's end": (StopIteration("over"), "raised "),
    "an exit": (SystemExit(3), "raised SystemExit: 3 for sample p/1"),
    "a time-out of its own": (TimeoutError("judge"), "raised TimeoutError: judge for sample p/1"),
    "unpicklable": (Unpicklable(), "raised Unpicklable: ('holds a lock'"),
    "unsayable": (Unsayable(), "raised Unsayable for sample p/1"),
    "long": (ValueError("x" * 10_000), "raised ValueError: xxx"),
    "a user's message": (UserError("set JUDGE_KEY"), "set JUDGE_KEY"),
}


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_named_with_its_sample(name, kind):
    error, words = ERRORS[name]

    def broken(problem, completion):
        if len(completion.token_ids) == 2:
            raise error
        return 1.0

    async def later(problem, completion):
        return broken(problem, completion)

    with FunctionReward(later if kind == "async" else broken) as reward:
        said = failure_of(reward)
    assert words in said and len(said) < 1000


def test_a_decorated_coroutine_is_awaited():
    def logged(function):
        @functools.wraps(function)
        def call(*arguments):
            return function(*arguments)

        return call

    @logged
    async def judge(problem, completion):
        await asyncio.sleep(0)
        return float(len(completion.token_ids))

    call = functools.partial(lambda problem, completion: judge(problem, completion))
    with FunctionReward(call) as reward:
        scores = reward.submit(group(1, 2)).result(timeout=SECONDS)
    assert [score.value for score in scores] == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["plain", "async", "hidden"])
def test_a_call_that_hangs_is_named_after_its_time(kind):
    released = threading.Event()

    def hangs(problem, completion):
        if len(completion.token_ids) == 2:
            released.wait(SECONDS)
        return 1.0

    async def waits(problem, completion):
        if len(completion.token_ids) == 2:
            await asyncio.sleep(SECONDS)
        return 1.0

    function = {"plain": hangs, "async": waits, "hidden": lambda *given: waits(*given)}[kind]
    begun = time.monotonic()
    with FunctionReward(function, timeout=0.2) as reward:
        said = failure_of(reward)
    released.set()
    assert "has not scored sample p/1 within 0.2 s (reward.timeout)" in said
    assert time.monotonic() - begun < SECONDS / 2


def test_time_counts_from_the_call_and_not_from_the_queue():
    def slow(problem, completion):
        time.sleep(0.1)
        return 1.0

    with FunctionReward(slow, threads=1, timeout=0.5) as reward:
        scores = reward.submit(group(*[1] * 8)).result(timeout=SECONDS)
    assert len(scores) == 8


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_time_limit_must_be_above_zero(timeout):
    with pytest.raises(UserError, match=r"reward\.timeout"):
        FunctionReward(lambda problem, completion: 1.0, timeout=timeout)


def test_a_long_wait_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(scoring, "PATIENCE_S", 0.05)
    monkeypatch.setattr(logging.getLogger("bandpo"), "propagate", True)

    def slow(problem, completion):
        time.sleep(0.3)
        return 1.0

    with FunctionReward(slow) as reward, caplog.at_level("WARNING", "bandpo"):
        rollout(Engine(), reward, [group(1, 2).prompt], Sampling(n=2))
        try_reward(reward, group(1, 2))
    assert "has scored nothing for" in caplog.text and "waited for, on p" in caplog.text


HANGING = """
import threading
from bandpo.reward import FunctionReward
from bandpo.types import Completion, Group, Problem, Prompt

def hangs(problem, completion):
    threading.Event().wait()

reward = FunctionReward(hangs, timeout=0.1)
completion = Completion("x", (1,), (0.0,), "stop")
future = reward.submit(Group(Prompt(Problem("p", "?", "1"), "?", ()), (completion,)))
assert future.exception(20) is not None
reward.close()
print("over")
"""


def test_a_call_that_never_returns_does_not_keep_the_process_alive():
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "over\n", done.stderr


# --- Rewards of a class of their own ----------------------------------------------------------


class Own:
    """A reward whose future is given."""

    def __init__(self, scores=None, error=None, at_once=None):
        self._scores, self._error, self._at_once = scores, error, at_once

    def submit(self, group):
        if self._at_once is not None:
            raise self._at_once
        future = Future()
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._scores)
        return future

    def close(self):
        """Nothing to end."""


def good(**fields):
    return Score(**{"value": 1.0, "status": "correct", "extracted": None, "seconds": 0.0, **fields})


A, B = Part("a", 1.0), Part("b", 0.0)
WRONG_SCORES = {
    "nothing": (None, "returned None for the samples of p"),
    "text": ("ok", "returned 'ok' for the samples of p"),
    "a generator": ((s for s in ()), "returned <generator"),
    "numbers": ([1.0, 1.0], "returned [1.0, 1.0] for the samples of p"),
    "one too few": ([good()], "returned 1 scores for the 2 samples of p"),
    "one too many": ([good()] * 3, "returned 3 scores for the 2 samples of p"),
    "NaN": ([good(), good(value=float("nan"))], "the value nan for sample p/1"),
    "None for a value": ([good(), good(value=None)], "the value None for sample p/1"),
    "an unknown status": ([good(), good(status="right")], "the status 'right' for sample p/1"),
    "a number for an answer": ([good(), good(extracted=7)], "the answer 7 with the detail ''"),
    "a NaN part": (
        [good(parts=(A, B)), good(parts=(A, Part("b", float("nan"))))],
        "the part 'b' with the value nan and the weight 1.0 for sample p/1",
    ),
    "a part's text": (
        [good(parts=(A, B)), good(parts=(A, Part("b", "1")))],
        "the part 'b' with the value '1'",
    ),
    "an infinite weight": (
        [good(parts=(A, Part("b", 0.0, float("inf"))))] * 2,
        "the weight inf for sample p/0",
    ),
    "parts of one sample alone": (
        [good(parts=(A, B)), good()],
        "the parts none for sample p/1 and a, b for sample p/0",
    ),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", WRONG_SCORES)
def test_wrong_scores_are_named(name, wrapped):
    scores, words = WRONG_SCORES[name]
    reward = WeightedSum([Own(scores)], [1.0]) if wrapped else Own(scores)
    said = failure_of(reward)
    assert f"{Own.__module__}.Own returned" in said and words in said


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("x"), Unpicklable(), Unsayable()])
def test_an_error_of_a_class_of_its_own_is_named_with_the_group(error, at_once):
    said = failure_of(Own(at_once=error) if at_once else Own(error=error))
    assert f"{Own.__module__}.Own failed on the samples of p: {type(error).__name__}" in said


def test_scores_of_a_users_class_travel_as_plain_ones():
    class Mine(Score):
        """Local, so that no other process knows it."""

    (score,) = checked([Mine(np.float32(0.5), "wrong", None, 0.0)], Own(), group(1))
    assert type(score) is Score and pickle.loads(pickle.dumps(score)) == score


# --- Terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, float("nan"), "1", [1.0], Odd()])
def test_a_term_that_is_no_number_is_named_with_its_sample(value):
    def term(completion, score):
        return value if len(completion.token_ids) == 2 else 0.0

    said = failure_of(Shaped(Own([good(), good()]), [term]))
    assert f"the reward's term {__name__}" in said and "for sample p/1" in said
    assert "must return a finite number" in said


def test_a_term_that_raises_is_named_with_its_sample():
    def term(completion, score):
        return 1 / (2 - len(completion.token_ids))

    said = failure_of(Shaped(Own([good(), good()]), [term]))
    assert "term raised ZeroDivisionError: division by zero for sample p/1" in said
    assert f"{__file__}, line " in said
