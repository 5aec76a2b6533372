"""What a user can get wrong in data and model: a clear message, exit code 2, no traceback."""

import json
import os
import shutil
import subprocess
import sys

import pytest

BASE = ["rollout=hf", "trainer.steps=1", "eval.benchmarks=[]", "rollout.prompts_per_step=4"]
SMALL = ["rollout.group_size=2", "rollout.max_tokens=4", "learner.updates_per_rollout=2"]


def train(cwd, *overrides):
    return subprocess.run(
        [sys.executable, "-m", "bandpo.cli", "train", *BASE, *SMALL, "run.dir=run", *overrides],
        cwd=cwd,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )


def write(path, rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )


def problem(i, **changes):
    return {"id": f"p{i}", "problem": f"Compute {i}+1.", "answer": str(i + 1), **changes}


def without_answer(tmp_path, model):
    write(tmp_path / "data.jsonl", [problem(0), {"id": "p1", "problem": "?"}, "{broken"])
    return ["data.train=data.jsonl"], ["data.jsonl", "line 2", "answer", "line 3"]


def empty(tmp_path, model):
    write(tmp_path / "data.jsonl", [])
    return ["data.train=data.jsonl"], ["data.jsonl", "no rows"]


def missing(tmp_path, model):
    return ["data.train=nowhere.jsonl"], ["nowhere.jsonl"]


def too_few(tmp_path, model):
    write(tmp_path / "data.jsonl", [problem(0)])
    return ["data.train=data.jsonl"], ["4 prompts a step", "only 1"]


def no_model(tmp_path, model):
    return ["model.path=./nowhere"], ["./nowhere", "no such folder"]


def no_chat_template(tmp_path, model):
    shutil.copytree(model, tmp_path / "plain")
    (tmp_path / "plain/chat_template.jinja").unlink()
    return ["model.path=plain"], ["plain", "chat template"]


def long_prompt(tmp_path, model):
    write(tmp_path / "data.jsonl", [problem(0, problem="x" * 500), *map(problem, range(1, 6))])
    return ["data.train=data.jsonl", "data.overlong_prompts=error"], ["p0", "64"]


def bad_checkpoint(tmp_path, model):
    (tmp_path / "empty").mkdir()
    return ["trainer.resume=empty"], ["empty", "not a complete checkpoint"]


def bad_tracker(tmp_path, model):
    return ["tracking.trackers=[nonsense]"], ["nonsense", "tensorboard"]


CASES = [
    *(without_answer, empty, missing, too_few, no_model, no_chat_template, long_prompt),
    *(bad_checkpoint, bad_tracker),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_told_in_words(case, untrained, tmp_path):
    overrides, fragments = case(tmp_path, untrained())
    if not any(o.startswith("model.path") for o in overrides):
        overrides.append(f"model.path={untrained()}")
    done = train(tmp_path, *overrides)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in done.stderr


def test_long_prompts_are_dropped_and_counted_and_equal_groups_warned_of(untrained, tmp_path):
    rows = [problem(0, problem="x" * 500), *map(problem, range(1, 6))]
    write(tmp_path / "data.jsonl", rows)
    done = train(tmp_path, "data.train=data.jsonl", f"model.path={untrained()}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dropped 1 prompts longer than 64 tokens" in done.stdout
    # The untrained policy answers nothing: every reward is 0.
    assert "rewards of every group are equal" in " ".join(done.stdout.split())
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["reward/zero_std_groups"] == line["rollout/groups"] == 4
    assert json.loads((tmp_path / "run/run.json").read_text())["dropped_prompts"] == 1
