"""Prompts as they are sent, for the eye: text and tokens with their control tokens, and lengths."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich.text import Text

CONTROL = "bold magenta"
TOO_LONG = "red"
_BINS, _BAR = 12, 40


def marked_text(parts: Iterable[tuple[str, bool]]) -> Text:
    """A prompt's text, with its control tokens in colour; without colours exactly what is sent."""
    return Text.assemble(*((text, CONTROL if is_control else "") for text, is_control in parts))


def marked_tokens(
    ids: Sequence[int], pieces: Sequence[str], is_control: Callable[[int], bool]
) -> Text:
    """`id:piece` of every token, with a star before control tokens."""
    words = []
    for id, piece in zip(ids, pieces, strict=True):
        word = f"{id}:{_one_line(piece)}"
        words.append(Text(f"*{word}", CONTROL) if is_control(id) else Text(word))
    return Text("  ").join(words)


def _one_line(piece: str) -> str:
    return piece.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def histogram(lengths: Sequence[int], limit: int) -> list[Text]:
    """Lines: how many prompts have how many tokens; bars in another colour beyond `limit`."""
    width = _round_width((max(lengths) - min(lengths) + 1) / _BINS)
    counts = Counter(length // width for length in lengths)
    digits = len(str(max(lengths) + width))
    lines = []
    for place in range(min(counts), max(counts) + 1):
        first, count = place * width, counts[place]
        bar = "█" * math.ceil(_BAR * count / max(counts.values()))
        name = f"{first:>{digits}}–{first + width - 1:<{digits}}" if width > 1 else f"{first:>5}"
        beyond = "  beyond the limit" if first > limit else ""
        line = f"{name}  {bar:<{_BAR}}  {count:,}{beyond}"
        lines.append(Text(line, TOO_LONG if beyond else ""))
    return lines


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that is no smaller."""
    power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def length_line(lengths: Sequence[int], limit: int, overlong: str) -> str:
    """The range of the lengths, and the share beyond the limit with what becomes of it."""
    beyond = sum(length > limit for length in lengths)
    fate = "dropped in training" if overlong == "drop" else "an error (data.overlong_prompts=error)"
    return (
        f"{len(lengths):,} prompts of {min(lengths):,} to {max(lengths):,} tokens, "
        f"median {statistics.median(lengths):,g}; {beyond:,} ({beyond / len(lengths):.2%}) have "
        f"more than data.max_prompt_tokens={limit}" + (f": {fate}" if beyond else "")
    )
