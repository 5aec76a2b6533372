"""One token under every method: its bounds, and how much of its gradient remains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich import box
from rich.table import Table

from bandpo.errors import UserError
from bandpo.loss.ratio import LOG_RATIO_LIMIT
from bandpo.methods.method import FAMILIES, Method, Verdict, single_tokens
from bandpo.types import TokenBatch


class Key(NamedTuple):
    """A value that describes a token, with its range."""

    least: float
    most: float
    meaning: str


KEYS = {
    "logp": Key(-700, 0, "log-probability under the old policy (or p)"),
    "p": Key(1e-300, 1, "probability under the old policy"),
    "adv": Key(-1e6, 1e6, "advantage"),
    "ratio": Key(1e-300, 1e300, "new over old probability (or new_p)"),
    "new_p": Key(1e-300, 1, "probability under the new policy"),
    "entropy": Key(0, 1e3, "of the old policy there, in nats, for radii that follow it (optional)"),
    "pass_rate": Key(0, 1, "of its group, for radii that follow it (optional)"),
    "dual": Key(1e-300, 1e300, "λ of its group, for query_kl (optional)"),
}
# A share of r·A this close to 0 or 1 counts as that.
EXACT = 1e-6


@dataclass(frozen=True)
class Token:
    """A sampled token: old probability p, ratio r, advantage, and what else methods may read.

    `entropy` is the old policy's there, `pass_rate` and `dual` (λ) are its group's.
    """

    p: float
    ratio: float
    advantage: float
    entropy: float | None = None
    pass_rate: float | None = None
    dual: float | None = None

    @property
    def q(self) -> float:
        """The probability under the new policy."""
        return self.p * self.ratio

    @property
    def unclipped(self) -> float:
        """r·A, the gradient with respect to log π that is left without any clipping."""
        return self.ratio * self.advantage

    def batch(self) -> TokenBatch:
        """The token as a sequence of its own."""
        p = torch.tensor([self.p], dtype=torch.float64)
        known = self.entropy, self.pass_rate, self.dual
        return single_tokens(p, self.ratio, self.advantage, *known)


def parse_token(text: str) -> Token:
    """A token from words such as `logp=-3.2 adv=1 ratio=1.6`, with the keys of KEYS.

    Raises UserError that names the key at fault.
    """
    values: dict[str, float] = {}
    for word in re.split(r"[\s,]+", text.strip()):
        key, _, value = word.partition("=")
        if key not in KEYS:
            raise UserError(f"{word!r}: no such key; a token is described by\n{keys()}")
        if key in values:
            raise UserError(f"{key} is given twice")
        values[key] = _number(key, value)
    old, new = _either(values, "logp", "p"), _either(values, "ratio", "new_p")
    if "adv" not in values:
        raise UserError(f"adv is missing; a token is described by\n{keys()}")
    p = math.exp(values["logp"]) if old == "logp" else values["p"]
    ratio = values["ratio"] if new == "ratio" else values["new_p"] / p
    if ratio * p > 1 + 1e-9:
        raise UserError(
            f"ratio={ratio:g}: with p={p:.4g} the new probability would be {ratio * p:.4g}; "
            f"the ratio is at most {1 / p:.4g}"
        )
    known = (values.get(key) for key in ("entropy", "pass_rate", "dual"))
    return Token(p, ratio, values["adv"], *known)


def _number(key: str, text: str) -> float:
    least, most, _ = KEYS[key]
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{key}={text}: not a number") from None
    if not least <= value <= most:
        raise UserError(f"{key}={text}: must lie between {least:g} and {most:g}")
    return value


def _either(values: Mapping[str, float], one: str, other: str) -> str:
    """Which of two keys is given; exactly one must be."""
    given = [key for key in (one, other) if key in values]
    if len(given) != 1:
        wrong = "both given" if given else "missing"
        raise UserError(f"{one} or {other}: {wrong}; a token is described by\n{keys()}")
    return given[0]


def keys() -> str:
    """The keys of a token and their meanings, one per line."""
    return "\n".join(f"  {name:<8} {key.meaning}" for name, key in KEYS.items())


class Limit(NamedTuple):
    """The limit that a method sets to the token's probability on one side.

    `bound` is bound·p, which may lie outside [0, 1]; `share` is the part of r·A that remains past
    it (see `Method.past`): there is a limit where it is not positive.
    """

    bound: float
    share: float

    def __str__(self) -> str:
        if self.share > EXACT:
            return "any"
        outside = f" ({self.bound:.3g})" if self.bound > 1 else ""
        return f"{min(self.bound, 1):.3g}{outside}"


@dataclass(frozen=True)
class Explanation:
    """A method's bounds for a token, and its `weight`, ∂objective/∂log π."""

    low: float
    high: float
    least: Limit
    most: Limit
    weight: float
    words: str


def explain(method: Method, token: Token) -> Explanation:
    """The method's verdict on the token; raises ValueError where it lacks the entropy for it."""
    verdict = method.judge(token.batch())
    low, high = (bound.item() for bound in verdict.output.interval)
    below, above = method.past(token.p, token.entropy or 0.0)
    return Explanation(
        low,
        high,
        Limit(low * token.p, below),
        Limit(high * token.p, above),
        verdict.gradient.item() + 0.0,  # no −0
        _words(token, verdict),
    )


def _words(token: Token, verdict: Verdict) -> str:
    if token.advantage == 0:
        return "none: no advantage"
    output = verdict.output
    low, high, r = (value.item() for value in (*output.interval, output.ratio))
    share = verdict.gradient.item() / token.unclipped
    none, inside = abs(share) < EXACT, low <= r <= high
    cases = (
        (none and output.binding_low.item() and r >= low, "masked: its sequence is off policy"),
        (none and output.binding_low.item(), "clipped: ratio < low"),
        (none and token.advantage < 0 and output.binding_high.item(), "clipped by the dual clip"),
        (none and output.binding_high.item(), "clipped: ratio > high"),
        (none and abs(math.log(token.ratio)) < LOG_RATIO_LIMIT, "faded to 0% of r·A"),
        (none, "none: |log ratio| > 20"),
        (share < 0, f"pulled back, {share:.{0 if share < -0.005 else 2}%} of r·A"),
        (abs(share - 1) > EXACT, f"{share:.0%} of r·A"),
        (not inside, "kept: leads back"),
        (True, "kept"),
    )
    return next(words for holds, words in cases if holds)


def explained(methods: Sequence[Method], token: Token) -> Iterator[str | Table]:
    """The token in words, a table with one row per method by family, and notes on the methods."""
    sign = (token.advantage > 0) - (token.advantage < 0)
    push = {1: "raises it", 0: "leaves it", -1: "lowers it"}[sign]
    yield (
        f"A token of probability {token.p:.4g}, now {token.q:.4g} (ratio {token.ratio:.4g}); its "
        f"advantage {token.advantage:g} {push}.\nWeight: ∂objective/∂log π; without any clipping "
        f"r·A = {token.unclipped:.4g}."
    )
    missing = {method.name: method.missing_inputs(token.batch()) for method in methods}
    by_kin = sorted(methods, key=lambda method: FAMILIES.index(method.family))
    yield _table([method for method in by_kin if not missing[method.name]], token)
    for method in by_kin:
        if reason := missing[method.name]:
            yield f"{method.name} is skipped: {reason}"
        elif method.note:
            yield f"{method.name}: {method.note}"


def _table(methods: Sequence[Method], token: Token) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in ("low", "high", "p may fall to", "rise to", "weight"):
        table.add_column(column, justify="right")
    table.add_column("gradient")
    family = methods[0].family if methods else None
    for method in methods:
        if method.family != family:
            table.add_section()
            family = method.family
        e = explain(method, token)
        known = method.has_bounds
        bounds = (f"{bound:.5g}" if known else "none" for bound in (e.low, e.high))
        table.add_row(method.name, *bounds, str(e.least), str(e.most), f"{e.weight:.4g}", e.words)
    return table
