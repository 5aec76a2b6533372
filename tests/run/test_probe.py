"""The probe after a weight sync stops a run whose engine has other weights than the learner."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma2Config

from bandpo.errors import UserError
from bandpo.model.agreement import FEWEST, TOLERANCE, Gap, gap_between
from bandpo.run.probe import prove_weights
from bandpo.types import Completion, Group, Problem, Prompt

TOKENS = (3, 4, 5)
RANKS = SimpleNamespace(size=1, device=torch.device("cpu"), max=lambda tensor: tensor)


def test_a_sequence_that_fills_the_context_is_probed_with_room_for_a_token():
    seen = []

    def logprobs(prompt, completions):
        seen.extend((prompt.token_ids, tuple(c.token_ids)) for c in completions)
        return [[-1.0] * len(c.token_ids) for c in completions]

    def ours(samples):
        seen.extend((s.prompt_ids, tuple(s.completion_ids)) for s in samples)
        return [[-1.0] * len(sample.completion_ids) for sample in samples]

    prompt = Prompt(Problem("q", "q", "1"), "q", tuple(range(10)))
    tokens = {3: (7, 8, 9), 60: tuple(range(60)), 90: tuple(range(90))}
    for length, context in ((3, 13), (60, 70), (90, 100), (90, 40), (3, 100)):
        seen.clear()
        completion = Completion("", tokens[length], (0.0,) * length, "length")
        engine = SimpleNamespace(replicas=1, weight_version=1, logprobs=logprobs)
        group, learner = Group(prompt, (completion,)), SimpleNamespace(logprobs=ours)
        prove_weights(engine, learner, group, RANKS, 1e-3, context)
        assert len(seen) == 8 and len(set(seen)) == 1  # both score the same
        shown, completed = seen[0]
        assert len(shown + completed) == min(context - 1, 10 + min(length, 64))
        assert shown == prompt.token_ids[-len(shown) :] and shown
        assert completed == tokens[length][: len(completed)] and completed


def proved(theirs: list[float], ours: list[float], version: int = 2, tolerance=1e-3) -> Gap:
    """The proof where engine and learner give these log-probabilities to every completion."""
    completion = Completion("", TOKENS, (0.0,) * len(TOKENS), "stop")
    group = Group(Prompt(Problem("q", "q", "1"), "q", (1, 2)), (completion,))
    engine = SimpleNamespace(
        replicas=1,
        name="some",
        weight_version=version,
        logprobs=lambda prompt, completions: [theirs] * len(completions),
    )
    lm = SimpleNamespace(config=Gemma2Config(sliding_window=7, attn_logit_softcapping=50.0))
    learner = SimpleNamespace(lm=lm, logprobs=lambda samples: [ours] * len(samples))
    return prove_weights(engine, learner, group, RANKS, tolerance)


def test_weights_that_arrived_pass_with_their_gap():
    gap = proved([-1.0, -2.0, -3.0], [-1.0, -2.0005, -3.0])
    assert gap.largest == pytest.approx(5e-4, rel=1e-3)
    assert gap.mean == pytest.approx(5e-4 / FEWEST, rel=1e-3)


def test_logits_that_move_by_their_last_bits_in_bfloat16_stop_nothing():
    """One between 32 and 64 moves in steps of 0.25: over a run, some token moves by two of them."""
    ours = [-1.0] * 64
    theirs = [-1.5, *[-1.25] * 8, *ours[9:]]
    gap = proved(theirs, ours, tolerance=TOLERANCE["bfloat16"])
    assert gap.largest == 0.5 and gap.mean == 2.5 / 64
    with pytest.raises(RuntimeError, match=r"differ from the learner's by 0\.25"):
        proved([-1.25] * 64, ours, tolerance=TOLERANCE["bfloat16"])


def test_one_wrong_copy_of_the_weights_is_not_averaged_away():
    right, wrong = [-1.0] * 64, [-1.3] * 64
    assert gap_between([right] * 7 + [wrong], [right] * 8).mean == pytest.approx(0.3)
    assert gap_between([], []) == gap_between([[]], [[]]) == Gap(0.0, 0.0)


@pytest.mark.parametrize("wrong", [-2.1, math.nan, -math.inf])
@pytest.mark.parametrize("place", range(len(TOKENS)))
def test_a_single_wrong_value_stops_the_run_wherever_it_stands(wrong, place):
    theirs, ours = [-2.0] * len(TOKENS), [-2.0] * len(TOKENS)
    theirs[place] = wrong
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        proved(theirs, ours)
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        proved(ours, theirs)


def test_an_engine_that_computes_another_network_is_told_from_weights_that_did_not_arrive():
    with pytest.raises(UserError, match=r"some.*attn_logit_softcapping=50\.0.*sliding_window=7"):
        proved([-1.0, -2.0, -3.0], [-1.0, -2.5, -3.0], version=1)
