"""Every command of README.md is run, or, where it needs other machines or hours, composed."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bandpo.cli import main
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.presets import with_preset
from bandpo.tables.sweep import sweep_of

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
# Run, for one seed, by tests/train/test_quickstart.py.
ELSEWHERE = ("bash scripts/quickstart.sh", "for seed in 0 1 2; do bash scripts/quickstart.sh")
LAUNCHERS = (
    ("torchrun", "--nproc-per-node", "2", "-m", "bandpo.cli"),
    ("deepspeed", "--num_gpus", "2", "--module", "bandpo.cli"),
)


def bandpo_arguments(command: str) -> list[str]:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    for launcher in LAUNCHERS:
        if tuple(words[: len(launcher)]) == launcher:
            return words[len(launcher) :]
    assert words[0] == "bandpo", command
    return words[1:]


LAUNCH = "bash scripts/launch.sh"
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
        sweep = sweep_of(arguments)
        for overrides in [run.overrides for run in sweep] if sweep else [arguments]:
            compose("train", overrides, Config)
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
    (tmp_path / "hosts").write_text("node1 slots=8\n")
    options = shlex.split(command)[2:]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/launch.sh"), "--dry-run", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    launched = shlex.split(done.stdout)
    if "eval" in options:
        overrides = launched[launched.index("eval") + 1 :]
        assert overrides == options[options.index("eval") + 1 :]
        compose("eval", with_preset(overrides), EvalCommand)
        return
    overrides = launched[launched.index("train") + 1 :]
    assert overrides == options[options.index("--") + 1 :]
    announced = re.findall(
        r"--(?:nproc|nodes) (\d+)", command
    )  # GPUs of a node are 8 where not said
    ranks = int(announced[0]) if "--nproc" in command else 8 * int(announced[0] if announced else 1)
    compose("train", overrides, Config, ranks)


def test_the_page_of_keys_is_in_step_with_the_schema():
    sys.path.insert(0, str(ROOT / "scripts"))
    from document_config import document

    assert (ROOT / "docs/configuration.md").read_text() == document()


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
