"""Characters of Unicode, and words of Chinese, as the LaTeX and the English that they stand for."""

from __future__ import annotations

import re
import unicodedata

_GREEK_LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "sigma sigma tau upsilon phi chi psi omega"
)
_GREEK = {chr(0x3B1 + i): rf"\{name} " for i, name in enumerate(_GREEK_LETTERS.split())}
_SIGNS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", ""),
    **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙", r"\cdot "),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("“”„‟«»", '"'),
    **dict.fromkeys("‘’′ʹ＇", "'"),
    **dict.fromkeys("″＂", "''"),
    **_GREEK,
    "ϕ": r"\phi ",
    "ϵ": r"\epsilon ",
    "Δ": r"\Delta ",
    "Ω": r"\Omega ",
    "÷": r"\div ",
    "∕": "/",
    "⁄": "/",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∅": r"\emptyset ",
    "∀": r"\forall ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "∠": r"\angle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}",
    "⅖": r"\frac{2}{5}",
    "⅗": r"\frac{3}{5}",
    "⅘": r"\frac{4}{5}",
    "⅙": r"\frac{1}{6}",
    "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}",
    "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "、": ",",
    "。": ".",
    "…": r"\ldots ",
    **{chr(0x2460 + i): rf"\textcircled{{{i + 1}}}" for i in range(20)},
}
_SIGN_TABLE = str.maketrans(_SIGNS)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

# Longer words first: a shorter one may be a part of them.
_CHINESE = {
    "平方厘米": "square centimeters",
    "平方分米": "square decimeters",
    "平方千米": "square kilometers",
    "平方米": "square meters",
    "立方厘米": "cubic centimeters",
    "立方分米": "cubic decimeters",
    "立方米": "cubic meters",
    "没有实数解": "no solution",
    "所有实数": "all real numbers",
    "全体实数": "all real numbers",
    "任意实数": "all real numbers",
    "无实数解": "no solution",
    "无理数": "irrational",
    "有理数": "rational",
    "不存在": "does not exist",
    "不正确": "incorrect",
    "空集": "the empty set",
    "无解": "no solution",
    "厘米": "centimeters",
    "毫米": "millimeters",
    "分米": "decimeters",
    "千米": "kilometers",
    "公里": "kilometers",
    "千克": "kilograms",
    "公斤": "kilograms",
    "毫升": "milliliters",
    "小时": "hours",
    "分钟": "minutes",
    "美元": "dollars",
    "弧度": "radians",
    "或者": " or ",
    "以及": " and ",
    "偶数": "even",
    "奇数": "odd",
    "质数": "prime",
    "素数": "prime",
    "合数": "composite",
    "正确": "correct",
    "错误": "incorrect",
    "米": "meters",
    "克": "grams",
    "吨": "tons",
    "升": "liters",
    "元": "yuan",
    "角": "jiao",
    "秒": "seconds",
    "天": "days",
    "年": "years",
    "度": "degrees",
    "万": "ten thousand",
    "亿": "hundred million",
    "或": " or ",
    "和": " and ",
    "与": " and ",
    "及": " and ",
    "且": " and ",
    "是": "yes",
    "否": "no",
    "第": "",
}
_HAN = "\u4e00-\u9fff"
_HAN_RUN = re.compile(rf"[{_HAN}]+")
_CHINESE_WORD = re.compile("|".join(_CHINESE))


def as_latex(text: str) -> str:
    """The text in ASCII, apart from letters: `½` as `\\frac{1}{2}`, `，` as a comma, `或` as or."""
    if text.isascii():
        return text
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGN_TABLE)).translate(_SIGN_TABLE)
    return _HAN_RUN.sub(_chinese, text)


def _chinese(match: re.Match[str]) -> str:
    """A run of Chinese as words in `\\text`, or bare where one of them joins two answers."""
    before = match.string[: match.start()]
    enclosed = before.rfind(r"\text{") > before.rfind("}")
    words = _CHINESE_WORD.sub(lambda m: _CHINESE[m[0]], match[0])
    if enclosed or not words.strip() or words.strip() in ("and", "or"):
        return words
    return rf" \text{{{words}}} " if not words.startswith(" ") else words
