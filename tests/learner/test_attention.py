"""A packed row: each sequence sees itself alone, and a model that breaks this is refused."""

from types import SimpleNamespace

import pytest
import torch
from sample_batch import make_samples
from transformers import AttentionInterface, AutoModelForCausalLM

from bandpo.batching import Sample
from bandpo.errors import UserError
from bandpo.learner.attention import (
    BY_SEQUENCE,
    Selection,
    _Selected,
    layout_for,
    packed_arguments,
    sdpa_by_sequence,
)
from bandpo.learner.layouts import PackedBatch, PaddedBatch, SharedPromptBatch
from bandpo.learner.logprobs import PolicyNetwork
from bandpo.learner.proof import prove_packing


def scorer(folder, attention):
    """Log-probabilities of samples packed into one row."""
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    network = PolicyNetwork(lm, 1.0, chunk=64)

    def logprobs(samples):
        layout = SharedPromptBatch if attention == BY_SEQUENCE else PackedBatch
        return network(*layout.of(samples).arguments)[0].tolist()

    return logprobs


def test_sdpa_alone_is_replaced_and_only_for_packed_rows():
    assert layout_for("sdpa", packing=True) == (SharedPromptBatch, BY_SEQUENCE)
    assert layout_for("sdpa", packing=False) == (PaddedBatch, "sdpa")
    assert layout_for("flash_attention_2", packing=True) == (PackedBatch, "flash_attention_2")


def test_sequences_of_one_length_share_a_call(monkeypatch):
    calls = []
    sdpa = AttentionInterface()["sdpa"]
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        "sdpa",
        lambda module, query, *rest, **how: (
            calls.append(query.shape),
            sdpa(module, query, *rest, **how),
        )[1],
    )
    module = SimpleNamespace(is_causal=True, training=False)
    query, key, value = torch.randn(3, 1, 4, 14, 8)
    sdpa_by_sequence(module, query, key, value, None, (3, 3, 3, 5))
    assert calls == [(3, 4, 3, 8), (1, 4, 5, 8)]


def test_flash_attention_is_told_where_sequences_end():
    samples = [Sample((5,), (6,) * count, 0.0, torch.zeros(count)) for count in (2, 0, 3)]
    rows = PackedBatch.of(samples).rows
    arguments = packed_arguments("flash_attention_2", rows.lengths, rows.positions, rows.ends)
    assert arguments["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    for side in "qk":
        assert arguments[f"cu_seq_lens_{side}"].tolist() == [0, 3, 4, 8]
        assert arguments[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert arguments[f"max_length_{side}"] == 4
    alone = PaddedBatch.of(samples).rows
    assert packed_arguments("flash_attention_2", alone.lengths, alone.positions) == {}


def test_a_model_that_keeps_sequences_apart_is_accepted(untrained):
    logprobs = scorer(untrained(), BY_SEQUENCE)
    prove_packing(logprobs, 1e-5)
    samples = [Sample(prompt, (7, 8, 9), 0.0, torch.zeros(3)) for prompt in ((2, 3), (2, 3), (5,))]
    alone = torch.tensor([values for sample in samples for values in logprobs([sample])])
    torch.testing.assert_close(torch.tensor(logprobs(samples)), alone, atol=1e-5, rtol=0)


def test_a_model_that_mixes_sequences_is_refused(untrained):
    def mixing(*arguments, sequence_lengths=(), **settings):
        return sdpa_by_sequence(*arguments, **settings)

    AttentionInterface.register("mixing", mixing)
    with pytest.raises(UserError, match=r"learner\.packing=false"):
        prove_packing(scorer(untrained(), "mixing"), 1e-5)


def test_a_window_shorter_than_a_sequence_is_refused():
    states = torch.randn(1, 2, 9, 4)
    module = torch.nn.Module()
    settings = {"sequence_lengths": (4, 5), "is_causal": True}
    whole, _ = sdpa_by_sequence(module, states, states, states, None, **settings)
    wide, _ = sdpa_by_sequence(module, states, states, states, None, sliding_window=5, **settings)
    assert torch.equal(whole, wide)
    with pytest.raises(UserError, match="window of 4"):
        sdpa_by_sequence(module, states, states, states, None, sliding_window=4, **settings)


def test_samples_of_one_token_are_sequences_too(untrained):
    samples = make_samples(3)
    for sample in samples:
        sample.prompt_ids, sample.completion_ids = sample.prompt_ids[:1], sample.completion_ids[:1]
        sample.old_logp = sample.ref_logp = sample.entropy = None
        sample.rollout_logp = sample.rollout_logp[:1]
    logprobs = scorer(untrained(), BY_SEQUENCE)
    alone = [logprobs([sample])[0] for sample in samples]
    torch.testing.assert_close(torch.tensor(logprobs(samples)), torch.tensor(alone))


def test_a_selection_adds_what_repetitions_receive_in_float32():
    """Of 512 equal parts a sum in bfloat16 keeps half."""
    places = torch.tensor([2, *[0] * 512, 1, 0])
    tokens = torch.zeros(4, 2, 3, dtype=torch.bfloat16, requires_grad=True)
    selected = _Selected.apply(tokens, Selection.of(places, length=4))
    assert selected.shape == (515, 2, 3)
    (gradient,) = torch.autograd.grad(selected.sum(), tokens)
    assert gradient.dtype == torch.bfloat16
    assert gradient[:, 0, 0].tolist() == [512.0, 1.0, 1.0, 0.0]


def test_a_selection_has_the_gradient_of_index_select():
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(7, (30,), generator=generator)
    tokens = torch.randn(7, 2, 3, generator=generator, requires_grad=True)
    upstream = torch.randn(30, 2, 3, generator=generator)
    selection = Selection.of(places, length=7)
    gradients = [
        torch.autograd.grad((taken * upstream).sum(), tokens)[0]
        for taken in (_Selected.apply(tokens, selection), tokens.index_select(0, places))
    ]
    torch.testing.assert_close(*gradients)
    assert torch.equal(selection(tokens), tokens[places])
