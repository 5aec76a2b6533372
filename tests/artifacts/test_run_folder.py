"""What a run finds in its folder: its own later steps are cut, another run is kept."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from bandpo.artifacts.checkpoint import (
    Checkpoint,
    add_to_checkpoint,
    checkpoints_in,
    write_checkpoint,
)
from bandpo.artifacts.folder import cut_after, holds_a_run, read_metrics
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.disk.whole import replacing
from bandpo.methods.records import TokenRecorder
from bandpo.ranks.collectives import Alone
from bandpo.run.start_point import StartPoint


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def config(tmp_path):
    return compose("train", [f"run.dir={tmp_path}"], Config)


@pytest.fixture
def run(tmp_path, config):
    """A run of four steps with a checkpoint at 2, killed while it wrote its fifth line."""
    lines = [json.dumps({"step": step, "reward/mean": step / 10}) for step in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5, "rew']))
    for name in (
        *("samples/step_000002.jsonl", "samples/step_000003.jsonl", "samples/step_000004.jsonl"),
        *("tokens/step_000002-rank0.parquet", "tokens/step_000004-rank1.parquet"),
        *("eval/000000/x.jsonl", "eval/000002/x.jsonl", "eval/000004/x.jsonl"),
        "checkpoints/step_000002/state.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return tmp_path


KEPT = [
    *("checkpoints/step_000002/state.json", "config.yaml"),
    *("eval/000000/x.jsonl", "eval/000002/x.jsonl", "metrics.jsonl"),
    *("samples/step_000002.jsonl", "tokens/step_000002-rank0.parquet"),
]


def lines(folder):
    return [json.loads(x)["step"] for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_of_a_killed_run_opens(run):
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2, 3, 4]


def test_later_steps_are_cut(run):
    assert cut_after(run, 2) is None
    assert lines(run) == [0, 1, 2]
    assert files(run) == KEPT


def test_a_later_checkpoint_keeps_all_that_is_cut(run):
    (run / "checkpoints/step_000004").mkdir()
    (run / "checkpoints/step_000004/state.json").write_text("damaged")
    whole = (run / "metrics.jsonl").read_text()
    kept = cut_after(run, 2)
    assert kept == run / "previous/1"
    assert files(kept) == [
        *("checkpoints/step_000004/state.json", "eval/000004/x.jsonl", "metrics.jsonl"),
        *("samples/step_000003.jsonl", "samples/step_000004.jsonl"),
        "tokens/step_000004-rank1.parquet",
    ]
    assert (kept / "metrics.jsonl").read_text() == whole
    assert lines(run) == [0, 1, 2]
    assert [f for f in files(run) if not f.startswith("previous/")] == KEPT


def begin(config, checkpoint=None):
    state = {"step": checkpoint.step if checkpoint else 0, "trackers": {}}
    return StartPoint(config, checkpoint, state, ()).prepare_folder()


def changed(config, **trainer):
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=trainer)})


def test_a_run_that_goes_on_in_its_folder_leaves_nothing_aside(run, config):
    (run / "checkpoints/latest").symlink_to("step_000004")  # damaged, and gone
    assert begin(config, Checkpoint(run.resolve() / "checkpoints/step_000002")) is None
    assert files(run) == KEPT
    assert (run / "checkpoints/latest").resolve().name == "step_000002"


def test_a_run_in_a_relative_folder_goes_on_there(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    config = compose("train", [f"run.dir={run.name}"], Config)
    [checkpoint] = checkpoints_in(Path(run.name) / "checkpoints")
    assert begin(config, checkpoint) is None
    assert files(run) == KEPT


def test_a_run_killed_before_its_first_sound_checkpoint_begins_again(run, config):
    (run / "checkpoints/step_000002/state.json").unlink()
    (run / "checkpoints/step_000002").rmdir()
    assert begin(config) is None
    assert lines(run) == [] and files(run) == ["config.yaml", "metrics.jsonl"]


@pytest.mark.parametrize("case", ["never", "other settings", "checkpoint from elsewhere"])
def test_another_run_is_kept_whole(case, run, config, tmp_path_factory):
    before = files(run)
    checkpoint = None
    if case == "never":
        config = changed(config, resume="never")
    elif case == "other settings":
        config = config.model_copy(update={"seed": 5})
    else:
        checkpoint = Checkpoint(tmp_path_factory.mktemp("elsewhere") / "step_000002")
    assert "previous/1" in begin(config, checkpoint)
    assert files(run / "previous/1") == before
    assert not holds_a_run(run)
    # And once more: the next number.
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    assert "previous/2" in begin(changed(config, resume="never"))
    assert files(run) == sorted([f"previous/1/{f}" for f in before] + ["previous/2/metrics.jsonl"])


def test_an_empty_folder_is_no_run(tmp_path, config):
    assert not holds_a_run(tmp_path) and begin(config) is None
    assert files(tmp_path) == []


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_checkpoint(run):
    def part(folder):
        (folder / "engine").mkdir()
        (folder / "engine/shard0").write_text("half")
        die()

    write_checkpoint(run / "checkpoints", {"step": 3}, {}, [part], Alone())


def half_an_export(run):
    def part(folder):
        (folder / ".model.safetensors.77.partial").write_text("half")
        die()

    add_to_checkpoint(Checkpoint(run / "checkpoints/step_000002"), "hf", [part], Alone())


def half_a_link(run):
    with replacing(run / "checkpoints/latest") as aside:
        aside.symlink_to("step_000002")
        die()


def half_a_file(run):
    with replacing(run / "samples/step_000002.jsonl") as aside:
        aside.write_text('{"step')
        die()


def half_of_the_tokens(run):
    TokenRecorder(run / "tokens/step_000003-rank0.parquet")
    die()


@pytest.mark.parametrize(
    "writer", [half_a_checkpoint, half_an_export, half_a_link, half_a_file, half_of_the_tokens]
)
def test_what_a_killed_process_was_writing_is_removed(writer, run):
    cut_after(run, 2)
    before = sorted(run.rglob("*"))
    process = os.fork()
    if process == 0:
        try:
            writer(run)
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert sorted(run.rglob("*")) != before
    cut_after(run, 2)
    assert sorted(run.rglob("*")) == before
