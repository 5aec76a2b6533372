"""Liger's fused Triton kernels for norms, rotary embeddings and MLPs."""

from __future__ import annotations

from typing import Any

import torch

from bandpo.errors import UserError


def use_liger(lm: Any) -> None:
    """Replaces a transformers model's own modules by the kernels.

    The fused losses are not used: `bandpo.learner.logprobs` computes log-probabilities. Raises
    UserError without the package or without a GPU.
    """
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError:
        raise UserError(
            "model.kernels=liger: liger-kernel is not installed; pip install 'bandpo[liger]', "
            "or set model.kernels=torch"
        ) from None
    if not torch.cuda.is_available():
        raise UserError("model.kernels=liger needs an NVIDIA GPU; set model.kernels=torch")
    _apply_liger_kernel_to_instance(model=lm, cross_entropy=False, fused_linear_cross_entropy=False)
