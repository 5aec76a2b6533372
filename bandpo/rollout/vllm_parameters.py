"""vLLM's sampling parameters for ours: all that a model's or a server's defaults could set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bandpo.rollout.engine import Sampling

FORCED = Sampling(n=1, temperature=0.0, max_tokens=1)
"""Of a request for the log-probabilities of its prompt; vLLM samples one token at least."""


def vllm_parameters(sampling: Sampling, ends: Iterable[int]) -> dict[str, Any]:
    """The keyword arguments of vLLM's SamplingParams, and JSON for its servers.

    `ends` are the model's end-of-sequence ids. None of the parameters of `get_diff_sampling_param`
    is omitted, which vLLM takes from generation_config.json. Text is needed for stop strings alone;
    special tokens are part of it, so that a stop string may name one.
    """
    return {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted({*ends, *sampling.stop_token_ids}),
        "detokenize": bool(sampling.stop),
        "skip_special_tokens": False,
    }
