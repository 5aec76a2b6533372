"""Log-probabilities and entropies of given tokens without the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bandpo.errors import UserError
from bandpo.learner.attention import packed_arguments
from bandpo.learner.fusion import fused
from bandpo.model.logits import LogitTransform

IDENTITY = LogitTransform()


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(g(h Wᵀ) / τ)[target] for N positions, `chunk` positions' logits at a time.

    g is the model's own (`LogitTransform`), the identity for most.

    Forward keeps only the log-normaliser of each position; backward forms each chunk's logits
    again, since ∂logp/∂logits = onehot(target) − softmax and, where the entropy H has a gradient,
    ∂H/∂logits = −softmax·(log softmax + H). Peak memory is chunk × V floats instead of N × V, in
    both directions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        transform: LogitTransform,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        logp = torch.empty(len(hidden), dtype=_wide(hidden.dtype), device=hidden.device)
        entropy, normaliser = torch.empty_like(logp), torch.empty_like(logp)
        for rows in _chunks(len(hidden), chunk):
            logp[rows], entropy[rows], normaliser[rows] = _statistics(
                hidden[rows] @ weight.T, targets[rows], temperature, transform
            )
        kept = entropy if entropy_gradient else None
        ctx.save_for_backward(hidden, weight, targets, normaliser, kept)
        ctx.temperature, ctx.chunk, ctx.transform = temperature, chunk, transform
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Summed over chunks in float32: bfloat16 would lose what small chunks add.
        # A frozen head (LoRA) needs none.
        trained = ctx.needs_input_grad[1]
        wide = _wide(weight.dtype)
        grad_weight = torch.zeros_like(weight, dtype=wide) if trained else None
        for rows in _chunks(len(hidden), ctx.chunk):
            tensors = [hidden[rows] @ weight.T, targets[rows], normaliser[rows], grad_logp[rows]]
            gradient = _product_gradient
            if entropy is not None:
                gradient = _product_gradient_with_entropy
                tensors += [entropy[rows], grad_entropy[rows]]
            grad_product = gradient(*tensors, ctx.temperature, ctx.transform)
            grad_hidden[rows] = grad_product @ weight
            if grad_weight is not None:
                grad_weight += grad_product.T @ hidden[rows]
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(dtype, torch.float32)


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


@fused
def _statistics(
    product: Tensor, targets: Tensor, temperature: float, transform: LogitTransform
) -> tuple[Tensor, Tensor, Tensor]:
    """Of h Wᵀ [N, V]: log-probabilities of the targets, entropies and log-normalisers, [N]."""
    logits = transform(product.to(_wide(product.dtype))).div_(temperature)
    normaliser = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    # H = log Z − Σ softmax · logits
    shares = (logits - normaliser[:, None]).exp_()
    return chosen - normaliser, normaliser - shares.mul_(logits).sum(-1), normaliser


@fused
def _product_gradient(
    product: Tensor,
    targets: Tensor,
    normaliser: Tensor,
    grad_logp: Tensor,
    temperature: float,
    transform: LogitTransform,
) -> Tensor:
    """∂ loss / ∂ (h Wᵀ) [N, V] in the product's dtype, where `grad_logp` is ∂ loss / ∂ logp."""
    logits = transform(product.to(_wide(product.dtype)))
    slope = transform.cap_slope(logits)
    logits = logits.div_(temperature)
    scale = grad_logp[:, None].to(logits.dtype) * (transform.scale / temperature)
    gradient = logits.sub_(normaliser[:, None]).exp_().mul_(-scale)
    gradient.scatter_add_(-1, targets[:, None], scale)
    if slope is not None:
        gradient.mul_(slope)
    return gradient.to(product.dtype)


@fused
def _product_gradient_with_entropy(
    product: Tensor,
    targets: Tensor,
    normaliser: Tensor,
    grad_logp: Tensor,
    entropy: Tensor,
    grad_entropy: Tensor,
    temperature: float,
    transform: LogitTransform,
) -> Tensor:
    """The same where `grad_entropy` is ∂ loss / ∂ entropy besides."""
    logits = transform(product.to(_wide(product.dtype)))
    slope = transform.cap_slope(logits)
    log_shares = logits.div_(temperature).sub_(normaliser[:, None])
    shares = log_shares.exp()
    factor = transform.scale / temperature
    scale = grad_logp[:, None].to(logits.dtype) * factor
    entropy_scale = grad_entropy[:, None].to(logits.dtype) * factor
    gradient = log_shares.add_(entropy[:, None]).mul_(-entropy_scale).sub_(scale).mul_(shares)
    gradient.scatter_add_(-1, targets[:, None], scale)
    if slope is not None:
        gradient.mul_(slope)
    return gradient.to(product.dtype)


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk: int = 1024,
    transform: LogitTransform = IDENTITY,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and the entropy of its distribution, in nats.

    hidden [N, H], weight [V, H], targets [N] → two [N] in at least float32; the second carries
    gradient only with `entropy_gradient`. At most `chunk` × V logits exist at one time.
    """
    return _ChunkedLogprobs.apply(  # type: ignore
        hidden, weight, targets, temperature, chunk, transform, entropy_gradient
    )


class LogprobHead(nn.Module):
    """A language-model head that returns log-probabilities of targets instead of logits.

    It takes the place of `lm_head` and holds the same parameter under the same name, so that
    checkpoints, weight streams and ZeRO-3's gathering hooks find it where they expect it. Entropies
    carry gradient where `entropy_gradient` is set. Raises UserError for a head with a bias.
    """

    def __init__(
        self, head: nn.Linear, temperature: float, chunk: int, transform: LogitTransform = IDENTITY
    ) -> None:
        super().__init__()
        if getattr(head, "bias", None) is not None:
            raise UserError("models whose head has a bias are not supported: choose another model")
        self.weight = head.weight
        self.temperature, self.chunk, self.transform = temperature, chunk, transform
        self.entropy_gradient = False

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Scores at another temperature than that of sampling within the block."""
        usual, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = usual

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden [N, H], targets [N] → log-probabilities and entropies [N].

        Without targets hidden […, H] → hidden Wᵀ […, V], from which the model forms its logits.
        """
        hidden = hidden.to(self.weight.dtype)  # Mamba's are float32 beside bfloat16 weights
        if targets is None:
            return functional.linear(hidden, self.weight)
        return chunked_logprobs(
            *(hidden, self.weight, targets, self.temperature, self.chunk, self.transform),
            entropy_gradient=self.entropy_gradient,
        )


class PolicyNetwork(nn.Module):
    """A causal language model that maps sequences to their tokens' log-probabilities."""

    def __init__(self, lm: Any, temperature: float, chunk: int) -> None:
        """Raises UserError for a model whose body and head cannot be told apart."""
        super().__init__()
        if lm.base_model is lm or not hasattr(lm.get_output_embeddings(), "weight"):
            raise UserError(
                f"{type(lm).__name__} is not built as a body and a head that is a matrix: it is "
                "not supported; choose another model"
            )
        transform = LogitTransform.of(lm.config)
        lm.set_output_embeddings(
            LogprobHead(lm.get_output_embeddings(), temperature, chunk, transform)
        )
        self.lm = lm
        _drop_nothing(lm)

    def train(self, mode: bool = True) -> PolicyNetwork:
        """Switches the recomputation of activations, where it is enabled, and nothing else.

        Random draws in training (dropout, layerdrop, a router's jitter) stay off: an importance
        ratio would compare two draws instead of two policies.
        """
        super().train(mode)
        for module in self.lm.modules():
            module.training = mode and bool(getattr(module, "gradient_checkpointing", False))
        return self

    def forward(
        self,
        input_ids: Tensor,
        states: Tensor,
        targets: Tensor,
        slots: Tensor,
        mask: Tensor,
        lengths: Sequence[int] = (),
        positions: Tensor | None = None,
        ends: Tensor | None = None,
        gather: Tensor | None = None,
        back: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each completion token, [B, T], 0 where there is none.

        The arguments are those of `bandpo.learner.layouts.Batch`. Hidden states of prompt and
        padding never reach the head. Nothing waits for the device: all indices are given.
        """
        packed = packed_arguments(
            self.lm.config._attn_implementation, lengths, positions, ends, gather, back
        )
        hidden = self.lm.base_model(
            input_ids=input_ids, use_cache=False, **packed
        ).last_hidden_state.flatten(0, 1)
        logp, entropy = self.lm.get_output_embeddings()(hidden.index_select(0, states), targets)
        out = logp.new_zeros(mask.numel())
        return (
            out.index_copy(0, slots, logp).view_as(mask),
            out.index_copy(0, slots, entropy).view_as(mask),
        )


def _drop_nothing(lm: nn.Module) -> None:
    """Sets dropout probabilities to 0: layers that recompute activations are in training mode."""
    for module in lm.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
