"""What a model does to its logits is part of the head: values, entropies and gradients."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bandpo.batching import Sample
from bandpo.learner.layouts import PaddedBatch
from bandpo.learner.logprobs import PolicyNetwork, chunked_logprobs
from bandpo.model.agreement import own_logprobs
from bandpo.model.logits import LogitTransform

KINDS = {
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 6.0, "num_local_experts": 2, "num_experts_per_tok": 1},
    "hyperclovax": {"logits_scaling": 0.25},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},
    "nanochat": {"final_logit_softcapping": 1.5},
    "qwen2": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_the_models_own_logits(untrained_as, kind, temperature):
    folder = untrained_as(kind, **KINDS[kind])
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    network = PolicyNetwork(lm, temperature, chunk=3)
    prompt, completion = (5, 6, 7), (20, 3, 261, 8, 9)
    logits = plain(torch.tensor([prompt + completion])).logits[0, 2:-1] / temperature
    table = logits.log_softmax(-1)
    batch = PaddedBatch.of([Sample(prompt, completion, 0.0, torch.zeros(5))])
    logp, entropy = network(*batch.arguments)
    torch.testing.assert_close(logp[0], table[range(5), completion], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy[0], -(table.exp() * table).sum(-1), atol=1e-4, rtol=1e-5)
    # The replaced head still gives the model its logits.
    own = own_logprobs(network.lm, prompt, completion)
    wanted = (logits * temperature).log_softmax(-1)[range(5), completion]
    torch.testing.assert_close(torch.tensor(own), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("transform", [LogitTransform(0.3, 2.0), LogitTransform(1.7), None])
def test_gradients_are_those_of_autograd(transform):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(11, (7,), generator=generator)
    coefficients = torch.randn(7, generator=generator)
    scale, cap = (transform.scale, transform.cap) if transform else (1.0, None)
    logits = scale * hidden @ weight.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    wanted_logp = (logits / 0.8).log_softmax(-1)[range(7), targets]
    wanted = torch.autograd.grad((coefficients * wanted_logp).sum(), (hidden, weight))
    logp, _ = chunked_logprobs(hidden, weight, targets, 0.8, 3, *([transform] if transform else []))
    torch.testing.assert_close(logp, wanted_logp)
    found = torch.autograd.grad((coefficients * logp).sum(), (hidden, weight))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
