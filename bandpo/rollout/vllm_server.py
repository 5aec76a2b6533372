"""vLLM in processes of its own: one or several API servers, on this machine or on others.

The user starts the servers (docs/servers.md). Requests go to vLLM's tokens-in, tokens-out
endpoint: unlike the OpenAI-compatible one it takes vLLM's sampling parameters unchanged, skips the
decoding of text, and reports with which weights every token was sampled.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from anyio.from_thread import start_blocking_portal
from numpy.typing import NDArray
from torch import Tensor

from bandpo.errors import UserError
from bandpo.model.tying import as_its_files_are
from bandpo.model.vocabulary import end_tokens
from bandpo.rollout.decoding import Decoder, Sampled
from bandpo.rollout.engine import EngineSpec, RolloutEngine, Sampling
from bandpo.rollout.server_check import (
    GENERATE,
    Requirements,
    check_servers,
    faults_of,
    normalised,
)
from bandpo.rollout.servers import Server, ServerLost, ServerPool
from bandpo.rollout.vllm_parameters import FORCED, vllm_parameters
from bandpo.rollout.weight_exchange import DeviceExchange, FolderExchange, WeightExchange
from bandpo.types import Completion, Group, Prompt, token_array

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "VLLM_API_KEY"
UNTOUCHED = "default"
"""vLLM's label for the weights that it was started with."""
_NO_LOGPROB = -9999.0  # what vLLM sends for NaN, which JSON lacks


class VLLMServer(RolloutEngine):
    """Running vLLM servers as one engine, shared by all ranks; the first rank sends weights.

    `model` is the servers' name of the model where it is not the spec's `model_path`; a server
    whose reply takes longer than `timeout_s` is lost. `transfer` is the way of the weights:
    `folder`, through the folder `exchange` that the servers and the first rank share (null: shared
    memory), or `nccl` or `ipc` between GPUs. An API key is read from the environment variable
    VLLM_API_KEY.
    """

    name = "vllm_server"
    samples_apart = True

    def __init__(
        self,
        spec: EngineSpec,
        *,
        urls: Sequence[str],
        model: str | None = None,
        transfer: Literal["folder", "nccl", "ipc"] = "folder",
        exchange: str | None = None,
        timeout_s: float = 1800.0,
    ) -> None:
        """Checks every server; raises UserError with all that must be fixed."""
        from transformers import AutoConfig, AutoTokenizer

        path, ranks = spec.model_path, spec.ranks
        self.weight_version = 0
        self._label = UNTOUCHED
        self._ranks = ranks
        self._exchange: WeightExchange
        if transfer == "folder":
            # Only the first rank writes; other nodes may lack the folder.
            self._exchange = FolderExchange(path, exchange if ranks.is_first else None)
        else:
            self._exchange = DeviceExchange(path, transfer, ranks.rank)
        urls = normalised(urls)
        start = ranks.rank % len(urls)  # ranks prefer different servers where loads are equal
        api_key = os.environ.get(API_KEY_VARIABLE)
        self._open = ExitStack()
        portal = self._open.enter_context(start_blocking_portal())
        # Abandons a rollout that nobody waits for.
        self._open.callback(portal.call, portal.stop, True)
        servers = [Server(url, api_key, timeout_s) for url in urls[start:] + urls[:start]]
        # Weights are sent once, whatever the number of ranks.
        self._pool = ServerPool(servers, portal, commands=ranks.is_first)
        self._open.callback(self._pool.close)
        self._required = Requirements(model or path, spec.dtype, spec.max_model_len, transfer)
        try:
            portal.call(check_servers, servers, self._required)
        except BaseException:
            self._open.close()
            raise
        trusted = {"trust_remote_code": spec.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(path, **trusted)
        config = AutoConfig.from_pretrained(path, **trusted)
        self._decode = Decoder(tokenizer, spec.chat_template)
        self._ends = end_tokens(path, config, tokenizer).keys()
        if as_its_files_are(path, config):
            logger.warning(
                "%s is configured with a tied head, but its weights have a separate one, which "
                """servers ignore without --hf-overrides '{"tie_word_embeddings": false}'""",
                path,
            )
        ranks.barrier()  # no rank sends weights while another still checks the servers

    @property
    def replicas(self) -> int:
        """The servers in use."""
        return len(self._pool.alive)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields the groups in the order they finish.

        Raises UserError when no server is left.
        """
        most = min(server.slots for server in self._pool.alive)
        if sampling.n > most:
            raise UserError(
                f"{sampling.n} samples per prompt need servers started with --max-num-seqs >= "
                f"{sampling.n}, not {most}"
            )
        parameters = vllm_parameters(sampling, self._ends) | {"logprobs": 0}
        waiting = {
            self._submit(prompt.token_ids, parameters | {"seed": prompt.seed}, _sampled): prompt
            for prompt in prompts
        }
        try:
            for future in as_completed(waiting):
                yield self._group(waiting.pop(future), future.result())
        finally:
            for future in waiting:  # the consumer stopped early: vLLM aborts what nobody waits for
                future.cancel()

    def _submit(
        self,
        token_ids: Sequence[int],
        parameters: dict[str, Any],
        read: Callable[[dict[str, Any]], Any],
        first: Server | None = None,
    ) -> Future[Any]:
        """Starts a request; its future returns what is read of the reply once it has come.

        The reply was sampled with our weights. It has a dictionary for every token, which nobody
        should keep until its group's turn.
        """
        body = {"token_ids": list(token_ids), "sampling_params": parameters}
        label, samples = self._label, parameters["n"]
        return self._pool.submit(
            GENERATE, body, samples, lambda reply: read(_of_weights(label, reply)), first
        )

    def _group(self, prompt: Prompt, samples: Sequence[Sampled]) -> Group:
        return self._decode.group(prompt, samples, self.weight_version)

    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Teacher-forced log-probabilities at temperature 1.

        The completions of all ranks go to the servers in turn: as many as there are servers reach
        all of them.
        """
        parameters = vllm_parameters(FORCED, self._ends) | {"prompt_logprobs": 0}
        start = len(prompt.token_ids)
        servers = sorted(self._pool.alive, key=lambda server: server.url)
        futures = [
            self._submit(
                [*prompt.token_ids, *completion.token_ids.tolist()],
                parameters,
                lambda reply: reply["prompt_logprobs"][start:],
                servers[(self._ranks.rank + index * self._ranks.size) % len(servers)],
            )
            for index, completion in enumerate(completions)
        ]
        return [
            [
                entry[str(token)]["logprob"]
                for entry, token in zip(future.result(), completion.token_ids.tolist(), strict=True)
            ]
            for future, completion in zip(futures, completions, strict=True)
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces the weights of every server and drops their prefix caches.

        Lost servers that are back take part, and get prompts from now on. Collective: the first
        rank sends, the others take part in gathering the stream and wait. Raises UserError when no
        server is left, RuntimeError for an incomplete stream.
        """
        # Unique to this run, so that another run on the same servers is noticed.
        label = f"{socket.gethostname()}/{os.getpid()}/{version}"
        required = replace(self._required, may_be_paused=True)
        self._pool.readmit(partial(faults_of, required=required))
        self._exchange.send(weights, self._pool, label)
        if not all(reply["success"] for reply in self._pool.post_all("/reset_prefix_cache")):
            raise RuntimeError("a vLLM server did not reset its prefix cache")
        self._pool.post_all("/resume")
        self._label, slots = self._ranks.gather((label, self._pool.slots))[0]
        self._pool.use_only(slots)
        self.weight_version = version

    def close(self) -> None:
        """Closes the connections; the servers keep running."""
        self._open.close()


def _of_weights(label: str, reply: dict[str, Any]) -> dict[str, Any]:
    """The reply; raises ServerLost unless these weights sampled all of it, to the end."""
    for choice in reply["choices"]:
        found = {span["version"] for span in choice["weight_versions"] or ()}
        if choice["token_ids"] and found != {label}:
            raise ServerLost(
                f"it answered with weights {sorted(found)}, not {label!r}: another run uses it, "
                "or it was restarted; restart it before the next run"
            )
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerLost(f"it ended a sample with {choice['finish_reason']!r}")
    return reply


def _sampled(reply: dict[str, Any]) -> list[Sampled]:
    """The samples of a reply, in order; raises RuntimeError where a log-probability is missing."""
    return [
        (token_array(choice["token_ids"]), _logprobs(choice), choice["finish_reason"] == "stop")
        for choice in sorted(reply["choices"], key=lambda choice: choice["index"])
    ]


def _logprobs(choice: dict[str, Any]) -> NDArray[np.float32]:
    entries = choice["logprobs"]["content"]
    logprobs = np.array([entry["logprob"] for entry in entries], np.float32)
    if len(logprobs) != len(choice["token_ids"]) or logprobs.min(initial=0.0) <= _NO_LOGPROB:
        raise RuntimeError("vLLM sampled a token without a log-probability: NaN in the model?")
    return logprobs
