"""vLLM in the trainer's own process (colocated), one engine per rank or one for several ranks.

Construct it after the learner: vLLM would otherwise make a process group of size 1, and
DeepSpeed then fails to make its own. Construction is collective over the ranks.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from math import ceil
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bandpo.cpu import separate_compile_caches
from bandpo.environment import require_sound_companions
from bandpo.errors import UserError
from bandpo.model.architecture import token_bytes
from bandpo.model.tying import as_its_files_are
from bandpo.model.vocabulary import end_tokens
from bandpo.rollout.colocation.guards import (
    changes_of_classes,
    classes_apart,
    experts_packed_anew,
    process_group_kept,
    shared_memory_of_its_own,
    start_in_words,
    untouched_random_state,
)
from bandpo.rollout.decoding import Decoder
from bandpo.rollout.engine import EngineSpec, RolloutEngine, Sampling
from bandpo.rollout.vllm_installed import require_vllm, vllm_version
from bandpo.rollout.vllm_parameters import FORCED, vllm_parameters
from bandpo.types import Completion, Group, Prompt, token_array

# On a CPU: tokens of a block of the cache, and the cache's largest size in bytes.
BLOCK = 128
MOST_CACHE = 2**30
HEAD = "lm_head.weight"

T = TypeVar("T")


def _prepare_environment(threads: int) -> None:
    """Sets the environment variables that vLLM reads when it is imported."""
    separate_compile_caches()
    # In this process, so that weights are passed as tensors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if torch.cuda.is_available():
        # Its attention in float32 is Triton's, whose products would be of TF32: ten bits.
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(min(torch.get_num_threads(), threads))
    else:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # Where it is not set, vLLM leaves torch one thread, the learner's offloaded optimizer too.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _has_head(model: torch.nn.Module) -> bool:
    """Whether a model of vLLM has a head module, even if it shares the embedding's weight."""
    names = (name for name, _ in model.named_modules(remove_duplicate=False))
    return any(name.rpartition(".")[2] == "lm_head" for name in names)


def cache_tokens(spec: EngineSpec, max_num_seqs: int, parts: int) -> int:
    """Tokens of a cache with blocks for all sequences that an engine of `parts` ranks has at once.

    One more block than these take is vLLM's own.
    """
    asked = max_num_seqs if spec.samples is None else ceil(spec.samples * parts / spec.ranks.size)
    return (min(max_num_seqs, asked) * ceil(spec.max_model_len / BLOCK) + 1) * BLOCK


class VLLMLocal(RolloutEngine):
    """A colocated vLLM engine whose samples come with processed log-probabilities.

    With `tensor_parallel_size` t, t consecutive ranks hold one engine: each adds the requests of
    all in the same order, and yields the groups of its own. Further arguments go to `vllm.LLM`.
    """

    name = "vllm_local"

    def __init__(
        self,
        spec: EngineSpec,
        *,
        max_num_seqs: int = 512,
        tensor_parallel_size: int = 1,
        **llm_arguments: Any,
    ) -> None:
        """Raises UserError without a recent vLLM, or if the ranks do not divide into engines."""
        require_vllm()
        if tensor_parallel_size < 1 or spec.ranks.size % tensor_parallel_size:
            raise UserError(
                f"rollout.engine.tensor_parallel_size={tensor_parallel_size} must divide the "
                f"{spec.ranks.size} rank(s)"
            )
        _prepare_environment(spec.threads)
        # vLLM's own use of torch, which no user can change.
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        from transformers import AutoConfig

        try:
            from vllm import LLM
        except Exception:
            require_sound_companions()
            raise

        self.weight_version = 0
        self._requests = 0
        on_gpu = torch.cuda.is_available()
        llm_arguments.setdefault("load_format", "safetensors")  # the default takes pickles too
        model = AutoConfig.from_pretrained(
            spec.model_path, trust_remote_code=spec.trust_remote_code
        )
        if apart := as_its_files_are(spec.model_path, model):
            llm_arguments["hf_overrides"] = {**apart, **llm_arguments.get("hf_overrides", {})}
        if on_gpu or tensor_parallel_size > 1:
            # `uni` would put every rank's engine on device 0, and knows no other rank.
            llm_arguments.setdefault("distributed_executor_backend", "external_launcher")
        if on_gpu:
            llm_arguments.setdefault("enable_sleep_mode", True)
        if not on_gpu or llm_arguments.get("gpu_memory_utilization") is None:
            llm_arguments.pop("gpu_memory_utilization", None)
        if not on_gpu:
            # Per-request seeds crash in chunked prefill on a CPU.
            llm_arguments |= {"enable_chunked_prefill": False}
            llm_arguments.setdefault("max_num_batched_tokens", max(8192, spec.max_model_len))
            needed = cache_tokens(spec, max_num_seqs, tensor_parallel_size)
            needed *= token_bytes(model, spec.dtype)
            llm_arguments.setdefault("kv_cache_memory_bytes", min(needed, MOST_CACHE))
        self._sleeps = bool(llm_arguments.get("enable_sleep_mode", False))
        self._asleep = False
        local_world_size = os.environ.get("LOCAL_WORLD_SIZE")
        parted = tensor_parallel_size > 1 and not on_gpu
        naming = shared_memory_of_its_own(spec.ranks) if parted else nullcontext()
        refusal = start_in_words(spec.model_path, vllm_version())
        with untouched_random_state(), naming, refusal, changes_of_classes() as changed:
            self._llm = LLM(
                model=spec.model_path,
                dtype=spec.dtype,
                seed=spec.seed,
                trust_remote_code=spec.trust_remote_code,
                max_model_len=spec.max_model_len,
                max_num_seqs=max_num_seqs,
                tensor_parallel_size=tensor_parallel_size,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **llm_arguments,
            )
        classes_apart(self._llm, changed)
        if local_world_size is not None:  # vLLM overwrites it
            os.environ["LOCAL_WORLD_SIZE"] = local_world_size
        tokenizer = self._llm.get_tokenizer()
        self._decode = Decoder(tokenizer, spec.chat_template)
        self._ends = end_tokens(spec.model_path, model, tokenizer).keys()
        self._has_head = all(self._llm.apply_model(_has_head))
        self._weight_names: frozenset[str] | None = None
        self._parts = _Parts(tensor_parallel_size)
        self.is_shared = tensor_parallel_size > 1

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields the groups in the order they finish; text is decoded outside the engine."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        waiting: dict[str, Prompt | None] = {}  # None: another rank's
        engine = self._llm.llm_engine
        for prompt, own in self._parts.gather(prompts):
            self._requests += 1
            parameters = SamplingParams(
                **vllm_parameters(sampling, self._ends),
                seed=prompt.seed,
                logprobs=0,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            waiting[str(self._requests)] = prompt if own else None
            engine.add_request(
                str(self._requests),
                TokensPrompt(prompt_token_ids=list(prompt.token_ids)),
                parameters,
            )
        try:
            while waiting:
                with untouched_random_state():
                    outputs = engine.step()
                for output in outputs:
                    if not output.finished:
                        continue
                    if (asked := waiting.pop(output.request_id)) is not None:
                        yield self._group(asked, output)
        finally:
            if waiting:  # the consumer stopped early: leave no request behind
                engine.abort_request(list(waiting))

    def _group(self, prompt: Prompt, output: Any) -> Group:
        samples = sorted(output.outputs, key=lambda sample: sample.index)
        sampled = (
            (
                token_array(s.token_ids),
                _of_tokens(s.logprobs, s.token_ids),
                s.finish_reason != "length",
            )
            for s in samples
        )
        return self._decode.group(prompt, sampled, self.weight_version)

    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Teacher-forced log-probabilities at temperature 1 under the engine's own weights."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        asked = self._parts.gather(
            [[*prompt.token_ids, *c.token_ids.tolist()] for c in completions]
        )
        with untouched_random_state():
            every = self._llm.generate(
                [TokensPrompt(prompt_token_ids=tokens) for tokens, _ in asked],
                SamplingParams(
                    **vllm_parameters(FORCED, self._ends),
                    prompt_logprobs=0,
                    flat_logprobs=True,
                ),
                use_tqdm=False,
            )
        start = len(prompt.token_ids)
        sequences = [tokens for tokens, own in asked if own]
        outputs = [output for output, (_, own) in zip(every, asked, strict=True) if own]
        return [
            _of_tokens(output.prompt_logprobs[start:], tokens[start:])
            for output, tokens in zip(outputs, sequences, strict=True)
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Reloads every weight in place and drops the prefix cache of the old ones.

        Raises RuntimeError when the stream carries other names than the one before it, or when
        the prefix cache cannot be dropped; UserError where vLLM does not reload experts.
        """
        seen: set[str] = set()

        def watched() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name == HEAD and not self._has_head:
                    continue  # Gemma 2's head is its embedding; vLLM refuses the name
                seen.add(name)
                yield name, tensor

        with experts_packed_anew(self._llm):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": watched()})
        if self._weight_names is not None and seen != self._weight_names:
            difference = sorted(seen ^ self._weight_names)[:5]
            raise RuntimeError(f"the weight stream changed its names: {difference}")
        self._weight_names = frozenset(seen)
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")
        self.weight_version = version

    def sleep(self) -> None:
        """Drops weights and cache on a GPU (sleep level 2); does nothing on a CPU."""
        if self._sleeps:
            self._llm.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        """Allocates the weights for `load_weights`, which then allocates the cache."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])

    def close(self) -> None:
        """Ends the engine core and lets go of all that it holds on the device.

        Another engine of this process can start only then: vLLM wants its memory pool empty.
        """
        llm, self._llm = self._llm, None
        try:
            with process_group_kept():
                llm.llm_engine.engine_core.shutdown()
        finally:
            del llm
            gc.unfreeze()  # vLLM froze what it had made; a shutdown that failed has not undone it
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _of_tokens(found: Any, token_ids: Sequence[int]) -> list[float]:
    """vLLM's flat log-probabilities, one per token; raises RuntimeError if they are of others."""
    if list(found.token_ids) != list(token_ids):
        raise RuntimeError(
            "vLLM reported log-probabilities of other tokens than those it was given"
        )
    values: list[float] = found.logprobs
    return values


class _Parts:
    """The ranks that hold one engine together."""

    def __init__(self, count: int) -> None:
        self._count = count

    def gather(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """The items of all these ranks, in one order, each with whether it is this rank's."""
        if self._count == 1:
            return [(item, True) for item in items]
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        rows: list[Any] = [None] * self._count
        dist.all_gather_object(rows, list(items), group.cpu_group)
        return [
            (item, part == group.rank_in_group) for part, row in enumerate(rows) for item in row
        ]
