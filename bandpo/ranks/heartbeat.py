"""Signs of life between the machines of a job: a lost one must not leave the others waiting."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import torch.distributed as dist

BEAT_S = 5.0
LOST_S = 120.0
"""How long a machine may be silent. A collective would wait for it for `joining.PATIENCE`."""


class Heartbeat:
    """This machine's count in the store at which the ranks met, beside those of the others.

    A machine that loses power or its network closes no connection, so that nothing else tells of
    it. The counts have a connection and a thread of their own: where the store itself is lost, a
    request may never return, and all other machines count as silent.
    """

    def __init__(self, machine: int, machines: int) -> None:
        """Starts counting; `machine` is this one's index among `machines`."""
        self._own = machine
        self._changed = dict.fromkeys(range(machines), time.monotonic())
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        counts = dict.fromkeys(self._changed, -1)
        with suppress(RuntimeError):  # DistNetworkError, DistStoreError: the store is lost
            while not self._ended.wait(BEAT_S):
                for machine, before in counts.items():
                    key = f"bandpo/heartbeat/{machine}"
                    counts[machine] = self._store.add(key, int(machine == self._own))
                    if counts[machine] != before:
                        self._changed[machine] = time.monotonic()

    def silent(self) -> list[int]:
        """The other machines whose count has stood still for `LOST_S`."""
        since = time.monotonic() - LOST_S
        return [m for m, changed in self._changed.items() if m != self._own and changed < since]

    def end(self) -> None:
        """Stops counting."""
        self._ended.set()
