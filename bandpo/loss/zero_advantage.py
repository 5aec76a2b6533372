"""Samples of advantage 0: whether a loss can learn from them."""

from __future__ import annotations


def vanishes_at_zero_advantage(part: object) -> bool:
    """Whether a loss, or a part of one, declares that samples of advantage 0 make no difference.

    Then such a sample has no gradient through the part, and the gradient of no other sample depends
    on it: the update needs no backward pass for it. A part declares it by an attribute of this
    function's name. One that does not, as a part of your own or a subclass with a `__call__` (or
    `weights`) of its own, counts as one that learns from such samples.
    """
    for cls in type(part).__mro__:
        if "vanishes_at_zero_advantage" in vars(cls):
            return bool(part.vanishes_at_zero_advantage)  # type: ignore[attr-defined]
        if "__call__" in vars(cls) or "weights" in vars(cls):
            return False
    return False
