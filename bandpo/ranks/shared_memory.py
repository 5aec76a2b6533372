"""Shared-memory segments that DeepSpeed leaves behind when a run on CPUs is killed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

SEGMENTS = Path("/dev/shm")
# deepspeed/ops/csrc/cpu/comm/shm.cpp: <prefix>_<user id>_<master address>_<master port>_<rank>
PREFIX = "deepspeed_allreduce_buffer"
SETTLED_S = 60.0
"""Segments younger than this may belong to a job in another container that shares /dev/shm."""


def remove_stale_buffers(rank: int) -> list[Path]:
    """Removes this user's DeepSpeed buffers for this rank number that no live process has open.

    Each rank handles its own number, before DeepSpeed makes its buffer, so that none removes what
    another rank of the same job has just made. The name that this job will use is removed whatever
    its age, since DeepSpeed would keep its old contents.
    """
    job = f"{os.environ.get('MASTER_ADDR')}_{os.environ.get('MASTER_PORT')}"
    mine = f"{PREFIX}_{os.getuid()}"
    found = [
        path for path in SEGMENTS.glob(f"{mine}_*_{rank}") if path.stat().st_uid == os.getuid()
    ]
    if not found:
        return []
    in_use = _open_files(mine)
    removed = []
    for path in found:
        settled = time.time() - path.stat().st_mtime > SETTLED_S
        if str(path) not in in_use and (settled or path.name == f"{mine}_{job}_{rank}"):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _open_files(prefix: str) -> set[str]:
    """Files of /dev/shm with this prefix that a process holds open, as DeepSpeed does to its end.

    Only processes of this user, or of root, can hold them; others' cannot be inspected.
    """
    opened = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # the process has ended, or is another user's
            target = os.readlink(link)
            if target.startswith(f"{SEGMENTS}/{prefix}"):
                opened.add(target)
    return opened
