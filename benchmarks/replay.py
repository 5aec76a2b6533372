"""The cost of replaying a large dump of tokens: peak memory and time of `bandpo replay`.

    python benchmarks/replay.py [--tokens 100000000] [--methods all] [--folder /tmp/replay]

Writes a synthetic dump of that many tokens as a run would, ten million tokens a file, replays it in
a process of its own, and writes benchmarks/results/replay.json. Needs about 11 bytes of disk a
token; the dump is removed afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bandpo.loss import BatchTotals, Clip, Fixed, PolicyLoss, TokenBatch, TokenMean, TokenRatio
from bandpo.methods.records import TokenRecorder, count_tokens, dump_path

FILE_TOKENS = 10_000_000
SEQUENCES, LONGEST = 256, 4096  # of a micro-batch
LOSS = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())

# VmHWM, not ru_maxrss, which a child takes over from its parent.
MEASURED = """
import sys
from pathlib import Path
from bandpo.cli import main
code = main(["replay", *sys.argv[1:]])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print("PEAK_KIB", int(status["VmHWM"].split()[0]))
sys.exit(code)
"""


def random_batch(generator: torch.Generator, step: int) -> TokenBatch:
    """Sequences up to LONGEST tokens; half of the tokens above probability 0.4."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    shape = (SEQUENCES, LONGEST)
    old_logp = -15 * uniform(*shape) ** 4 - 1e-6
    noise = 0.2 * torch.randn(shape, generator=generator)
    return TokenBatch(
        logp=(old_logp + noise).clamp(max=0),
        old_logp=old_logp,
        advantages=(2 * uniform(SEQUENCES, 1) - 1).expand(shape),
        mask=(torch.arange(LONGEST) < LONGEST * uniform(SEQUENCES, 1).square()).float(),
        entropy=3 * uniform(*shape),
        step=step,
    )


def write_dump(run: Path, tokens: int) -> int:
    """Files of a synthetic run with at least `tokens` tokens; how many there are."""
    generator = torch.Generator().manual_seed(0)
    written, step = 0, 0
    while written < tokens:
        step += 10
        path = dump_path(run, step, 0)
        with TokenRecorder(path) as recorder:
            here = 0
            while here < min(FILE_TOKENS, tokens - written):
                batch = random_batch(generator, step)
                recorder(LOSS(batch, BatchTotals(1.0, 1.0)))
                here += int(batch.mask.sum())
        written += count_tokens(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--folder", type=Path, help="where the dump is put for the time being")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        run = Path(name)
        start = time.perf_counter()
        tokens = write_dump(run, arguments.tokens)
        writing = time.perf_counter() - start
        size = sum(path.stat().st_size for path in run.rglob("*.parquet"))
        print(f"{tokens:,} tokens, {size / 2**20:,.0f} MiB, written in {writing:.0f} s", flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-c", MEASURED, str(run), "--methods", arguments.methods]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        methods = json.loads((run / "replay" / "replay.json").read_text())["methods"]
    peak_mib = int(done.stdout.split("PEAK_KIB")[1]) / 1024
    result = {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokens": tokens,
        "methods": len(methods),
        "bytes_per_token": round(size / tokens, 2),
        "peak_memory_mib": round(peak_mib),
        "seconds": round(seconds, 1),
        "million_tokens_per_s_and_method": round(tokens * len(methods) / seconds / 1e6, 2),
    }
    print(json.dumps(result, indent=2))
    path = Path(__file__).parent / "results" / "replay.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
