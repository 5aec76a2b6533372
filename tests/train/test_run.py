"""`bandpo train` from start to end on the real stack: vLLM, DeepSpeed, and what a run leaves."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killing import kill_when
from metrics_page import undocumented
from small_runs import FIXTURES, LOW_BYTES, few, metrics_of, timeless

pytest.importorskip("vllm")

EAGER = ["rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=32"]
FAST = [
    "trainer.steps=2",
    "trainer.checkpoint_every=1",
    "trainer.sample_every=1",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_tokens=8",
    "learner.updates_per_rollout=2",
    "eval.n=2",
    few(4),
    *LOW_BYTES,
]


def settings_of(folder: Path, model: Path, *overrides: str) -> list[str]:
    """The overrides of a run into `folder` with vLLM."""
    return [
        *FAST,
        *EAGER,
        "policy=embedded",
        f"model.path={model}",
        f"run.dir={folder}",
        *overrides,
    ]


@pytest.fixture(scope="module")
def model(untrained):
    return untrained(tied=False)


@pytest.fixture(scope="module")
def run(bandpo, model, tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    overrides = ("method=grpo", "tracking.trackers=[tensorboard,wandb]", "trainer.profile=true")
    bandpo("train", *settings_of(folder, model, *overrides), cwd=folder.parent)
    return folder


@pytest.fixture(autouse=True, scope="module")
def _wandb_without_an_account():
    os.environ["WANDB_MODE"] = "offline"
    yield
    del os.environ["WANDB_MODE"]


def test_a_run_leaves_what_the_documentation_names(run):
    for name in (
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "plots/training.png",
        "plots/timeline.png",
    ):
        assert (run / name).stat().st_size > 0, name
    facts = json.loads((run / "run.json").read_text())
    assert facts["engine"] == "vllm" and facts["learner"] == "deepspeed"
    assert {"git_commit", "versions", "hardware", "verifier"} <= facts.keys()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "latest",
        "step_000001",
        "step_000002",
    ]
    assert (run / "checkpoints/latest").resolve().name == "step_000002"
    samples = (run / "samples/step_000001.jsonl").read_text().splitlines()
    assert len(samples) == 16
    assert {"prompt", "completion", "value", "answer"} <= json.loads(samples[0]).keys()
    assert any((run / "tensorboard").rglob("events.*"))
    assert any((run / "wandb").rglob("*.wandb"))


def test_the_trace_of_a_step_names_its_phases(run):
    trace = json.loads(gzip.decompress((run / "profile/rank0.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"rollout", "exchange", "logprob", "learn", "sync", "_ChunkedLogprobs"} <= names


def test_metrics_have_a_line_a_step_and_evaluations_first_and_last(run):
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "eval/few/mean@2" in lines[0] and "eval/few/mean@2" in lines[-1]
    assert undocumented(name for line in lines for name in line if name != "step") == set()
    for line in lines[1:]:
        assert line["reward/std"] > 0 and line["grad/norm"] > 0
        assert line["mismatch/logprob_abs_max"] < 1e-4
        assert line["sync/probe_logprob_max"] < 1e-4
        assert line["learn/padding_frac"] == line["learn/imbalance"] == 0  # packed, one rank
        for phase in ("rollout", "exchange", "logprob", "learn", "sync", "step"):
            assert line[f"time/{phase}_s"] > 0


def test_the_checkpoint_is_a_transformers_folder_with_the_trained_weights(run, model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "checkpoints/latest/hf"
    policy = AutoModelForCausalLM.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(model)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    moved = [
        float((a - b).abs().max().detach())
        for a, b in zip(policy.parameters(), before.parameters(), strict=True)
    ]
    assert min(moved) > 0
    assert torch.isfinite(policy(torch.tensor([[3, 40, 1, 4]])).logits).all()


def test_the_checkpoint_evaluates_with_vllm(bandpo, run, tmp_path):
    done = bandpo(
        *("eval", f"model={run}", f"out={tmp_path / 'eval'}", "eval.n=2", "eval.limit=2"),
        "benchmarks=[arithmetic]",
        *("eval.max_tokens=8", "eval.template=none", "rollout.engine.enforce_eager=true"),
    )
    assert "mean@2" in done.stdout


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run, model, launch, tmp_path):
    again = settings_of(tmp_path / "again", model, "method=grpo")
    other = settings_of(tmp_path / "other", model, "method=grpo", "seed=1")
    # Both in one process: what the first leaves in it, an engine too, is no part of the second.
    ended = launch(FIXTURES / "fault_runs.py", 1, json.dumps(again), json.dumps(other))
    assert ended == [{}, {}]
    assert timeless(tmp_path / "again") == timeless(run)
    assert timeless(tmp_path / "other")[1:] != timeless(run)[1:]


@pytest.mark.slow  # by default test_resume.py and test_chaos.py prove it, without vLLM
def test_a_run_goes_on_after_sigkill_as_if_nothing_had_been(bandpo, run, model, tmp_path):
    folder = tmp_path / "killed"
    arguments = ["train", *settings_of(folder, model, "method=grpo")]
    kill_when(
        (folder / "checkpoints/latest").exists,
        [sys.executable, "-m", "bandpo.cli", *arguments],
        tmp_path / "killed.log",
        {**os.environ, "PYTHONPATH": str(FIXTURES)},
    )
    bandpo(*arguments)
    assert timeless(folder) == timeless(run)
    hf = "checkpoints/latest/hf/model.safetensors"
    assert (folder / hf).read_bytes() == (run / hf).read_bytes()


def test_two_ranks_under_torchrun_train_with_zero_2(bandpo, model, tmp_path):
    folder = tmp_path / "ranks"
    bandpo("train", *settings_of(folder, model, "learner.zero_stage=2"), ranks=2)
    lines = metrics_of(folder)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[1]["rollout/groups"] == 4
    assert lines[1]["sync/probe_logprob_max"] < 1e-4
    assert json.loads((folder / "run.json").read_text())["ranks"] == 2
    log = (folder / "run.log").read_text()
    assert log.count("\n--- ") == 1 and "step 2/2  reward" in log


@pytest.mark.slow  # it announces what torchrun does, by which two ranks train by default
def test_deepspeeds_launcher_starts_the_same_command(model, tmp_path):
    folder = tmp_path / "launched"
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [str(launcher), "--num_accelerators", "2", "--module", "bandpo.cli", "train"]
    command += ["rollout=hf", *FAST, "policy=embedded", f"model.path={model}", f"run.dir={folder}"]
    command += ["learner.zero_stage=3", "trainer.steps=1"]
    path = os.pathsep.join((str(launcher.parent), os.environ["PATH"]))
    paths = f"{FIXTURES.parents[1]}{os.pathsep}{FIXTURES}"
    environment = {**os.environ, "PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert metrics_of(folder)[-1]["rollout/groups"] == 4
    assert json.loads((folder / "run.json").read_text())["ranks"] == 2
    log = (folder / "run.log").read_text()
    assert log.count("\n--- ") == 1 and "step 1/1  reward" in log


@pytest.mark.parametrize("engine", ["stale", "stale_head"])
def test_weights_that_did_not_arrive_stop_the_run(engine, command, model, tmp_path, capsys):
    arguments = ["train", *FAST, f"rollout={engine}", "policy=embedded", f"model.path={model}"]
    assert command(*arguments, "learner.lr=0.01", f"run.dir={tmp_path / 'run'}") == 1
    assert "the weights did not arrive" in capsys.readouterr().err
    # What was written before stays.
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0]
