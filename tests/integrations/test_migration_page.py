"""The names of peers' settings in docs/howto/migrate.md are those of the installed versions."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/howto/migrate.md").read_text(encoding="utf-8")
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split("|")]
    for row in PAGE.partition("<!-- names: peers -->\n")[2].partition("\n\n")[0].splitlines()[2:]
]
TRL = """
import dataclasses, json, trl
print(json.dumps([trl.__version__, [f.name for f in dataclasses.fields(trl.GRPOConfig)]]))
"""
VERL = """
import importlib.metadata, importlib.util, json, pathlib, yaml
folder = pathlib.Path(importlib.util.find_spec("verl").origin).parent / "trainer/config"
def keys(tree, prefix=""):
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield prefix + name
        yield from keys(value, prefix + name + ".")
tree = yaml.safe_load((folder / "_generated_ppo_trainer.yaml").read_text())
print(json.dumps([importlib.metadata.version("verl"), list(keys(tree))]))
"""


def asked(variable: str, code: str) -> tuple[str, set[str]]:
    """The peer's version and the names of its settings, from the Python that a variable names."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    version, names = json.loads(done.stdout.splitlines()[-1])
    return version, set(names)


def test_there_are_rows():
    assert len(ROWS) >= 25 and all(len(row) == 4 for row in ROWS)


@pytest.mark.slow
def test_names_of_trl():
    version, names = asked("BANDPO_TRL_PYTHON", TRL)
    assert f"TRL {version}" in PAGE
    named = {name for row in ROWS for name in row[1]}
    arguments = {name for name in named if name.endswith("=")}  # of the trainer
    assert arguments == {"train_dataset=", "reward_funcs="} and named - arguments <= names


@pytest.mark.slow
def test_names_of_verl():
    version, names = asked("BANDPO_VERL_PYTHON", VERL)
    assert f"verl {version}" in PAGE
    ours = names | {name.removeprefix("actor_rollout_ref.") for name in names}
    assert {name for row in ROWS for name in row[2]} <= ours
