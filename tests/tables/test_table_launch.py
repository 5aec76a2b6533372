"""Launching: what is started, what is not started again, and what SLURM is given."""

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fabricated import finish

from bandpo.cli import main
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.disk.lock import is_held, only_one, wait_until_free
from bandpo.errors import UserError
from bandpo.tables import launch
from bandpo.tables.launch import Processes, train_command
from bandpo.tables.recipe import find_recipe
from bandpo.tables.runs import plan_runs, table_hash
from bandpo.tables.slurm import write_slurm

RECIPE = """
title: launched
models: {one: {}}
methods: {grpo: {}, band_kl: {overrides: {method.delta: 0.03}}}
seeds: 2
overrides: {eval.n: 4, trainer.steps: 1}
"""
COUNTS = {"arithmetic": [1, 2]}
# Puts a folder of a finished run in its place, unless a file says that it is to fail.
TRAIN = """
import pathlib, shutil, sys
done, folder, fails = map(pathlib.Path, sys.argv[1:])
if fails.exists():
    fails.unlink()
    sys.exit(3)
shutil.copytree(done, folder, dirs_exist_ok=True)
with (folder / "times").open("a") as file:
    file.write("trained\\n")
"""


@pytest.fixture
def recipe_folder(tmp_path):
    folder = tmp_path / "launched"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def trained_at_once(recipe_folder, tmp_path, monkeypatch):
    """Training takes no time: every run's files are ready to be put in place."""
    recipe = find_recipe(str(recipe_folder)).recipe()
    for run in plan_runs(recipe, tmp_path / "ready"):
        finish(run, COUNTS, [0.5])

    def command(run, hostfile=None):
        ready = tmp_path / "ready" / run.folder.relative_to(tmp_path / "out")
        fails = tmp_path / f"fails-{run.method}-{run.seed}"
        return [sys.executable, "-c", TRAIN, str(ready), str(run.folder), str(fails)]

    monkeypatch.setattr(launch, "train_command", command)
    return recipe_folder, tmp_path / "out"


def times_trained(out: Path) -> dict[str, int]:
    return {p.parent.name[:13]: p.read_text().count("trained") for p in out.rglob("times")}


def test_every_run_is_trained_once_and_failed_ones_again(trained_at_once, tmp_path, capsys):
    folder, out = trained_at_once
    (tmp_path / "fails-grpo-1").touch()
    command = ["table", str(folder), "--out", str(out)]
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "failed with exit code 3" in shown and "not finished: one, grpo, seed 1" in shown
    assert "| grpo | arithmetic | 1 of 2 |" in (out / "table.md").read_text()
    assert main(command) == 0
    assert "4 runs, 3 of them finished" in capsys.readouterr().out
    assert main(command) == 0
    assert list(times_trained(out).values()) == [1, 1, 1, 1]
    assert "| grpo | arithmetic | 2 |" in (out / "table.md").read_text()


def test_first_seeds_go_first_after_the_notice(trained_at_once, monkeypatch, capsys):
    """A table that is cut short compares rows of equally many seeds."""
    folder, out = trained_at_once
    recorded = "notice: A minute.\nlauncher: {_target_: test_table_launch.Recorder}\n"
    (folder / "recipe.yaml").write_text(RECIPE + recorded)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert main(["table", str(folder), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    order = ["A minute.", "grpo 0", "band_kl 0", "grpo 1", "band_kl 1", "launched"]
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    assert main(["table", str(folder), "--out", str(out)]) == 0
    assert "A minute." not in capsys.readouterr().out, "there is nothing left to wait for"


def test_only_narrows_what_is_run(trained_at_once):
    folder, out = trained_at_once
    assert main(["table", str(folder), "--out", str(out), "--only", "method=band_kl,seed=1"]) == 0
    assert list(times_trained(out)) == ["band_kl-seed1"]


def test_several_runs_go_side_by_side(trained_at_once, capsys):
    folder, out = trained_at_once
    assert main(["table", str(folder), "--out", str(out), "--at-once", "3"]) == 0
    assert len(times_trained(out)) == 4


def test_a_recipe_may_bring_its_own_launcher(trained_at_once, monkeypatch):
    folder, out = trained_at_once
    (folder / "recipe.yaml").write_text(
        RECIPE + "launcher: {_target_: test_table_launch.Recorder}\n"
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert main(["table", str(folder), "--out", str(out)]) == 0
    assert not list(times_trained(out))


class Recorder:
    """A launcher that fabricates its runs."""

    def __call__(self, runs):
        for run in runs:
            print(run.method, run.seed)
            finish(run, COUNTS, [0.5])


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"
    wait_until_free(folder)
    assert not is_held(folder)
    with only_one(folder):
        assert is_held(folder)
        with pytest.raises(UserError, match="another process"), only_one(folder):
            pass
        waiting = threading.Thread(target=wait_until_free, args=(folder,))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
    waiting.join(timeout=10)
    assert not waiting.is_alive() and not is_held(folder)


def test_a_run_that_another_process_is_at_is_waited_for(trained_at_once, capsys):
    """As one is that a killed `bandpo table` left behind."""
    folder, out = trained_at_once
    recipe = find_recipe(str(folder)).recipe()
    first = plan_runs(recipe, out)[0]
    ready = out.parent / "ready" / first.folder.relative_to(out)
    program = (
        "import shutil, sys, time, pathlib; from bandpo.disk.lock import only_one\n"
        "with only_one(pathlib.Path(sys.argv[2])):\n"
        "    print('held', flush=True); time.sleep(2)\n"
        "    shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)\n"
    )
    command = [sys.executable, "-c", program, str(ready), str(first.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert main(["table", str(folder), "--out", str(out), "--only", "method=grpo,seed=0"]) == 0
    assert "another process is training it; waiting" in capsys.readouterr().out
    assert first.is_finished() and not times_trained(out)


def test_commands_are_those_of_the_launchers(recipe_folder, tmp_path):
    recipe = find_recipe(str(recipe_folder)).recipe()
    one = plan_runs(recipe, tmp_path)[0]
    assert train_command(one)[:4] == [sys.executable, "-m", "bandpo.cli", "train"]
    eight = plan_runs(recipe, tmp_path, extra=["rollout.prompts_per_step=256"], ranks=8)[0]
    words = " ".join(train_command(eight))
    assert "torch.distributed.run --standalone --nproc-per-node 8 -m bandpo.cli train" in words
    words = " ".join(train_command(eight, Path("hosts")))
    assert words.startswith("deepspeed --hostfile hosts --module bandpo.cli train method=grpo")


def test_a_run_for_many_cards_is_not_started_without_them(recipe_folder, tmp_path, capsys):
    command = ["table", str(recipe_folder), "--out", str(tmp_path), "--cluster", "8xH200"]
    assert main([*command, "rollout.prompts_per_step=256"]) == 2
    told = capsys.readouterr().err
    assert "8 GPUs are needed here" in told and "--slurm" in told


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["0,1", "2,3"]),
        ("4,5,6,7", ["4,5", "6,7"]),
        ("GPU-a,GPU-b,2,3", ["GPU-a,GPU-b", "2,3"]),
    ],
)
def test_runs_side_by_side_share_out_the_cards_that_were_given(monkeypatch, given, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    processes, run = Processes(at_once=2), SimpleNamespace(ranks=2)
    found = [processes._gpus(run, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert found == expected


def test_slurm_scripts_run_the_line_of_their_task(recipe_folder, tmp_path):
    recipe = find_recipe(str(recipe_folder)).recipe()
    runs = plan_runs(recipe, tmp_path / "out", extra=["rollout.prompts_per_step=256"], ranks=16)
    commands, script = write_slurm(tmp_path / "jobs", "made", runs, gpus_per_node=8, hours=10.2)
    text = script.read_text()
    for line in ("--array=0-3", "--nodes=2", "--gpus-per-node=8", "--time=16:00:00", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    lines = commands.read_text().splitlines()
    assert len(lines) == 4
    for run, line in zip(runs, lines, strict=True):
        words = shlex.split(line)
        assert words[words.index("--nnodes") + 1] == "2"
        config = compose("train", words[words.index("train") + 1 :], Config)
        assert table_hash(config) == table_hash(run.config)
    # As SLURM would: its commands are stood in for by ones that tell what they were given.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, body in (("srun", 'printf "%s\\n" "$@" "$RENDEZVOUS"'), ("scontrol", "echo node7")):
        (bin_folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_JOB_ID": "99",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    done = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["bash", "-c", lines[2], "node7:29502"]


def test_slurm_gets_only_what_is_not_finished(trained_at_once, tmp_path, capsys):
    folder, out = trained_at_once
    assert main(["table", str(folder), "--out", str(out), "--only", "method=grpo"]) == 0
    jobs = ["table", str(folder), "--out", str(out), "--slurm", str(tmp_path / "jobs")]
    assert main(jobs) == 0
    lines = (tmp_path / "jobs" / "commands.txt").read_text().splitlines()
    assert len(lines) == 2 and all("method=band_kl" in line for line in lines)
    assert main(["table", str(folder), "--out", str(out), "--only", "method=band_kl"]) == 0
    assert main(jobs) == 0
    assert "nothing to submit" in capsys.readouterr().out


def test_ending_the_command_ends_what_it_started(recipe_folder, tmp_path):
    """SIGTERM reaches the training process too."""
    program = (
        "import sys; from bandpo.tables import launch\n"
        "launch.train_command = lambda run, hostfile=None: ['sleep', '4321']\n"
        "from bandpo.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["table", str(recipe_folder), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert "run 1 of 4" in "".join(next(process.stdout) for _ in range(2))
        deadline = time.monotonic() + 30
        while "sleep" not in _commands(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "sleep" in _commands(process.pid)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert "4321" not in _all_commands()


def _commands(parent: int) -> str:
    """The command lines of all children of a process, by any of its threads."""
    found = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        found += [_command(child) for child in path.read_text().split()]
    return " ".join(found)


def _command(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _all_commands() -> str:
    return " ".join(_command(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
