"""One sampling, three engines: in-process vLLM, a vLLM server and transformers.

The model's generation_config.json would sample quite differently: greedily and with a penalty.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from serving import KEY, LENGTH, serving

from bandpo.model.source import find_model
from bandpo.model.vocabulary import end_tokens
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.hf import HFGenerate
from bandpo.types import Problem, Prompt
from bandpo.weight_sync import weight_stream

pytest.importorskip("vllm")

from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.rollout.vllm_server import VLLMServer

FILE = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.5, "max_new_tokens": 3}
EOS = [1, 29, 29]  # the tokenizer's, and "9", which few completions have
QUESTIONS = ("2 + 3", "17 + 4", "9 + 8", "31 + 15")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded policy with another generation_config.json."""
    folder = shutil.copytree(find_model("embedded").path, tmp_path_factory.mktemp("m") / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(settings | FILE | {"do_sample": True, "eos_token_id": EOS})
    )
    return folder


@pytest.fixture(scope="module")
def lm(model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@pytest.fixture(scope="module")
def engines(host, model, tmp_path_factory):
    """With `host`: what of this process joined no job before vLLM's engine could not afterwards."""
    spec = EngineSpec(str(model), max_model_len=LENGTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        with serving(model, tmp_path_factory.mktemp("server") / "log") as (url, _):
            local = VLLMLocal(spec, max_num_seqs=32, enforce_eager=True)
            server = VLLMServer(spec, urls=[url])
            yield {"local": local, "server": server, "hf": HFGenerate(spec)}
            server.close()
            local.close()


@pytest.fixture(scope="module")
def prompts(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    made = []
    for i, question in enumerate(QUESTIONS):
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made.append(Prompt(Problem(question, "", ""), text, tuple(ids), seed=1000 * i))
    return made


def completions(engine, prompts, **settings):
    """Of each question, those of its group."""
    settings = {"n": 8, "max_tokens": 48} | settings
    found = {g.problem.id: g for g in engine.generate(prompts, Sampling(**settings))}
    return [found[p.problem.id].completions for p in prompts]


def assert_same(ours, theirs):
    for group, other in zip(ours, theirs, strict=True):
        for a, b in zip(group, other, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
            assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
            assert np.allclose(a.logprobs, b.logprobs, atol=2e-5)


def everywhere(engines, prompts, **settings):
    """The same samples from vLLM in process and from the server; greedy ones from all three."""
    local = completions(engines["local"], prompts, **settings)
    assert_same(completions(engines["server"], prompts, **settings), local)
    greedy = settings | {"n": 1, "temperature": 0.0}
    best = completions(engines["local"], prompts, **greedy)
    assert_same(completions(engines["server"], prompts, **greedy), best)
    assert_same(completions(engines["hf"], prompts, **greedy), best)
    return [c for group in local for c in group], [group[0] for group in best]


def forced(lm, prompt, completion):
    """[T, V]: the model's log-probabilities at temperature 1 where the tokens were sampled."""
    sequence = torch.tensor([[*prompt.token_ids, *completion.token_ids.tolist()]])
    with torch.no_grad():
        return lm(sequence).logits[0, len(prompt.token_ids) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("name", ["local", "server", "hf"])
def test_nothing_of_generation_config_is_applied(engines, prompts, lm, name):
    """Samples of the whole distribution at temperature 1, by their reported log-probabilities and
    by how often the most probable token is drawn."""
    likely, drawn, count = 0.0, 0, 0
    for prompt, group in zip(prompts, completions(engines[name], prompts, n=16), strict=True):
        assert len({tuple(c.token_ids) for c in group}) > 1
        assert max(len(c.token_ids) for c in group) > FILE["max_new_tokens"]
        for c in group:
            logp = forced(lm, prompt, c)
            own = logp[range(len(c.token_ids)), c.token_ids.tolist()]
            assert np.allclose(c.logprobs, own.numpy(), atol=2e-4)
            likely += float(logp.exp().max(-1).values.sum())
            drawn += int((logp.argmax(-1).numpy() == c.token_ids).sum())
            count += len(c.token_ids)
    assert drawn == pytest.approx(likely, abs=4 * (count * 0.25) ** 0.5)
    assert drawn < count  # with top_k 1 they would be equal


@pytest.mark.parametrize("name", ["local", "server", "hf"])
def test_a_probe_scores_without_it_too(engines, prompts, lm, name):
    (group,) = completions(engines["local"], prompts[:1], n=2)
    found = engines[name].logprobs(prompts[0], group)
    for c, row in zip(group, found, strict=True):
        own = forced(lm, prompts[0], c)[range(len(c.token_ids)), c.token_ids.tolist()]
        assert np.allclose(row, own.numpy(), atol=2e-4)


def test_every_engine_ends_at_the_same_tokens(engines, prompts, model):
    from transformers import AutoConfig, AutoTokenizer

    parts = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ends = set(end_tokens(model, *parts))
    assert ends == {1, 29}
    assert all(set(engine._ends) == ends for engine in engines.values())
    sampled, best = everywhere(engines, prompts, n=16, temperature=2.0)
    ended = [c for c in sampled if c.finish_reason == "stop"]
    assert {int(c.token_ids[-1]) for c in ended} == ends
    assert not any(ends & set(c.token_ids[:-1].tolist()) for c in [*sampled, *best])


def test_stop_strings_end_the_same_samples_at_the_same_tokens(engines, prompts):
    free, best = everywhere(engines, prompts)
    text = next(c.text for c in best if len(c.text) > 6)
    stop = (text[2:4], text[-2:])  # of several tokens: the tokenizer has bytes
    stopped, greedy = everywhere(engines, prompts, stop=stop)
    assert any(len(a.token_ids) < len(b.token_ids) for a, b in zip(stopped, free, strict=True))
    for a, b in [*zip(stopped, free, strict=True), *zip(greedy, best, strict=True)]:
        assert a.token_ids.tolist() == b.token_ids[: len(a.token_ids)].tolist()
        places = [b.text.index(s) + len(s) for s in stop if s in b.text]
        assert a.text == (b.text[: min(places)] if places else b.text)
        assert a.finish_reason == ("stop" if places else b.finish_reason)
        assert len(a.logprobs) == len(a.token_ids)


def test_a_stop_at_the_limit_is_a_stop_and_one_in_the_prompt_is_none(engines, prompts):
    _, best = everywhere(engines, prompts)
    length = len(best[0].token_ids)
    assert best[0].finish_reason == "stop" and length > 4
    _, exact = everywhere(engines, prompts, max_tokens=length)
    assert exact[0] == best[0]
    _, cut = everywhere(engines, prompts, max_tokens=length - 1)
    assert cut[0].finish_reason == "length"
    text = best[0].text[:4]
    _, stopped = everywhere(engines, prompts, max_tokens=4, stop=(text,))
    assert (stopped[0].text, stopped[0].finish_reason) == (text, "stop")
    _, same = everywhere(engines, prompts, stop=(f"{QUESTIONS[0]}<|end|>", "<|assistant|>"))
    assert [c.token_ids.tolist() for c in same] == [c.token_ids.tolist() for c in best]
    sampled, _ = everywhere(engines, prompts, stop=("<|end|>",))
    assert sampled == everywhere(engines, prompts)[0]


def test_stop_tokens_end_the_same_samples(engines, prompts):
    _, best = everywhere(engines, prompts)
    token = int(best[0].token_ids[2])
    sampled, stopped = everywhere(engines, prompts, stop_token_ids=(token,))
    assert stopped[0].finish_reason == "stop" and stopped[0].token_ids[-1] == token
    assert all(token not in c.token_ids[:-1] for c in sampled)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": 0.2},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 0.9},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_penalties_and_cuts_are_the_same_everywhere(engines, prompts, settings):
    """hf draws other numbers: its log-probability of a sample's first token is held against
    vLLM's, and all its greedy ones."""
    sampled, _ = everywhere(engines, prompts, **settings)
    drawn = completions(engines["hf"], prompts, n=64, **settings)
    own = {
        (p.problem.id, int(c.token_ids[0])): float(c.logprobs[0])
        for p, group in zip(prompts, drawn, strict=True)
        for c in group
    }
    first = [(prompts[i // 8].problem.id, c) for i, c in enumerate(sampled)]
    both = [
        (own[key, int(c.token_ids[0])], float(c.logprobs[0]))
        for key, c in first
        if (key, int(c.token_ids[0])) in own
    ]
    assert len(both) > len(sampled) // 2
    assert np.allclose(*zip(*both, strict=True), atol=2e-5)


def test_nothing_is_lost_when_weights_are_replaced(engines, prompts, model):
    """Stops, penalties and ends after a sync, in process and on the server."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = {"stop": ("1",), "presence_penalty": 0.4}
    before, _ = everywhere(engines, prompts, **settings)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    for engine in engines.values():
        engine.load_weights(weight_stream(other), 1)
    after, best = everywhere(engines, prompts, **settings)
    assert after != before
    assert any(c.text.endswith("1") for c in [*after, *best])
    assert all("1" not in c.text[:-1] for c in [*after, *best])
