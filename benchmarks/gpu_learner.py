"""The learner on one GPU with random weights of the paper's models: no vLLM, no downloads.

    python benchmarks/gpu_learner.py [--models 1.5B,3B] [--sequences 32] [--micro-batch 32768]
    python benchmarks/gpu_learner.py --tiny        (a toy model; on a CPU to see that it runs)

Packed sequences of up to 4,096 + 1,024 tokens, bfloat16, activation checkpointing as given. Prints,
against the fastest matrix product that the card manages in the same run and against its data
sheet:

- MFU of an update (forward and backward are 3 forward passes; recomputation does not count);
- the old-policy and the reference pass against the forward roofline;
- peak memory of an update, and what full logits of its micro-batch alone would have taken;
- the share of an update that the Band-KL bounds take.

Writes results/gpu_learner-<card>.json; a tiny run writes nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import keep

from bandpo.batching import Sample
from bandpo.config.schema import LearnerConfig, ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import (
    BandKL,
    Capped,
    Clip,
    DualClip,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    TokenRatio,
)
from bandpo.model.architecture import KNOWN, Shape, shape_of
from bandpo.planning.gpus import CARDS
from bandpo.ranks.collectives import Ranks

MODELS = {
    "1.5B": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "3B": "Qwen/Qwen2.5-3B-Instruct",
}
TINY = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BOUNDS = Capped(BandKL(0.05), 10.0)
LOSS = PolicyLoss(
    TokenRatio(), DualClip(Clip(BOUNDS), 10.0), SequenceMeanTokenMean(), ReferenceKL(0.001)
)
ON_GPU = torch.cuda.is_available()


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The fastest of some runs after one that warms up, the device's work included."""
    best = float("inf")
    for run in range(repeats + 1):
        if ON_GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if ON_GPU:
            torch.cuda.synchronize()
        if run:
            best = min(best, time.perf_counter() - begun)
    return best


def matmul_tflops(size: int) -> float:
    """What a large bfloat16 (float32 on a CPU) product reaches here."""
    dtype, device = (torch.bfloat16, "cuda") if ON_GPU else (torch.float32, "cpu")
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / seconds_of(lambda: left @ right, 10) / 1e12


def make_model(settings: dict[str, Any], folder: Path) -> None:
    """Random weights in a folder that transformers loads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if ON_GPU else "cpu"):
        config = AutoConfig.for_model(**settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def make_samples(count: int, prompt: int, longest: int, vocabulary: int) -> list[Sample]:
    """Random tokens; completions are spread evenly between a quarter of the limit and the limit."""
    rng = random.Random(0)
    samples = []
    for index in range(count):
        length = longest - int(0.75 * longest * index / count)
        tokens = rng.choices(range(10, vocabulary), k=prompt + length)
        advantage = rng.choice((-1.0, 1.0))
        completion = tuple(tokens[prompt:])
        samples.append(Sample(tuple(tokens[:prompt]), completion, advantage, torch.zeros(length)))
    return samples


def forward_flops(shape: Shape, samples: list[Sample]) -> float:
    """Of one pass; the head computes completions alone."""
    head = 2 * shape.hidden * shape.vocabulary
    prompts = sum(len(sample.prompt_ids) for sample in samples)
    whole = sum(len(sample) * shape.forward_flops(len(sample)) for sample in samples)
    return whole - head * prompts


def measure(folder: Path, shape: Shape, arguments: argparse.Namespace, ranks: Ranks) -> dict:
    """Times, memory and FLOPs of the learner's passes on one model."""
    config = LearnerConfig(
        lr=1e-6, micro_batch_tokens=arguments.micro_batch, logits_chunk=arguments.logits_chunk
    )
    model = ModelConfig(
        path=str(folder),
        dtype="bfloat16" if ON_GPU else "float32",
        attention=arguments.attention,
        gradient_checkpointing=arguments.checkpointing,
        kernels=arguments.kernels,
    )
    learner = DeepSpeedLearner(config, model, folder, LOSS, ranks)
    samples = make_samples(
        arguments.sequences, arguments.prompt, arguments.completion, shape.vocabulary
    )
    old = seconds_of(lambda: learner.score(samples), arguments.repeats)
    reference = seconds_of(lambda: learner.score_reference(samples), arguments.repeats)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    update = seconds_of(lambda: learner.update(samples, 0), arguments.repeats)
    old_logp = torch.cat([s.old_logp for s in samples]).to(ranks.device)
    bounds = seconds_of(lambda: BOUNDS(old_logp), 10)
    micro_batch = min(arguments.micro_batch, sum(map(len, samples)))
    return {
        "tokens": sum(map(len, samples)),
        "forward_tflop": forward_flops(shape, samples) / 1e12,
        "old_s": old,
        "reference_s": reference,
        "update_s": update,
        "bounds_s": bounds,
        "peak_bytes": torch.cuda.max_memory_allocated() if ON_GPU else None,
        "full_logits_bytes": 4 * micro_batch * shape.vocabulary,
    }


def ratios(found: dict[str, Any], peak_tflops: float) -> dict[str, float]:
    """Shares of a rate in TFLOP/s."""
    forward = found["forward_tflop"]
    return {
        "update (at least 0.45)": 3 * forward / found["update_s"] / peak_tflops,
        "old policy (at least 0.50)": forward / found["old_s"] / peak_tflops,
        "reference (at least 0.50)": forward / found["reference_s"] / peak_tflops,
    }


def main() -> None:
    """Measures every model and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--completion", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=32768)
    parser.add_argument("--logits-chunk", type=int, default=4096)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--kernels", choices=("torch", "liger"), default="torch")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.models, arguments.sequences, arguments.repeats = "tiny", 4, 1
        arguments.prompt, arguments.completion, arguments.micro_batch = 16, 48, 128
    elif not ON_GPU:
        parser.error("needs a GPU; --tiny runs a toy model on a CPU")

    ranks = Ranks()
    card = torch.cuda.get_device_name() if ON_GPU else "cpu"
    sheet = next((sheet for name, sheet in CARDS.items() if name in card), None)
    result: dict[str, Any] = {"matmul_tflops": matmul_tflops(256 if arguments.tiny else 8192)}
    for name in arguments.models.split(","):
        settings = TINY if name == "tiny" else KNOWN[MODELS[name]]
        with tempfile.TemporaryDirectory() as folder:
            make_model(settings, Path(folder))
            shape = shape_of(ModelConfig(path=folder))
            found = measure(Path(folder), shape, arguments, ranks)
        found["of_matmul"] = ratios(found, result["matmul_tflops"])
        found["of_data_sheet"] = ratios(found, sheet.flops / 1e12) if sheet else None
        found["bounds_share"] = found["bounds_s"] / found["update_s"]
        if found["peak_bytes"]:
            found["peak_over_full_logits"] = found["peak_bytes"] / found["full_logits_bytes"]
        result[name] = found
        print(json.dumps({name: found}, indent=2), flush=True)
    ranks.close()
    if ON_GPU and not arguments.tiny:
        label = card.lower().replace(" ", "-")
        keep(f"gpu_learner-{label}", {"settings": vars(arguments), **result})


if __name__ == "__main__":
    main()
