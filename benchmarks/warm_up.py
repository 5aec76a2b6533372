"""Embedded policies of ten seeds: what is proved of each, after how many steps.

    python benchmarks/warm_up.py [--seeds 0 1 …]

results/warm_up.json. Seed 0 here is made anew by this machine and is not the policy that ships.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

import torch
from results import keep

from bandpo.model.embedded import Recipe
from bandpo.model.warm_up import warm_up


def main() -> None:
    """Makes the policies and keeps their proofs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    made: list[dict[str, Any]] = []
    for seed in parser.parse_args().seeds:
        begun, last = time.perf_counter(), {}

        def report(step, proof, last=last):
            last.update(steps=step, **asdict(proof))

        warm_up(Recipe(seed=seed), report)
        made.append({"seed": seed, **last, "seconds": round(time.perf_counter() - begun)})
        print(made[-1], flush=True)
    rightly = min(policy["worked_right"] for policy in made)
    facts = {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    keep("warm_up", {**facts, "lowest_worked_right": rightly, "policies": made})


if __name__ == "__main__":
    main()
