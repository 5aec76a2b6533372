"""Groups are scored while others are generated, and come back in the order of the prompts."""

from concurrent.futures import Future

from bandpo.reward import Score
from bandpo.rollout.draws import rollout_metrics
from bandpo.rollout.engine import Sampling
from bandpo.rollout.scoring import ScoredGroup, rollout, scored_groups
from bandpo.types import Completion, Group, Problem, Prompt


def prompt(name: str) -> Prompt:
    return Prompt(Problem(name, name, "1", meta={"level": 3}), name, (1, 2))


def group(p: Prompt, lengths=(2, 3)) -> Group:
    completions = (Completion("x", (5,) * n, (-1.0,) * n, "stop") for n in lengths)
    return Group(p, tuple(completions))


def scores(*values: float, status="correct") -> tuple[Score, ...]:
    return tuple(Score(v, status if v else "wrong", None, 0.0) for v in values)


class Backwards:
    """An engine that finishes the last prompt first."""

    def generate(self, prompts, sampling):
        yield from (group(p) for p in reversed(prompts))


class Late:
    """A reward that answers only when the group after has been submitted."""

    def __init__(self):
        self.waiting: list[Future] = []
        self.open_at_submit: list[int] = []

    def submit(self, item):
        for future in self.waiting:
            future.set_result(list(scores(1.0, 0.0)))
        self.open_at_submit.append(len(self.waiting))
        self.waiting = [Future()]
        if item.problem.id == "a":  # the last one
            self.waiting[0].set_result(list(scores(0.0, 0.0)))
        return self.waiting[0]


def test_rollout_keeps_the_order_of_the_prompts():
    prompts = [prompt(name) for name in "abc"]
    found = rollout(Backwards(), Late(), prompts, Sampling(n=2))
    assert [item.group.problem.id for item in found] == ["a", "b", "c"]
    assert [item.rewards for item in found] == [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]


def test_scoring_overlaps_generation():
    reward = Late()
    list(scored_groups(Backwards(), reward, [prompt(n) for n in "abc"], Sampling(n=2)))
    # The engine went on to its next group while one was still being scored.
    assert reward.open_at_submit == [0, 1, 1]


def test_metrics_count_what_they_name():
    scored = [
        ScoredGroup(group(prompt("a")), scores(1.0, 0.0)),
        ScoredGroup(group(prompt("b"), (4, 7)), scores(1.0, 1.0)),
        ScoredGroup(group(prompt("c")), (Score(0.0, "bad_gold", None, 0.0),) * 2),
    ]
    metrics = rollout_metrics([item.summary() for item in scored])
    assert metrics["reward/mean"] == 0.5
    assert metrics["reward/zero_std_groups"] == 2
    assert metrics["rollout/unusable_groups"] == 1
    assert (metrics["length/tokens"], metrics["length/max"]) == (21, 7)
    assert metrics["verifier/bad_gold"] == 2
