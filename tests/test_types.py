"""Completions hold arrays, whatever they are made of, and compare and hash like values."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from bandpo.types import Completion, Group, Problem, Prompt

TOKENS, LOGPROBS = (7, 150_000, 3), (-0.1, -1e-8, -30.25)
FORMS = {
    "tuples": lambda values: values,
    "lists": list,
    "float64 and int64": np.array,
    "tensors": torch.tensor,
    "every other element": lambda values: np.repeat(np.array(values), 2)[::2],
    "read only": lambda values: np.frombuffer(np.array(values).tobytes(), np.array(values).dtype),
}


def completion(form="tuples", tokens=TOKENS, logprobs=LOGPROBS, **given) -> Completion:
    return Completion("x", FORMS[form](tokens), FORMS[form](logprobs), "stop", **given)


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_may_give_any_sequence(form):
    made = completion(form)
    assert made == completion() and hash(made) == hash(completion())
    assert tuple(made.token_ids) == TOKENS and made.token_ids.dtype == np.int32
    expected = torch.tensor(LOGPROBS, dtype=torch.float32)
    assert made.logprobs.dtype == np.float32
    assert torch.equal(torch.from_numpy(made.logprobs), expected)  # rounded as torch rounds
    # A reward reads them as it read tuples.
    assert len(made.token_ids) == 3 and sum(token < 130 for token in made.token_ids) == 2


def test_arrays_are_not_copied():
    tokens, logprobs = np.arange(4, dtype=np.int32), np.zeros(4, np.float32)
    made = completion("tuples", tokens, logprobs)
    assert made.token_ids is tokens and made.logprobs is logprobs


@pytest.mark.parametrize("other", [{"tokens": (7, 8, 3)}, {"tokens": (7,)}, {"weight_version": 1}])
def test_completions_are_equal_where_all_is(other):
    assert completion() != completion(**other)
    assert len({completion(), completion(), completion(**other)}) == 2


def test_other_log_probabilities_are_another_completion_and_nothing_else_is_one():
    assert completion() != completion(logprobs=(-0.1, -1e-8, -30.5))
    assert completion() != "x" and completion() != completion().token_ids.tolist()


def test_groups_compare_and_travel():
    group = Group(Prompt(Problem("p", "", "1"), "", (1, 2)), (completion(), completion("lists")))
    assert pickle.loads(pickle.dumps(group)) == group
    cut = replace(group.completions[0], token_ids=group.completions[0].token_ids[:1])
    assert Group(group.prompt, (cut, cut)) != group and group.length(0) == 5


def test_a_token_beyond_int32_is_an_error():
    with pytest.raises(OverflowError):
        completion(tokens=(2**31,))
