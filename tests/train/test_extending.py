"""What docs/extending.md says is so: files outside the package train through `_target_`."""

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/extending.md"
SECTION = PAGE.read_text().split("## A divergence, a clipping rule\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(python|bash|yaml)\n(.*?)```", SECTION, re.DOTALL)
NAMED = {text.split("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if kind != "bash"}
FILES = {name: text for name, text in NAMED.items() if name.startswith("my_")}
COMMANDS = [text for kind, text in BLOCKS if kind == "bash" and "PYTHONPATH=. " in text]
FAST = [
    *("rollout=hf", "trainer.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2"),
    *("rollout.max_tokens=4", "learner.updates_per_rollout=2", "eval.benchmarks=[]"),
]


def body_lines(text: str) -> int:
    """Lines that a user writes for the class: no imports, blank lines or docstrings."""
    code = text[text.index("class ") :]
    return sum(bool(line.strip()) and '"""' not in line for line in code.split("\n"))


def test_they_are_as_short_as_promised():
    assert body_lines(FILES["my_divergence.py"]) < 10
    assert body_lines(FILES["my_bounds.py"]) < 20


@pytest.mark.parametrize("line", COMMANDS, ids=["divergence", "rule"])
def test_a_users_class_trains_from_outside_the_package(
    line, command, untrained, tmp_path, monkeypatch
):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    words = shlex.split(line.replace("\\\n", ""))
    assert words[:3] == ["PYTHONPATH=.", "bandpo", "train"]
    arguments = [*words[2:], *FAST, "policy=embedded", f"model.path={untrained()}", "run.dir=run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(".")
    assert command(*arguments) == 0
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert '"bounds/high_mean"' in lines[-1]
