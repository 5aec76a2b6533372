"""Ranks that wait for each other, until one of them fails as the argument says."""

import os
import signal
import sys
import time

import torch.distributed as dist

from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks
from bandpo.ranks.neighbours import Neighbours
from bandpo.run.stops import Stops


def work(how: str) -> int:
    """Fails on the second rank after a moment; `hang` keeps the first busy outside collectives."""
    with Ranks() as ranks, Neighbours(ranks), Stops(ranks, None):
        print("READY", flush=True)
        time.sleep(1)
        if ranks.rank == 1 and how == "raise":
            raise ValueError("the first cause")
        if ranks.rank == 1 and how == "user_error":
            raise UserError("mend this")
        if ranks.rank == 1 and how == "hang":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "late" and ranks.rank == 0:
            time.sleep(5)  # the second rank has long finished
        elif how != "late":
            while how in ("hang", "wait"):
                time.sleep(0.1)
            dist.barrier()
    print("DONE", flush=True)
    return 0


if __name__ == "__main__":
    from bandpo import cli

    cli.COMMANDS["work"] = ("neighbour_worker:main", "for this test")
    main = lambda rest: work(rest[0])  # noqa: E731
    sys.modules["neighbour_worker"] = sys.modules["__main__"]
    sys.exit(cli.main(["work", sys.argv[1]]))
