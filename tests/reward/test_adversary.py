"""No constant, no template and no small change of a reference may be taken for it.

Every hit, an answer that the verifier finds correct, must be equal by another way of computing:
mpmath at 700 digits, on what the parser reads. By default a part of the committed references is
tried; when slow all of them, and those of ../shared/data.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import mpmath
import pytest
import sympy

from bandpo.reward import MathVerifier, notation
from bandpo.reward.equality.names import named_parts, squeezed
from bandpo.reward.equality.reading import read


def lines_of(name: str) -> list[str]:
    """A list of this folder, an answer a line."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()


GOLDS, CONSTANTS = lines_of("golds.txt"), lines_of("constants.txt")
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
DIGITS = 700
SCALES = {"%": r"\frac{1}{100}", "degree": r"\frac{\pi}{180}"}
sys.set_int_max_str_digits(0)

TEMPLATES = [
    "{}+e^{-999}",
    "{}-10^{-30}",
    r"({})(1+10^{-40})",
    r"{}\cdot e^{-99}",
    "-({})",
    "{}+1",
    "2({})",
    r"\frac{1}{{}}",
    "({})^2",
    r"\sqrt{{}}",
    r"\sin({})",
    "{}!",
    r"{}\text{ million}",
    r"{}\text{ or }0",
    "{}, 0",
    r"{}, 10^{-30}",
    r"\pm({})",
    r"\neq {}",
    r"\not= {}",
    r"\text{not }{}",
    "> {}",
    r"\ge {}",
    r"\le {}",
    r"\text{at least }{}",
    r"[{},\infty)",
    "({},{})",
    "[{},{}]",
    "0={}",
    r"\{{},x\}",
    "{}=0",
    "{}=1=2",
    "5={}+1",
    r"{}\text{ and }1+{}",
    "|{}|",
    r"\overline{{}}",
    "{}?x",
]
BRACKETS = {"(": "[", ")": "]", "[": "(", "]": ")"}
SIGNS = {"+": "-", "-": "+", "<": ">", ">": "<"}


def test_the_adversary_is_large():
    assert len(set(CONSTANTS)) + len(TEMPLATES) >= 200
    assert len(GOLDS) >= 200


def mutations(gold: str) -> list[str]:
    """The reference with one changed sign, digit, bracket or case, at each of its places."""
    found = []
    for position, sign in enumerate(gold):
        before, after = gold[:position], gold[position + 1 :]
        in_macro = re.search(r"\\[A-Za-z]*$", before) is not None
        if sign.isdigit():
            found.append(before + str((int(sign) + 1) % 10) + after)
        elif sign in SIGNS or (sign in BRACKETS and not before.endswith("\\")):
            found.append(before + (SIGNS | BRACKETS)[sign] + after)
        elif sign.isalpha() and not in_macro and r"\text" not in gold:
            found.append(before + sign.swapcase() + after)
        if sign == "-" and not before.endswith("{"):
            found.append(before + after)
    if not gold.startswith(("-", "\\text")):
        found.append(f"-{gold}")
    return list(dict.fromkeys(found))


def answers_to(gold: str, constants: list[str]) -> list[str]:
    """Everything that is tried against one reference."""
    templates = [template.replace("{}", gold) for template in TEMPLATES]
    return [*constants, *templates, *mutations(gold)]


def false_hits(golds: list[str], constants: list[str], every: int = 1) -> list[tuple[str, str]]:
    """The (answer, reference) pairs that are found equal and are not."""
    tried = [(answer, gold) for gold in golds for answer in answers_to(gold, constants)][::every]
    with MathVerifier(lowest_form="off", timeout=5.0) as verifier:
        scores = verifier.score([(rf"\boxed{{{answer}}}", gold) for answer, gold in tried])
    hits = [pair for pair, score in zip(tried, scores, strict=True) if score.correct]
    return [pair for pair in hits if not really_equal(*pair)]


# --- the other way of computing ----------------------------------------------------------------


def really_equal(answer: str, gold: str) -> bool:
    """Whether texts say the same, or what they are read as has the same values at 700 digits."""
    one, other = (notation.canonical(text) for text in (answer, gold))
    if squeezed(one) == squeezed(other) or _literally(one, other):
        return True
    if _same_values(one, other):
        return True
    # an angle in degrees and a percentage are numbers where the other side has no unit
    units = [notation.quantity(text, letters=False) for text in (one, other)]
    if "" not in {unit.unit for unit in units}:
        return False
    scaled = [
        rf"({unit.value})\cdot{scale}" if (scale := SCALES.get(unit.unit)) else text
        for unit, text in zip(units, (one, other), strict=True)
    ]
    return scaled != [one, other] and _same_values(*scaled)


def _same_values(one: str, other: str) -> bool:
    values = [_value_of(text) for text in (one, other)]
    with mpmath.workdps(DIGITS):
        return all(v is not None for v in values) and _equal(*values)


def _literally(one: str, other: str) -> bool:
    shown = notation.labelled(other)  # (D) 12 is answered by D, by 12 and by both
    if shown and one.upper() in (shown[0], f"({shown[0]})", shown[1], f"({shown[0]}) {shown[1]}"):
        return True
    reference, label = notation.literal(other), notation.labelled(one)
    if label and label[1] and other.strip("()") == label[0]:
        is_scaled = re.search(r"hundred|thousand|million|billion|dozen", label[1])
        is_text = label[1][0].isalnum() or label[1].startswith("\\text")  # of the option
        return is_text and not is_scaled
    return reference is not None and reference == notation.literal(one)


def _value_of(text: str):
    """What an answer is read as, without a bare name and without its unit; None for none."""
    parts = named_parts(text)
    if any(part.name for part in parts):
        text = ",".join(part.value for part in parts)
    readings = read(notation.quantity(text.strip(), letters=False).value)
    return readings[0] if readings else None


def _equal(one, other) -> bool:
    if isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr):
        return _same_numbers(one, other)
    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        return one.shape == other.shape and all(map(_equal, one.flat(), other.flat()))
    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        flags = (one.left_open, one.right_open) == (other.left_open, other.right_open)
        return flags and _equal(one.start, other.start) and _equal(one.end, other.end)
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet):
        orders = itertools.permutations(other.args)
        return len(one) == len(other) and any(all(map(_equal, one.args, o)) for o in orders)
    if isinstance(one, sympy.Rel) and isinstance(other, sympy.Rel):
        left, right = one.lhs - one.rhs, other.lhs - other.rhs
        ratio = sympy.simplify(left / right)
        same_kind = one.func is other.func or {one.func, other.func} in (
            {sympy.Gt, sympy.Lt}, {sympy.Ge, sympy.Le},
        )  # fmt: skip
        return bool(same_kind and ratio.is_number and (one.func is sympy.Eq or ratio.is_real))
    if isinstance(one, sympy.Rel) != isinstance(other, sympy.Rel):
        sets = [side.as_set() if isinstance(side, sympy.Rel) else side for side in (one, other)]
        return bool(sets[0] == sets[1])
    elements = [_elements(side) for side in (one, other)]
    if None not in elements:
        return len(elements[0]) == len(elements[1]) and all(map(_equal, *elements))
    if isinstance(one, sympy.FiniteSet) and len(one) == 1:
        return _equal(one.args[0], other)
    return bool(one.doit() == other.doit())


def _elements(value):
    if isinstance(value, sympy.Tuple):
        return value.args
    if isinstance(value, sympy.Interval) and value.left_open and value.right_open:
        return (value.start, value.end)
    return getattr(value, "_unsorted_args", None)


def _same_numbers(one: sympy.Expr, other: sympy.Expr) -> bool:
    if one.has(sympy.oo, sympy.zoo, sympy.nan) or other.has(sympy.oo, sympy.zoo, sympy.nan):
        return one == other
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    functions = [sympy.lambdify(symbols, side.doit(), "mpmath") for side in (one, other)]
    compared = 0
    whole = any(
        side.has(sympy.factorial, sympy.binomial)
        or any(power.base.is_negative and power.exp.free_symbols for power in side.atoms(sympy.Pow))
        for side in (one, other)
    )
    for start in ("2", "3", "5", "7") if whole else ("0.37", "2.91", "-1.73", "0.83"):
        point = [
            mpmath.mpf(start) + (k if whole else mpmath.mpf(k) / 7) for k in range(len(symbols))
        ]
        try:
            a, b = (mpmath.mpmathify(function(*point)) for function in functions)
        except (ValueError, TypeError, ZeroDivisionError, NameError, OverflowError):
            continue
        if abs(a - b) > mpmath.mpf(10) ** (50 - DIGITS) * max(abs(a), abs(b)):
            return False
        compared += 1
    return compared > 0


# --- the trials ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("e^{-999}", "2013", False),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False),
        (r"\frac{4}{2^{99}}", r"\frac{1}{2^{97}}", True),
        (r"\{1,2\}", "2,1", True),
        ("(1,2)", "[1,2]", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("v", "V", False),
        (r"\text{(C)}\text{ million}", r"\text{(C)}", False),
    ],
)
def test_the_other_way_of_computing_is_right(answer, gold, equal):
    assert really_equal(answer, gold) is equal


def test_nothing_is_taken_for_a_reference():
    assert false_hits(GOLDS, CONSTANTS, every=23) == []


@pytest.mark.slow
def test_no_constant_of_all_is_taken_for_a_reference():
    assert false_hits(GOLDS, CONSTANTS) == []


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    "name", ["aime24", "aime25", "amc23", "math500", "math_train_l35", "dapo_sample"]
)
def test_no_reference_of_the_data_is_met_by_a_constant(name):
    lines = (SHARED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    golds = {str(json.loads(line)["answer"]) for line in lines}
    harder = sorted(gold for gold in golds if notation.certain_value(gold) is None)
    assert false_hits(harder, CONSTANTS) == []
