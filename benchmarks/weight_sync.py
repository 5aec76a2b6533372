"""Bytes that a weight sync moves and its memory, for a pretrained model of 135 M parameters.

    python benchmarks/weight_sync.py [--model FOLDER] [--engine hf|vllm]

Learners of ZeRO 0 on one rank and ZeRO 3 on two (CPU, float32) stream their weights into an engine.
Counts the bytes that the engine is given, against the size of the model, and how far the resident
memory of the first rank rises above what it was before the sync, against the largest part that is
whole at one time (a layer, or the embedding). Held to: bytes moved = size of the model; extra
memory at most that part plus one bucket of its size. Writes results/weight_sync.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
REPEATS = 3


def resident(kind: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+)", status)[1]) * 1024


def forget_peak() -> None:
    """Makes the peak what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def work(folder: str, stage: int, engine_name: str) -> None:
    """On every rank: syncs a learner into an engine and prints what the first rank saw."""
    import torch

    from bandpo.config.sections.learner import LearnerConfig
    from bandpo.config.sections.model import ModelConfig
    from bandpo.learner.learner import DeepSpeedLearner
    from bandpo.loss import Clip, Fixed, PolicyLoss, TokenMean, TokenRatio
    from bandpo.ranks.collectives import Ranks
    from bandpo.rollout.engine import EngineSpec
    from bandpo.weight_sync import layer_of

    torch.set_num_threads(1)
    ranks = Ranks()
    loss = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())
    config = LearnerConfig(zero_stage=stage, lr=1e-6)
    learner = DeepSpeedLearner(config, ModelConfig(path=folder), folder, loss, ranks)
    spec = EngineSpec(folder, max_model_len=256, ranks=ranks)
    if engine_name == "vllm":
        from bandpo.rollout.vllm_local import VLLMLocal

        engine = VLLMLocal(spec, max_num_seqs=8, enforce_eager=True)
    else:
        from bandpo.rollout.hf import HFGenerate

        engine = HFGenerate(spec)
    moved: dict[str, int] = {}
    parts: dict[str, int] = defaultdict(int)

    def counted():
        for name, tensor in learner.weights():
            moved[name] = tensor.numel() * tensor.element_size()
            yield name, tensor

    extra, seconds = [], []
    for version in range(1, REPEATS + 1):
        moved.clear()
        forget_peak()
        before, begun = resident("VmRSS"), time.perf_counter()
        engine.load_weights(counted(), version)
        seconds.append(time.perf_counter() - begun)
        extra.append(resident("VmHWM") - before)
    tied = learner.lm.config.tie_word_embeddings
    again = moved.pop("lm_head.weight") if tied else 0
    for name, size in moved.items():
        parts[layer_of(name)] += size
    model = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in learner.lm.parameters())
    if ranks.is_first:
        figures = {
            "model_bytes": model,
            "moved_bytes": sum(moved.values()),
            "tied_head_bytes": again,
            "largest_part_bytes": max(parts.values()),
            "extra_bytes": median(extra),
            "first_sync_extra_bytes": extra[0],
            "seconds": median(seconds),
        }
        print("RESULT " + json.dumps(figures), flush=True)
    ranks.close()


def measure(folder: str, ranks: int, stage: int, engine: str) -> dict[str, float]:
    """The output of `work` on `ranks` ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), __file__, "--work", folder, str(stage), engine]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(lines[-1].removeprefix("RESULT "))


def main() -> None:
    """Measures both placements and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder; SmolLM2-135M from PyPI without it")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        folder, stage, engine = arguments.work
        work(folder, int(stage), engine)
        return
    from results import keep

    from bandpo.disk.cache import cache_dir

    folder = arguments.model
    if folder is None:
        folder = str(cache_dir() / "smollm2-135m")
        script = HERE.parent / "scripts/smollm2.py"
        subprocess.run([sys.executable, str(script), folder], check=True)
    found = {}
    for ranks, stage in ((1, 0), (2, 3)):
        name = f"ZeRO {stage}, {ranks} rank(s)"
        figures = found[name] = measure(folder, ranks, stage, arguments.engine)
        figures["moved_over_model"] = figures["moved_bytes"] / figures["model_bytes"]
        figures["extra_over_part"] = figures["extra_bytes"] / figures["largest_part_bytes"]
        print(f"{name}: {figures['seconds']:.2f} s")
        print(f"  moved / model        {figures['moved_over_model']:.3f}  (exactly 1)")
        print(f"  extra / largest part {figures['extra_over_part']:.3f}  (at most 2)")
    keep("weight_sync", {"engine": arguments.engine, "placements": found})


if __name__ == "__main__":
    main()
