"""The rollout that waits in a checkpoint: kept exactly, read by any number of ranks, old or new."""

import json
from dataclasses import replace

import pytest
from thread_ranks import ThreadRanks

from bandpo.artifacts.waiting import read_rollout, write_rollout
from bandpo.reward import Score
from bandpo.rollout.draws import Rollout, rollout_metrics
from bandpo.rollout.scoring import ScoredGroup
from bandpo.types import Completion, Group, Problem, Prompt

METRICS = {"reward/mean": 0.1 + 0.2}


def scored(index: int) -> ScoredGroup:
    prompt = Prompt(
        Problem(f"p{index}", "1+1", "2", "made", {"level": index}),
        "1+1?",
        (5, 6 + index),
        4096 * index,
    )
    completions = (
        Completion("2", (7, 8 + index), (-0.1, -1e-8), "stop", 3),
        Completion("", (), (), "length", 2),
        Completion("π", (9,) * index, (-2.5,) * index, "length", 2),
    )
    scores = (
        Score(0.1 + 0.2, "correct", "2", 0.25),
        Score(0.0, "wrong", None, 0.0, "unparsed"),
        Score(0.0, "wrong", None, 0.0),
    )
    return ScoredGroup(Group(prompt, completions), scores)


def rollout(ranks: int, rank: int, groups: int) -> Rollout:
    """As one of so many ranks has it; the groups lie where a filter has left them."""
    owners = [(index * index) % ranks for index in range(groups)]
    items = [scored(index).summary(owner) for index, owner in enumerate(owners)]
    return Rollout([i if i.rank == rank else replace(i, here=None) for i in items], METRICS)


@pytest.mark.parametrize("groups", [1, 3, 8])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_waits_is_kept_exactly(tmp_path, ranks, groups):
    assert read_rollout(tmp_path, ThreadRanks()) is None
    for rank in range(ranks):
        write_rollout(tmp_path, ThreadRanks(rank, ranks), rollout(ranks, rank, groups))
    # Each rank has its groups again, and no other's.
    for rank in range(ranks):
        assert read_rollout(tmp_path, ThreadRanks(rank, ranks)) == rollout(ranks, rank, groups)


@pytest.mark.parametrize("readers", [1, 2, 3, 6])
def test_any_number_of_ranks_reads_it(tmp_path, readers):
    for rank in range(4):
        write_rollout(tmp_path, ThreadRanks(rank, 4), rollout(4, rank, 8))
    held = []
    for rank in range(readers):
        found = read_rollout(tmp_path, ThreadRanks(rank, readers))
        assert [replace(item, rank=0, here=None) for item in found.groups] == [
            replace(item, rank=0, here=None) for item in rollout(4, 0, 8).groups
        ]
        assert all((item.here is not None) == (item.rank == rank) for item in found.groups)
        held += [item.here for item in found.groups if item.here]
    assert sorted(held, key=lambda item: item.group.problem.id) == [scored(i) for i in range(8)]


def as_before(index: int) -> dict:
    """A group as versions until November 2026 wrote it."""
    item = scored(index)
    prompt, completions = item.group.prompt, item.group.completions
    return {
        "group": {
            "prompt": {
                "problem": vars(prompt.problem),
                "text": prompt.text,
                "token_ids": list(prompt.token_ids),
                "seed": prompt.seed,
            },
            "completions": [
                {
                    "text": c.text,
                    "token_ids": c.token_ids.tolist(),
                    "logprobs": c.logprobs.tolist(),
                    "finish_reason": c.finish_reason,
                    "weight_version": c.weight_version,
                }
                for c in completions
            ],
        },
        "scores": [vars(score) for score in item.scores],
    }


@pytest.mark.parametrize("with_metrics", [True, False])
def test_what_earlier_versions_kept_is_read(tmp_path, with_metrics):
    for rank in range(2):
        groups = [as_before(index) for index in range(5)][rank::2]
        kept = {"groups": groups, "metrics": METRICS} if with_metrics else groups
        (tmp_path / f"rollout-rank{rank}.json").write_text(json.dumps(kept))
    whole = [scored(index).summary(index % 2) for index in range(5)]
    for rank in range(2):
        found = read_rollout(tmp_path, ThreadRanks(rank, 2))
        assert found.groups == [i if i.rank == rank else replace(i, here=None) for i in whole]
        assert found.metrics == (METRICS if with_metrics else rollout_metrics(whole))
