"""The left sides of answers: what may be dropped from `x = 3` and `f(x) = 2x`, and what may not.

Only a bare name may: a letter with subscripts and primes, a function with arguments, points, words.
`\\log_2 x = 3` and `xy = 12` say something about x, not what x is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bandpo.reward.notation import split_list

_GREEK = (
    r"\\(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho"
    r"|sigma|tau|upsilon|phi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)"
    r"(?![A-Za-z])"
)
_BRACED = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_MARKS = (
    rf"(?:\s*(?:_\s*(?:{_BRACED}|\\[a-z]+|\w)|'"
    r"|\^\s*(?:\{\s*)?(?:\\prime|-\s*1|\\ast|\*)(?:\s*\})?))*"
)
_ARGUMENT = rf"(?:-?\s*(?:{_GREEK}|\w+|\\(?:cap|cup|mid|text)|[{{}}|,_'\s]))*"
_LETTER = rf"(?:{_GREEK}|[A-Za-z])"
_ACCENTED = (
    r"\\(?:overline|overrightarrow|vec|hat|bar|tilde|widehat|mathbb|mathcal)"
    rf"\s*(?:{_BRACED}|[A-Za-z])"
)
_BARE = re.compile(
    rf"(?:"
    rf"(?:{_LETTER}|{_ACCENTED}|\\text\s*{_BRACED}){_MARKS}\s*(?:\({_ARGUMENT}\)|\[{_ARGUMENT}\])?"
    rf"|[fghpqFGHPQTE]{_MARKS}\s*\([^()=<>]*\)"
    rf"|(?:\\?Pr?|E|\\mathbb\s*\{{?\s*[PE]\s*\}}?)\s*(?:\([^()]*\)|\[[^\[\]]*\])"
    rf"|m?\s*\\?(?:angle|triangle|widehat|arc)\s*\{{?[A-Z]+\}}?"
    rf"|\|?[A-Z]{{2,5}}\|?|\[[A-Z]{{3,6}}\]"
    rf"|\\(?:max|min|sup|inf|det|dim|deg|Pr){_MARKS}\s*(?:\({_ARGUMENT}\))?"
    rf"|\\frac\s*\{{\s*d[^{{}}]*\}}\s*\{{\s*d[^{{}}]*\}}"
    rf"|(?:[A-Za-z]{{4,}}|max|min|sum|ans)(?:\s+[A-Za-z]+)*(?:\({_ARGUMENT}\))?"
    rf")"
)
_FUNCTION = re.compile(r".*[(\[].*[)\]]")
_PRODUCT = re.compile(rf"(?:{_LETTER}{_MARKS}\s*)+|\\(?:sin|cos|tan|cot)\s*\(?{_LETTER}{_MARKS}\)?")
_APPROX_OR_IN = re.compile(r"\\in(?![A-Za-z])|\\approx(?![A-Za-z])")


def is_name(text: str) -> bool:
    """Whether a side of an equation is a bare name."""
    text = text.strip()
    return _BARE.fullmatch(text) is not None and text not in ("e", "i", r"\pi")


def is_quantity(text: str) -> bool:
    """Whether a side is a name, a product of letters or a trigonometric function of an angle."""
    return is_name(text) or (len(text.strip()) > 1 and _PRODUCT.fullmatch(text.strip()) is not None)


def sides(text: str) -> list[str]:
    """The sides of a chain of equations; what brackets enclose, as in `\\sum_{i=1}`, is no sign."""
    if "=" not in text:
        return [text.strip()]
    parts = split_list(text, "=")
    joined = [parts[0]]
    for part in parts[1:]:
        if joined[-1].endswith(("<", ">", "!", "\\")):
            joined[-1] += f"={part}"
        else:
            joined.append(part)
    return [part.strip() for part in joined]


@dataclass(frozen=True)
class Named:
    """One part of a list of answers: its name, "" where none is written, and its value."""

    name: str
    value: str

    @property
    def is_function(self) -> bool:
        """Whether the name is that of a function with its arguments."""
        return _FUNCTION.fullmatch(self.name) is not None


def named_parts(text: str) -> list[Named]:
    """`x = 3, y = 4` and `(x, y) = (3, 4)` as named values; chains keep all but their name."""
    parts: list[Named] = []
    for part in split_list(text):
        left, value = _split_name(part)
        names = split_list(left[1:-1]) if left[:1] == "(" and left[-1:] == ")" else []
        values = split_list(value[1:-1]) if value[:1] == "(" and value[-1:] == ")" else []
        if len(names) == len(values) > 1 and all(map(is_name, names)):
            parts += map(Named, names, values)
        elif left and is_name(left):
            parts.append(Named(squeezed(left), value))
        else:
            parts.append(Named("", part))
    return parts


def _split_name(part: str) -> tuple[str, str]:
    """The left side of `=`, `\\in` or `\\approx`, and the rest; `5 = x` is turned round."""
    left, *rest = sides(part)
    if match := _APPROX_OR_IN.search(left):
        return left[: match.start()].strip(), part[match.end() :].strip()
    if len(rest) == 1 and is_name(rest[0]) and not is_name(left):
        return rest[0], left
    return (left, "=".join(rest)) if rest else ("", part)


def squeezed(text: str) -> str:
    """Without white space but between digits, braces around single signs and \\text."""
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text))
    return re.sub(r"\{(\w)\}", r"\1", text)
