"""Text with LaTeX as HTML with MathML: no network, no script, and safe for hostile text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

LONGEST_FORMULA = 2000  # characters; what is longer stays source text

_FORMULA = re.compile(
    rf"""
      \$\$ (?P<dollars>.{{1,{LONGEST_FORMULA}}}?) \$\$
    | \\\[ (?P<brackets>.{{1,{LONGEST_FORMULA}}}?) \\\]
    | \\\( (?P<parens>.{{1,{LONGEST_FORMULA}}}?) \\\)
    | (?<!\\) \$ (?P<dollar>[^$\n]{{1,{LONGEST_FORMULA}}}) (?<!\\) \$
    """,
    re.DOTALL | re.VERBOSE,
)
_BLOCKS = ("dollars", "brackets")

# The converter's output for ordinary mathematics. Model output can make it write links, styles and
# classes as well: such formulas stay source text.
_TAGS = re.compile(
    "math|mrow|mi|mn|mo|mtext|mspace|mfrac|msqrt|mroot|msup|msub|msubsup|mover|munder|munderover"
    "|mtable|mtr|mtd|mstyle|menclose|mpadded|mphantom"
)
_ATTRIBUTES = re.compile(
    "accent|columnalign|columnlines|columnspacing|depth|display|displaystyle|fence|form|height"
    "|largeop|linebreak|linethickness|lspace|mathsize|mathvariant|maxsize|minsize|movablelimits"
    "|notation|rowlines|rowspacing|rspace|scriptlevel|separator|stretchy|voffset|width"
)
_VALUE = re.compile(r"[\w.%+ -]*")


def render(text: str) -> str:
    """`text` as HTML: formulas between `$`, `$$`, `\\(` or `\\[` as MathML, all else escaped.

    The source of a formula follows it as `code`, of which a page shows one: `math + code`.
    """
    return "".join(_pieces(text))


def _pieces(text: str) -> Iterator[str]:
    position = 0
    for found in _FORMULA.finditer(text):
        yield html.escape(text[position : found.start()])
        yield _formula(found)
        position = found.end()
    yield html.escape(text[position:])


def _formula(found: re.Match[str]) -> str:
    kind = found.lastgroup or ""
    display = "block" if kind in _BLOCKS else "inline"
    try:
        formula = _serialised(convert_to_element(found[kind], display=display))
        return f"{formula}<code>{html.escape(found[0])}</code>"
    except Exception:  # untrusted model output: whatever cannot be converted is shown as it is
        return html.escape(found[0])


def _serialised(element: Element) -> str:
    """The element as HTML; raises ValueError for tags or attributes outside the lists above."""
    if not _TAGS.fullmatch(element.tag):
        raise ValueError(element.tag)
    attributes = []
    for name, value in element.attrib.items():
        if name == "xmlns":
            continue
        if not _ATTRIBUTES.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(name)
        attributes.append(f' {name}="{value}"')
    inner = "".join([_text(element.text), *(_serialised(e) + _text(e.tail) for e in element)])
    return f"<{element.tag}{''.join(attributes)}>{inner}</{element.tag}>"


def _text(text: str | None) -> str:
    """Escaped text; the converter writes symbols as character references."""
    return html.escape(html.unescape(text or ""))
