"""Functions of large tensors fused into few kernels where a GPU runs them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from bandpo.cpu import separate_compile_caches

logger = logging.getLogger(__name__)
T = TypeVar("T")

LARGE = 1 << 22
"""Numbers from which on a kernel takes longer than its launch; smaller tensors are not worth the
seconds of compilation."""


def fused(function: Callable[..., T]) -> Callable[..., T]:
    """The function, compiled by torch for calls whose first argument is large and on a GPU.

    Eager mode reads and writes the whole of it once an operation. Where it cannot be compiled (no C
    compiler, no Python.h) it is called as it is, with one warning.
    """
    compiled: Callable[..., T] | None = None
    refused = False

    @functools.wraps(function)
    def call(first: torch.Tensor, *others: Any) -> T:
        nonlocal compiled, refused
        if refused or not first.is_cuda or first.numel() < LARGE:
            return function(first, *others)
        if compiled is None:
            separate_compile_caches()
            compiled = torch.compile(function)
        try:
            return compiled(first, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whichever stage: the function itself says if it is at fault
            refused = True
            logger.warning(
                "the learner's head is not compiled and takes longer: %s",
                (str(error).strip() or repr(error)).splitlines()[0],
            )
            return function(first, *others)

    return call
