"""The CPU that this process may use: its cores and their instructions."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that a scheduler, `taskset` or a container leaves to this process, at least 1.

    The smaller of the CPU affinity and the control group's quota, rounded up: more threads than
    that would wait for each other.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min(cores, _quota(CONTROL_GROUP) or cores))


def _quota(group: Path) -> int | None:
    """Cores that a control group of version 2 or 1 allows; None without a limit."""
    with suppress(OSError, ValueError):
        share, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return -(-int(share) // int(period))  # "max" is no number
    with suppress(OSError, ValueError):
        share, period = (
            (group / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii")
            for name in ("quota", "period")
        )
        return -(-int(share) // int(period)) if int(share) > 0 else None
    return None


def separate_compile_caches() -> None:
    """Makes torch's compile cache depend on the CPU's instructions; call it before compiling.

    The cache's keys do not: a kernel of an AVX-512 machine, found in a shared folder by an AVX2
    machine, ends the process in a segmentation fault.
    """
    import torch  # the number of cores must be known before torch makes its threads

    settings = torch.compiler.config
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in settings.cache_key_tag:
        settings.cache_key_tag += capability
