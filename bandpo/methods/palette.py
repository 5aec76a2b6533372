"""The colours and dashes of all figures."""

from __future__ import annotations

# Okabe and Ito's colours, distinct for every kind of colour blindness, without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("solid", (0, (4, 1.5)), (0, (1.2, 1)))


def ink_on(red: float, green: float, blue: float) -> str:
    """`black` or `white`, whichever has the higher contrast on a colour given in [0, 1].

    Source: Web Content Accessibility Guidelines 2.2, relative luminance and contrast ratio.
    """
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"
