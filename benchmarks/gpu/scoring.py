"""Log-probabilities on the device: chunked against full logits, packed against padded rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bandpo.batching import Sample
from bandpo.learner.attention import layout_for
from bandpo.learner.logprobs import PolicyNetwork, chunked_logprobs
from bandpo.model.loading import load_causal_lm
from benchmarks.gpu.check import Figure, Lab
from benchmarks.gpu.networks import network, samples_for


def chunked_against_full(lab: Lab) -> Mapping[str, Figure]:
    """Values, gradients, seconds and memory of the learner's head, V = 152k, in two dtypes."""
    positions, hidden, vocabulary, chunk = (
        (64, 32, 1000, 16) if lab.tiny else (8192, 1536, 151_936, 1024)
    )
    figures: dict[str, Figure] = {}
    for dtype, bar in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        draw = torch.Generator(lab.device).manual_seed(0)

        def normal(*shape: int, draw: torch.Generator = draw) -> Tensor:
            return torch.randn(*shape, generator=draw, device=lab.device)

        states = normal(positions, hidden).to(dtype).requires_grad_()
        weight = (normal(vocabulary, hidden) / hidden**0.5).to(dtype).requires_grad_()
        targets = torch.randint(vocabulary, (positions,), generator=draw, device=lab.device)
        slope = normal(positions)

        def chunked() -> Tensor:
            return chunked_logprobs(states, weight, targets, 0.9, chunk)[0]  # noqa: B023

        def full() -> Tensor:
            logits = (states @ weight.T).float() / 0.9  # noqa: B023
            return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)  # noqa: B023

        def chunked_entropy() -> Tensor:
            return sum(  # type: ignore[return-value]
                chunked_logprobs(states, weight, targets, 0.9, chunk, entropy_gradient=True)  # noqa: B023
            )

        def full_entropy() -> Tensor:
            table = ((states @ weight.T).float() / 0.9).log_softmax(-1)  # noqa: B023
            return table.gather(-1, targets[:, None]).squeeze(-1) - (table.exp() * table).sum(-1)  # noqa: B023

        ours, ours_bytes, ours_s = _measured(lab, chunked, slope, (states, weight))
        theirs, theirs_bytes, theirs_s = _measured(lab, full, slope, (states, weight))
        name = str(dtype).removeprefix("torch.")
        figures |= {
            f"{name}_value_error": Figure(_relative(ours[0], theirs[0]), at_most=1e-4),
            f"{name}_gradient_error": Figure(
                max(map(_relative, ours[1:], theirs[1:])), at_most=bar
            ),
            f"{name}_entropy_gradient_error": Figure(
                _gradient_error(chunked_entropy, full_entropy, slope, (states, weight)),
                at_most=bar,
            ),
            f"{name}_seconds": Figure(ours_s),
            f"{name}_seconds_of_full": Figure(theirs_s),
        }
        if lab.on_gpu:
            figures[f"{name}_memory_over_full"] = Figure(
                ours_bytes / theirs_bytes, at_most=lab.bar(0.5)
            )
    return figures


def _measured(
    lab: Lab, logp: Callable[[], Tensor], slope: Tensor, leaves: tuple[Tensor, ...]
) -> tuple[list[Tensor], float, float]:
    """Values and gradients of the leaves, peak bytes, seconds."""
    found: list[Tensor] = []

    def work() -> None:
        values = logp()
        found[:] = [values.detach(), *torch.autograd.grad(values, leaves, slope)]

    bytes_taken = lab.peak_bytes(work)
    return list(found), bytes_taken, lab.seconds(work, 2)


def _gradient_error(
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    slope: Tensor,
    leaves: tuple[Tensor, ...],
) -> float:
    found, wanted = (torch.autograd.grad(value(), leaves, slope) for value in (ours, theirs))
    return max(map(_relative, found, wanted))


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@dataclass(frozen=True)
class Scored:
    """A layout's log-probabilities and gradients of all weights, and seconds forward and back."""

    logp: Tensor
    gradients: list[Tensor]
    seconds: float


def packed_against_padded(
    lab: Lab, attentions: tuple[str, ...] = ("sdpa",)
) -> Mapping[str, Figure]:
    """Packed rows with each attention against padded ones with sdpa; samples share prompts."""
    folder = network(lab, "wide")
    sizes = (2, 4, 8, 24) if lab.tiny else (4, 4, 512, 2048)
    samples = samples_for(900, *sizes)
    exact = _scored(lab, folder, samples, "sdpa", "float32", packing=False)
    padded = _scored(lab, folder, samples, "sdpa", "bfloat16", packing=False)
    figures = {
        "padded_bfloat16_gap": Figure(_gap(padded, exact)),
        "padded_seconds": Figure(padded.seconds),
    }
    for attention in attentions:
        if attention == "sdpa":
            ours = _scored(lab, folder, samples, attention, "float32")
            figures["sdpa_float32_gap"] = Figure(_gap(ours, exact), at_most=1e-3)
            figures["sdpa_float32_gradient_error"] = Figure(_slope_error(ours, exact), at_most=1e-3)
        ours = _scored(lab, folder, samples, attention, "bfloat16")
        figures |= {
            f"{attention}_gap": Figure(_gap(ours, exact), at_most=0.3),
            f"{attention}_gradient_error": Figure(_slope_error(ours, exact), at_most=5e-2),
            f"{attention}_seconds": Figure(ours.seconds),
            f"{attention}_time_over_padded": Figure(
                ours.seconds / padded.seconds,
                # flex_attention is kept for what it can mask, not for its speed.
                at_most=None if attention == "flex_attention" else lab.bar(1.0),
            ),
        }
    return figures


def _gap(ours: Scored, exact: Scored) -> float:
    """The largest difference of a token's log-probability."""
    return float((ours.logp - exact.logp).abs().max())


def _slope_error(ours: Scored, exact: Scored) -> float:
    difference = sum(
        float((a.double() - b.double()).square().sum())
        for a, b in zip(ours.gradients, exact.gradients, strict=True)
    )
    return (difference / sum(float(b.double().square().sum()) for b in exact.gradients)) ** 0.5


def _scored(
    lab: Lab, folder: Path, samples: list[Sample], attention: str, dtype: str, packing: bool = True
) -> Scored:
    layout, implementation = layout_for(attention, packing)
    lm = load_causal_lm(folder, dtype=dtype, attention=implementation).to(lab.device)
    policy = PolicyNetwork(lm, 1.0, 1024).train()
    batch = layout.of(samples, lab.device)
    weights = [p for p in policy.parameters() if p.requires_grad]
    found: list[Tensor] = []

    def work() -> None:
        logp, _ = policy(*batch.arguments)
        gradients = torch.autograd.grad(logp.sum() / batch.mask.sum(), weights)
        found[:] = [logp.detach(), *gradients]

    seconds = lab.seconds(work, 2)
    return Scored(found[0], [gradient.float() for gradient in found[1:]], seconds)
