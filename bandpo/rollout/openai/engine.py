"""The engine that samples from an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from typing import Any, NoReturn, TypeVar

from anyio.from_thread import start_blocking_portal
from omegaconf import OmegaConf
from torch import Tensor

from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError
from bandpo.rollout.engine import EngineSpec, RolloutEngine, Sampling
from bandpo.rollout.openai.endpoint import Address, Endpoint, Refused
from bandpo.rollout.openai.fields import SEED_BITS, Api, Fields
from bandpo.rollout.openai.replies import Choice, Replies, choices_of, files_of
from bandpo.types import Completion, Group, Prompt, logprob_array, token_array

logger = logging.getLogger(__name__)

USAGE = "usage.json"
# An endpoint's code for a prompt that it refuses to answer at all.
_FILTERED = "content_filter"

T = TypeVar("T")


class OpenAICompatible(RolloutEngine):
    """Any endpoint with OpenAI's interface for chats or completions, for evaluation alone.

    The model is a name: that of `model`, or else of the spec's `model_path`. The key is read from
    the environment variable `key_env`. Replies are kept in the spec's `folder`, and its tokens
    counted in usage.json there. `tokenizer` is the evaluation's: it renders prompts of
    `completions` (`bandpo.evaluation.subject`).
    """

    name = "openai"
    name_only = True
    weight_version = 0

    def __init__(
        self,
        spec: EngineSpec,
        *,
        url: str | None,
        model: str | None = None,
        key_env: str = "OPENAI_API_KEY",
        api: Api = "chat",
        tokenizer: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        omit: Sequence[str] = (),
        limit_field: str = "max_tokens",
        seed_bits: int = SEED_BITS,
        samples_per_request: int | None = None,
        concurrency: int = 32,
        retries: int = 10,
        timeout_s: float = 1800.0,
    ) -> None:
        """Asks nothing yet; raises UserError for settings that cannot be."""
        del tokenizer
        limits: dict[str, float] = {"concurrency": concurrency, "timeout_s": timeout_s}
        limits |= {"samples_per_request": samples_per_request or 1, "retries": retries + 1}
        if wrong := [name for name, value in limits.items() if value <= 0]:
            raise UserError(f"rollout.engine.{wrong[0]} must be positive")
        address = Address.of(url, key_env)
        self._fields = Fields(
            model or spec.model_path,
            api,
            plain(extra_body) or {},
            tuple(omit),
            limit_field,
            seed_bits,
        )
        self._together = samples_per_request
        self._alike: list[bool] = []  # of each group: whether its samples are equal
        self._ranks, self._folder = spec.ranks, spec.folder
        self._replies = Replies(spec.folder, spec.ranks.rank)
        self._open = ExitStack()
        self._open.callback(self._write_usage)  # last, when no reply can come any more
        self._portal = self._open.enter_context(start_blocking_portal())
        # Abandons requests that nobody waits for.
        self._open.callback(self._portal.call, self._portal.stop, True)
        self._endpoint = Endpoint(
            address, concurrency=concurrency, retries=retries, timeout_s=timeout_s
        )
        self._open.callback(self._portal.call, self._endpoint.close)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields the groups in the order they finish.

        Raises UserError where the endpoint refuses a request, or does not answer it in the end.
        """
        fields = self._fields.of_sampling(sampling)
        waiting = {
            self._portal.start_task_soon(self._samples, prompt, fields, sampling.n): prompt
            for prompt in prompts
        }
        try:
            for future in as_completed(waiting):
                choices = future.result()
                self._alike.append(sampling.temperature > 0 and _are_equal(choices))
                yield _group(waiting.pop(future), choices)
        finally:
            for future in waiting:
                future.cancel()

    async def _samples(self, prompt: Prompt, fields: Mapping[str, Any], n: int) -> list[Choice]:
        """The n samples of a prompt, those that were paid for before among them."""
        body = {**fields, **self._fields.of_prompt(prompt)}
        content = json.dumps([self._fields.path, body, prompt.seed], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()[:32]
        found = self._replies.take(key)
        while runs := _runs([i for i in range(n) if i not in found], self._together or n):
            asked = [self._ask(key, body, prompt.seed, *run) for run in runs]
            for samples in await _all(asked):
                found |= samples
        return [found[index] for index in range(n)]

    async def _ask(
        self, key: str, body: Mapping[str, Any], seed: int, first: int, count: int
    ) -> dict[int, Choice]:
        """The samples from index `first`, at most `count` and at least one, by index."""
        path = self._fields.path
        request = {**body, **self._fields.of_samples(seed, first, count)}
        try:
            reply = await self._endpoint.ask("POST", path, request, _readable)
        except Refused as refused:
            if refused.code == _FILTERED:
                reply = {"choices": [_empty(index) for index in range(count)], "usage": _NOTHING}
            elif count > 1 and refused.status in (400, 422):
                # Perhaps of n; if it is of something else, one sample is refused as well.
                found = await self._ask(key, body, seed, first, 1)
                self._one_by_one(str(refused))
                return found
            else:
                raise self._endpoint.error(path, refused) from None
        choices = choices_of(reply)[:count]
        if len(choices) < count:
            self._one_by_one(f"it gave {len(choices)} of {count}")
        self._replies.add(key, first, len(choices), reply)
        return dict(enumerate(choices, first))

    def _one_by_one(self, reason: str) -> None:
        """Asks for single samples from now on."""
        if self._together != 1:
            self._together = 1
            shown = self._endpoint.address.shown(reason)
            logger.warning("the endpoint takes no n (%s): samples are asked for one by one", shown)

    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> NoReturn:
        """Raises UserError: no endpoint scores given tokens."""
        raise UserError(EVALUATION_ONLY)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> NoReturn:
        """Raises UserError: the endpoint's weights are its own."""
        raise UserError(EVALUATION_ONLY)

    def notes(self) -> list[str]:
        """The tokens used in all parts of the evaluation, and what was odd about the replies."""
        lines = self._replies.usage().lines() if self._folder else []
        if len(self._alike) > 1 and all(self._alike):
            lines.append(
                "! the samples of each problem are equal: does the endpoint repeat earlier "
                "replies, or round seeds (rollout.engine.seed_bits=31)?"
            )
        return lines

    def _write_usage(self) -> None:
        if self._folder and self._ranks.is_first and files_of(self._folder):
            content = json.dumps(self._replies.usage().settings(), indent=2) + "\n"
            write_atomically(self._folder / USAGE, content)

    def close(self) -> None:
        """Abandons what is asked, writes usage.json and closes the connections."""
        self._open.close()


EVALUATION_ONLY = (
    "rollout=openai is for evaluation only: an endpoint neither takes weights nor reports "
    "log-probabilities as training needs them; train with rollout=vllm_local, vllm_server or hf"
)
_NOTHING = {"prompt_tokens": 0, "completion_tokens": 0}


def _empty(index: int) -> dict[str, Any]:
    return {"index": index, "message": {"content": ""}, "finish_reason": _FILTERED}


def _readable(reply: Any) -> Any:
    choices_of(reply)
    return reply


def plain(value: Any) -> Any:
    """A setting in Python's own containers, whether hydra made it or a user."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _runs(missing: Sequence[int], most: int) -> list[tuple[int, int]]:
    """First and length of runs of consecutive indices, each at most so long."""
    runs: list[tuple[int, int]] = []
    for index in missing:
        first, length = runs[-1] if runs else (index, 0)
        if runs and index == first + length and length < most:
            runs[-1] = first, length + 1
        else:
            runs.append((index, 1))
    return runs


def _are_equal(choices: Sequence[Choice]) -> bool:
    return len(choices) > 1 and len({choice.text for choice in choices}) == 1


async def _all(asked: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, or the first error, which cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _group(prompt: Prompt, choices: Sequence[Choice]) -> Group:
    return Group(
        prompt,
        tuple(
            Completion(
                text=choice.text,
                token_ids=token_array(choice.token_ids),
                logprobs=logprob_array(()),
                finish_reason="length" if choice.truncated else "stop",
                reported_tokens=choice.tokens or 0,
            )
            for choice in choices
        ),
    )
