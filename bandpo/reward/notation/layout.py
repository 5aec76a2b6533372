"""LaTeX without layout: fences, fonts, colours, spaces and spellings that change no value."""

from __future__ import annotations

import re

from bandpo.reward.notation.braces import closing, rewritten, split_list

_IN_DOLLARS = r"(?<!\\)\$\$?((?:[^$\\]|\\.)*)\$\$?"
_FONTS = (
    "text|mbox|mathrm|textrm|textnormal|textbf|textit|mathbf|mathit|mathsf|boldsymbol|bm|pmb"
    "|operatorname|hbox|textsf|texttt|mathtt|emph|bold|textup|mathop|mathnormal|textsc"
)
_SIZES = "tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge"
_FUNCTIONS = (
    "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|min|max|gcd|lcm"
)
# Macros whose one argument is what they print, and those that print nothing of theirs.
_WRAPPERS = re.compile(
    r"\\(?:underline|ensuremath|fbox|boxed|framebox|uline|textbf|mbox|hbox|underbar"
    r"|mathop)\s*(?=\{)"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*(?:\[\w+\])?(?=\s*\{)")
_SILENT = re.compile(
    r"\\(?:tag\*?|label|hspace\*?|vspace\*?|color\s*(?:\[\w+\])?|hskip|ref)(?=\s*\{)"
)
_DONE = re.compile(
    r"\s*(?:\\(?:blacksquare|checkmark|qed|Box|square|surd)(?![A-Za-z])|[∎✓✔✅■□])+\s*$"
)
_FONT = re.compile(rf"\\(?:{_FONTS})\s*\*?(?=\s*\{{)")
_BINARY = re.compile(r"\\([dtc]?frac|[dt]?binom)(?![A-Za-z])")
_ROOT = re.compile(r"\\sqrt(?![A-Za-z])(?!\s*[\[{])")
_FONT_LETTER = re.compile(
    r"\\(?:text|mathrm|textrm|operatorname|rm|mathit|it)"
    r"(?:\s*\{\s*([eid])\s*\}|\s+([eid])(?![A-Za-z]))"
)
_UNCHANGED = re.compile(r"[-+]?\d+(?:\.\d+)?", re.ASCII)

_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (rf"^{_IN_DOLLARS}\s*([A-Za-z][A-Za-z ]*)$", r"\1\\text{\2}"),
        (_IN_DOLLARS, r"\1"),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\begin\s*\{(?:aligned|align\*?|gathered|equation\*?|split|gather\*?)\}"
         r"|\\end\s*\{(?:aligned|align\*?|gathered|equation\*?|split|gather\*?)\}", " "),
        (r"(?:√|(?<![A-Za-z\\])sqrt)\s*(\d+|[A-Za-z](?![A-Za-z(]))", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])(pi|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])oo(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?<=\s)!=(?=\s)", r"\\ne "),
        (r"\*\*", "^"),
        (r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?|middle)"
         r"(?![A-Za-z])\s*\.?", ""),
        (rf"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|nonumber|notag|centering|rm|bf"
         rf"|it|{_SIZES})(?![A-Za-z])", " "),
        (rf"\\(?:{_FONTS})\s*\*?\s*\{{", r"\\text{"),
        (rf"\\text\{{\s*(?!min|max|sec)({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"\\text\{\s*(?:tg|tan)\s*\}|\\tg(?![A-Za-z])", r"\\tan "),
        (r"\\text\{\s*(?:arctg)\s*\}|\\arctg(?![A-Za-z])", r"\\arctan "),
        (r"\\text\{\s*(?:ctg|cotan)\s*\}|\\ctg(?![A-Za-z])", r"\\cot "),
        (r"\\lg(?![A-Za-z])", r"\\log_{10} "),
        (r"\^\s*(\{)?\s*\\(?:circ|degree)(?![A-Za-z])\s*(?(1)\})|\\degrees?(?![A-Za-z])"
         r"|\\textdegree", r"^\\circ "),
        (r"(?:\\text)?\{([:,])\}", r"\1"),
        (r"\^\{\s*\\prime\s*\}|\^\s*\\prime(?![A-Za-z])", "'"),
        (r"\{(\d+)\}(?=\^\\circ)", r"\1"),
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:neq|not\s*=)", r"\\ne"),
        (r"\\ne(?![A-Za-z])", r"\\ne "),
        (r"\\(?:varnothing|empty|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:lbrace(?![A-Za-z])|\{)", r"\\{"),
        (r"\\(?:rbrace(?![A-Za-z])|\})", r"\\}"),
        (r"\\(?:langle)(?![A-Za-z])", "("),
        (r"\\(?:rangle)(?![A-Za-z])", ")"),
        (r"\\(?:lparen)(?![A-Za-z])", "("),
        (r"\\(?:rparen)(?![A-Za-z])", ")"),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\(?:colon)(?![A-Za-z])", ":"),
        (r"\\(?:R|Reals|reals)(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\mathbb\s*([RZNQC])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\(?:mathcal|mathds|Bbb)\s*\{?\s*([RZNQC])\s*\}?(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\big(cup|cap)(?![A-Za-z])", r"\\\1 "),
        (r"\^(-\d+|\d{2,})", r"^{\1}"),
        (r"\\(?:ldots|dots|cdots|dotsc|dotsb)(?![A-Za-z])", "..."),
        (r"\\(?:backslash)(?![A-Za-z])", r"\\setminus "),
        (r"\\(?:lor|vee)(?![A-Za-z])", r"\\text{ or }"),
        (r"\\(?:land)(?![A-Za-z])", r"\\text{ and }"),
        (r"(?<!\\)\\&", r"\\text{ and }"),
        (r"\\\$", "$"),
        (r"\\%", "%"),
        (r"(?<!\\)\\[,;:!> ]|~|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])", " "),
        (r"\\text\{([^A-Za-z{}\u4e00-\u9fff]*)\}", r"\1"),
        (r"^\\text\{\s*([-+$]?\s*\d[^{}]*|[A-Za-z]\w?\s*=[^{}]*)\}$", r"\1"),
        (r"(?<=[&\s])d(?=\s*(?:\\\\|\\end|&))", "{d}"),  # no differential
        (r"\s+", " "),
        (r"(?<=\d) (?=i(?![A-Za-z]))", ""),
    ]
]  # fmt: skip

_BUILDER = re.compile(r"\{\s*[A-Za-z]\s*(?:\||\\mid|:)")
_CHOOSE = re.compile(
    r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}|^([^{}]*)\\choose(?![A-Za-z])([^{}]*)$"
)
_PHANTOM = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|(?=[-\w]))|\\(?:math)?strut(?![A-Za-z])")
_UNIT_VECTOR = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|vec|hat|widehat|overrightarrow)"
    r"\s*\{\s*\\?([ijk])(?:math)?\s*\}"
)

_FINAL_PUNCTUATION = re.compile(r"(?<!\\)[,;:?]+$|(?<!\\)\\$|(?<![.\\])\.$|(?:\\[,;:! ]|~)+$")
_QUOTED = re.compile(r'^"([^"]*)"$|^``([^\']*)\'\'$|^`([^`]*)`$')


def plain(text: str) -> str:
    """The same formula in one spelling, as short as LaTeX allows."""
    if _UNCHANGED.fullmatch(text):
        return text
    text = _without_wrappers(trimmed(_DONE.sub("", text)))
    text = _PHANTOM.sub("", _CHOOSE.sub(r"\\binom{\1\3}{\2\4}", text))
    text = _UNIT_VECTOR.sub(r"\\vec{\1}", text)
    text = _FONT_LETTER.sub(lambda m: (m[1] or m[2]) + " ", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if "frac" in text or "binom" in text:
        text = rewritten(text, _BINARY, 2, _binary)
    if "\\sqrt" in text:
        text = rewritten(text, _ROOT, 1, lambda _, given: rf"\sqrt{{{given[0]}}}")
    text = trimmed(_rows(_functions(text)))
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        if len(split_list(text[1:-1])) > 1 or _BUILDER.match(text):
            return rf"\{{{text[1:-1]}\}}"  # {1, 2} of a program, {x | x > 1}
        text = trimmed(text[1:-1])
    return text


def _binary(match: re.Match[str], given: list[str]) -> str:
    name = "frac" if match[1].endswith("frac") else "binom"
    return rf"\{name}{{{given[0].strip()}}}{{{given[1].strip()}}}"


def _without_wrappers(text: str) -> str:
    """Without colour, underlines, tags and boxes inside the box."""
    if "\\" not in text:
        return text
    text = rewritten(text, _COLOURED, 2, lambda _, given: given[1])
    text = rewritten(text, _SILENT, 1, lambda _, given: "")
    text = rewritten(text, _FONT, 1, _unbold)
    text = re.sub(r"\\color\s*[a-z]+(?![A-Za-z])", "", text)
    return rewritten(text, _WRAPPERS, 1, lambda _, given: f" {given[0]} ")


def _unbold(match: re.Match[str], given: list[str]) -> str:
    """A formula in another font is a formula; words and letters keep theirs until later."""
    is_formula = "\\frac" in given[0] or "\\sqrt" in given[0]
    return f" {given[0]} " if is_formula else f"{match[0]}{{{given[0]}}}"


_CALL = re.compile(
    rf"(?<![A-Za-z\\])({_FUNCTIONS}|asin|acos|atan|sqrt|Abs|abs)"
    r"(?:(?=\s*[(\d\\])|(?<!min|max|sec)(?=\s+[a-z](?![A-Za-z])))"
)
_POWER = re.compile(r"\^\s*\(")
_SYMPY = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}


def _functions(text: str) -> str:
    """Names of functions as macros, as in `ln(a)*a^(x-1)`: `\\ln(a)*a^{x-1}`."""
    text = re.sub(r"√\s*(?=\()", "sqrt", text)
    for match in reversed(list(_CALL.finditer(text))):
        name, end = match[1], match.end()
        stop = closing(text, end) if text[end] == "(" else None
        inner = text[end + 1 : stop] if stop else ""
        if name in ("sqrt", "abs", "Abs", "exp"):
            written = {"sqrt": rf"\sqrt{{{inner}}}", "exp": f"e^{{{inner}}}"}.get(
                name, f"|{inner}|"
            )
            if stop:
                text = text[: match.start()] + written + text[stop + 1 :]
            continue
        text = text[: match.start()] + rf"\{_SYMPY.get(name, name)}" + text[end:]
    for match in reversed(list(_POWER.finditer(text))):
        if stop := closing(text, match.end() - 1):
            text = text[: match.start()] + f"^{{{text[match.end() : stop]}}}" + text[stop + 1 :]
    return re.sub(r"(?<=[\w})])\s*\*\s*(?=\\)", r" \\cdot ", text)


_SYSTEM = re.compile(r"\\begin\{(cases|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)


def _rows(text: str) -> str:
    """A system of equations in `cases` as a list of them; lines of `aligned` on one line."""
    text = re.sub(r"^\s*\\\{\s*(?=\\begin\{array\})", "", text)
    match = _SYSTEM.fullmatch(text.strip())
    if match and "&" not in match[2]:
        rows = [trimmed(row) for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2])]
        return ", ".join(row for row in rows if row)
    if "\\begin" not in text and ("\\\\" in text or "&" in text):
        text = re.sub(r"\\\\(?:\[[^\]]*\])?|&", " ", text)
    return text


def trimmed(text: str) -> str:
    """Without Markdown around an answer, quotes, and punctuation after it."""
    while (shorter := _trimmed_once(text)) != text:
        text = shorter
    return text


def _trimmed_once(text: str) -> str:
    text = _FINAL_PUNCTUATION.sub("", text.strip()).strip("*`")
    return _QUOTED.sub(lambda m: m[1] or m[2] or m[3] or "", text)
