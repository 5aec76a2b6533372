"""Answers that are compared as signs, not as mathematics: words, letters of choices, times, dates.

Each kind reads a text into a value, or None where the text is not of that kind; a reference of a
kind is answered only by a text of the same kind with the same value.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bandpo.reward.notation.spelled import is_scale
from bandpo.reward.notation.units import quantity

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z\u4e00-\u9fff][A-Za-z\u4e00-\u9fff' ,./;&()-]*")
_WORD = re.compile(r"[a-z]+|[\u4e00-\u9fff]+")


@dataclass(frozen=True)
class Literal:
    """A reference that is compared as signs: its kind and what it says."""

    value: Any
    read: Callable[[str], Any]

    def answered_by(self, text: str) -> bool:
        """Whether a canonical answer says the same."""
        return bool(self.read(text) == self.value)


def literal(gold: str) -> Literal | None:
    """The reference as a literal; None where it is to be read as mathematics.

    `gold` is canonical. An answer to a literal may be longer than what would be one as a
    reference: `B) 5` answers B, `May` answers `\\text{May}`.
    """
    for as_reference, as_answer in _KINDS:
        if (value := as_reference(gold)) is not None:
            return Literal(value, as_answer)
    return None


def same_time(answer: str, gold: str) -> bool | None:
    """Whether an answer that can only be a time or a date is that of the reference.

    None for every other answer: `3:05` is a time and no ratio, `9:15` may be either.
    """
    if _DATES[0].fullmatch(answer) or date(answer):
        return date(answer) is not None and date(answer) == date(gold)
    if _clock_reference(answer):
        return _clock(answer) == _clock(gold)
    return None


# --- choices ---------------------------------------------------------------------------------

_LETTER = re.compile(r"\(?\s*([A-J])\s*\)?")
_LABEL = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*(?:is\s+|:\s*)?)?"
    r"(?:\(\s*(?P<round>[A-J])\s*\)(?!\s*[+*/^=_('-])|(?P<bare>[A-J])\s*[.):]"
    r"|(?P<alone>[A-J])(?=\s*$|\s+is\s|\s+only\s*$))\s*(?P<text>.*)",
    re.DOTALL | re.IGNORECASE,
)
# `A - B`, `(C)!`, `(C)\\cdot 2`; `> (C)` turned round
_COMPARED = re.compile(r"^(?:[<>=+*/|!?-]|\\(?:cdot|times|div|le|ge|ne)(?![A-Za-z]))")
_OTHER_LABEL = re.compile(r"\([A-J]\)|(?<![A-Za-z\\])[A-J](?:[.):]|\s*(?:$|,|or\s|and\s))")
_DENIED = re.compile(r"^,|(?<![a-z])(?:or|not|wrong|incorrect|false|isn't)(?![a-z])", re.IGNORECASE)
_SEVERAL = re.compile(r"\(?[A-J]\)?(?:(?:\s*(?:,|;|and|&)\s*(?:and\s+)?|\s*)\(?[A-J]\)?)+")


def labelled(text: str) -> tuple[str, str] | None:
    """The letter of a choice and its text, as in `(D) 12`, `D. 12`, `D: 12`, `B is right`."""
    match = _LABEL.fullmatch(_TEXT.sub(r" \1 ", text).strip())
    if match is None or is_scale(match["text"]):
        return None
    if any(pattern.search(match["text"]) for pattern in (_OTHER_LABEL, _DENIED, _COMPARED)):
        return None
    letter = (match["round"] or match["bare"] or match["alone"]).upper()
    # the text as it was written: its words are to be told from variables
    start = re.search(rf"{letter}\s*\}}?\s*[.):]?\s*\}}?", text, re.IGNORECASE)
    return letter, text[start.end() :].strip() if start and match["text"].strip() else ""


def _choice(text: str) -> str | None:
    match = _LETTER.fullmatch(_TEXT.sub(r"\1", text).strip())
    return match[1] if match else None


def _chosen(text: str) -> str | None:
    found = labelled(text)
    return found[0] if found else None


def _choices(text: str) -> frozenset[str] | None:
    """Several letters in alphabetical order: `ACD`, `A, C, D`, `(A) and (C)`."""
    letters = _letters(text)
    return letters if letters and _listed(text) == sorted(letters) else None


def _letters(text: str) -> frozenset[str] | None:
    plain = _TEXT.sub(r" \1 ", text).strip()
    found = _listed(plain) if _SEVERAL.fullmatch(plain) else []
    return frozenset(found) if found and len(set(found)) == len(found) else None


def _listed(text: str) -> list[str]:
    return re.findall(r"(?<![a-z])[A-J](?![a-z])", _TEXT.sub(r" \1 ", text))


# --- numbered statements ---------------------------------------------------------------------

_CIRCLED = re.compile(r"(?:\\textcircled\{\d+\}|\\textcircled\d)(?:[\s,;]|\\text\{ ?and ?\}|and)*")
_ROMAN = re.compile(r"[IVX]+")


def _circled(text: str) -> frozenset[str] | None:
    if not re.fullmatch(rf"(?:{_CIRCLED.pattern})+", text.strip()):
        return None
    return frozenset(re.findall(r"\d+", text))


def _roman(text: str) -> frozenset[str] | None:
    parts = re.split(r"\s*(?:,|;|\band\b|&)\s*", _TEXT.sub(r" \1 ", text).strip())
    parts = [part.strip(" ()") for part in parts if part.strip()]
    if not parts or not all(_ROMAN.fullmatch(part) for part in parts):
        return None
    return frozenset(parts)


def _roman_reference(text: str) -> frozenset[str] | None:
    found = _roman(text)
    return found if found and max(map(len, found)) > 1 else None


# --- times and dates ---------------------------------------------------------------------------

_CLOCK = re.compile(
    r"(?P<h>\d{1,2})(?:\s?:\s?(?P<m>[0-5]\d))?(?::(?P<s>[0-5]\d))?\s*(?P<half>[ap]\.?\s?m\.?)?",
    re.IGNORECASE,
)
_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name[:3]: n for n, name in enumerate(_MONTHS.split(), 1)}
_DATES = [
    re.compile(r"(?P<y>\d{4})[-/.](?P<n>\d{1,2})[-/.](?P<d>\d{1,2})"),
    re.compile(r"(?P<name>[A-Za-z]{3,9})\.? (?P<d>\d{1,2})(?:st|nd|rd|th)?(?:,? (?P<y>\d{4}))?"),
    re.compile(
        r"(?P<d>\d{1,2})(?:st|nd|rd|th)? (?:of )?(?P<name>[A-Za-z]{3,9})\.?,?(?: (?P<y>\d{4}))?"
    ),
]


def clock(text: str) -> tuple[int, int, int, bool] | None:
    """Hour, minute, second, and whether the half of the day is known; None for a ratio."""
    plain = " ".join(_TEXT.sub(r" \1 ", text).replace("{:}", ":").split())
    match = _CLOCK.fullmatch(plain)
    if match is None or not (match["m"] or match["half"]):
        return None
    hour, minute, second = (int(match[k] or 0) for k in ("h", "m", "s"))
    if match["half"]:
        if not 1 <= hour <= 12:
            return (hour, minute, second, True) if hour < 24 else None
        afternoon = match["half"].lower().startswith("p")
        return hour % 12 + 12 * afternoon, minute, second, True
    return (hour, minute, second, hour > 12 or hour == 0) if hour < 25 else None


def _clock(text: str) -> _Clock | None:
    found = clock(text)
    return _Clock(found) if found else None


def _clock_reference(text: str) -> _Clock | None:
    """A time that cannot be a ratio: with a.m. or p.m., or with a leading zero."""
    certain = re.search(r"[ap]\.?\s?m|:\s?0\d|^0\d\s?:", _TEXT.sub(r"\1", text), re.IGNORECASE)
    return _clock(text) if certain else None


class _Clock:
    """Equal to the same time; where one lacks a.m. or p.m., to the time of either half."""

    def __init__(self, time: tuple[int, int, int, bool]) -> None:
        self.time = time

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Clock):
            return False
        (h, *ours, sure), (g, *theirs, certain) = self.time, other.time
        hours = h == g if sure and certain else h % 12 == g % 12
        if sure != certain:  # 4:30 may be 4:30 p.m. but not 16:30 as 4:30
            hours = hours and (h <= 12 or g <= 12)
        return hours and ours == theirs

    __hash__ = None  # type: ignore[assignment]


def date(text: str) -> tuple[int | None, int, int] | None:
    """Year, if given, month and day of a date."""
    plain = " ".join(_TEXT.sub(r" \1 ", text).replace("~", " ").split())
    for pattern in _DATES:
        if match := pattern.fullmatch(plain):
            found = match.groupdict()
            month = _MONTH.get((found.get("name") or "")[:3].lower(), 0) or int(found.get("n") or 0)
            try:
                day = datetime.date(int(found["y"] or 2000), month, int(found["d"]))
            except ValueError:
                return None
            return day.year if found["y"] else None, day.month, day.day
    return None


# --- words -----------------------------------------------------------------------------------

_SYNONYMS = {
    "dne": "does not exist",
    "do not exist": "does not exist",
    "doesnt exist": "does not exist",
    "no limit": "does not exist",
    "not exist": "does not exist",
    "infinite": "infinitely many",
    "cannot be determined": "not determined",
    "can not be determined": "not determined",
}
_EMPTY = re.compile(
    r"(?:there (?:is|are) )?(?:no|none|null set|empty|empty set|empty solution set)"
    r"(?: (?:real|integer|positive|such|valid|possible))*"
    r"(?: (?:solutions?|roots?|values?|numbers?|x|real))?(?: exists?)?"
)
_ARTICLES = frozenset(("the", "a", "an"))
_PREDICATES = re.compile(
    r" (?:(?:always |will )?wins?(?: the game)?|can win|has (?:a )?winning strategy"
    r"|is (?:correct|right|true|(?:the )?winner))$"
)
_LEADS = re.compile(r"^(?:it is|they are|answer is|yes it is) ")
# Words of three letters and fewer: a capital and small letters, as in names, and the commonest.
_SHORT = re.compile(r"[A-Z][a-z]{2}|yes|Yes|YES|no|No|NO|odd|red|all")
_CONJUNCTION = re.compile(r"\s*(?:,|;|&|/|\band\b)\s*")


def words(text: str, bare: bool = False) -> frozenset[str] | str | None:
    """A verbal answer without case, articles and punctuation; None for anything mathematical.

    A list of words is the set of its members. Words without `\\text` count where `bare` allows it
    or where they are too long for variables.
    """
    inner = _TEXT.sub(r" \1 ", text).strip().rstrip("!")
    if not _WORDS.fullmatch(inner) or "/" in inner or quantity(text).measured:
        return None
    if re.search(r"[()]", inner) and not _TEXT.search(text):
        return None
    long = any(len(word) > 3 or word in _SYNONYMS for word in _WORD.findall(inner.lower()))
    long = long or _SHORT.fullmatch(inner) is not None
    if not (bare or _TEXT.search(text) or long or re.search("[\u4e00-\u9fff]", inner)):
        return None
    if re.search(r"\bor\b|\\", inner):
        return " ".join(_tokens(inner)) or None
    members = [_phrase(part) for part in _CONJUNCTION.split(inner) if part.strip()]
    members = [member for member in members if member]
    if len(members) > 1:
        return frozenset(members)
    return members[0] if members else None


def _tokens(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower().replace("'", "")) if word not in _ARTICLES]


def _phrase(text: str) -> str:
    phrase = " ".join(_tokens(text))
    phrase = _LEADS.sub("", _PREDICATES.sub("", phrase))
    phrase = _SYNONYMS.get(phrase, phrase)
    if " " not in phrase or re.search(
        r"\b(?:not|no|than|then|to|of|from|before|after|is|if)\b", phrase
    ):
        return phrase
    # `right isosceles triangle` is `isosceles right triangle`: what stands before a noun is a set
    *before, noun = phrase.split()
    return " ".join((*sorted(before), noun))


def _bare_words(text: str) -> frozenset[str] | str | None:
    return words(text, bare=True)


def _empty(text: str) -> bool | None:
    """Whether the text says that there is nothing: `\\emptyset`, `no solution`."""
    if text.strip() in ("\\emptyset", "\\{\\}"):
        return True
    inner = _TEXT.sub(r" \1 ", text)
    if not _WORDS.fullmatch(inner.strip()):
        return None
    phrase = " ".join(_tokens(inner))
    return True if phrase != "no" and _EMPTY.fullmatch(phrase) else None


_NUMBERED = re.compile(r"[A-Za-z][A-Za-z' ,.-]*\d+[A-Za-z0-9' ,.-]*")


def _numbered(text: str) -> tuple[str, ...] | None:
    """Words with a number in them, as a name has: `Player 1`, `Figure 3b`."""
    inner = _TEXT.sub(r" \1 ", text).strip()
    if not _NUMBERED.fullmatch(inner):
        return None
    found = re.findall(r"[a-z]+|\d+", _PREDICATES.sub("", inner.lower()))
    long = any(word.isalpha() and len(word) > 3 for word in found)
    if not (_TEXT.search(text) or long) or not found[0].isalpha() or len(found[0]) < 3:
        return None
    return tuple(word for word in found if word not in _ARTICLES)


def _ordering(text: str) -> tuple[str, ...] | None:
    """Names in the order of a chain of < or >, from the least: `\\text{Pork} > \\text{Beef}`."""
    parts = re.split(r"\s*([<>])\s*", text)
    signs, names = set(parts[1::2]), [words(part, bare=True) for part in parts[::2]]
    if len(signs) != 1 or not all(isinstance(name, str) for name in names):
        return None
    if not any(_TEXT.search(part) or len(part) > 3 for part in parts[::2]):
        return None
    ordered = tuple(str(name) for name in names)
    return ordered if signs == {"<"} else ordered[::-1]


_UNREADABLE = re.compile(
    r"\\(?:notin|perp|parallel|subset|subseteq|cong|sim|mid|nmid)(?![A-Za-z])|\.\.\."
)


def _verbatim(text: str) -> str | None:
    """Relations between things that are no numbers, and what goes on without end, as written."""
    return _squeezed(text) if _UNREADABLE.search(text) else None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _words_reference(text: str) -> frozenset[str] | str | None:
    return words(text)


# The first kind that reads the reference decides; each with its reading of an answer.
_KINDS: tuple[tuple[Callable[[str], Any], Callable[[str], Any]], ...] = (
    (_choice, _chosen),
    (_circled, _circled),
    (_roman_reference, _roman),
    (_choices, _letters),
    (_clock_reference, _clock),
    (date, date),
    (_empty, _empty),
    (_words_reference, _bare_words),
    (_numbered, _numbered),
    (_ordering, _ordering),
    (_verbatim, _squeezed),
)
