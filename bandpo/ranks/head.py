"""`python -m bandpo.ranks.head HOST:PORT`: whether the nodes of a new job can meet there.

torchrun on a head whose port is taken waits there for minutes, as a client of whatever answers.
"""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import socket
import sys
from contextlib import suppress
from datetime import timedelta
from threading import Thread

RENDEZVOUS = "bandpo"  # --rdzv-id of scripts/launch.sh
PATIENCE_S = 10.0


def problem_with(head: str) -> str | None:
    """The reason why nodes cannot meet at `host:port`; None if they can, or on other machines."""
    host, _, number = head.rpartition(":")
    if not (number.isdecimal() and 0 < int(number) < 1 << 16):
        return f"{head}: its port must be a number from 1 to 65535"
    port = int(number)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return f"{head}: {host} has no address: {error.strerror}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port that a job has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:  # the head is another machine
                return None
            if error.errno != errno.EADDRINUSE:
                return f"{head}: {error.strerror}"
        else:
            return None
    taken = _taken_by(host, port)
    return (
        taken and f"{head}: this port is taken by {taken}: choose another, as in {host}:{port + 1}"
    )


def _taken_by(host: str, port: int) -> str | None:
    """The user of a port; None for nodes of this job that wait there for others."""
    importlib.import_module("torch.distributed")  # is slow, and not what the patience is for
    found: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # whatever the other program answers
            found.append(_is_complete(host, port))

    client = Thread(target=ask, daemon=True)
    client.start()
    client.join(PATIENCE_S)  # it waits without end for the greeting of a program not torch's
    if not found:
        return "another program"
    return "another run" if found[0] else None


def _is_complete(host: str, port: int) -> bool:
    """Whether the nodes that met at a port wait for no other; raises for other programs."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    patience = timedelta(seconds=PATIENCE_S / 2)
    store = TCPStore(host, port, is_master=False, timeout=patience, wait_for_workers=False)
    state = C10dRendezvousBackend(store, RENDEZVOUS).get_state()
    # As every node reads it that joins.
    return state is not None and bool(pickle.loads(state[0]).complete)


if __name__ == "__main__":
    if problem := problem_with(sys.argv[1]):
        print(f"launch: --head {problem}", file=sys.stderr)
        sys.exit(2)
