"""LoRA: the adapter alone learns, the engine gets what it amounts to, the reference lacks it."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bandpo.config.sections.learner import LoraConfig
from bandpo.errors import UserError
from bandpo.learner.adapter import add_adapter

WORKER = Path(__file__).parent / "adapter_worker.py"


@pytest.mark.parametrize("ranks", [1, 2])
def test_adapters_learn_sync_save_and_resume(launch, untrained, tmp_path, ranks):
    pytest.importorskip("peft")
    folder = untrained(layers=2)
    results = launch(WORKER, ranks, str(folder), str(tmp_path))
    assert [result["stage"] for result in results] == [0, 2, 3]
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    for result in results:
        assert result["moved"] > 1e-2 and result["grad_norm"] > 1e-3
        for other in ("reference", "engine", "merged", "adapter", "resumed"):
            assert result[other] < 1e-5, other
        # Linear layers changed; embeddings, norms and biases did not.
        assert "model.embed_tokens.weight" in result["frozen"]
        assert all("proj.weight" not in name for name in result["frozen"])
        assert result["bytes"] < weights * 4  # the frozen weights are not in the checkpoint
        losses, gap = result["continued"]
        assert losses[0] == losses[1] and gap == 0


def test_adapters_start_from_the_seed_alone(untrained):
    """Whatever was drawn before: ranks, and a run and its repetition, draw other numbers first."""
    pytest.importorskip("peft")
    folder = untrained()

    def started(seed, drawn):
        torch.manual_seed(drawn)
        before = torch.get_rng_state()
        lm = AutoModelForCausalLM.from_pretrained(folder)
        add_adapter(lm, LoraConfig(rank=2), seed)
        assert torch.equal(torch.get_rng_state(), before)
        found = {n: p.detach() for n, p in lm.named_parameters() if "lora_A" in n}
        assert found
        return found

    first, same, other = started(3, 1), started(3, 2), started(4, 1)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_what_is_missing_is_told(untrained, monkeypatch):
    lm = AutoModelForCausalLM.from_pretrained(untrained())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install"):
        add_adapter(lm, LoraConfig(rank=2), 0)


def test_unknown_targets_are_told(untrained):
    pytest.importorskip("peft")
    lm = AutoModelForCausalLM.from_pretrained(untrained())
    with pytest.raises(UserError, match=r"learner\.lora\.targets=.*nowhere"):
        add_adapter(lm, LoraConfig(rank=2, targets=("nowhere",)), 0)
