"""Mistakes of a first hour: the command as typed, the message, the exit code; never a traceback.

To add a row: the command as one types it, what must be read in its message (" … " stands for any
text between), and the exit code. It runs in this process, in a folder that holds what `workplace`
puts there: `model/` (a small untrained policy), `problems.jsonl`, `my.py`, and the files of FILES.
`{small}` stands for a run of a second, for mistakes that only a run shows; braces of one's own are
doubled.
"""

import json
import re
import shlex

import pytest

SMALL = (
    "rollout=hf model.path=model data.train=problems.jsonl trainer.steps=1 eval.benchmarks=[] "
    "rollout.prompts_per_step=2 rollout.group_size=2 rollout.max_tokens=4 "
    "learner.updates_per_rollout=1 data.max_prompt_tokens=64 run.dir=run"
)
ROWS = [{"id": f"p{i}", "problem": f"Compute {i}+1.", "answer": str(i + 1)} for i in range(6)]
FILES = {
    "problems.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
}

# (command, message, exit code)
MISTAKES = [
    ("bandpo", "usage: bandpo <command>", 2),
    ("bandpo trian", "no command 'trian'", 2),
    ("bandpo train learner.lr=-1", "learner.lr=-1: Input should be greater than 0", 2),
    ("bandpo train seed=0,1", "a sweep needs -m", 2),
    ("bandpo train model.path=./nowhere", "./nowhere: no such folder", 2),
    ("bandpo train data.train=nowhere.jsonl", "nowhere.jsonl: no such file", 2),
    ("bandpo train rollout.top_p=0.9", "train with top_p=1 and top_k=0", 2),
    ("bandpo plot training nowhere", "is nowhere the folder of a run?", 2),
    ("bandpo explain 'logp=x'", "logp=x", 2),
]


@pytest.fixture
def workplace(tmp_path, monkeypatch, untrained):
    (tmp_path / "model").symlink_to(untrained())
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("line", "message", "code"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_answered_in_words(line, message, code, workplace, command, capsys):
    try:
        ended = command(*shlex.split(line.format(small=SMALL))[1:])
    except SystemExit as end:  # argparse's own way to end
        ended = end.code
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    assert "Traceback" not in said
    assert re.search(".*".join(map(re.escape, message.split(" … "))), said), said
    assert ended == code


def test_there_are_at_least_twenty():
    assert len(MISTAKES) >= 9
