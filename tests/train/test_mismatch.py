"""A float32 learner on samples of a bfloat16 engine, corrected by default; runs of before."""

import shutil

import pytest
import yaml
from small_runs import LOW_BYTES, metrics_of, timeless

from bandpo.disk.manifest import checksums, files_below, write_manifest

pytest.importorskip("deepspeed")

SETTINGS = [
    *("rollout=hf", "rollout.engine.dtype=bfloat16", "policy=embedded", "trainer.steps=2"),
    *("trainer.checkpoint_every=1", "trainer.keep_checkpoints=9", "eval.benchmarks=[]"),
    *("rollout.prompts_per_step=2", "rollout.group_size=4", "rollout.max_tokens=6"),
    *("learner.updates_per_rollout=2", "learner.lr=0.003", *LOW_BYTES),
]
NAMES = {f"mismatch/{name}" for name in ("kl", "k3", "masked_frac", "sequence_weight_max")}


def correction_of(folder):
    """What the run's config.yaml says."""
    return yaml.safe_load((folder / "config.yaml").read_text())["method"]["correction"]


def test_a_coarser_engine_is_corrected_and_a_run_of_before_is_not(
    command, untrained, tmp_path, capsys
):
    new, old, plain = (tmp_path / name for name in ("new", "old", "plain"))

    def train(folder, *more):
        model = f"model.path={untrained()}"
        assert command("train", *SETTINGS, model, f"run.dir={folder}", *more) == 0
        return capsys.readouterr().out

    told = train(new)
    assert "correction: token_tis, since the engine computes in bfloat16" in told
    assert "method.correction=none turns it off" in told and correction_of(new) == "token_tis"
    for line in metrics_of(new)[1:]:
        assert line.keys() >= NAMES
        # Rounding is there, small, and what the correction can truncate.
        assert 1e-6 < line["mismatch/logprob_abs_mean"] < 0.05
        assert 0 < line["mismatch/k3"] < 1e-3 and line["mismatch/masked_frac"] == 0
        assert line["mismatch/sequence_weight_max"] > 1
    assert "correction:" not in train(plain, "method.correction=none")
    assert correction_of(plain) == "none"

    # As a version wrote it that had no such key, after its first step.
    shutil.copytree(plain, old, symlinks=True)
    shutil.rmtree(old / "checkpoints/step_000002")
    (old / "checkpoints/latest").unlink()
    (old / "checkpoints/latest").symlink_to("step_000001")
    for file in (old / "config.yaml", old / "checkpoints/step_000001/config.yaml"):
        settings = yaml.safe_load(file.read_text())
        del settings["method"]["correction"]
        file.write_text(yaml.safe_dump(settings))
    checkpoint = old / "checkpoints/step_000001"
    write_manifest(checkpoint, checksums(checkpoint, files_below(checkpoint)))
    assert "correction: none, as before this run was resumed" in train(old)
    assert correction_of(old) == "none"
    assert timeless(old) == timeless(plain) != timeless(new)


@pytest.mark.slow
def test_metrics_are_over_all_ranks(bandpo, untrained, tmp_path):
    """Minibatches are the same on any number of ranks, and so is what is measured of them."""
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        own = [f"model.path={untrained()}", f"run.dir={folder}", "method.correction=icepop"]
        sizes = ["rollout.prompts_per_step=4", "trainer.steps=1"]
        bandpo("train", *SETTINGS, *own, *sizes, ranks=ranks)
        last = metrics_of(folder)[-1]
        found.append({name: last[name] for name in last if name.startswith("mismatch/")})
    assert found[0].keys() > NAMES
    assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-9)


@pytest.mark.slow
def test_vllm_in_bfloat16_samples_for_a_float32_learner(bandpo, tmp_path):
    pytest.importorskip("vllm")
    folder = tmp_path / "vllm"
    sizes = ["rollout.prompts_per_step=8", "rollout.group_size=8", "learner.updates_per_rollout=2"]
    done = bandpo(
        *("train", "rollout=vllm_local", "rollout.engine.dtype=bfloat16", f"run.dir={folder}"),
        *("trainer.steps=3", "trainer.checkpoint_every=0", "eval.benchmarks=[]", *sizes),
    )
    assert "correction: token_tis, since the engine computes in bfloat16" in done.stdout
    for line in metrics_of(folder)[1:]:
        assert line.keys() >= NAMES and line["learn/skipped"] == 0
        assert 1e-5 < line["mismatch/logprob_abs_mean"] < 0.05  # of float32: below 1e-5
        assert 0 < line["mismatch/k3"] < 0.01
        assert line["mismatch/sequence_weight_max"] > 1
        assert line["sync/probe_logprob_mean"] > 1e-6  # the engine's weights are rounded
