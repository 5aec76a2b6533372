"""--help, --cfg, --info and --version, as users of hydra and of any command line expect them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import bandpo
from bandpo import cli
from bandpo.commands import eval as eval_command
from bandpo.commands import train as train_command
from bandpo.commands.composed import WIDTH
from bandpo.config.composition import compose, config_dir
from bandpo.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
COMPOSED = {"train": train_command.COMMAND, "eval": eval_command.COMMAND}


def shown(capsys, *arguments):
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("asked", [["--help"], ["-h"], ["method=nonsense", "--help"]])
def test_a_page_has_keys_with_meanings_groups_with_files_and_examples(name, asked, capsys):
    page = shown(capsys, name, *asked)
    lines = page.splitlines()
    assert max(map(len, lines)) <= WIDTH
    for key in COMPOSED[name].keys:
        (line,) = [line.split(maxsplit=2) for line in lines if line.startswith(f"  {key} ")]
        assert len(line) == 3 and len(line[2]) >= 6, key  # key, value, meaning
    if name == "eval":
        assert "protocol" not in page and "policy " not in page.split("groups and the files")[1]
    files = {f"{path.parent.name} {path.stem}" for path in config_dir().glob("*/[!_]*.yaml")}
    groups = page.split("groups and the files")[1].split("all keys:")[0]
    for group, file in map(str.split, sorted(files)):
        if group not in ("benchmark", "preset") and (
            name == "train" or group in ("reward", "rollout")
        ):
            assert group in groups and file in groups
    examples = page.split("examples:\n")[1].splitlines()
    assert len(examples) >= 3
    assert all(e.startswith("  bandpo ") for e in examples)


def test_the_examples_compose():
    composed = []
    for example in train_command.COMMAND.examples:
        words = example.split("#")[0].split()
        if words[:2] == ["bandpo", "train"] and not {"-m", "--cfg"} & set(words):
            composed.append(compose("train", words[2:], Config))
    assert len(composed) >= 3
    assert len({(config.model.path, config.method.name) for config in composed}) >= 3


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bandpo"])
        try:
            code = cli.main([command, "--help"])
        except SystemExit as end:
            code = end.code
    assert code == 0 and f"bandpo {command}" in capsys.readouterr().out


def test_help_names_a_command_too(capsys):
    assert shown(capsys, "help", "eval") == shown(capsys, "eval", "-h")
    assert "bandpo <command> --help" in shown(capsys, "help")


def test_the_composed_configuration_is_what_would_be_trained(capsys):
    overrides = ["method=dapo", "rollout.max_tokens=1024", "learner.lr=1e-6"]
    text = shown(capsys, "train", *overrides, "--cfg", "job", "--resolve")
    config = compose("train", overrides, Config)
    assert Config.model_validate(yaml.safe_load(text)) == config
    part = shown(capsys, "train", "--cfg=job", *overrides, "-p", "learner")
    assert part.startswith("# @package learner\n") and yaml.safe_load(part)["lr"] == 1e-6
    assert "${method.overlong_buffer}" in shown(capsys, "train", "method=dapo", "-c", "job")
    assert OmegaConf.create(shown(capsys, "eval", "model=embedded", "--cfg", "job")).eval.n == 32


def test_a_source_of_ones_own_takes_the_place_of_the_default(capsys):
    text = shown(capsys, "train", "data.train={path: my.jsonl}", "-c", "job", "-p", "data.train")
    assert yaml.safe_load(text) == {"path": "my.jsonl"}


def test_bad_overrides_are_answered_there_as_in_training(capsys):
    assert cli.main(["train", "--cfg", "job", "learner.momentum=1"]) == 2
    assert "learner.momentum=1: no such key" in capsys.readouterr().err


def test_hydras_search_path_and_defaults_are_shown(capsys):
    assert str(config_dir()) in shown(capsys, "train", "--info", "searchpath")
    assert "band_kl" in shown(capsys, "train", "--info", "defaults")


def test_the_version_is_that_of_the_package(capsys):
    assert shown(capsys, "--version") == f"bandpo {bandpo.__version__}\n"


def test_importing_the_package_imports_nothing():
    code = "import sys; before = set(sys.modules); import bandpo; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "{'bandpo'}\n"
