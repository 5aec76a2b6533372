"""A run that is killed and started again is the run it would have been."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from killing import kill_when
from small_runs import FIXTURES, LOW_BYTES, few, metrics_of

TINY = [
    "policy=embedded",
    *("trainer.checkpoint_every=2", "trainer.sample_every=1", "trainer.dump_tokens_every=1"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=8"),
    *("learner.updates_per_rollout=2", "eval.n=2", "method=grpo"),
    few(4),
    *LOW_BYTES,
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(FIXTURES), "WANDB_MODE": "offline"}


def command_of(folder: Path, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    start = [*(launcher if ranks > 1 else []), "-m", "bandpo.cli", "train"]
    return [sys.executable, *start, *overrides, f"run.dir={folder}"]


def trained(folder: Path, *overrides: str, ranks: int = 1) -> str:
    """What a run into `folder` that ended well printed."""
    done = subprocess.run(
        command_of(folder, *overrides, ranks=ranks), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return " ".join(done.stdout.split())


def killed(folder: Path, step: int, *overrides: str, ranks: int = 1) -> None:
    """A run whose processes all get SIGKILL as soon as a step is on its record."""
    kill_when(
        lambda: f'"step": {step},' in read(folder / "metrics.jsonl"),
        command_of(folder, *overrides, ranks=ranks),
        folder.parent / f"{folder.name}.log",
        ENVIRONMENT,
    )


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def record(folder: Path) -> dict:
    """All that a run leaves, but for its checkpoints, plots and what tells the time.

    Evaluations keep problems in the order in which verdicts came.
    """

    def timeless(line: str) -> dict:
        return {k: v for k, v in json.loads(line).items() if "time" not in k and "through" not in k}

    lines = [timeless(line) for line in read(folder / "metrics.jsonl").splitlines()]
    files = [path for pattern in ("samples/*", "tokens/*") for path in sorted(folder.glob(pattern))]
    evaluations = {p: sorted(read(p).splitlines()) for p in folder.glob("eval/*/*.jsonl")}
    kept = {**{p: p.read_bytes() for p in files}, **evaluations}
    return {"metrics": lines, **{str(path.relative_to(folder)): kept[path] for path in kept}}


def weights(folder: Path) -> str:
    file = folder / "checkpoints/latest/hf/model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_same(resumed: Path, whole: Path) -> None:
    found, expected = record(resumed), record(whole)
    assert found["metrics"] == expected["metrics"]
    assert found == expected
    assert weights(resumed) == weights(whole)


# --- Without vLLM: what a run does with its folder ---------------------------------------------


@pytest.fixture(scope="module")
def model(untrained):
    return f"model.path={untrained(tied=False)}"


@pytest.fixture(scope="module")
def fast(model):
    return [*TINY, model, "rollout=hf", "trainer.steps=4"]


@pytest.fixture(scope="module")
def whole(fast, tmp_path_factory):
    """Four steps without a break."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained(folder, *fast, "trainer.keep_best=eval/few/mean@2", "trainer.save_hf_every=4")
    return folder


def test_after_sigkill_the_run_is_the_one_it_would_have_been(fast, whole, tmp_path):
    folder, trackers = tmp_path / "killed", "tracking.trackers=[tensorboard,wandb]"
    killed(folder, 3, *fast, trackers)
    state = json.loads(read(folder / "checkpoints/latest/state.json"))
    assert state["step"] == 2
    # As if the kill had come later: within the next checkpoint, and within an export.
    for half in ("checkpoints/.step_000004.partial/engine", "checkpoints/step_000002/.hf.partial"):
        (folder / half).mkdir(parents=True)
    said = trained(folder, *fast, trackers)
    assert not list(folder.rglob("*.partial"))
    assert "after step 2" in said
    assert_same(folder, whole)
    assert not (folder / "previous").exists()
    # Both parts of the run are one run of the tracker.
    runs = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert {name.rpartition("-")[2] for name in runs} == {state["trackers"]["wandb"]}


def test_the_last_checkpoint_says_what_it_is(whole):
    checkpoint = whole / "checkpoints/latest"
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == [
        *("best", "latest", "step_000002", "step_000004")
    ]
    # Step 2 was not evaluated.
    assert (whole / "checkpoints/best").resolve() == checkpoint.resolve()
    assert not (whole / "checkpoints/step_000002/hf").exists()
    assert {p.name for p in checkpoint.iterdir()} == {
        *("engine", "hf", "random", "config.yaml", "manifest.json", "problems.jsonl", "state.json")
    }
    card = (checkpoint / "hf/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    score = json.loads(read(whole / "metrics.jsonl").splitlines()[-1])["eval/few/mean@2"]
    for text in (
        *("| method | grpo |", "| steps | 4 of 4 |", "bandpo.data.arithmetic.problems"),
        *(f"| eval/few/mean@2 | {score:.4f} |", "bandpo train ", "learner.updates_per_rollout=2"),
    ):
        assert text in card
    assert (checkpoint / "hf/generation_config.json").exists()


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_is_used(fast, whole, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder, symlinks=True)
    shard = next((folder / "checkpoints/step_000004/engine").glob("*.pt"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    said = trained(folder, *fast)
    assert f"skipped the checkpoint step_000004: engine/{shard.name} has" in said
    assert "after step 2" in said
    assert_same(folder, whole)
    # What may not be written again by itself is kept.
    assert (folder / "previous/1/checkpoints/step_000004/engine" / shard.name).exists()


def test_the_fallback_engine_trains_and_says_so(whole):
    assert json.loads((whole / "run.json").read_text())["engine"] == "hf"
    assert metrics_of(whole)[-1]["mismatch/logprob_abs_max"] < 1e-4


def test_other_settings_are_refused_with_a_list_and_harmless_ones_pass(
    command, fast, whole, tmp_path, capsys
):
    folder = tmp_path / "changed"
    shutil.copytree(whole, folder, symlinks=True)
    before = record(folder)
    train = ("train", *fast, f"run.dir={folder}")
    others = ("learner.lr=0.1", "rollout.temperature=0.5", "run.name=other")
    assert command(*train, *others) == 2
    refused = capsys.readouterr().err
    assert "Traceback" not in refused
    assert "learner.lr: 0.0002 → 0.1" in refused
    assert "rollout.temperature: 1.0 → 0.5" in refused
    assert "run.name:" not in refused
    assert record(folder) == before
    assert yaml.safe_load(read(folder / "config.yaml"))["learner"]["lr"] == 0.0002
    harmless = ("trainer.steps=5", "run.name=other", "trainer.eval_every=5")
    assert command(*train, *harmless, "learner.micro_batch_tokens=999") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "learner.micro_batch_tokens: None → 999" in said and "no longer bitwise" in said
    steps = [line["step"] for line in record(folder)["metrics"]]
    assert steps == [0, 1, 2, 3, 4, 5]


# --- On the real stack -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (2, 1), (3, 1), (2, 2)])
def test_vllm_and_zero_go_on_bitwise_after_sigkill(stage, ranks, tmp_path):
    pytest.importorskip("vllm")
    overrides = [
        *("trainer.steps=4", "trainer.checkpoint_every=2", "trainer.sample_every=1"),
        *("rollout.prompts_per_step=8", "rollout.group_size=8", "rollout.max_tokens=32"),
        *("rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=64"),
        *("learner.updates_per_rollout=2", f"learner.zero_stage={stage}", "eval.benchmarks=[]"),
    ]
    trained(tmp_path / "whole", *overrides, ranks=ranks)
    killed(tmp_path / "killed", 3, *overrides, ranks=ranks)
    said = trained(tmp_path / "killed", *overrides, ranks=ranks)
    assert "after step 2" in said
    assert any(line["reward/std"] > 0 for line in record(tmp_path / "whole")["metrics"][1:])
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_goes_on_and_says_that_it_is_not_bitwise(
    before, after, fast, tmp_path
):
    # One update a step: with more, ranks share out its minibatches in their own way.
    overrides = [*fast, "learner.zero_stage=2", "learner.updates_per_rollout=1"]
    trained(tmp_path / "whole", *overrides, ranks=before)
    killed(tmp_path / "other", 3, *overrides, ranks=before)
    said = trained(tmp_path / "other", *overrides, ranks=after)
    assert f"ranks: {before} → {after}" in said and "no longer bitwise" in said
    found, expected = (record(tmp_path / name)["metrics"] for name in ("other", "whole"))
    assert found[:3] == expected[:3]
    assert [line["step"] for line in found] == [0, 1, 2, 3, 4]
    for here, there in zip(found[3:], expected[3:], strict=True):
        assert here["reward/mean"] == pytest.approx(there["reward/mean"], abs=1e-6)
        assert here["grad/norm"] == pytest.approx(there["grad/norm"], rel=1e-4)


# --- A disk that is full -----------------------------------------------------------------------

# The run's folder lies on a small file system, filled up until a checkpoint has failed.
FULL_DISK = """
set -e
mount -t tmpfs -o size=5m tmpfs "$DISK"
head -c 3500k /dev/zero > "$DISK/filler"
(until grep -q "could not be written" "$LOG"; do sleep 0.05; done; rm "$DISK/filler") &
trap "kill $! 2> /dev/null || true" EXIT
"$@" > "$LOG" 2>&1
cp -r "$DISK/run" "$KEPT"
"""


def can_mount() -> bool:
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return (
        bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_full_disk_fails_the_checkpoint_and_not_the_run(fast, whole, tmp_path):
    paths = {name: tmp_path / name.lower() for name in ("DISK", "LOG", "KEPT")}
    paths["DISK"].mkdir()
    paths["LOG"].touch()
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1", **{n: str(p) for n, p in paths.items()}}
    run = command_of(paths["DISK"] / "run", *fast, "trainer.keep_checkpoints=1")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", *run], env=environment, timeout=600
    )
    said = " ".join(read(paths["LOG"]).split())
    assert done.returncode == 0, said[-4000:]
    assert "the checkpoint of step 2 could not be written" in said
    assert "No space left on device" in said
    kept = paths["KEPT"]
    assert sorted(p.name for p in (kept / "checkpoints").iterdir()) == ["latest", "step_000004"]
    assert_same(kept, whole)
