"""Weights travel under the names and in the shapes of a model's files, all of them."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bandpo.config.sections.learner import LoraConfig
from bandpo.learner.adapter import add_adapter
from bandpo.model.agreement import own_logprobs
from bandpo.model.naming import load_from_files, named_tensors
from bandpo.weight_sync import weight_stream

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **EXPERTS,
    "n_routed_experts": 3,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_mtp_layers": 0,
}
KINDS = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": {**EXPERTS, "num_experts": 3},
    "granitemoe": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT,  # with a buffer: the router's bias
}
PROMPT, COMPLETION = (5, 6, 7), (20, 3, 261, 8, 9)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def change(lm):
    """Gives the model other weights, the router's bias too."""
    generator = torch.Generator().manual_seed(1)
    for tensor in {id(t): t for _, t in named_tensors(lm)}.values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return lm


def logprobs(lm):
    return torch.tensor(own_logprobs(lm.eval(), PROMPT, COMPLETION))


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_what_transformers_would_save(kind, untrained_as, tmp_path):
    lm = change(load(untrained_as(kind, **KINDS[kind])))
    lm.save_pretrained(tmp_path)
    wanted = load_file(tmp_path / "model.safetensors")
    found = dict(weight_stream(lm))
    tied = {"lm_head.weight"} if KINDS[kind].get("tie_word_embeddings") else set()
    assert found.keys() == wanted.keys() | tied
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_takes_the_stream_is_the_same(kind, untrained_as):
    folder = untrained_as(kind, **KINDS[kind])
    changed, other = change(load(folder)), load(folder)
    assert (logprobs(changed) - logprobs(other)).abs().max() > 1e-2
    load_from_files(other, weight_stream(changed))
    assert torch.equal(logprobs(changed), logprobs(other))
    cut = [item for item in weight_stream(changed) if "layers.1." not in item[0]]
    with pytest.raises(RuntimeError, match=r"lacks \['model\.layers\.1\."):
        load_from_files(other, cut)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "granitemoe", "deepseek_v3"])
def test_adapters_of_experts_are_merged_too(kind, untrained_as):
    pytest.importorskip("peft")
    folder = untrained_as(kind, **KINDS[kind])
    lm, plain = load(folder), load(folder)
    add_adapter(lm, LoraConfig(rank=2, alpha=16, targets="all-linear"), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    before = logprobs(plain)
    load_from_files(plain, weight_stream(lm))
    assert (logprobs(plain) - before).abs().max() > 1e-2
    torch.testing.assert_close(logprobs(plain), logprobs(lm), atol=1e-4, rtol=1e-4)
