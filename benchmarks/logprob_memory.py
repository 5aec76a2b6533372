"""Peak memory of log-probabilities over a large vocabulary, chunked against full logits.

    python benchmarks/logprob_memory.py [--tokens 32768] [--vocabulary 151936] [--chunk 1024]

Forward and backward of 32k positions over V = 152k, float32 on a CPU, in a process of its own whose
peak resident memory is read. Full logits alone would take tokens × V × 4 bytes, 19.9 GB; they are
not formed here, only computed. Writes results/logprob_memory.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path


def peak_bytes() -> int:
    """The process's largest resident memory so far."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def work(tokens: int, vocabulary: int, hidden: int, chunk: int, entropy: bool) -> None:
    """Prints by how many bytes the peak rose while log-probabilities and gradients were formed.

    With `entropy` the gradients are those of the entropies too.
    """
    import torch

    from bandpo.learner.logprobs import chunked_logprobs

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    chunked_logprobs(states[:8], weight, targets[:8])[0].sum().backward()  # warms up
    states.grad = weight.grad = None
    before, begun = peak_bytes(), time.perf_counter()
    logp, entropies = chunked_logprobs(
        states, weight, targets, chunk=chunk, entropy_gradient=entropy
    )
    forward = peak_bytes() - before
    (logp + entropies).sum().backward()
    risen = {"forward_bytes": forward, "bytes": peak_bytes() - before}
    print(json.dumps({**risen, "seconds": time.perf_counter() - begun}))


def measure(tokens: int, vocabulary: int, hidden: int, chunk: int) -> dict[str, float]:
    """The result of `work` in a process of its own."""
    numbers = [str(number) for number in (tokens, vocabulary, hidden, chunk)]
    command = [sys.executable, __file__, "--work", *numbers]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def main() -> None:
    """Measures and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--entropy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work, entropy=arguments.entropy)
        return
    from results import keep

    sizes = (arguments.tokens, arguments.vocabulary, arguments.hidden, arguments.chunk)
    found = measure(*sizes)
    full = arguments.tokens * arguments.vocabulary * 4
    share = found["bytes"] / full
    print(f"peak {found['bytes'] / 2**30:.2f} GiB, full logits {full / 2**30:.2f} GiB: {share:.3f}")
    print("(at most 0.125, backward pass and the gradient of the head included)")
    names = ("tokens", "vocabulary", "hidden", "chunk")
    settings = dict(zip(names, sizes, strict=True))
    keep("logprob_memory", {**settings, **found, "full_bytes": full, "share_of_full": share})


if __name__ == "__main__":
    main()
