"""Networks with random weights of the paper's models' sizes, and samples for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from bandpo.batching import Sample
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
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
from bandpo.model.architecture import KNOWN, Shape
from bandpo.ranks.collectives import Ranks
from benchmarks.gpu.check import Lab

_SMALL = KNOWN["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]
SIZES: dict[str, dict[str, Any]] = {
    "1.5B": _SMALL,
    "3B": KNOWN["Qwen/Qwen2.5-3B-Instruct"],
    # Four layers as wide as the 1.5B model's: quick, with the kernels that wide layers take.
    "wide": {**_SMALL, "num_hidden_layers": 4, "vocab_size": 32_768},
    "tiny": {
        **_SMALL,
        "vocab_size": 1000,
        "tie_word_embeddings": True,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
BOUNDS = Capped(BandKL(0.05), 10.0)
LOSS = PolicyLoss(
    TokenRatio(), DualClip(Clip(BOUNDS), 10.0), SequenceMeanTokenMean(), ReferenceKL(0.001)
)


def network(lab: Lab, size: str) -> Path:
    """A folder that transformers loads, made once; of toy size in a tiny lab."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = "tiny" if lab.tiny else size
    folder = lab.folder / size
    if not folder.exists():
        torch.manual_seed(0)
        with lab.device:
            config = AutoConfig.for_model(**SIZES[size])
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    return folder


def learner_on(
    folder: Path, model: dict[str, Any], loss: PolicyLoss = LOSS, **settings: Any
) -> DeepSpeedLearner:
    """A learner of the network in `folder`; `model` and `settings` are keys of their sections."""
    config = LearnerConfig(**{"lr": 1e-6, **settings})
    section = ModelConfig(path=str(folder), **model)
    return DeepSpeedLearner(config, section, folder, loss, Ranks())


def samples_for(
    vocabulary: int, prompts: int, group: int, prompt: int, longest: int
) -> list[Sample]:
    """Random tokens, `group` samples of each prompt.

    Completions are spread evenly between a quarter of the limit and the limit; advantages are ±1.
    """
    rng = random.Random(0)
    samples = []
    for _ in range(prompts):
        asked = tuple(rng.choices(range(10, vocabulary), k=prompt))
        for index in range(group):
            length = longest - int(0.75 * longest * index / group)
            answer = tuple(rng.choices(range(10, vocabulary), k=length))
            advantage = 1.0 if index % 2 else -1.0
            samples.append(Sample(asked, answer, advantage, None))
    return samples


def forward_flops(shape: Shape, samples: list[Sample]) -> float:
    """Of one pass over packed rows: a prompt that samples share counts once, but in attention.

    The head computes completions alone.
    """
    head = 2 * shape.hidden * shape.vocabulary
    completions = sum(len(sample.completion_ids) for sample in samples)
    prompts = sum(map(len, {sample.prompt_ids for sample in samples}))
    matrices = 2 * shape.matmul_parameters * (completions + prompts) - head * prompts
    attention = sum(
        len(sample) * (shape.forward_flops(len(sample)) - 2 * shape.matmul_parameters)
        for sample in samples
    )
    return matrices + attention
