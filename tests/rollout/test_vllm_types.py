"""vLLM's own types, filled as vLLM fills them, become arrays of the right numbers."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from bandpo.rollout.decoding import Decoder
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.rollout.vllm_server import VLLMServer, _of_weights, _sampled
from bandpo.types import Problem, Prompt

pytest.importorskip("vllm")
PROMPT = Prompt(Problem("p", "", ""), "", (1, 2))
TOKENS, LOGPROBS = [300, 301, 0], [-0.125, -1e-7, -12.5]


class Tokenizer:
    """Texts are the tokens."""

    all_special_ids = (0,)

    def get_vocab(self):
        return {f"<{token}>": token for token in (0, *TOKENS)}

    def convert_ids_to_tokens(self, ids):
        return [f"<{token}>" for token in ids]

    def batch_decode(self, samples, **_):
        assert all(type(token) is int for sample in samples for token in sample)
        return [" ".join(map(str, sample)) for sample in samples]


def engine(kind):
    made = kind.__new__(kind)
    made.weight_version, made._decode = 3, Decoder(Tokenizer())
    return made


def flat(tokens, logprobs):
    """As vLLM's output processor makes it, of the arrays of each position."""
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    parameters = SimpleNamespace(num_logprobs=0, prompt_logprobs=None, flat_logprobs=True)
    processor = LogprobsProcessor.from_new_request(
        None, SimpleNamespace(sampling_params=parameters)
    )
    for token, logprob in zip(tokens, logprobs, strict=True):
        rows = np.array([[token]], np.int32), np.array([[logprob]], np.float32), np.array([4])
        processor._update_sample_logprobs(LogprobsLists(*rows))
    return processor.logprobs


def test_the_outputs_of_an_engine_in_this_process():
    from vllm.outputs import CompletionOutput

    def output(index, tokens, logprobs, reason):
        return CompletionOutput(
            index, "", tokens, 0.0, flat(tokens, logprobs), finish_reason=reason
        )

    outputs = [output(1, [5], [-2.0], "length"), output(0, TOKENS, LOGPROBS, "stop")]
    group = engine(VLLMLocal)._group(PROMPT, SimpleNamespace(outputs=outputs))
    first, second = group.completions
    assert first.token_ids.tolist() == TOKENS and first.token_ids.dtype == np.int32
    assert first.logprobs.tolist() == np.float32(LOGPROBS).tolist()
    assert first.logprobs.dtype == np.float32
    assert (first.text, first.finish_reason, first.weight_version) == ("300 301", "stop", 3)
    assert (second.token_ids.tolist(), second.truncated) == ([5], True)


def reply(samples, length):
    """A server's, of vLLM's own protocol."""
    from vllm.entrypoints.scale_out.token_in_token_out import protocol

    choices = [
        protocol.GenerateTokensChoice(
            index=index,
            logprobs=protocol.GenerateLogProbs(
                content=[
                    protocol.GenerateLogProbsContent(token_id=300 + t, logprob=-0.5 - index)
                    for t in range(length)
                ]
            ),
            finish_reason="stop",
            token_ids=list(range(300, 300 + length)),
            weight_versions=[{"version": "w", "start": 0, "end": length}],
        )
        for index in reversed(range(samples))
    ]
    return protocol.GenerateTokensResponse(choices=choices).model_dump(mode="json")


def test_the_reply_of_a_server():
    sampled = _sampled(_of_weights("w", reply(samples=3, length=4)))
    group = engine(VLLMServer)._group(PROMPT, sampled)
    assert [c.logprobs.tolist() for c in group.completions] == [
        [-0.5 - index] * 4 for index in range(3)
    ]
    assert all(c.token_ids.tolist() == [300, 301, 302, 303] for c in group.completions)
    assert all(c.token_ids.dtype == np.int32 for c in group.completions)


def test_a_reply_is_kept_as_arrays_until_its_groups_turn():
    """Eight bytes a token and no dictionary."""
    length = 20_000
    tracemalloc.start()
    try:
        whole = reply(samples=2, length=length)
        held = tracemalloc.get_traced_memory()[0]
        sampled = _sampled(_of_weights("w", whole))
        del whole
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held > 20 * 8 * 2 * length
    assert kept < 2 * 8 * 2 * length
    assert sum(len(ids) for ids, _, _ in sampled) == 2 * length
