"""A run whose chat template prints the date goes on after midnight as the run that it was."""

import json
import shutil
from datetime import datetime

import pytest
from small_runs import few, metrics_of
from transformers.utils import chat_template_utils

from bandpo.data.prompting import chat

SMALL = [
    *("rollout=hf", "trainer.checkpoint_every=1", "trainer.sample_every=1", "trainer.eval_every=1"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=4"),
    *("learner.updates_per_rollout=1", "data.max_prompt_tokens=128", "eval.n=2"),
    few(2),
]


@pytest.fixture
def today(monkeypatch):
    """Sets the clock to ten seconds before the end of a day."""

    def at_the_end_of(day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls.fromisoformat(f"{day}T23:59:50")

        for module in (chat, chat_template_utils):
            monkeypatch.setattr(module, "datetime", Clock)

    return at_the_end_of


def test_a_run_keeps_the_date_of_its_beginning(tmp_path, untrained, command, today):
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(untrained(), model)
    template = model / "chat_template.jinja"
    template.write_text("It is {{ strftime_now('%d %b %Y') }}. " + template.read_text())
    for steps, day in enumerate(("2031-05-06", "2031-05-07"), 1):
        today(day)
        own = ("policy=embedded", f"model.path={model}", f"run.dir={run}", f"trainer.steps={steps}")
        assert command("train", *SMALL, *own) == 0
    assert [line["step"] for line in metrics_of(run)] == [0, 1, 2]
    for file in [f"samples/step_00000{i}" for i in (1, 2)] + [f"eval/00000{i}/few" for i in (1, 2)]:
        prompts = [json.loads(line)["prompt"] for line in (run / f"{file}.jsonl").open()]
        assert all(prompt.startswith("It is 06 May 2031. <|user|>") for prompt in prompts), file
    assert json.loads((run / "run.json").read_text())["prompt_date"] == "2031-05-06"
