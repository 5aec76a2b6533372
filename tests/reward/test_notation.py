from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bandpo.reward import notation
from bandpo.reward.equality import judge


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("-042", Fraction(-42)),
        ("0.25", Fraction(1, 4)),
        (".5", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        ("3/4", Fraction(3, 4)),
        ("3:4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"2\frac{1}{3}", Fraction(7, 3)),
        (r"-2 \frac13", Fraction(-7, 3)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"1.5 \times 10^{3}", Fraction(1500)),
        ("10^3", Fraction(1000)),
        ("2.5e-2", Fraction(1, 40)),
        ("(7)", Fraction(7)),
        # left to evaluate
        ("37+14", None),
        ("102/2", None),
        (r"\frac{2}{4}", None),
        (r"\frac{5}{1}", None),
        (r"1\frac{2}{4}", None),
        (r"1\frac{4}{3}", None),
        ("2^{10}", None),
        (r"\sqrt{4}", None),
        ("3!", None),
        ("--5", None),
        ("1/0", None),
        ("x", None),
        ("", None),
        (".", None),
        ("1,2", None),
    ],
)
def test_numerals_are_rational_numbers_in_lowest_form(text, value):
    assert notation.numeral(text) == value


@given(st.fractions(), st.booleans())
def test_a_fraction_is_the_numeral_of_its_value(value, sign_inside):
    n, d = value.numerator, value.denominator
    assume(abs(n) < 10**60 and d < 10**60 and d > 1)
    inside = rf"\frac{{{n}}}{{{d}}}"
    outside = rf"{'-' if n < 0 else ''}\frac{{{abs(n)}}}{{{d}}}"
    assert notation.numeral(inside if sign_inside else outside) == value
    assert notation.numeral(notation.fraction(value)) == value
    assert notation.numeral(rf"\frac{{{2 * n}}}{{{2 * d}}}") is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-1e9, max_value=1e9))
def test_decimals_become_exact(value):
    text = f"{value:f}"
    assert notation.numeral(text) == Fraction(text)
    assert notation.numeral(notation.exact(text.removeprefix("-"))) == abs(Fraction(text))


DIGITS = st.text("0123456789", min_size=1, max_size=9)
GROUPED = st.lists(st.integers(0, 999), min_size=1, max_size=3).flatmap(
    lambda groups: st.integers(1, 999).map(
        lambda head: ",".join([str(head), *(f"{group:03d}" for group in groups)])
    )
)
PLAIN = st.builds(
    lambda sign, body, suffix: f"{sign}{body}{suffix}",
    st.sampled_from(["", "-", "+"]),
    DIGITS | GROUPED | st.builds("{}.{}".format, DIGITS, DIGITS) | st.builds(".{}".format, DIGITS),
    st.sampled_from(["", "", "."]),
)


@settings(max_examples=150, deadline=None)
@given(PLAIN, PLAIN, st.booleans())
def test_certain_cases_agree_with_math_verify(answer, gold, same):
    gold = answer.lstrip("+").lstrip("0") if same else gold
    left, right = notation.certain_value(answer), notation.certain_value(gold)
    assume(left is not None and right is not None)
    assert (judge(answer, gold) == "equal") == (left == right)


@pytest.mark.parametrize("text", ["1/2", "1e3", "x", "", "1,2", "12,34", "½", "٣", "1 000", "5 cm"])
def test_nothing_else_is_certain(text):
    assert notation.certain_value(text) is None


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"5\text{ cm}", "5", "cm"),
        ("5 centimeters", "5", "cm"),
        (r"90^\circ ", "90", "degree"),
        ("50%", "50", "%"),
        ("$7", "7", "$"),
        ("-$7", "-7", "$"),
        ("12_{7}", "12", "base 7"),
        (r"3 \text{ square feet}", "3", "ft^2"),
        (r"3 \text{ ft}^2", "3", "ft^2"),
        (r"60 \text{ miles per hour}", "60", "mi/h"),
        ("60 mph", "60", "mi/h"),
        ("12 apples", "12", "apples"),
        ("5m", "5", "m"),
        ("x", "x", ""),
        ("x+y", "x+y", ""),
        (r"\sin x", r"\sin x", ""),
    ],
)
def test_quantities(text, value, unit):
    assert notation.quantity(text) == notation.Quantity(value, unit)


@pytest.mark.parametrize(
    ("text", "too_large"),
    [
        ("x" * notation.MAX_CHARS, False),
        ("x" * (notation.MAX_CHARS + 1), True),
        ("(" * 24 + ")" * 24, False),
        ("(" * 25 + ")" * 25, True),
        ("9" * 64, False),
        ("9" * 65, True),
        ("1.5E+9999999", True),
        ("1e30", False),
    ],
)
def test_size_is_bounded_before_parsing(text, too_large):
    assert notation.too_large(text) is too_large
