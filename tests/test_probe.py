"""The probe after a weight sync stops a run whose engine has other weights than the learner."""

import math
from types import SimpleNamespace

import pytest
import torch

from bandpo.probe import prove_weights
from bandpo.types import Completion, Group, Problem, Prompt

TOKENS = (3, 4, 5)


def proved(theirs: list[float], ours: list[float]) -> float:
    """The proof where engine and learner give these log-probabilities to every completion."""
    completion = Completion("", TOKENS, (0.0,) * len(TOKENS), "stop")
    group = Group(Prompt(Problem("q", "q", "1"), "q", (1, 2)), (completion,))
    engine = SimpleNamespace(
        replicas=1,
        weight_version=1,
        logprobs=lambda prompt, completions: [theirs] * len(completions),
    )
    learner = SimpleNamespace(logprobs=lambda samples: [ours] * len(samples))
    ranks = SimpleNamespace(size=1, device=torch.device("cpu"), max=lambda tensor: tensor)
    return prove_weights(engine, learner, group, ranks, tolerance=1e-3)


def test_weights_that_arrived_pass_with_their_gap():
    gap = proved([-1.0, -2.0, -3.0], [-1.0, -2.0005, -3.0])
    assert gap == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize("wrong", [-2.1, math.nan, -math.inf])
@pytest.mark.parametrize("place", range(len(TOKENS)))
def test_a_single_wrong_value_stops_the_run_wherever_it_stands(wrong, place):
    theirs, ours = [-2.0] * len(TOKENS), [-2.0] * len(TOKENS)
    theirs[place] = wrong
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        proved(theirs, ours)
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        proved(ours, theirs)
