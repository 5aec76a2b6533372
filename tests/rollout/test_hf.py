"""The engine without vLLM: its cache, its seeds, its endings, held against one pass for all."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bandpo.errors import UserError
from bandpo.rollout.engine import EngineSpec, Sampling, start_engine
from bandpo.rollout.hf import HFGenerate
from bandpo.rollout.hf import cache as hf_cache
from bandpo.types import Problem, Prompt

LENGTHS = (3, 7, 3, 12, 1)


@pytest.fixture(scope="module")
def folder(untrained):
    return untrained(heads=4)


@pytest.fixture(scope="module")
def engine(folder):
    return HFGenerate(EngineSpec(str(folder)))


def prompts(seed=0):
    return [
        Prompt(Problem(str(i), "", ""), "", tuple(range(5 + i, 5 + i + n)), seed=seed + 100 * i)
        for i, n in enumerate(LENGTHS)
    ]


def by_id(groups):
    return {group.problem.id: group for group in groups}


def tokens(group):
    return [tuple(c.token_ids) for c in group.completions]


def ended_early(groups, most):
    return [c for g in groups for c in g.completions if len(c.token_ids) < most]


@pytest.mark.parametrize(
    "drawn",
    [Sampling(6, max_tokens=60), Sampling(6, 0.7, max_tokens=9), Sampling(3, 0.0, max_tokens=9)],
    ids=["as it is", "cooler", "greedy"],
)
def test_logprobs_are_those_of_one_pass_over_the_sequence(engine, folder, drawn):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for group in engine.generate(prompts(), drawn):
        assert len(group.completions) == drawn.n
        for c in group.completions:
            ids = torch.tensor([[*group.prompt.token_ids, *c.token_ids]])
            with torch.no_grad():
                scores = plain(ids).logits[0, len(group.prompt.token_ids) - 1 : -1]
            logp = (scores / (drawn.temperature or 1)).log_softmax(-1)
            wanted = logp[range(len(c.token_ids)), c.token_ids]
            torch.testing.assert_close(torch.tensor(c.logprobs), wanted, atol=2e-5, rtol=1e-5)
            if drawn.temperature == 0:
                assert torch.equal(logp.argmax(-1), torch.tensor(c.token_ids))


def test_samples_end_with_the_end_token_or_at_the_limit(engine):
    """About one in five ends within 60 tokens of an untrained policy over 262."""
    groups = list(engine.generate(prompts(), Sampling(16, max_tokens=60)))
    ends = engine._ends
    assert len(ended_early(groups, 60)) > 5
    for c in (c for g in groups for c in g.completions):
        assert len(c.token_ids) == len(c.logprobs) <= 60
        assert not ends & set(c.token_ids[:-1])
        assert (c.token_ids[-1] in ends) == (c.finish_reason == "stop")
        assert c.finish_reason == "stop" or len(c.token_ids) == 60


def test_the_samples_of_a_prompt_depend_on_its_seed_and_not_on_its_company(engine, monkeypatch):
    drawn = Sampling(8, max_tokens=60)
    together = by_id(engine.generate(prompts(), drawn))
    assert together == by_id(engine.generate(prompts(), drawn))
    for prompt in prompts():
        (alone,) = engine.generate([prompt], drawn)
        theirs = together[prompt.problem.id]
        assert tokens(alone) == tokens(theirs)
        assert len(set(tokens(theirs))) == drawn.n
    other = by_id(engine.generate(prompts(seed=1), drawn))
    assert all(other[i].completions != together[i].completions for i in together)
    # Nor on the size of the waves, or on when samples that have ended are taken out.
    monkeypatch.setattr(engine, "_room", 200)
    monkeypatch.setattr(hf_cache, "MOST_ENDED", 0.0)
    small = by_id(engine.generate(prompts(), drawn))
    for i, group in small.items():
        assert tokens(group) == tokens(together[i])


def test_a_wave_keeps_within_the_cache(engine, monkeypatch):
    waves = []
    wave = engine._wave
    monkeypatch.setattr(engine, "_room", 3 + 7 + 2 * 4 * 10)
    monkeypatch.setattr(engine, "_wave", lambda p, s: (waves.append(len(p)), wave(p, s))[1])
    groups = list(engine.generate(prompts(), Sampling(4, max_tokens=10)))
    assert len(groups) == len(LENGTHS) and waves == [2, 2, 1]  # lengths 1, 3 | 3, 7 | 12


def test_tokens_are_drawn_as_often_as_they_are_likely(engine):
    """First tokens of 4,000 samples against the probabilities, by χ² over 20 classes of tokens."""
    (group,) = engine.generate([prompts()[1]], Sampling(4000, max_tokens=1))
    ids = torch.tensor([group.prompt.token_ids])
    with torch.no_grad():
        p = engine._model(ids, use_cache=False).logits[0, -1].softmax(-1)
    counts = torch.bincount(
        torch.tensor([c.token_ids[0] for c in group.completions]), minlength=len(p)
    )
    classes = p.argsort().tensor_split(20)
    expected = torch.stack([4000 * p[c].sum() for c in classes])
    found = torch.stack([counts[c].sum() for c in classes])
    assert float(((found - expected) ** 2 / expected).sum()) < 43.8  # 99.9% of χ² with 19 degrees


def test_top_k_and_top_p_leave_the_rest_out(engine):
    prompt = prompts()[1]
    with torch.no_grad():
        scores = engine._model(torch.tensor([prompt.token_ids]), use_cache=False).logits[0, -1]
    best = set(scores.topk(3).indices.tolist())
    (group,) = engine.generate([prompt], Sampling(64, top_k=3, max_tokens=1))
    assert {c.token_ids[0] for c in group.completions} == best
    chances = {tuple(c.token_ids): float(np.exp(c.logprobs[0])) for c in group.completions}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    (group,) = engine.generate([prompt], Sampling(64, top_p=1e-6, max_tokens=1))
    assert {c.token_ids[0] for c in group.completions} == {int(scores.argmax())}


def test_sequences_beyond_an_attention_window_are_refused_or_cut(folder):
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    with pytest.raises(UserError, match="attention window of 5"):
        hf_cache.Block(torch.arange(2)[:, None], 4).attend(0, query, key, key, 1.0, window=5)
    # Three samples each of two prompts; after four tokens the window has left the prompt.
    block = hf_cache.Block(torch.arange(6).view(2, 3), room=4)
    block.attend(0, query, key, key, 1.0, window=6)
    cache = hf_cache.Cache()
    cache.blocks.append(block)
    past = key.repeat_interleave(3, 0)
    for _ in range(4):
        q, k = torch.randn(6, 4, 1, 8), torch.randn(6, 2, 1, 8)
        found = cache.attend(0, q, k, k, 1.0, window=3)
        cache.length += 1
        past = torch.cat([past, k], 2)
        seen = past[:, :, -3:].repeat_interleave(2, 1)
        wanted = (q @ seen.transpose(2, 3)).softmax(-1) @ seen
        torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(folder, monkeypatch):
    original = hf_cache.Cache.attend

    def forgetful(self, layer, *arguments):
        return original(self, layer, *arguments) + 0.5 * self.length

    monkeypatch.setattr(hf_cache.Cache, "attend", forgetful)
    with pytest.raises(UserError, match="more than keys and values"):
        HFGenerate(EngineSpec(str(folder)))


def test_settings_that_the_run_gives_every_engine_have_no_effect_in_its_own(folder, caplog):
    target = {"_target_": "bandpo.rollout.hf.HFGenerate", "cache_gib": 0.5}
    spec = EngineSpec(str(folder))
    full = start_engine(target, EngineSpec(str(folder)))._room
    assert caplog.text == ""
    assert start_engine({**target, "dtype": "bfloat16", "seed": 7}, spec)._room == full
    assert "no effect in rollout.engine: dtype, seed" in caplog.text


def test_nothing_of_torchs_random_state_is_used(engine):
    before = torch.random.get_rng_state()
    list(engine.generate(prompts(), Sampling(2, max_tokens=4)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_values_may_be_narrower_than_keys(untrained_as):
    """As in DeepSeek's latent attention: 192 and 128 in its models."""
    sizes = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 16}
    sizes |= {"qk_rope_head_dim": 16, "v_head_dim": 24, "head_dim": 16, "num_key_value_heads": 2}
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "first_k_dense_replace": 2}
    engine = HFGenerate(EngineSpec(str(untrained_as("deepseek_v2", **sizes, **experts))))
    (group,) = engine.generate([prompts()[0]], Sampling(2, max_tokens=9))
    own = engine.logprobs(group.prompt, group.completions)
    for completion, wanted in zip(group.completions, own, strict=True):
        np.testing.assert_allclose(completion.logprobs, wanted, atol=1e-4)
