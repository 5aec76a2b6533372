"""Before training the learner is held against transformers: its own logits, and no noise."""

import pytest
import torch
from torch.nn.functional import dropout
from transformers import AutoModelForCausalLM, GPT2Config

from bandpo.batching import Sample
from bandpo.errors import UserError
from bandpo.learner.attention import BY_SEQUENCE
from bandpo.learner.layouts import PackedBatch, PaddedBatch, SharedPromptBatch
from bandpo.learner.logprobs import PolicyNetwork
from bandpo.learner.proof import probes_of, prove_network, prove_packing
from bandpo.model.agreement import TOLERANCE, gap_between, own_logprobs
from bandpo.model.features import training_noise

NOISY = {
    "gpt2": {},
    "opt": {"dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.5, "ffn_dim": 64},
    "biogpt": {"layerdrop": 0.5},
    "starcoder2": {"residual_dropout": 0.2, "embedding_dropout": 0.2, "attention_dropout": 0.2},
    "phimoe": {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3, "num_local_experts": 2},
    "qwen2": {"attention_dropout": 0.3},
}


def network_of(folder, attention="eager", **changes):
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    if changes.pop("checkpointing", False):
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    return PolicyNetwork(lm, 1.0, chunk=64)


def scorer(network, training=False, layout=PaddedBatch):
    @torch.no_grad()
    def logprobs(samples):
        network.train(training)
        return network(*layout.of(samples).arguments)[0].tolist()

    return logprobs


def own(network):
    return lambda samples: [
        own_logprobs(network.eval().lm, s.prompt_ids, s.completion_ids) for s in samples
    ]


def prove(network, layout=PaddedBatch):
    alone, in_training = scorer(network, layout=layout), scorer(network, True, layout)
    probes = probes_of(network.eval().lm)
    prove_network(alone, in_training, own(network), probes, 1e-4, network.lm.config)


@pytest.mark.parametrize("kind", NOISY)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["eager", BY_SEQUENCE])
def test_an_update_draws_nothing(untrained_as, kind, checkpointing, attention):
    folder = untrained_as(kind, **NOISY[kind])
    network = network_of(folder, attention, checkpointing=checkpointing)
    assert training_noise(network.lm.config)
    plain = AutoModelForCausalLM.from_pretrained(folder).train()
    ids = torch.tensor([list(range(5, 25))])
    torch.manual_seed(0)
    drawn = [plain(ids).logits for _ in range(6)]
    assert any(not torch.equal(one, drawn[0]) for one in drawn)  # as transformers trains it
    samples = [Sample((5, 6), tuple(range(7, 25)), 0.0, torch.zeros(18))]
    quiet = torch.tensor(scorer(network)(samples))
    before = torch.random.get_rng_state()
    network.train()
    for _ in range(3):
        logp, _ = network(*PaddedBatch.of(samples).arguments)
        assert torch.equal(logp.detach(), quiet)
    logp.sum().backward()
    assert network.lm.get_input_embeddings().weight.grad.abs().sum() > 0
    if kind not in ("opt", "biogpt"):  # layerdrop draws, and drops nothing
        assert torch.equal(torch.random.get_rng_state(), before)


def test_activations_are_still_recomputed_where_that_is_asked_for(untrained_as):
    network = network_of(untrained_as("gpt2"), checkpointing=True)
    calls = []
    network.lm.transformer.h[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network.train()
    sample = Sample((5, 6), (7, 8), 0.0, torch.zeros(2))
    network(*PaddedBatch.of([sample]).arguments)[0].sum().backward()
    assert len(calls) == 2
    network.eval()
    assert not any(module.training for module in network.modules())


def test_noise_that_cannot_be_turned_off_is_refused(untrained_as, monkeypatch):
    network = network_of(untrained_as("gpt2"))
    block = network.lm.transformer.h[0]
    forward = block.forward
    calls = []

    def noisy(hidden, *arguments, **settings):
        calls.append(1)
        return forward(dropout(hidden, 0.3 if network.training else 0.0), *arguments, **settings)

    block.forward = noisy
    with pytest.raises(UserError, match="resid_pdrop, embd_pdrop, attn_pdrop"):
        prove(network)


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        ("granite", {"logits_scaling": 8.0}, r"logits_scaling=8\.0"),
        ("cohere", {"logit_scale": 0.0625}, r"logit_scale=0\.0625"),
    ],
)
def test_a_head_that_leaves_out_what_the_model_does_is_refused(untrained_as, kind, settings, key):
    network = network_of(untrained_as(kind, **settings))
    prove(network)
    network.lm.get_output_embeddings().transform = type(
        network.lm.get_output_embeddings().transform
    )()
    with pytest.raises(UserError, match=key):
        prove(network)


def test_attention_that_leaves_out_what_the_model_does_is_refused(untrained_as):
    folder = untrained_as("gemma2", attn_logit_softcapping=0.05, query_pre_attn_scalar=1)
    prove(network_of(folder))
    with pytest.raises(UserError, match=r"attn_logit_softcapping=0\.05"):
        prove(network_of(folder, "sdpa"))  # transformers' SDPA leaves it out without a word
    with pytest.raises(UserError, match="attn_logit_softcapping"):
        prove(network_of(folder, BY_SEQUENCE), SharedPromptBatch)


def test_usual_models_pass_in_every_layout(untrained_as):
    samples = [Sample((5, 6, 7), tuple(range(start, start + 9)), 0.0, None) for start in (8, 10)]
    for layout, attention in (
        (PaddedBatch, "sdpa"),
        (PackedBatch, "sdpa"),
        (SharedPromptBatch, BY_SEQUENCE),
    ):
        for kind in ("qwen2", "llama", "gemma3_text"):
            network = network_of(untrained_as(kind), attention)
            prove(network, layout)
            found = scorer(network, layout=layout)(samples)  # together, as `prove` does not
            assert gap_between(own(network)(samples), found).largest < 1e-4


def test_noise_is_told_by_name_and_only_where_there_is_some():
    default = GPT2Config()
    assert set(training_noise(default)) == {"resid_pdrop", "embd_pdrop", "attn_pdrop"}
    quiet = GPT2Config(resid_pdrop=0.0, embd_pdrop=0, attn_pdrop=0.0)
    assert training_noise(quiet) == {}


def test_probes_are_what_the_model_itself_would_say(untrained_as):
    """A pretrained model that reads tokens at random tells nothing in bfloat16."""
    lm = network_of(untrained_as("qwen2", bos_token_id=3)).eval().lm
    with torch.no_grad():  # token t is followed by t + 1
        vocabulary, width = lm.get_input_embeddings().weight.shape
        followers = torch.randn(vocabulary, width)
        lm.get_output_embeddings().weight.copy_(100 * followers)
        outputs = lm.model(torch.tensor([[3]]), use_cache=False)

        def forward(input_ids, **_):
            outputs.last_hidden_state = followers[(input_ids + 1) % vocabulary]
            return outputs

        lm.model.forward = forward
    before = torch.random.get_rng_state()
    first, second, other = probes_of(lm)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.prompt_ids == second.prompt_ids == (3, 4) == other.prompt_ids
    assert list(first.completion_ids) == [(5 + i) % vocabulary for i in range(16)]


@pytest.mark.parametrize("flips", [2, 16])
def test_a_row_in_bfloat16_is_mixed_when_many_tokens_differ(flips):
    """A single logit's last bit, 0.25 above 32, is no neighbour's doing."""
    probes = [Sample((2, 3), tuple(range(8, 24)), 0.0, torch.zeros(16)) for _ in range(3)]

    def logprobs(samples):
        row = [-1.0] * len(samples[0].completion_ids)
        apart = [[-1.25] * flips + row[flips:]] * len(samples)
        return apart if len(samples) > 1 else [row]

    if flips == 2:
        prove_packing(logprobs, probes, TOLERANCE["bfloat16"])
    else:
        with pytest.raises(UserError, match=r"mixes the sequences of a row .* by 0\.25"):
            prove_packing(logprobs, probes, TOLERANCE["bfloat16"])
