"""Chunked log-probabilities and entropies against the full softmax."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sample_batch import LOSS, make_samples
from transformers import AutoModelForCausalLM

from bandpo.batching import totals_of
from bandpo.errors import UserError
from bandpo.learner.layouts import PackedBatch, PaddedBatch, SharedPromptBatch
from bandpo.learner.logprobs import PolicyNetwork, chunked_logprobs
from bandpo.loss import LossDiagnostics
from bandpo.types import token_array


def full(hidden, weight, targets, temperature):
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    return logp.gather(-1, targets[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_full_softmax(chunk, temperature):
    generator = torch.Generator().manual_seed(chunk)
    hidden = torch.randn(10, 6, generator=generator, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(33, 6, generator=generator, requires_grad=True)
    targets = torch.randint(33, (10,), generator=generator)
    upstream = torch.randn(10, generator=generator)
    expected, expected_entropy = full(hidden, weight, targets, temperature)
    expected_gradients = torch.autograd.grad(expected @ upstream, (hidden, weight))
    logp, entropy = chunked_logprobs(hidden, weight, targets, temperature, chunk)
    gradients = torch.autograd.grad(logp @ upstream, (hidden, weight))
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad


def test_logits_of_more_than_a_chunk_never_exist(monkeypatch):
    sizes = []
    original = torch.Tensor.logsumexp
    monkeypatch.setattr(
        torch.Tensor, "logsumexp", lambda x, *a: (sizes.append(len(x)), original(x, *a))[1]
    )
    chunked_logprobs(torch.randn(100, 4), torch.randn(50, 4), torch.zeros(100).long(), chunk=8)
    assert max(sizes) == 8 and sum(sizes) == 100


@pytest.mark.parametrize(
    ("layout", "attention"),
    [
        (PaddedBatch, "sdpa"),
        (PaddedBatch, "eager"),
        (PackedBatch, "sdpa"),  # transformers' own, with its block-diagonal mask
        (PackedBatch, "sdpa_by_sequence"),
        (SharedPromptBatch, "sdpa_by_sequence"),
        (PackedBatch, "eager"),
        (PackedBatch, "flex_attention"),
    ],
)
@torch.no_grad()  # flex attention has no backward pass on a CPU
def test_network_scores_only_completions_and_zeroes_the_rest(untrained, layout, attention):
    folder = untrained()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    network = PolicyNetwork(lm, 1.0, chunk=5)
    batch = layout.of(make_samples())
    logp, entropy = network(*batch.arguments)
    for row, sample in enumerate(batch.samples):
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        table = plain(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        length = len(sample.completion_ids)
        wanted = table[range(length), sample.completion_ids]
        torch.testing.assert_close(logp[row, :length], wanted, atol=1e-5, rtol=1e-5)
        wanted = -(table.exp() * table).sum(-1)
        torch.testing.assert_close(entropy[row, :length], wanted, atol=1e-4, rtol=1e-5)
        assert (logp[row, length:] == 0).all()


@pytest.mark.parametrize(
    ("layout", "attention"),
    [
        (PaddedBatch, "sdpa"),
        (PaddedBatch, "eager"),
        (PackedBatch, "sdpa"),
        (PackedBatch, "sdpa_by_sequence"),
        (SharedPromptBatch, "sdpa_by_sequence"),
    ],
)
@pytest.mark.parametrize("empty", [(0, 1), (2, 5, 6), tuple(range(9))])
def test_empty_completions_count_as_sequences_and_learn_nothing(
    untrained, layout, attention, empty
):
    lm = AutoModelForCausalLM.from_pretrained(untrained(), attn_implementation=attention)
    network = PolicyNetwork(lm, 1.0, chunk=5)
    samples = make_samples()
    for index in empty:
        nothing = torch.zeros(0)
        samples[index].completion_ids = token_array(())
        samples[index].old_logp = samples[index].ref_logp = samples[index].entropy = nothing
        samples[index].rollout_logp = nothing
    totals, diagnostics = totals_of(samples), LossDiagnostics()

    def gradients(batches):
        network.zero_grad()
        for members in batches:
            batch = layout.of(layout.ordered(members))
            logp, entropy = network(*batch.arguments)
            output = LOSS(batch.token_batch(logp, entropy, 1), totals)
            diagnostics.update(output)
            output.loss.backward()
        # ZeRO waits for every parameter's gradient, in a pass without tokens too.
        assert all(p.grad is not None for p in network.parameters())
        return [p.grad.clone() for p in network.parameters()]

    alone = [samples[index] for index in empty]
    assert all((gradient == 0).all() for gradient in gradients([alone]))
    assert diagnostics.sums.sum() == 0
    others = [sample for sample in samples if len(sample.completion_ids)]
    if others:
        apart, together = gradients([others, alone]), gradients([samples])
        torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-4)
        assert totals.sequences == 9 and any((gradient != 0).any() for gradient in together)


@pytest.mark.parametrize("gradient", [[], ["--entropy"]])
def test_peak_memory_is_a_small_part_of_full_logits(gradient):
    script = Path(__file__).parents[2] / "benchmarks/logprob_memory.py"
    tokens, vocabulary, chunk = 8192, 50_000, 256
    found = subprocess.check_output(
        [sys.executable, script, *gradient, "--work", *map(str, (tokens, vocabulary, 8, chunk))],
        text=True,
    )
    risen = json.loads(found.splitlines()[-1])["bytes"]
    # Backward forms the chunks again; at least one chunk's logits did exist.
    assert chunk * vocabulary * 4 < risen < tokens * vocabulary * 4 / 8


def test_heads_that_would_be_computed_wrongly_are_refused(untrained):
    model = AutoModelForCausalLM.from_pretrained(untrained())
    model.lm_head = torch.nn.Linear(64, 262, bias=True)
    with pytest.raises(UserError, match="bias"):
        PolicyNetwork(model, 1.0, 8)
    with pytest.raises(UserError, match="body and a head"):
        PolicyNetwork(model.model, 1.0, 8)
