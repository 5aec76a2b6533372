"""Mistakes of a first hour: the command as typed, the message, the exit code; never a traceback.

To add a row: the command as one types it, what must be read in its message (" … " stands for any
text between), and the exit code. It runs in this process, in a folder that holds what `workplace`
puts there: `model/` (a small untrained policy), `problems.jsonl`, `my.py`, and the files of FILES.
`{small}` stands for a run of a second, for mistakes that only a run shows, and `{bounds}` for the
key of a method's bounds.
"""

import json
import re
import shlex

import pytest

SMALL = (
    "rollout=hf policy=embedded model.path=model data.train=problems.jsonl trainer.steps=1 "
    "eval.benchmarks=[] rollout.prompts_per_step=2 rollout.group_size=2 rollout.max_tokens=4 "
    "learner.updates_per_rollout=1 data.max_prompt_tokens=64 run.dir=run"
)
ROWS = [{"id": f"p{i}", "problem": f"Compute {i}+1.", "answer": str(i + 1)} for i in range(6)]
FUNCTION = """_target_: bandpo.reward.FunctionReward
function: {{_target_: my.{}, _partial_: true}}
"""
FILES = {
    "problems.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "foreign.json": json.dumps([{"frage": f"{n}+1", "antwort": n + 1} for n in range(6)]),
    "my.py": """
import torch
from bandpo.loss import Bounds, Divergence, Interval

class Wrong(Bounds):
    def __init__(self, eps_low, eps_high):
        pass
    def __call__(self, old_logp):
        one = torch.ones_like(old_logp.detach())
        return Interval(1.1 * one, 0.9 * one)

class Concave(Divergence):
    at_zero, growth = 0.0, 0.0
    def f(self, u):
        return -((u - 1) ** 2)
    def derivative(self, u):
        return -2 * (u - 1)

def none(problem, completion):
    pass

def fails(problem, completion):
    return 1 / len(completion.token_ids[:0])
""",
    "needs_more.py": "import a_package_that_is_not_here\n",
    "my_configs/reward/none.yaml": FUNCTION.format("none"),
    "my_configs/reward/fails.yaml": FUNCTION.format("fails"),
}
BOUNDS = "method.loss.surrogate.surrogate.bounds"

# (command, message, exit code)
MISTAKES = [
    # commands and their options
    ("bandpo", "usage: bandpo <command>", 2),
    ("bandpo trian", "no command 'trian'; did you mean train?", 2),
    ("bandpo train --multirn", "no option --multirn; did you mean --multirun?", 2),
    ("bandpo train --cfg job -p methd", "--package methd: no such key; did you mean method?", 2),
    ("bandpo doctor everything", "unrecognized arguments: everything", 2),
    # keys, choices and values
    ("bandpo train lr=1e-6", "lr=1e-6: no such key; did you mean learner.lr?", 2),
    ("bandpo train +trainer.step=9", "trainer.step: no such key; did you mean trainer.steps?", 2),
    ("bandpo train learner.momentum=1", "no such key; learner has … betas … lr", 2),
    ("bandpo plan methd=grpo", "methd=grpo: no such key; did you mean method?", 2),
    ("bandpo plan method=grop", "no such method; did you mean grpo? (band_chi2", 2),
    ("bandpo explain 'p=.1 adv=1 ratio=2' --methods grop", "did you mean grpo?", 2),
    ("bandpo eval limit=3 model=model", "limit=3: no such key; did you mean eval.limit?", 2),
    ("bandpo train model=./model", "model is a section … did you mean model.path=./model?", 2),
    ("bandpo train data=my.jsonl", "no such data; did you mean data.train=my.jsonl?", 2),
    ("bandpo train learner.lr=-1", "learner.lr=-1: Input should be greater than 0", 2),
    ("bandpo train rollout.top_p=0.9", "train with top_p=1 and top_k=0", 2),
    ("bandpo explain 'logp=x'", "logp=x", 2),
    # sweeps
    ("bandpo train seed=0,1", "a sweep needs -m", 2),
    (
        "bandpo train -m method=grpo,grop seed=0,1",
        "none of the 4 runs of this sweep is started … did you mean grpo? … in method=grop seed=0",
        2,
    ),
    # places
    ("bandpo train {small} run.dir=/proc/foo", "run.dir=/proc/foo: no folder can be made", 2),
    (
        "bandpo eval model=model benchmarks=[arithmetic] eval.max_tokens=64 out=/proc/foo",
        "out=/proc/foo: no folder",
        2,
    ),
    ("bandpo plot training nowhere", "is nowhere the folder of a run?", 2),
    ("bandpo train model.path=./nowhere data.train=problems.jsonl", "./nowhere: no such folder", 2),
    ("bandpo eval model=models/a/b", "models/a/b: no such folder", 2),
    ("bandpo train model.path=model data.train=nowhere.jsonl", "nowhere.jsonl: no such file", 2),
    ("bandpo train model.path=model data.train=./nowhere", "nowhere: no such file", 2),
    (
        "bandpo train model.path=model 'data.train=\"~/nowhere.json\"'",
        "/nowhere.json: no such file",
        2,
    ),
    ("bandpo data check data/of/mine", "data/of/mine: no such file", 2),
    # model and data
    ("bandpo train data.train=problems.jsonl", "no model is named … model.path=<folder or hub", 2),
    ("bandpo train model.path=model", "name the problems to train on: data.train=my.jsonl", 2),
    (
        "bandpo train {small} eval.benchmarks=[file:problems.jsonl] eval.n=4 "
        "trainer.keep_best=eval/problems/mean@32",
        "keep_best=eval/problems/mean@32 is not measured; did you mean eval/problems/mean@4",
        2,
    ),
    (
        "bandpo train {small} trainer.keep_best=eval/amc23/mean@32",
        "keep_best=eval/amc23/mean@32 is not measured … no benchmark",
        2,
    ),
    ("bandpo train {small} rollout.max_tokens=600", "data.train … rollout.max_tokens=600", 2),
    ("bandpo train {small} columns.problem=question", "data.columns.problem=… names it", 2),
    ("bandpo eval model=model benchmarks=[file:no.jsonl]", "no.jsonl: no such file", 2),
    ("bandpo eval model=model benchmarks=[amc99]", "no benchmark 'amc99'", 2),
    ("bandpo plan eval.benchmarks=amc23,math500", "(eval.benchmarks=[amc23,math500])", 2),
    ("bandpo data check foreign.json", "data.columns.problem=frage data.columns.answer=antwort", 2),
    (
        "bandpo train {small} data.max_prompt_tokens=2",
        "6 of 6 prompts are longer than 2 tokens; max_prompt_tokens=",
        2,
    ),
    # classes of one's own
    (
        "bandpo plan rollout.engine._target_=my_engine.Mine",
        "No module named 'my_engine'; Python finds a module of your own where PYTHONPATH",
        2,
    ),
    (
        "bandpo plan {bounds}._target_=needs_more.Rule",
        "'needs_more.Rule': No module named 'a_package_that_is_not_here'; … PYTHONPATH",
        2,
    ),
    (
        "bandpo plan {bounds}._target_=bandpo.loss.BandKl",
        "bandpo.loss has no BandKl; did you mean BandKL",
        2,
    ),
    (
        "bandpo plan {bounds}=0.2",
        "Clip: bounds must be a rule (bandpo.loss.Bounds), such as … Fixed(0.2, 0.2) … not 0.2",
        2,
    ),
    (
        "bandpo plan method=grpo {bounds}._target_=my.Wrong",
        "my.Wrong breaks low <= 1 <= high: where p = 1e-30 its interval is [1.1, 0.9]",
        2,
    ),
    (
        "bandpo plan method=band_hellinger {bounds}.inner.divergence._target_=my.Concave",
        "my.Concave is no f-divergence: f is not convex",
        2,
    ),
    (
        "bandpo train {small} hydra.searchpath=[file://my_configs] reward=none",
        "the reward my.none returned None for sample p0/0 … (tried on the reference answer)",
        2,
    ),
    (
        "bandpo train {small} hydra.searchpath=[file://my_configs] reward=fails",
        "the reward my.fails raised ZeroDivisionError: division by zero for sample p0/0 … "
        "return 1 / len(completion.token_ids[:0])",
        2,
    ),
]


@pytest.fixture
def workplace(tmp_path, monkeypatch, untrained):
    (tmp_path / "model").symlink_to(untrained())
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("line", "message", "code"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_answered_in_words(line, message, code, workplace, command, capsys):
    try:
        ended = command(
            *shlex.split(line.replace("{small}", SMALL).replace("{bounds}", BOUNDS))[1:]
        )
    except SystemExit as end:  # argparse's own way to end
        ended = end.code
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    assert "Traceback" not in said
    assert re.search(".*".join(map(re.escape, message.split(" … "))), said), said
    assert ended == code


def test_there_are_at_least_twenty():
    assert len({line for line, _, _ in MISTAKES}) == len(MISTAKES) >= 20
