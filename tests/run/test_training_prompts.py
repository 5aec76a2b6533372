"""What a checkpoint keeps of draws and results, whichever step was drawn last."""

import json

import pytest

from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.model.embedded import build_tokenizer
from bandpo.ranks.collectives import Ranks
from bandpo.reward import Score
from bandpo.rollout.scoring import ScoredGroup
from bandpo.run.training_prompts import TrainingPrompts
from bandpo.types import Completion, Group, Problem

REST = {"_target_": "bandpo.data.sampling.Rest", "in_a_row": 1, "epochs": 0.5}
PROBLEMS = [Problem(f"p{i}", f"{i}+{i}", str(2 * i), "sums") for i in range(12)]


class Loop:
    """The steps of a run, whose groups are right for even problems and wrong for odd ones."""

    def __init__(self, sampler=REST):
        rollout = RolloutConfig(engine={}, prompts_per_step=3, group_size=2, max_tokens=4)
        data = DataConfig(train="x.jsonl", template="none", sampler=sampler)
        self.prompts = TrainingPrompts(PROBLEMS, build_tokenizer(), data, rollout, 5, None)
        self.drawn = []

    def draw(self, step):
        """Draws and scores a step, as its rollout does."""
        draws = self.prompts.draws(step, Ranks())
        groups = [self._scored(prompt) for prompt in draws.next_prompts()]
        draws.add(groups)
        self.drawn.append([item.group.problem.id for item in groups])
        return draws.rollout()

    def _scored(self, prompt):
        right = int(prompt.problem.id[1:]) % 2 == 0
        completion = Completion("", (1,), (-1.0,), "stop")
        score = Score(float(right), "correct" if right else "wrong", None, 0.0)
        return ScoredGroup(Group(prompt, (completion,) * 2), (score,) * 2)

    def saved(self, step, waits, folder):
        """The state and the folder of a checkpoint."""
        text = self.prompts.problems_after(step, waits)
        (folder / "problems.jsonl").write_text(text)
        return json.loads(json.dumps(self.prompts.state_after(step, waits))), text


@pytest.mark.parametrize("sampler", [None, REST])
@pytest.mark.parametrize(("waits", "next_step"), [(False, 5), (True, 6)])
def test_with_lag_a_step_drawn_ahead_is_known_only_if_its_rollout_waits(
    tmp_path, sampler, waits, next_step
):
    # At the checkpoint of step 4, step 5 has been drawn and scored already.
    whole = Loop(sampler)
    for step in range(1, 6):
        whole.draw(step)
    state, text = whole.saved(4, waits, tmp_path)
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert max(steps) == (5 if waits else 4)
    for step in range(6, 12):
        whole.draw(step)

    again = Loop(sampler)
    again.prompts.resume(state, tmp_path)
    for step in range(next_step, 12):
        again.draw(step)
    assert again.drawn == whole.drawn[next_step - 1 :]
    assert again.prompts.problems_after(11, False) == whole.prompts.problems_after(11, False)


def test_a_step_knows_all_steps_before_it_and_nothing_of_itself():
    loop = Loop({**REST, "epochs": 99})
    seen: set[str] = set()
    for step in range(1, 5):
        rollout = loop.draw(step)
        assert not seen & set(loop.drawn[-1])  # all that was drawn rests from the next step on
        seen |= set(loop.drawn[-1])
        assert rollout.metrics["problems/active"] == 12 - len(seen)


def test_the_lines_say_what_the_next_step_finds(tmp_path):
    loop = Loop()
    for step in (1, 2, 3):
        loop.draw(step)
    lines = loop.saved(3, False, tmp_path)[1].splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    for step, ids in enumerate(loop.drawn, start=1):
        for id in ids:
            reason = "solved" if int(id[1:]) % 2 == 0 else "failed"
            assert rows[id]["state"] == (reason if step >= 2 else "active")
    assert {row["source"] for row in rows.values()} == {"sums"}
