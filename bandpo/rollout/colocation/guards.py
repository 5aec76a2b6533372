"""The process that vLLM shares with the learner: what vLLM would do to it, and does not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks
from bandpo.ranks.shared_memory import SEGMENTS

LONGEST_REASON = 500  # characters of a message of vLLM


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restores torch's global generator, which vLLM reseeds when it starts and then draws from."""
    # Of this rank's device alone: asking another one for its state would make a context there.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def process_group_kept() -> Iterator[None]:
    """Keeps torch's default process group, the learner's, which vLLM destroys with its engine."""
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
def shared_memory_of_its_own(ranks: Ranks) -> Iterator[None]:
    """Names the memory that the parts of an engine share on a CPU after this engine alone.

    vLLM's name is the same in every job of a machine: two would meet in one segment, and what a
    killed one leaves would keep every later one from starting. Once all parts have opened it the
    name goes, so that nothing is left. Collective over the ranks.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as Shared

    engine = ranks.gather(uuid.uuid4().hex)[0]
    opened = Shared._init_cpu_shm

    def open_own(shared: Any) -> int:
        shared.group_name = f"{shared.group_name}-{engine}"
        handle = opened(shared)
        for segment in SEGMENTS.glob(f"*{engine}_*"):
            segment.unlink(missing_ok=True)
        return handle

    Shared._init_cpu_shm = open_own
    try:
        yield
    finally:
        Shared._init_cpu_shm = opened


@contextmanager
def start_in_words(model_path: str, version: str | None) -> Iterator[None]:
    """Makes a UserError of whatever ends the start of vLLM, with the end of its traceback."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # pydantic's ends with what was validated.
        text = str(error).split(" [type=")[0]
        reason = " ".join(f"{type(error).__name__}: {text}".split())[:LONGEST_REASON]
        raise UserError.caused(
            f"vLLM {version} does not start with {model_path}: {reason}", error
        ) from error


@contextmanager
def experts_packed_anew(llm: Any) -> Iterator[None]:
    """Has vLLM pack the experts that are loaded within the block.

    On a CPU it packs the first ones alone, for kernels that it would keep. Raises UserError where
    the block leaves some without a kernel: then vLLM did not load them.
    """
    if torch.cuda.is_available():  # packs them, and graphs hold their addresses
        yield
        return
    forgotten = llm.apply_model(_forget_expert_kernels)[0]
    yield
    lacking = [name for name, there in llm.apply_model(_expert_kernels)[0].items() if not there]
    if missing := sorted(forgotten & set(lacking)):
        raise UserError(
            f"vLLM did not load the experts {missing[0]} of this model in a weight sync, so it "
            "cannot follow training; use another engine or model"
        )


def _expert_kernels(model: torch.nn.Module) -> dict[str, bool]:
    """Of each layer of experts in a model of vLLM whether it has a kernel."""
    methods: dict[str, Any] = {
        name: getattr(module, "quant_method", None) for name, module in model.named_modules()
    }
    return {n: m.moe_kernel is not None for n, m in methods.items() if hasattr(m, "moe_kernel")}


def _forget_expert_kernels(model: torch.nn.Module) -> set[str]:
    """The layers of experts whose kernels are removed, so that vLLM makes them again."""
    found = {name for name, there in _expert_kernels(model).items() if there}
    for name in found:
        method: Any = model.get_submodule(name).quant_method
        method.moe_kernel = None
    return found


Before = dict[type, tuple[tuple[type, ...], dict[str, Any]]]
"""Bases and own methods of classes before they were changed."""


@contextmanager
def changes_of_classes() -> Iterator[Before]:
    """Records transformers' classes before vLLM changes them, for `classes_apart`.

    Where vLLM runs a model by transformers' code it gives the class itself other bases, `__init__`
    and `__call__`: the learner's model has that class too, and a reference is made of it.
    """
    from vllm.model_executor.models.transformers import base

    before: Before = {}
    support = base.support_torch_compile

    def recording(**settings: Any) -> Any:
        def decorate(cls: type) -> Any:
            methods = {name: vars(cls).get(name) for name in ("__init__", "__call__")}
            before.setdefault(cls, (cls.__bases__, methods))
            return support(**settings)(cls)

        return decorate

    base.support_torch_compile = recording
    try:
        yield before
    finally:
        base.support_torch_compile = support


def classes_apart(llm: Any, before: Before) -> None:
    """Moves what vLLM changed in classes to subclasses, of which its own modules then are."""

    def divide(model: torch.nn.Module) -> None:
        for cls, (bases, methods) in before.items():
            added = [parent for parent in cls.__bases__ if parent not in bases]
            changed = {name: vars(cls)[name] for name in methods if name in vars(cls)}
            own = type(cls.__name__, (cls, *added), {**changed, "__module__": cls.__module__})
            for module in model.modules():
                if type(module) is cls:
                    module.__class__ = own
            cls.__bases__ = bases
            for name, method in methods.items():
                if method is not None:
                    setattr(cls, name, method)
                elif name in vars(cls):
                    delattr(cls, name)

    if before:
        llm.apply_model(divide)
