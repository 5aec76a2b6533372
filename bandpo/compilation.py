"""What torch.compile keeps between processes, told apart by the instructions of the CPU."""

from __future__ import annotations

import torch


def separate_compile_caches() -> None:
    """Keeps kernels of other instruction sets from this process; to be called before compiling.

    torch's cache does not ask for which instructions a kernel was laid out. One of an AVX-512
    machine, found in a shared folder by an AVX2 machine, ends the process in a segmentation fault.
    """
    settings = torch.compiler.config
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in settings.cache_key_tag:
        settings.cache_key_tag += capability
