"""Cuts and penalties of rollout=hf against transformers' processors and against definitions."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bandpo.rollout.engine import Sampling
from bandpo.rollout.hf.draw import Draw
from bandpo.types import Problem, Prompt

VOCABULARY = 40
PROMPTS = [
    Prompt(Problem("a", "", ""), "", (1, 2, 2, 3), seed=5),
    Prompt(Problem("b", "", ""), "", (7,), seed=9),
]
N = 3
ROWS = torch.tensor([0, 2, 3, 5])  # of the six samples of the wave
DRAWN = torch.tensor([[4, 4, 4], [8, 8, 8], [2, 4, 5], [7, 7, 6], [9, 9, 9], [0, 1, 0]])


def logits():
    return torch.randn(len(ROWS), VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def logprobs(**settings):
    """[rows, V]: of every token, by the log-probability that a draw of it would report."""
    draw = Draw(PROMPTS, Sampling(n=N, **settings), VOCABULARY, torch.device("cpu"))
    seen = torch.full((len(ROWS), VOCABULARY), -torch.inf)
    scores = logits()
    for _ in range(600):
        chosen, logp = draw(scores, ROWS, DRAWN)
        seen.scatter_(1, chosen[:, None], logp[:, None])
    return seen


def assert_same(found, wanted):
    """Equal wherever a token was drawn; no token was that is impossible, all that are likely."""
    drawn = found.isfinite()
    torch.testing.assert_close(found[drawn], wanted[drawn], atol=1e-5, rtol=1e-5)
    assert bool(drawn[wanted.exp() > 0.03].all())


def sequences():
    return [
        torch.tensor([[*PROMPTS[int(row) // N].token_ids, *DRAWN[row].tolist()]]) for row in ROWS
    ]


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = [
        processor(ids, row[None].clone()) for ids, row in zip(sequences(), logits(), strict=True)
    ]
    found = logprobs(repetition_penalty=penalty)
    assert_same(found, torch.cat(wanted).log_softmax(-1))
    assert not torch.allclose(torch.cat(wanted), logits())


@pytest.mark.parametrize(("min_p", "temperature"), [(0.1, 1.0), (0.05, 0.6)])
def test_min_p_is_that_of_transformers_after_the_temperature(min_p, temperature):
    wanted = MinPLogitsWarper(min_p)(None, logits() / temperature).log_softmax(-1)
    assert_same(logprobs(min_p=min_p, temperature=temperature), wanted)
    assert int(wanted.isfinite().sum(-1).max()) > 1 and not bool(wanted.isfinite().all())


def test_presence_and_frequency_count_the_completion_alone():
    wanted = logits()
    for row, place in enumerate(ROWS):
        for token in set(DRAWN[place].tolist()):
            count = DRAWN[place].tolist().count(token)
            wanted[row, token] -= 0.5 * count + 0.75
    found = logprobs(presence_penalty=0.75, frequency_penalty=0.5)
    assert_same(found, wanted.log_softmax(-1))


def test_everything_together_is_in_vllms_order():
    """Penalties, temperature, min-p, top-k, top-p (vllm/v1/sample/sampler.py)."""
    settings = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "temperature": 0.8}
    scores = [
        RepetitionPenaltyLogitsProcessor(1.2)(ids, row[None].clone())
        for ids, row in zip(sequences(), logits(), strict=True)
    ]
    scores = torch.cat(scores)
    for row, place in enumerate(ROWS):
        scores[row, list(set(DRAWN[place].tolist()))] -= 0.3
    scores = scores / 0.8
    for warper in (MinPLogitsWarper(0.02), TopKLogitsWarper(12), TopPLogitsWarper(0.9)):
        scores = warper(None, scores)
    found = logprobs(**settings, min_p=0.02, top_k=12, top_p=0.9)
    assert_same(found, scores.log_softmax(-1))


def test_greedy_takes_the_most_probable_token_after_penalties():
    draw = Draw(
        PROMPTS,
        Sampling(n=N, temperature=0.0, presence_penalty=2.0),
        VOCABULARY,
        torch.device("cpu"),
    )
    scores = torch.zeros(len(ROWS), VOCABULARY)
    scores[range(len(ROWS)), DRAWN[ROWS][:, 0]] = 1.5
    scores[:, 30] = 1.0
    chosen, logp = draw(scores, ROWS, DRAWN)
    assert chosen.tolist() == [30] * len(ROWS)
    assert logp[0] == pytest.approx(float(torch.tensor(1.0) - _penalised(scores)[0].logsumexp(0)))


def _penalised(scores):
    scores = scores.clone()
    for row, place in enumerate(ROWS):
        scores[row, list(set(DRAWN[place].tolist()))] -= 2.0
    return scores


def test_saved_settings_of_an_evaluation_lack_what_is_not_used():
    old = {"n": 4, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_tokens": 9}
    assert Sampling(4, 0.6, 0.95, 0, 9).settings() == old
    assert Sampling(4, 0.6, 0.95, 0, 9, stop=("\n",), min_p=0.1).settings() == old | {
        "stop": ["\n"],
        "min_p": 0.1,
    }


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="would end every completion"):
        Sampling(stop=("a", ""))
