"""The cost of Band-KL: against bisection of the same equation, and within the whole loss.

    python benchmarks/bounds.py [--device cuda] [--tokens 1048576] [--repeats 15]

Prints the ratios and writes benchmarks/results/bounds-<cpu|card>.json. Candidates take turns, so
that a disturbance of the machine hits all of them, and the fastest run of each counts. On a CPU
everything runs on one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bandpo.loss import (
    BandKL,
    BatchTotals,
    Bounds,
    Capped,
    Clip,
    Compiled,
    DualClip,
    Fixed,
    Interval,
    LossDiagnostics,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    TokenBatch,
    TokenRatio,
)

DELTA = 0.05
SEQUENCE_LENGTH = 1024


def bisection(old_logp: Tensor, steps: int = 50) -> Interval:
    """Both roots of −p·ln r − (1−p)·ln((1−r·p)/(1−p)) = δ, by halving their brackets."""
    p = old_logp.exp()
    log_c = torch.log1p(-p)

    def root(inside: Tensor, outside: Tensor) -> Tensor:
        for _ in range(steps):
            ratio = (inside + outside) / 2
            divergence = -p * ratio.log() - (1 - p) * (torch.log1p(-ratio * p) - log_c)
            within = divergence <= DELTA
            inside, outside = (
                torch.where(within, ratio, inside),
                torch.where(within, outside, ratio),
            )
        return inside

    one = torch.ones_like(p)
    return Interval(root(one, torch.zeros_like(p)), root(one, 1 / p))


def policy_loss(bounds: Bounds) -> PolicyLoss:
    """The loss of configs/method/{clip_higher,band_kl}.yaml around `bounds`."""
    return PolicyLoss(
        TokenRatio(), DualClip(Clip(bounds), 10.0), SequenceMeanTokenMean(), ReferenceKL(0.001)
    )


def random_batch(tokens: int, device: str) -> TokenBatch:
    """Half of the tokens above probability 0.4, one in ten below 1e-4."""
    generator = torch.Generator().manual_seed(0)
    shape = (tokens // SEQUENCE_LENGTH, SEQUENCE_LENGTH)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator)

    old_logp = -15 * uniform() ** 4 - 1e-6
    batch = TokenBatch(
        logp=old_logp + 0.2 * (uniform() - 0.5),
        old_logp=old_logp,
        advantages=2 * uniform() - 1,
        mask=torch.ones(shape),
        ref_logp=old_logp + 0.2 * (uniform() - 0.5),
    ).to(device)
    batch.logp.requires_grad_()
    return batch


def candidates(batch: TokenBatch) -> dict[str, Callable[[], object]]:
    """The timed functions by name."""
    totals = BatchTotals(*map(float, (batch.mask.shape[0], batch.mask.numel())))
    band, fixed = Capped(BandKL(DELTA), 10.0), Fixed(0.2, 0.28)
    compiled = Compiled(BandKL(DELTA))
    losses = {
        "fixed": policy_loss(fixed),
        "band": policy_loss(band),
        "band compiled": policy_loss(Compiled(band)),
    }
    output, diagnostics = losses["band"](batch, totals), LossDiagnostics(batch.mask.device)

    def step(loss: PolicyLoss) -> None:
        batch.logp.grad = None
        loss(batch, totals).loss.backward()

    return {
        "bisection": lambda: bisection(batch.old_logp),
        "band": lambda: BandKL(DELTA)(batch.old_logp),
        "band compiled": lambda: compiled(batch.old_logp),
        "loss, fixed": lambda: step(losses["fixed"]),
        "loss, band": lambda: step(losses["band"]),
        "loss, band compiled": lambda: step(losses["band compiled"]),
        "diagnostics": lambda: diagnostics.update(output),
    }


def fastest_ms(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The shortest of `repeats` wall times of each candidate, in milliseconds, taking turns."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    best = dict.fromkeys(timed, float("inf"))
    for run in timed.values():
        run()  # compiles and warms up
    for _ in range(repeats):
        for name, run in timed.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def machine(device: str) -> dict[str, object]:
    """Processor, card and versions; no host names."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "card": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    batch = random_batch(arguments.tokens, arguments.device)
    times = fastest_ms(candidates(batch), arguments.repeats)
    ratios = {
        "bisection / band (at least 10)": times["bisection"] / times["band"],
        "bisection / band compiled (at least 20)": times["bisection"] / times["band compiled"],
        "loss with band / with fixed": times["loss, band"] / times["loss, fixed"],
        "loss with band compiled / with fixed (at most 1.5)": times["loss, band compiled"]
        / times["loss, fixed"],
    }
    for name, value in times.items():
        print(f"{name:<50} {value:9.2f} ms")
    for name, value in ratios.items():
        print(f"{name:<50} {value:9.2f}")

    label = "cpu"
    if arguments.device == "cuda":
        label = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = Path(__file__).parent / "results" / f"bounds-{label}.json"
    path.parent.mkdir(exist_ok=True)
    result = {
        "machine": machine(arguments.device),
        "tokens": batch.mask.numel(),
        "milliseconds": {name: round(value, 3) for name, value in times.items()},
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
