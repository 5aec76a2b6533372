"""The engine's log-probabilities are the learner's, whatever ZeRO stage, ranks and tying."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")

WORKER = Path(__file__).parent / "sync_worker.py"


@pytest.mark.parametrize("ranks", [1, 2])
def test_engine_and_learner_agree_before_and_after_updates(launch, untrained, ranks):
    folders = [str(untrained(tied=tied)) for tied in (True, False)]
    results = launch(WORKER, ranks, *folders)
    tried = [(result["folder"], result["stage"]) for result in results]
    assert tried == [(folder, stage) for folder in folders for stage in (0, 2, 3)]
    for result in results:
        assert result["before"] < 1e-4
        assert result["after"] < 1e-4
        assert result["probe"] < 1e-4
        # The weights did change, so that a sync that does nothing would be seen.
        assert result["moved"] > 1e-1
        assert result["version"] == 2


def test_experts_and_models_that_vllm_runs_by_transformers_follow_too(launch, untrained_as):
    """Experts are stacked, apart in files, and packed; OLMo's class is changed by vLLM."""
    sizes = {"hidden_size": 64, "head_dim": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folders = [untrained_as("qwen3_moe", **sizes, **experts), untrained_as("olmo2", **sizes)]
    for result in launch(WORKER, 1, *map(str, folders)):
        assert result["before"] < 1e-4
        assert result["after"] < 1e-4
        assert result["moved"] > 1e-1
