import asyncio
import math
import threading
from concurrent.futures import Future
from fractions import Fraction

import numpy as np
import pytest
import torch

from bandpo.errors import UserError
from bandpo.reward import FormatBonus, FunctionReward, Overlong, Score, Shaped, WeightedSum
from bandpo.types import Completion, Group, Problem, Prompt


def group(*lengths):
    completions = tuple(
        Completion(f"{n} tokens", tuple(range(n)), (0.0,) * n, "stop") for n in lengths
    )
    return Group(Prompt(Problem("p", "?", "1"), "?", ()), completions)


class Fixed:
    """Scores given beforehand."""

    def __init__(self, *scores):
        self.scores, self.closed = list(scores), False

    def submit(self, group):
        future = Future()
        future.set_result(self.scores)
        return future

    def close(self):
        self.closed = True


RIGHT = Score(1.0, "correct", "1", 0.1)
WRONG = Score(-1.0, "wrong", "2", 0.2)
NONE = Score(-1.0, "no_answer", None, 0.0)


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (4096, 0.0), (4097, -1 / 512), (4352, -0.5), (4608, -1.0), (5000, -1.0)],
)
def test_overlong_is_linear_in_the_buffer(length, penalty):
    """DAPO: 0 up to L_max - L_cache, -1 from L_max on, linear between."""
    term = Overlong(max_tokens=4608, buffer=512)
    (completion,) = group(length).completions
    assert term(completion, RIGHT) == pytest.approx(penalty)
    assert Overlong(4608, 512, penalty=0.5)(completion, WRONG) == pytest.approx(penalty / 2)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_buffer_must_fit(buffer):
    with pytest.raises(UserError, match="buffer"):
        Overlong(max_tokens=100, buffer=buffer)


def test_terms_add_up_and_leave_the_status():
    reward = Shaped(Fixed(RIGHT, WRONG, NONE), [Overlong(100, 50), FormatBonus(0.25)])
    scores = reward.submit(group(100, 75, 10)).result()
    assert [s.value for s in scores] == pytest.approx([1 - 1 + 0.25, -1 - 0.5 + 0.25, -1])
    assert [s.status for s in scores] == ["correct", "wrong", "no_answer"]


def test_weighted_sum():
    first, second = Fixed(RIGHT, WRONG), Fixed(WRONG, WRONG)
    with WeightedSum([first, second], [2.0, 0.5]) as reward:
        scores = reward.submit(group(1, 1)).result()
    assert [s.value for s in scores] == pytest.approx([1.5, -2.5])
    assert [s.status for s in scores] == ["correct", "wrong"]
    assert first.closed and second.closed


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 2.0, 3.0]])
def test_every_reward_has_a_weight(weights):
    with pytest.raises(UserError, match="weight"):
        WeightedSum([Fixed(), Fixed()], weights)


def test_plain_functions_run_beside_the_caller():
    threads = set()

    def count(problem, completion):
        threads.add(threading.current_thread())
        return len(completion.token_ids) / 10

    with FunctionReward(count, threshold=0.5) as reward:
        scores = reward.submit(group(3, 8)).result()
    assert [(s.value, s.status) for s in scores] == [(0.3, "wrong"), (0.8, "correct")]
    assert threading.main_thread() not in threads


def test_coroutines_run_together():
    together = []

    async def judge(problem, completion):
        together.append(completion)
        while len(together) < 20:  # would never end, were they run one by one
            await asyncio.sleep(0.001)
        return 1.0

    with FunctionReward(judge) as reward:
        assert len(reward.submit(group(*range(20))).result(timeout=20)) == 20


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1.0", [1.0], {}])
def test_values_must_be_finite_numbers(value):
    def odd(problem, completion):
        return value if len(completion.token_ids) == 2 else 1.0

    with FunctionReward(odd) as reward, pytest.raises(UserError) as told:
        reward.submit(group(1, 2, 3)).result()
    assert "odd returned" in str(told.value) and "sample p/1" in str(told.value)


@pytest.mark.parametrize("value", [True, 1, np.float32(1), torch.tensor(1.0), Fraction(1)])
def test_numbers_of_any_library_become_floats(value):
    with FunctionReward(lambda problem, completion: value) as reward:
        (score,) = reward.submit(group(1)).result()
    assert type(score.value) is float and score.value == 1.0


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_error_names_the_function_the_sample_and_the_line(kind):
    def broken(problem, completion):
        raise KeyError("no such key")

    async def broken_later(problem, completion):
        return broken(problem, completion)

    function = {"plain": broken, "async": broken_later}[kind]
    with FunctionReward(function) as reward, pytest.raises(UserError) as told:
        reward.submit(group(1, 2)).result()
    message = str(told.value)
    assert f"{function.__qualname__} raised KeyError: 'no such key' for sample p/0" in message
    assert f"{__file__}, line " in message
    assert isinstance(told.value.__cause__, KeyError)
    # The last lines of the traceback, from the user's own code on.
    assert 'raise KeyError("no such key")' in told.value.detail.splitlines()[-1]
    assert "concurrent/futures" not in told.value.detail


def test_what_a_function_tells_the_user_is_left_as_it_is():
    def unready(problem, completion):
        raise UserError("set JUDGE_KEY")

    with FunctionReward(unready) as reward, pytest.raises(UserError, match=r"^set JUDGE_KEY$"):
        reward.submit(group(1)).result()


@pytest.mark.parametrize(
    "wrap", [lambda reward: Shaped(reward, []), lambda reward: WeightedSum([reward], [1.0])]
)
@pytest.mark.parametrize(
    "given", [None, (RIGHT,), (RIGHT, 1.0), (RIGHT, Score(None, "wrong", "", 0))]
)
def test_what_is_composed_must_be_scores(wrap, given):
    inner = Fixed()
    inner.scores = given
    with pytest.raises(UserError, match=r"reward .*Fixed returned"):
        wrap(inner).submit(group(1, 2)).result()
