"""All checks in order of worth."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu import learning, losses, scoring, training
from benchmarks.gpu.check import Check

_LEARNER = ("deepspeed", "transformers", "hydra")
_VLLM = (*_LEARNER, "vllm")

CHECKS = (
    Check(
        "loss",
        "every divergence, ratio, surrogate, aggregate and diagnostic in float32 against float64",
        losses.against_float64,
        seconds=5,
    ),
    Check(
        "compiled_bounds",
        "Band-KL fused by torch.compile: the same bounds, and what they cost of a loss",
        losses.compiled_bounds,
        seconds=10,
    ),
    Check(
        "logprobs",
        "the learner's head, chunk by chunk, against full logits: values, gradients, memory",
        scoring.chunked_against_full,
        seconds=5,
        needs=("transformers",),
    ),
    Check(
        "packing",
        "packed rows with sdpa against padded ones: log-probabilities, gradients, time",
        scoring.packed_against_padded,
        seconds=15,
        needs=_LEARNER,
    ),
    Check(
        "learner_1.5B",
        "an update at the size of 1.5B: share of a matrix product's rate, memory against the plan",
        partial(learning.speed, size="1.5B"),
        seconds=35,
        needs=_LEARNER,
        fresh=True,
    ),
    Check(
        "quickstart_hf",
        "the quickstart with rollout=hf: does it learn, how fast",
        training.quickstart_hf,
        seconds=60,
        needs=_LEARNER,
    ),
    Check(
        "quickstart_vllm",
        "the quickstart with vLLM: does it learn, how fast, do weights arrive",
        training.quickstart_vllm,
        seconds=120,
        needs=_VLLM,
    ),
    Check(
        "probe_bfloat16",
        "engine against learner in bfloat16, on the embedded policy and on local models",
        training.probe_bfloat16,
        seconds=60,
        needs=_VLLM,
    ),
    Check(
        "sleep_and_wake",
        "memory that a sleeping engine gives back, and its log-probabilities afterwards",
        training.sleep_and_wake,
        seconds=60,
        needs=_VLLM,
        fresh=True,
    ),
    Check(
        "ipc",
        "weights handed to a server on the same GPU (on a CPU: through a folder)",
        training.ipc,
        seconds=90,
        needs=_VLLM,
    ),
    Check(
        "lora",
        "weights merged with LoRA adapters arrive in the engine",
        training.lora,
        seconds=60,
        needs=(*_VLLM, "peft"),
    ),
    Check(
        "precision",
        "six updates in bfloat16 against float32: losses, and how far the policy moved",
        learning.precision,
        seconds=20,
        needs=_LEARNER,
    ),
    Check(
        "determinism",
        "the same updates twice: the share of weights that are bitwise equal",
        learning.determinism,
        seconds=10,
        needs=_LEARNER,
    ),
    Check(
        "zero_stages",
        "ZeRO 1, 2 and 3 on one rank against stage 0",
        learning.zero_stages,
        seconds=15,
        needs=_LEARNER,
    ),
    Check(
        "learner_3B",
        "the same at the size of 3B",
        partial(learning.speed, size="3B"),
        seconds=45,
        needs=_LEARNER,
        fresh=True,
    ),
    Check(
        "learner_1.5B_liger",
        "the same at 1.5B with model.kernels=liger",
        partial(learning.speed, size="1.5B", kernels="liger"),
        seconds=35,
        needs=(*_LEARNER, "liger_kernel", "cuda"),
        fresh=True,
    ),
    Check(
        "packing_flash",
        "packed rows with flash_attention_2 against padded ones with sdpa",
        partial(scoring.packed_against_padded, attentions=("flash_attention_2",)),
        seconds=15,
        needs=(*_LEARNER, "flash_attn", "cuda"),
    ),
    Check(
        "packing_flex",
        "packed rows with flex_attention against padded ones with sdpa",
        partial(scoring.packed_against_padded, attentions=("flex_attention",)),
        seconds=40,
        needs=(*_LEARNER, "cuda"),
    ),
    Check(
        "offload",
        "optimizer state, and parameters too, in the CPU's memory: the same updates",
        learning.offload,
        seconds=40,
        needs=_LEARNER,
    ),
)
