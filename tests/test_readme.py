"""Every command of README.md is run, or, where it needs other machines or hours, composed."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from printed_commands import (
    LAUNCH,
    bandpo_arguments,
    commands,
    compose_launch,
    compose_training,
)

from bandpo.cli import main
from bandpo.config.composition import compose
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.presets import with_preset

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = commands((ROOT / "README.md").read_text(encoding="utf-8"))
# Run, for one seed, by tests/train/test_quickstart.py.
ELSEWHERE = ("bash scripts/quickstart.sh", "for seed in 0 1 2; do bash scripts/quickstart.sh")


OWN = [command for command in COMMANDS if not command.startswith((*ELSEWHERE, LAUNCH))]


def test_the_readme_has_commands():
    assert len(OWN) >= 6 and any(c.startswith("bash scripts/quickstart.sh") for c in COMMANDS)


@pytest.fixture(scope="module")
def code_of_plan(tmp_path_factory):
    """The exit code of `bandpo table <recipe> --plan`, asked once: table1 takes seconds."""
    out = tmp_path_factory.mktemp("tables")
    return cache(lambda recipe: main(["table", recipe, "--plan", "--out", str(out / recipe)]))


@pytest.mark.parametrize("command", OWN)
def test_a_command_of_the_readme_is_true(command, code_of_plan, tmp_path, monkeypatch):
    name, *arguments = bandpo_arguments(command)
    if name == "train":
        if "my_configs" in command:
            return  # tests/train/test_extending.py trains with it
        (tmp_path / "my_problems.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
        monkeypatch.chdir(tmp_path)
        compose_training(arguments)
        return
    if name == "eval":  # of models that are elsewhere
        compose("eval", with_preset(arguments), EvalCommand)
        return
    if name == "doctor":  # which looks at its own process; 1 where it finds something to fix
        done = subprocess.run(
            [sys.executable, "-m", "bandpo.cli", name, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, 1), done.stderr
    elif name == "table":  # what it would run, from the folder that holds the recipes
        monkeypatch.chdir(ROOT)
        recipe, *options = arguments
        assert options in ([], ["--plan"]) and code_of_plan(recipe) == 0
    else:
        monkeypatch.chdir(tmp_path)
        assert main([name, *arguments]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(LAUNCH)])
def test_a_launch_of_the_readme_starts_what_composes(command, tmp_path):
    compose_launch(command, tmp_path)


def test_the_page_of_keys_is_in_step_with_the_schema():
    sys.path.insert(0, str(ROOT / "scripts"))
    from document_config import document

    assert (ROOT / "docs/configuration.md").read_text() == document()


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
