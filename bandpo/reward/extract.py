"""Finds the final answer in a completion; linear in its length, nothing is parsed.

In this order, in the text after the reasoning (`</think>` and the like):

1. the last non-empty `\\boxed{…}` (or `\\fbox{…}`), brace-balanced, with the boxes before it that
   commas or "and" join to it: `\\boxed{3}` and `\\boxed{5}` are the list 3, 5;
2. else the last line with "Answer:" ("Final answer:", "The answer is:", "答案："), or what follows
   it: a displayed formula, or the next line. Sentences after the answer do not count;
3. else the last "final answer is" before a formula or a number: "The final answer is $5$.";
4. else no answer, unless free extraction hands the end of the text to math-verify.

A box that never closes, a text that ends inside `\\boxed` and a reasoning that never ends are
`truncated`: an earlier box is then not the final answer. A candidate that is part of a verbatim
copy of the prompt does not count.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from bandpo.reward.notation import closing

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_CUT_BOX = re.compile(r"\\(?:bo|box|boxe|fb|fbo)$")
_ANSWER_LINE = re.compile(
    r"(?:\banswer(?:\s+is)?|答案(?:是|为)?|故选)[\s*_]{0,8}[:：][*_]{0,4}([^\n]*)", re.IGNORECASE
)
_ANSWER_LABEL = re.compile(r"\banswer(?:\s+is)?\s*[:：][*_]{0,4}", re.IGNORECASE)
_ANSWER_SENTENCE = re.compile(
    r"(?:\bfinal\s+answer\s+is|答案(?:是|为))\s*((?=[*_]{0,4}(?:\$|\\[(\[]|[-+−]?\d))[^\n]*)",
    re.IGNORECASE,
)
# The marks between which models reason: of R1 and Qwen, EXAONE, Seed, Magistral, Kimi, Command A,
# OpenThoughts and Gemma, and the channels of gpt-oss, of which one alone is the reply.
_OPENING = (
    r"<think>|<thought>|<seed:think>|\[THINK\]|◁think▷|<\|START_THINKING\|>"
    r"|<\|begin_of_thought\|>|<\|channel>thought|<\|channel\|>(?!final)\w*(?:<\|message\|>)?"
)
_REASONING = re.compile(
    r"(?P<end></think>|</thought>|</seed:think>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>"
    r"|<\|end_of_thought\|>|<channel\|>|<\|channel\|>final(?:<\|message\|>)?)|" + _OPENING
)
_OPEN_AT_THE_END = re.compile(rf"(?:{_OPENING})\s*\Z")
_BARE_TOKEN = re.compile(r"[^\s{}$]+")
# What stands between boxes that make one list: at least a comma or a word, at most a name besides.
_SPACE = r"(?:[\s$~&]|\\[,;:! ()\[\]]|\\q?quad|\\\\)*"
_JOINT = re.compile(
    rf"{_SPACE}(?:[,;]|\\text\{{\s*,?\s*(?:and|or)\s*\}}|and|or|或|和)"
    rf"{_SPACE}(?:and|or|\\text\{{\s*(?:and|or)\s*\}})?{_SPACE}(?P<name>[A-Za-z]\w{{0,3}}\s*=)?{_SPACE}"
)
_NAME_BEFORE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]\w{0,3}\s*=\s*$")
_DISPLAY = re.compile(
    r"\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\begin\{(equation\*?|align\*?)\}(.+?)\\end\{\3\})",
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"(?<=[\w$)}\]])[.!]\s+(?=[A-Z\"'(*])")
_AFTER_MATH = re.compile(r"(?<=\$)[.,;]\s+(?=[A-Za-z])")

# Of a text full of boxes only the last few can matter; bounds the work on a hostile one.
_CANDIDATES = 8
# How much of the text before a candidate must also stand in the prompt for it to be an echo.
_CONTEXT, _MIN_CONTEXT = 48, 16
# How much of an answer line must be copied too; the prompt may end within the line.
_LINE_START = 24
_FREE_TAIL = 400
_LONGEST_MARK = 64
# A display after "Answer:" is looked for in this much text.
_LONGEST_DISPLAY = 2048


@dataclass(frozen=True)
class Extraction:
    """The answer as written, or None; `free` marks text in which math-verify must search for it."""

    answer: str | None
    truncated: bool = False
    free: bool = False


@dataclass(frozen=True)
class _Candidate:
    """A span of the text and the answer in it, None where it is cut off."""

    start: int
    end: int
    answer: str | None


def extract(completion: str, prompt: str = "", *, free: bool = False) -> Extraction:
    """The final answer of `completion`, ignoring what it copies from `prompt`."""
    text = _after_reasoning(completion, prompt)
    if text is None:
        return Extraction(None, truncated=True)
    echo = _Echo(text, prompt)
    for find in (_boxes, _answer_lines, _answer_sentences):
        candidates = find(text)
        for found in candidates:
            if found.answer is None:
                return Extraction(None, truncated=True)
            if found.answer and not echo(found.start, found.end):
                whole = _joined(text, found, candidates) if find is _boxes else found.answer
                return Extraction(whole)
    if free and text.strip():
        return Extraction(text[-_FREE_TAIL:], free=True)
    return Extraction(None)


def _after_reasoning(completion: str, prompt: str) -> str | None:
    """The text after the last mark; None where reasoning is open there, or was from the start."""
    last = next(iter(deque(_REASONING.finditer(completion), maxlen=1)), None)
    if last is None:
        return None if _OPEN_AT_THE_END.search(prompt.rstrip()[-_LONGEST_MARK:]) else completion
    return completion[last.end() :] if last["end"] else None


def _boxes(text: str) -> Iterator[_Candidate]:
    """Boxes from the last to the first."""
    if cut := _CUT_BOX.search(text, max(0, len(text) - 8)):
        yield _Candidate(cut.start(), len(text), None)
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    for start, inside in reversed(starts[-_CANDIDATES:]):
        if inside < len(text) and text[inside] == "{":
            end = closing(text, inside)
            content = None if end is None else text[inside + 1 : end].strip()
            yield _Candidate(start, len(text) if end is None else end + 1, content)
        elif token := _BARE_TOKEN.match(text, inside):
            yield _Candidate(start, token.end(), token.group())
        elif inside == len(text):
            yield _Candidate(start, inside, None)


def _joined(text: str, last: _Candidate, earlier: Iterator[_Candidate]) -> str:
    """The last box and those that only commas, "and" or "or" separate from it, as one list."""
    parts, right = [last.answer or ""], last
    names: list[str] = []
    for left in earlier:
        joint = _JOINT.fullmatch(text, left.end, right.start) if left.answer else None
        if joint is None:
            break
        names.insert(0, joint["name"] or "")
        parts.insert(0, left.answer or "")
        right = left
    if len(set(parts)) == 1:
        return parts[-1]
    first = _NAME_BEFORE.search(text[max(0, right.start - 8) : right.start])
    named = [first[0] if first else "", *names]
    if all(named):
        parts = [name.strip() + part for name, part in zip(named, parts, strict=True)]
    return ", ".join(parts)


def _answer_lines(text: str) -> Iterator[_Candidate]:
    return _after(_ANSWER_LINE, text)


def _answer_sentences(text: str) -> Iterator[_Candidate]:
    return _after(_ANSWER_SENTENCE, text)


def _after(words: re.Pattern[str], text: str) -> Iterator[_Candidate]:
    """The answers that the words announce, from the last to the first."""
    matches = list(words.finditer(text))
    for match in reversed(matches[-_CANDIDATES:]):
        end = min(match.end(), match.start(1) + _LINE_START)
        yield _Candidate(match.start(), end, _stated(text, match) or None)


def _stated(text: str, match: re.Match[str]) -> str:
    """The answer on the line of "Answer:", in the display or on the line that follows it."""
    start = match.start(1)
    for label in _ANSWER_LABEL.finditer(match[1]):  # Answer: the final answer is: 5
        start = match.start(1) + label.end()
    rest = text[start : match.end() + _LONGEST_DISPLAY]
    if display := _DISPLAY.match(rest):
        return (display[1] or display[2] or display[4]).strip()
    line = text[start : match.end()].strip(" \t*_")
    if not line:
        line = text[match.end() :].lstrip().split("\n", 1)[0].strip(" \t*_")
    line = _AFTER_MATH.split(line, maxsplit=1)[0] if line.count("$") % 2 == 0 else line
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t*_")


class _Echo:
    """Whether a span of the text, with what stands before it, is copied from the prompt."""

    def __init__(self, text: str, prompt: str) -> None:
        self.text, self.prompt = text, "".join(prompt.split())

    def __call__(self, start: int, end: int) -> bool:
        if not self.prompt:
            return False
        context = "".join(self.text[max(0, start - _CONTEXT) : start].split())
        copied = context + "".join(self.text[start:end].split())
        return len(context) >= _MIN_CONTEXT and copied in self.prompt
