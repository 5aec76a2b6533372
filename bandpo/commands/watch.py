"""`bandpo watch`: a live page of runs, on this machine alone, which only reads them."""

from __future__ import annotations

import argparse
import getpass
import socket
from pathlib import Path

from bandpo.errors import UserError
from bandpo.watch.api import Api
from bandpo.watch.runs import Library
from bandpo.watch.server import HOST, PORT, Server

PAGE = """\
{found} in {folder}, shown at

  {address}

to whoever opens all of that address. From another machine it is the same, through a tunnel:

  ssh -N -L {port}:{host}:{port} {user}@{machine}

Ctrl-C ends it."""


def main(argv: list[str]) -> int:
    """Serves the page until it is interrupted."""
    parser = argparse.ArgumentParser(prog="bandpo watch", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), help="a run, or a folder with runs"
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"0: any (default: {PORT}, or the next that is free)"
    )
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give that of a run, or one that holds runs")
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: must be between 0 and 65535")
    library = Library(folder)
    with Server(Api(library), arguments.port) as server:
        if arguments.port not in (0, server.port):
            print(f"port {arguments.port} is taken")
        count = len(library.folders())
        print(
            PAGE.format(
                found=f"{count} run{'' if count == 1 else 's'}",
                folder=folder,
                address=server.address,
                host=HOST,
                port=server.port,
                user=_user(),
                machine=socket.gethostname(),
            ),
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "user"
