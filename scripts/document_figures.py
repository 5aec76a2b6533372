#!/usr/bin/env python3
"""Writes docs/figures/, the trust regions as `bandpo.loss` computes them; run it after a change.

The pictures follow the reader's light or dark scheme, on the site and on GitHub.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bandpo.loss import BandChi2, BandKL, BandTV, Bounds, Fixed
from bandpo.methods.method import load_methods

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
WIDTH, LEFT, RIGHT, TOP = 640, 58, 14, 12  # pixels
POINTS = 241
# Okabe and Ito's colours, lighter on dark: blue, orange, green, purple.
STYLE = """<style>
text { font: 15px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #333 }
.grid { stroke: #e4e4e4 } .axis { stroke: #888 } .out { fill: #ececec } .edge { stroke: #999 }
.k0 { --k: #0072b2 } .k1 { --k: #c04f00 } .k2 { --k: #00805c } .k3 { --k: #a8558a }
.line { fill: none; stroke: var(--k); stroke-width: 2.2; stroke-linejoin: miter }
.w1 { stroke-width: 4 } .w2 { stroke-width: 6 } .w3 { stroke-width: 8 }
.area { fill: var(--k); fill-opacity: .16 } .d1 { stroke-dasharray: 8 4 }
.d2 { stroke-dasharray: 2.5 3.5 } .d3 { stroke-dasharray: 9 3 2 3 }
@media (prefers-color-scheme: dark) {
text { fill: #d4d7df } .grid { stroke: #3b3f4a } .axis { stroke: #8d92a0 } .out { fill: #343843 }
.edge { stroke: #7d8290 } .k0 { --k: #5ab4f0 } .k1 { --k: #ff9a57 } .k2 { --k: #3fcfa3 }
.k3 { --k: #e39ccb } }
</style>"""


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels."""

    title: str
    least: float
    most: float
    ticks: Sequence[float]
    log: bool = False

    def share(self, value: float) -> float:
        """The place of a value, 0 at `least` and 1 at `most`; values beyond are cut off."""
        value = min(max(value, self.least), self.most)
        if self.log:
            return math.log(value / self.least) / math.log(self.most / self.least)
        return (value - self.least) / (self.most - self.least)


@dataclass(frozen=True)
class Chart:
    """Two axes, and the pixels of points between them."""

    x: Axis
    y: Axis
    height: int = 320

    def point(self, x: float, y: float) -> str:
        """`x,y` in pixels."""
        across = LEFT + (WIDTH - LEFT - RIGHT) * self.x.share(x)
        return f"{across:.1f},{TOP + self.height * (1 - self.y.share(y)):.1f}"

    def points(self, xs: Tensor, ys: Tensor) -> list[str]:
        """One for each pair."""
        return [self.point(x, y) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]

    def line(self, kind: str, xs: Tensor, ys: Tensor) -> str:
        """A curve of the classes in `kind`."""
        return f'<polyline class="line {kind}" points="{" ".join(self.points(xs, ys))}"/>'

    def area(self, kind: str, xs: Tensor, low: Tensor, high: Tensor) -> str:
        """The region between two curves."""
        edge = [*self.points(xs, high), *reversed(self.points(xs, low))]
        return f'<polygon class="{kind}" points="{" ".join(edge)}"/>'

    def frame(self) -> Iterator[str]:
        """Grid, ticks and titles."""
        bottom, right = TOP + self.height, WIDTH - RIGHT
        for tick in self.x.ticks:
            across = self.point(tick, self.y.least).split(",")[0]
            yield f'<path class="grid" d="M{across} {TOP}V{bottom}"/>'
            yield text(float(across), bottom + 19, f"{tick:g}", "middle")
        for tick in self.y.ticks:
            down = self.point(self.x.least, tick).split(",")[1]
            yield f'<path class="grid" d="M{LEFT} {down}H{right}"/>'
            yield text(LEFT - 7, float(down) + 5, f"{tick:g}".replace("-", "−"), "end")
        yield f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
        yield text((LEFT + right) / 2, bottom + 41, self.x.title, "middle")
        middle = TOP + self.height / 2
        turned = f'transform="rotate(-90 15 {middle:g})"'
        yield text(15, middle, self.y.title, "middle", turned)


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>'


def picture(about: str, chart: Chart, body: Sequence[str], keys: Sequence[tuple[str, str]]) -> str:
    """The whole SVG: title for readers of the page by ear, frame, curves, and a row of keys."""
    height = TOP + chart.height + 84
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
    head += f'viewBox="0 0 {WIDTH} {height}" role="img">'
    row = []
    step = (WIDTH - LEFT) / len(keys)
    for index, (kind, words) in enumerate(keys):
        x, y = LEFT + step * index, height - 12
        row.append(f'<path class="line {kind}" d="M{x:.1f} {y - 5}h30"/>{text(x + 37, y, words)}')
    return "\n".join([head, f"<title>{about}</title>", STYLE, *body, *row, "</svg>"]) + "\n"


P = Axis("old probability p of the token", 1e-4, 1.0, (1e-4, 1e-3, 0.01, 0.1, 1.0), log=True)
RATIO = Axis("ratio r = q / p", 0.1, 20.0, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20), log=True)
CLIP = Fixed(0.2, 0.2)


def rising() -> Tensor:
    """Probabilities, evenly spaced as the axis shows them."""
    return torch.logspace(math.log10(P.least), 0, POINTS, dtype=torch.float64)[:-1]


def bounds() -> str:
    """Ratio bounds of three Bands of one radius, and of PPO's clip."""
    chart, p = Chart(P, RATIO), rising()
    rules: tuple[tuple[str, Bounds, str], ...] = (
        ("k2 d1", BandTV(0.05), "Band-TV"),
        ("k3 d2", BandChi2(0.05), "Band-χ²"),
        ("k1 d3", CLIP, "Clip 1 ± 0.2"),
        ("k0", BandKL(0.05), "Band-KL"),
    )
    low, high = BandKL(0.05)(p.log())
    body = [*_simplex(chart, p), chart.area("k0 area", p, low, high)]
    for kind, rule, _ in rules:
        interval = rule(p.log())
        body += [_inside(chart, kind, p, interval.low), _inside(chart, kind, p, interval.high)]
    return picture(
        "Bounds of the ratio over the old probability: Clip allows every token the same, "
        "Band allows rare tokens more and likely ones less.",
        chart,
        body,
        [("k0", "Band-KL"), *((kind, words) for kind, _, words in rules[:3])],
    )


def by_radius() -> str:
    """Band-KL's bounds at three radii."""
    chart, p = Chart(P, RATIO), rising()
    radii = ((0.2, "k3"), (0.05, "k0"), (0.01, "k2"))
    body = list(_simplex(chart, p))
    for delta, kind in radii:
        low, high = BandKL(delta)(p.log())
        body.append(chart.area(f"{kind} area", p, low, high))
        body += [_inside(chart, kind, p, low), _inside(chart, kind, p, high)]
    keys = [(kind, f"δ = {delta:g}") for delta, kind in radii[::-1]]
    about = "Bounds of the ratio under Band-KL for three radii: a larger one is wider everywhere."
    return picture(about, chart, body, keys)


def probability() -> str:
    """The new probabilities that the bounds allow, on linear axes."""
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    x = Axis("old probability p of the token", 0, 1, ticks)
    chart = Chart(x, Axis("new probability q", 0, 1.2, (*ticks, 1.2)), 400)
    p = torch.linspace(0, 1, POINTS, dtype=torch.float64)[1:-1]
    one = torch.ones_like(p)
    rules = (("k1 d3", CLIP, "Clip 1 ± 0.2"), ("k0", BandKL(0.05), "Band-KL, δ = 0.05"))
    body = [
        chart.area("out", torch.tensor([0.0, 1]), torch.tensor([1.0, 1]), torch.tensor([1.2, 1.2]))
    ]
    body += [*chart.frame(), f'<path class="edge" d="{_segment(chart, (0, 0), (1, 1))}"/>']
    for kind, rule, _ in rules:
        low, high = (bound * p for bound in rule(p.log()))
        body.append(chart.area(f"{kind.split()[0]} area", p, low, high))
        body += [chart.line(kind, p, low), chart.line(kind, p, torch.minimum(high, 1.2 * one))]
    body.append(text(LEFT + 60, TOP + 38, "q &gt; 1", "middle"))
    keys = [(kind, words) for kind, _, words in rules[::-1]]
    return picture(
        "New probabilities allowed for each old one: Band is a lens between (0, 0) and (1, 1); "
        "Clip is a wedge that leaves no room near 0 and passes 1 on the right.",
        chart,
        body,
        keys,
    )


def weight() -> str:
    """The weight of a token's gradient over its ratio, under Band-KL and under PPO's clip."""
    chart = Chart(
        Axis("ratio r = q / p", 0.1, 12, (0.1, 0.2, 0.5, 1, 2, 5, 10), log=True),
        Axis("weight of ∇ log π", -11, 11, (-10, -5, 0, 5, 10)),
    )
    band, clip = load_methods("band_kl,grpo")
    ratios = torch.logspace(math.log10(0.1), math.log10(12), 2 * POINTS, dtype=torch.float64)
    # The narrower over the wider: all of them follow r·A up to their bounds.
    wide = (("k0 w3", 0.005), ("k2 w2", 0.05), ("k3 w1", 0.5))
    drawn = [*((kind, band, p, f"p = {p:g}") for kind, p in wide), ("k1", clip, 0.5, "Clip, any p")]
    body = list(chart.frame())
    for kind, method, p, _ in drawn:
        for advantage in (1.0, -1.0):
            weights = method.weights(ratios, p, advantage, 0.5)
            body.append(chart.line(kind, *_falling_to_zero(ratios, weights)))
    body.append(text(LEFT + 12, TOP + 26, "A = 1"))
    body.append(text(LEFT + 12, TOP + chart.height - 16, "A = −1"))
    return picture(
        "The weight of a token's gradient is r·A between the bounds and 0 beyond them; Band-KL's "
        "bounds are wider for rare tokens.",
        chart,
        body,
        [(kind, words) for kind, *_, words in drawn],
    )


def _falling_to_zero(xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
    """The one run of points that are not 0, with a drop to 0 where it ends inside."""
    run = ys.nonzero()[:, 0]
    start, end = run[:1], run[-1:]
    ends = [start[start > 0], end[end < len(xs) - 1]]
    places = torch.cat([ends[0], run, ends[1]])
    drawn = torch.cat([0 * ys[ends[0]], ys[run], 0 * ys[ends[1]]])
    return xs[places], drawn


def _simplex(chart: Chart, p: Tensor) -> Iterator[str]:
    """What no policy can reach, q > 1; the frame over it; the ratio 1 of an unchanged policy."""
    reached = p[p > 1 / chart.y.most]
    edge = torch.cat([torch.tensor([1 / chart.y.most]), reached, torch.tensor([1.0])]).double()
    yield chart.area("out", edge, 1 / edge, torch.full_like(edge, chart.y.most))
    yield from chart.frame()
    yield text(WIDTH - RIGHT - 70, TOP + 24, "q &gt; 1", "middle")
    yield f'<path class="edge" d="{_segment(chart, (chart.x.least, 1), (1, 1))}"/>'


def _segment(chart: Chart, start: tuple[float, float], end: tuple[float, float]) -> str:
    return f"M{chart.point(*start)}L{chart.point(*end)}"


def _inside(chart: Chart, kind: str, p: Tensor, bound: Tensor) -> str:
    """A bound where the axis shows it, and the first point beyond."""
    shown = _with_neighbours((bound > chart.y.least) & (bound < chart.y.most))
    return chart.line(kind, p[shown], bound[shown])


def _with_neighbours(chosen: Tensor) -> Tensor:
    """What is chosen, and what is beside it."""
    wider = chosen.clone()
    wider[:-1] |= chosen[1:]
    wider[1:] |= chosen[:-1]
    return wider


def document() -> dict[str, str]:
    """The text of each picture by the name of its file."""
    return {
        "bounds.svg": bounds(),
        "bounds_by_radius.svg": by_radius(),
        "probability.svg": probability(),
        "weight_kl.svg": weight(),
    }


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    for name, drawn in document().items():
        (FIGURES / name).write_text(drawn, encoding="utf-8")
    print(f"wrote {len(document())} pictures")
