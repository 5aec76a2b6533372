"""A real pretrained model with its own chat template trains end to end."""

import json
import os
import subprocess
import sys

import pytest


def trained(folder, *settings):
    """The lines of metrics.jsonl of `bandpo train` with these settings, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", "train", "run.dir=run", *settings],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(x) for x in (folder / "run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_passes_the_checks_in_bfloat16(smollm2, tmp_path):
    """The type of most GPU runs; pretrained activations have outliers that random ones have not."""
    few = "rollout.prompts_per_step=2 rollout.group_size=8 learner.updates_per_rollout=1"
    lines = trained(
        tmp_path,
        *("+protocol=smollm2", f"model.path={smollm2}", "model.dtype=bfloat16", "trainer.steps=1"),
        *(*few.split(), "learner.epochs_per_rollout=1", "eval.benchmarks=[]"),
    )
    assert lines[-1]["step"] == 1 and lines[-1]["sync/probe_logprob_max"] < 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_smollm2_trains_a_few_steps_on_successors(smollm2, tmp_path):
    """What number comes after N?, with examples. It seldom finds out: a bonus for an answer that
    can be read, right or wrong, is what gives its groups spread."""
    pytest.importorskip("vllm")
    shots = " ".join(f"What number comes after {n}? \\boxed{{{n + 1}}}" for n in (4, 17, 58))
    with (tmp_path / "successor.jsonl").open("w") as file:
        for n in range(20, 60):
            question = f"{shots} What number comes after {n}?"
            file.write(json.dumps({"problem": question, "answer": str(n + 1)}) + "\n")
    lines = trained(
        tmp_path,
        *(f"model.path={smollm2}", "data.train=successor.jsonl", "data.template=none"),
        *("data.max_prompt_tokens=160", "rollout.prompts_per_step=4", "rollout.group_size=8"),
        *("rollout.max_tokens=20", "reward.format_bonus=0.1"),
        *("rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=32"),
        *("learner.updates_per_rollout=1", "learner.micro_batch_tokens=1024"),
        *("learner.lr=1e-5", "trainer.steps=2", "eval.benchmarks=[]", "method=band_kl"),
    )
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert any(line["reward/std"] > 0 for line in lines[1:])
    assert any(line["grad/norm"] > 0 for line in lines[1:])
    for line in lines[1:]:
        assert line["mismatch/logprob_abs_max"] < 1e-3
        assert line["sync/probe_logprob_max"] < 1e-3

    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoints/latest/hf")
    assert policy.num_parameters() > 100e6
