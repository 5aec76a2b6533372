"""The statement of an answer without the sentence around it: `The answer is 42.` says 42."""

from __future__ import annotations

import re

from bandpo.reward.notation.braces import closing

_LEAD = re.compile(
    r"^(?:\\text\{\s*)?(?:(?:(?:so|thus|hence|therefore|then),?\s+)?"
    r"(?:we (?:get|have|find)(?: that)?\s+)?(?:(?:the|my|our|its?)\s+)?"
    r"(?:(?:final|correct|right|exact|only|required|desired|best)\s+){0,2}"
    r"(?:answer|result|solution|value|option|choice|number|it)s?(?:\s+to the (?:problem|question))?"
    r"(?:\s+of\s+(?:\$?[A-Za-z]\$?|the\s+\w+))?\s*(?:is|are|=|:|equals)"
    r"(?:\s+(?:therefore|thus|simply|exactly|equal to|option|choice))?(?![A-Za-z])\s*:?\s*"
    r"|only\s+(?=[\\$}A-Za-z]\s*[}=]?))",
    re.IGNORECASE,
)
_APPROXIMATELY = re.compile(
    r"^(?:\\(?:approx|simeq|doteq)(?![A-Za-z])|(?:\\text\{ ?)?approximately ?\}?)\s*"
)
_END_OF_FORMULA = r"(?:(?<=[\d})$\]])|(?<=[\d})$\]]\s))"
_TAIL = re.compile(
    rf"{_END_OF_FORMULA}(?:\\text\{{)?\s*(?:,\s*)?(?:is|are) (?:the |my |our )?"
    r"(?:final |correct |right )?(?:answers?|solutions?|results?|correct)[ .!]*\}?$",
    re.IGNORECASE,
)
_BECAUSE = re.compile(
    rf"{_END_OF_FORMULA}\s*[,;.]?\s*(?:\\text\{{\s*[,;.]?\s*)?"
    r"(?:since|because|as|so|which (?:is|means)|i\.e\.|that is)(?![A-Za-z]).*$",
    re.IGNORECASE | re.DOTALL,
)
# An integer parameter as declared after the formula; another domain stays, it may change the set.
_WHERE = r"where|with|for any|for all"
_INTEGERS = r"(?:\\mathbb\{Z\}|Z|\\text\{\s*(?:an )?integers?\s*\}|(?:an )?integers?)"
_DECLARED = re.compile(
    rf"\s*[,;]?\s*\(?\s*(?:\\text\{{\s*,?\s*(?:{_WHERE}|for|for every|for some|and)\s*\}}"
    rf"|{_WHERE}|\\forall)?\s*(?<![A-Za-z\\])(?P<name>[a-z](?:\s*,\s*[a-z])*)\s*"
    r"(?:\\in|\\text\{\s*(?:is|in|are)\s*\}|is|(?=\\text\{\s*(?:is )?an))\s*(?:\\text\{\s*is )?"
    rf"{_INTEGERS}\s*\)?\s*$"
)
_FOR_INTEGERS = re.compile(
    r"\s*[,;]?\s*\(?\\text\{\s*,?\s*(?:where|for|with)\s+(?:all |any |every |some )?"
    r"(?:integers?\s*\}\s*(?P<a>[a-z])|(?P<b>[a-z])\s+(?:is|in)\s+an? integers?\s*\}"
    r"|\}\s*(?P<c>[a-z])\s*\\text\{\s*(?:is|in)?\s*an? integers?\s*\})\)?\s*$"
)
_QUANTIFIED = re.compile(
    r"\s*[,;]?\s*\(?\s*(?:\\text\{\s*,?\s*for (?:all|any|every|each)(?![A-Za-z])[^{}]*\}"
    r"|for (?:all|any|every|each)\s|\\forall).*$",
    re.DOTALL,
)
_COMMENT = re.compile(r"(?<=[\w$}\])])(?:\s+(?=\()|(?=\(\s*\\text\{))")
_COMMENT_WORD = re.compile(r"[A-Za-z]{3,}|[\u4e00-\u9fff]{2,}")
_NO_COMMENT = re.compile(r"(?:mod|base|or|and|not|if)(?![A-Za-z])", re.IGNORECASE)
_PERIODIC = re.compile(
    r"(?<![A-Za-z\\])([nkm])(?![A-Za-z])(?=\s*\\pi)|(?<=\\pi )([nkm])(?![A-Za-z])"
)


def statement(text: str) -> str:
    """The answer alone, without a lead-in, a reason, a comment in brackets or `for all x`."""
    if not re.search(r"[A-Za-z]", text):
        return text
    text = _without_lead(_APPROXIMATELY.sub("", text))
    if "(" in text:
        text = _without_comment(text)
    text = _BECAUSE.sub("", _TAIL.sub("", text))
    return _parameters(text).strip()


def _without_lead(text: str) -> str:
    match = _LEAD.match(text)
    if match is None or not text[match.end() :].strip(" }"):
        return text
    rest = text[match.end() :].strip()
    if text.startswith("\\text{"):
        return rest.removeprefix("}").strip() if rest.startswith("}") else rf"\text{{{rest}"
    return rest


def _without_comment(text: str) -> str:
    for match in _COMMENT.finditer(text):
        end = closing(text, match.end())
        inner = text[match.end() + 1 : end] if end else ""
        words = _COMMENT_WORD.findall(re.sub(r"\\[A-Za-z]+", "", inner))
        if end == len(text) - 1 and words and not _NO_COMMENT.match(inner.strip()):
            return text[: match.start()]
    return text


def _parameters(text: str) -> str:
    """Without declarations; a parameter of the integers is called k."""
    match = _DECLARED.search(text) or _FOR_INTEGERS.search(text)
    if match and match.start() > 0:
        names = [name for name in match.groupdict().values() if name]
        text = text[: match.start()]
        if len(names) == 1 and len(names[0]) == 1:
            return _renamed(text, names[0])
        return text
    if (match := _QUANTIFIED.search(text)) and match.start() > 0:
        text = text[: match.start()]
    counters = {a or b for a, b in _PERIODIC.findall(text)}
    if len(counters) == 1:
        return _renamed(text, counters.pop())
    return text


def _renamed(text: str, name: str) -> str:
    if name == "k" or re.search(r"(?<![A-Za-z\\])k(?![A-Za-z])", text):
        return text
    return re.sub(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", "k", text)
