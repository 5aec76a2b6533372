"""How a model turns the product of hidden states and head into logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

_DIVISORS = ("logits_scaling",)
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class LogitTransform:
    """logits = c · tanh(s · h Wᵀ / c), or s · h Wᵀ without a cap c.

    Sources: Granite (`logits_scaling`), Cohere (`logit_scale`), Gemma 2 (arXiv 2408.00118,
    section 2, `final_logit_softcapping`).
    """

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """The transform of a transformers config; the identity for most models."""
        text = config.get_text_config()
        scale = 1.0
        for name in _FACTORS:
            scale *= _number(text, name) or 1.0
        for name in _DIVISORS:
            divisor = _number(text, name) or 1.0
            # HyperCLOVA X multiplies by the setting that divides in Granite.
            scale *= divisor if text.model_type.startswith("hyperclovax") else 1 / divisor
        caps = [cap for name in _CAPS if (cap := _number(text, name))]
        return cls(scale, caps[0] if caps else None)

    def __call__(self, product: Tensor) -> Tensor:
        """The logits, in place of the product; floating-point, any shape."""
        if self.scale != 1:
            product.mul_(self.scale)
        if self.cap is not None:
            product.div_(self.cap).tanh_().mul_(self.cap)
        return product

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """∂ logits / ∂ (s · h Wᵀ) = 1 − (logits / c)²; None without a cap."""
        return None if self.cap is None else 1 - (logits / self.cap).square_()


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None
