"""Losses in verl's own environment, which benchmarks/verl_env.sh makes.

BANDPO_VERL_PYTHON names its python.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/integrations.md"
PYTHON = os.environ.get("BANDPO_VERL_PYTHON", "")
METHODS = (
    *("band_kl", "band_tv", "band_chi2", "band_hellinger", "band_kl_relaxed", "band_kl_upper"),
    *("dcpo", "cfpo"),
)
PEERS = ("vanilla", "gspo", "cispo", "dppo_tv", "dppo_kl", "dro", "clip_cov", "kl_cov")
OF_SEQUENCES = ("sapo", "geo_mean")  # whatever loss_agg_mode says
MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="BANDPO_VERL_PYTHON names no python with verl"),
]


def documented_overrides() -> list[str]:
    """Those of the page's command."""
    (command,) = re.findall(r"```bash\n(python -m verl.*?)```", PAGE.read_text(), re.DOTALL)
    return shlex.split(command.replace("\\\n", " "), comments=True)[3:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    result = tmp_path_factory.mktemp("verl") / "results.json"
    worker = str(Path(__file__).with_name("verl_worker.py"))
    variables = {"PYTHONPATH": str(ROOT), "BANDPO_PAGE": str(PAGE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, worker, str(result), *documented_overrides()],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(result.read_text())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_a_registered_loss_is_the_policy_loss_of_a_rank(results, method, mode):
    found = results[f"registered/{method}/{mode}"]
    assert found["gradient"] < 1e-8 and found["loss"] < 1e-7
    assert found["zeros"] > 20  # masked or clipped, of 128 tokens


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("peer", PEERS)
def test_verls_own_loss_has_the_gradient_of_our_composition(results, peer, mode):
    assert results[f"peers/{peer}/{mode}"]["gradient"] < 1e-8


@pytest.mark.parametrize("peer", OF_SEQUENCES)
def test_verls_losses_of_one_mode_have_the_gradient_of_our_composition(results, peer):
    assert results[f"peers/{peer}/seq-mean-token-mean"]["gradient"] < 1e-8


def test_rollout_weights_are_a_correction(results):
    assert results["weighted"]["gradient"] < 1e-12


def test_the_documented_command_reaches_verls_actor(results):
    """external_lib imports the module, loss_mode chooses the loss, ppo_loss calls it."""
    assert results["actor"]["mode"] == "band_kl"
    assert results["actor"]["gradient"] < 1e-12 and results["actor"]["loss"] < 1e-12


def test_the_metrics_are_verls(results):
    ours, theirs = results["metrics/ours"], results["metrics/theirs"]
    assert ours == pytest.approx(theirs, abs=1e-8)
    assert min(theirs.values()) > 0.05 and results["metrics/loss"]["loss"] < 1e-12


def test_radii_that_verl_cannot_resolve_are_refused(results):
    assert "follows the training step" in results["refused/LinearRadius"]["message"]
    assert "needs TokenBatch.entropy" in results["refused/EntropyRadius"]["message"]
    assert results["refused/registered"]["found"] is False


def test_the_page_registers(results):
    assert results["documented"]["names"] == ["band_kl_wide", "dppo_tv_tight"]
