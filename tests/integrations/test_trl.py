"""Trainers in TRL's own environment, which benchmarks/trl_env.sh makes.

BANDPO_TRL_PYTHON names its python.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKER = str(Path(__file__).with_name("trl_worker.py"))
PYTHON = os.environ.get("BANDPO_TRL_PYTHON", "")
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
AGGREGATED = ("grpo", "dr_grpo", "dapo", "luspo")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="BANDPO_TRL_PYTHON names no python with TRL"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trl")


def of_worker(folder: Path, *launcher: str) -> dict:
    page = str(ROOT / "docs/integrations.md")
    variables = {"PYTHONPATH": str(ROOT), "BANDPO_PAGE": page, "OMP_NUM_THREADS": "1"}
    result = folder / f"results{len(launcher)}.json"
    # A run in this process, of another test, has left where its one rank listens.
    left = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in left}
    done = subprocess.run(
        [PYTHON, *launcher, WORKER, str(folder), str(result)],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def results(folder):
    return of_worker(folder)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", CLIPPED)
def test_canonical_bounds_are_trls_own_clip(results, loss_type, level):
    found = results[f"canonical bounds/{loss_type}/{level}"]
    assert found["loss"] < 1e-12 and found["gradient"] < 1e-12
    assert found["largest"] > 1e-3 and found["zeros"] > 20  # of 48 tokens


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", AGGREGATED)
def test_the_gradient_is_that_of_clip_with_the_bounds(results, loss_type, level):
    found = results[f"bounds/{loss_type}/{level}"]
    assert found["loss"] < 1e-12 and found["gradient"] < 1e-15
    assert found["other_zeros"] == 0 and found["largest"] > 1e-3
    assert found.get("clip_ratio", 0.0) < 1e-6


def test_on_policy_trl_reports_no_old_logprobs_and_nothing_is_clipped(results):
    found = results["bounds/on policy"]
    assert found["gradient"] == 0.0 and found["largest"] > 1e-3
    assert results["bounds/restored"]["epsilon"] == pytest.approx(0.4)


@pytest.mark.parametrize("loss_type", AGGREGATED)
def test_a_canonical_policy_loss_is_trls_own_with_its_kl(results, loss_type):
    for case in ("canonical loss", "evaluation"):
        found = results[f"{case}/{loss_type}"]
        assert found["loss"] < 1e-12 and found["gradient"] < 1e-12, case
        assert found["largest"] > 1e-3
    metrics = ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/region_mean")
    assert max(results[f"canonical loss/{loss_type}"][name] for name in metrics) < 1e-6


def test_correction_dual_clip_entropy_and_tokens_that_vllm_cannot_score(results):
    found = results["loss/everything"]
    assert found["loss"] < 1e-12 and found["gradient"] < 1e-15 and found["largest"] > 1e-3


def test_gradients_of_two_ranks_average_to_that_of_the_whole_batch(results, folder):
    found = of_worker(folder, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert set(found) == set(AGGREGATED)
    for name, numbers in found.items():
        assert numbers["ranks"] == 2 and numbers["largest"] > 1e-3, name
        assert numbers["gradient"] < 1e-12 and numbers["loss"] < 1e-12, name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loss_type", "BoundsTrainer: loss_type must be one that clips, of ('grpo'"),
        ("EntropyRadius", "TRL does not report it: EntropyRadius"),
        ("top_entropy_quantile", "top_entropy_quantile=0.2 has no effect on a PolicyLoss"),
        ("beta", "beta=0.01: it must be reference_kl's coefficient, 0.0"),
        ("rollout_logp", "TRL does not report it: A rollout correction"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(results, name, told):
    assert told in results[f"refused/{name}"]["message"]


def test_parameters_get_the_gradient_of_trls_own_forward_pass(results):
    assert results["model"]["gradient"] < 1e-5 and results["model"]["largest"] > 1e-3


def test_the_loss_of_a_router_is_added(results):
    assert results["router"]["loss"] < 1e-12 and results["router"]["gradient"] < 1e-12


@pytest.mark.parametrize("trainer", ["bounds", "loss", "bounds in bfloat16", "loss in bfloat16"])
def test_it_trains(results, trainer):
    found = results[f"training/{trainer}"]
    assert found["steps"] == 4 and found["lines"] == 4 and found["finite"]
    assert found["moved"] > 1e-3 and 0 < found["clipped"] < 1 and 0 < found["entropy"] < 4


def test_the_page_runs(results):
    blocks = [found for name, found in results.items() if name.startswith("documented/")]
    assert len(blocks) == 2 and all(found["steps"] == 2 for found in blocks)
