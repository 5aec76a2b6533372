"""The learner's update by size of its micro-batches: the same samples, sizes in turns.

    python benchmarks/micro_batches.py [--sizes 512,2048,8192,16384] [--repeats 8]

An untrained Qwen2 of vs_trl.py's two sizes, float32, the learner as `bandpo train` makes it, one
update on samples of 48 tokens (groups of 32). Prints median seconds, and their ratio to those of
the default for this device, and writes results/micro_batches.json.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from statistics import median

import torch
from results import keep
from vs_trl import SIZES

from bandpo.batching import Sample
from bandpo.config.sections.learner import MICRO_BATCH_TOKENS, LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import BandKL, Clip, PolicyLoss, SequenceMeanTokenMean, TokenRatio
from bandpo.model import embedded
from bandpo.ranks.collectives import Ranks

PROMPTS = {"0.9M": 8, "20M": 2}
GROUP, TOKENS = 32, 48


def make_samples(prompts: int, rng: random.Random) -> list[Sample]:
    """Groups of random tokens with advantages, on policy."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 250) for _ in range(count))

    rollout = torch.full((TOKENS,), -5.5)
    return [
        Sample(prompt, tokens(TOKENS), rng.gauss(0, 1), rollout)
        for prompt in [tokens(rng.randint(14, 20)) for _ in range(prompts)]
        for _ in range(GROUP)
    ]


def measured(model: str, sizes: list[int], repeats: int, ranks: Ranks) -> dict[int, float]:
    """Median seconds of an update for every size."""
    lm = embedded.build_model(embedded.Recipe(**SIZES[model]), len(embedded.build_tokenizer()))
    loss = PolicyLoss(TokenRatio(), Clip(BandKL(0.05)), SequenceMeanTokenMean())
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        config = LearnerConfig(lr=1e-9)
        learner = DeepSpeedLearner(config, ModelConfig(path=folder), folder, loss, ranks)
    rng, taken = random.Random(0), {size: [] for size in sizes}
    for _ in range(repeats + 2):
        for size in sizes:
            learner.micro_batches.tokens = size
            samples = make_samples(PROMPTS[model], rng)
            begun = time.perf_counter()
            learner.update(samples, 0)
            taken[size].append(time.perf_counter() - begun)
    return {size: median(seconds[2:]) for size, seconds in taken.items()}


def main() -> None:
    """Measures both models and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="512,1024,2048,4096,8192,16384")
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    result = {}
    with Ranks() as ranks:
        usual = MICRO_BATCH_TOKENS[ranks.device.type]
        for model in SIZES:
            found = measured(model, sizes, arguments.repeats, ranks)
            for size, seconds in found.items():
                ratio = f"{seconds / found[usual]:5.2f}" if usual in found else ""
                print(f"{model:>5} {size:>6} tokens {seconds:6.2f} s {ratio}")
            result[model] = {str(size): seconds for size, seconds in found.items()}
    keep("micro_batches", {"default": usual, "seconds": result})


if __name__ == "__main__":
    main()
