"""Packed against padded micro-batches on a CPU: forward and backward of the learner's network.

    python benchmarks/packing.py [--repeats 3]

Every layout computes the same samples; they take turns and the fastest run of each counts. Prints
how many times the padded layout's time each takes (below 1 is faster) and writes
results/packing.json. One thread.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from results import keep

from bandpo.batching import Sample
from bandpo.learner.attention import BY_SEQUENCE
from bandpo.learner.layouts import Batch, PackedBatch, PaddedBatch, SharedPromptBatch, micro_batches
from bandpo.learner.logprobs import PolicyNetwork
from bandpo.model import embedded

LAYOUTS: dict[str, tuple[type[Batch], str]] = {
    "padded": (PaddedBatch, "sdpa"),
    "packed": (PackedBatch, BY_SEQUENCE),
    "packed, prompts shared": (SharedPromptBatch, BY_SEQUENCE),
    "packed, block-diagonal mask": (PackedBatch, "sdpa"),
    "packed, eager": (PackedBatch, "eager"),
}
# (hidden size, layers, heads, micro-batch tokens, completion lengths)
CASES: dict[str, tuple[int, int, int, int, Callable[[random.Random], list[int]]]] = {
    "0.2M, 128 of 8 to 64 tokens": (
        *(96, 2, 3, 4096),
        lambda rng: [rng.randint(8, 64) for _ in range(128)],
    ),
    "0.2M, 32 of 50 to 1000 tokens": (
        *(96, 2, 3, 8192),
        lambda rng: [min(1000, 50 + int(rng.expovariate(1 / 250))) for _ in range(32)],
    ),
    "7M, 12 of 50 to 1000 tokens": (
        *(384, 4, 6, 4096),
        lambda rng: [min(1000, 50 + int(rng.expovariate(1 / 250))) for _ in range(12)],
    ),
}


def make_samples(lengths: list[int], rng: random.Random) -> list[Sample]:
    """Random tokens; four samples of each prompt of 20."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 262) for _ in range(count))

    prompts = [tokens(20) for _ in lengths[::4]]
    return [Sample(prompts[i // 4], tokens(n), 1.0, torch.zeros(n)) for i, n in enumerate(lengths)]


def run(network: PolicyNetwork, layout: type[Batch], batches: list[list[Sample]]) -> None:
    """One forward and backward pass over all micro-batches."""
    for samples in batches:
        batch = layout.of(samples)
        logp, _ = network(*batch.arguments)
        logp.sum().backward()


def measure(case: str, repeats: int) -> dict[str, float]:
    """Seconds of each layout, and the share of padding in the padded one."""
    hidden, layers, heads, budget, draw = CASES[case]
    rng = random.Random(0)
    samples = make_samples(draw(rng), rng)
    recipe = embedded.Recipe(
        hidden_size=hidden, intermediate_size=hidden * 8 // 3, layers=layers, heads=heads
    )
    lm = embedded.build_model(recipe, 262)
    network = PolicyNetwork(lm, 1.0, 2048)
    seconds = dict.fromkeys(LAYOUTS, float("inf"))
    for _ in range(repeats):
        for name, (layout, attention) in LAYOUTS.items():
            lm.set_attn_implementation(attention)
            batches = micro_batches(samples, budget, layout)
            begun = time.perf_counter()
            run(network, layout, batches)
            seconds[name] = min(seconds[name], time.perf_counter() - begun)
    padded = micro_batches(samples, budget, PaddedBatch)
    computed = sum(PaddedBatch.size(batch) for batch in padded)
    return {**seconds, "padding share": 1 - sum(map(len, samples)) / computed}


def main() -> None:
    """Measures every case and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for case in CASES:
        found = measure(case, arguments.repeats)
        padding = found.pop("padding share")
        ratios = {name: seconds / found["padded"] for name, seconds in found.items()}
        results[case] = {"padding_share": padding, "seconds": found, "times_padded": ratios}
        print(f"{case} ({padding:.0%} padding)")
        for name, ratio in ratios.items():
            print(f"  {name:<30} {ratio:6.2f}")
    keep("packing", {"cases": results})


if __name__ == "__main__":
    main()
