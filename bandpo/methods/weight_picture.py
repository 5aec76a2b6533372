"""A method in a small picture: the weight of a token's gradient over its ratio, as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from bandpo.methods.method import Method
from bandpo.methods.palette import COLOURS

P, ENTROPY = 0.05, 0.5  # of the token that is drawn
LEAST, MOST = 1 / 16, 16.0  # ratios, none of them the bound of a method
LARGEST = 4.0  # weight
STEPS = 96  # even, so that the ratio 1 is among the points
WIDTH, HEIGHT, LEFT, TOP, BELOW = 190, 110, 16, 4, 14  # pixels
TICKS = (0.1, 0.5, 1.0, 2.0, 10.0)


def picture(method: Method) -> str:
    """The weight ∂objective/∂log π for A = 1 (blue) and A = −1 (orange), cut off at ±4."""
    ratios = torch.logspace(math.log10(LEAST), math.log10(MOST), STEPS + 1, dtype=torch.float64)
    ratios[STEPS // 2] = 1.0
    curves = [
        _curve(ratios.tolist(), method.weights(ratios, P, advantage, ENTROPY).tolist(), colour)
        for advantage, colour in zip((1.0, -1.0), COLOURS, strict=False)
    ]
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([opening, background, *_axes(), *curves, "</svg>"]) + "\n"


def _x(ratio: float) -> float:
    span = math.log(MOST / LEAST)
    return LEFT + (WIDTH - 6 - LEFT) * math.log(ratio / LEAST) / span


def _y(weight: float) -> float:
    cut = max(-LARGEST, min(LARGEST, weight))
    return TOP + (HEIGHT - TOP - BELOW) * (1 - cut / LARGEST) / 2


def _axes() -> Iterator[str]:
    for tick in TICKS:
        x = f"{_x(tick):.1f}"
        yield f'<path d="M{x} {TOP}V{HEIGHT - BELOW}" stroke="#ddd"/>'
        yield _text(_x(tick), HEIGHT - 3, f"{tick:g}", "middle")
    for weight in (-LARGEST / 2, 0.0, LARGEST / 2):
        y = f"{_y(weight):.1f}"
        yield f'<path d="M{LEFT} {y}H{WIDTH - 6}" stroke="{"#ddd" if weight else "#888"}"/>'
        yield _text(LEFT - 3, _y(weight) + 3, f"{weight:g}".replace("-", "−"), "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="8" text-anchor="{anchor}">{text}</text>'


def _curve(ratios: list[float], weights: list[float], colour: str) -> str:
    points = [(_x(r), round(_y(w), 1)) for r, w in zip(ratios, weights, strict=True)]
    ends = [points[:1], points[-1:]]
    bends = (
        [here]
        for before, here, after in zip(points, points[1:], points[2:], strict=False)
        if not before[1] == here[1] == after[1]
    )
    kept = itertools.chain(ends[0], itertools.chain.from_iterable(bends), ends[1])
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in kept)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
