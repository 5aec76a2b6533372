import time
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
        ("12 apples", "12", "apple"),
        ("5m", "5", "m"),
        ("x", "x", ""),
        ("x+y", "x+y", ""),
        (r"\sin x", r"\sin x", ""),
        (r"10 \frac{\text{m}}{\text{s}}", "10", "m/s"),
        (r"10\text{ m s}^{-1}", "10", "m/s"),
        (r"9.8\text{ m s}^{-2}", "9.8", "m/s^2"),
        (r"x \equiv 10 \pmod{7}", "3", "mod 7"),
        (r"1,9 \pmod 8", "1, 1", "mod 8"),
        ("12_{10}", "12", ""),
        (r"(1011)_{\text{two}}", "1011", "base 2"),
        (r"30^\circ , 150^\circ", "30, 150", "degree"),
        (r"7\text{ goats}, 4\text{ pigs}", "(7, 4)", "goat;pig"),
        (r"180^\circ -2\alpha", r"180-2\alpha", "degree"),
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


@pytest.mark.parametrize(
    "words",
    ["below", "times 3", "minus", "or more", "to 6", "is wrong", "factorial", "not", "at most, 6"],
)
def test_words_that_change_a_number_are_no_unit(words):
    text = rf"5\text{{ {words}}}"
    assert notation.quantity(text) == notation.Quantity(text)


@pytest.mark.parametrize(
    ("one", "other", "contradict"),
    [
        ("", "km", False),
        ("km", "km", False),
        ("km", "m", True),
        ("%", "$", True),
        ("%", "degree", True),
        ("apple", "orange", True),
        ("stuffed goats", "goat", False),
        ("piece of cake", "piece", False),
        ("unit", "cm", False),
        ("base 2", "", True),
        ("", "base 2", False),
    ],
)
def test_units_contradict(one, other, contradict):
    assert notation.Quantity("5", one).contradicts(notation.Quantity("5", other)) is contradict


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        # characters
        ("½", r"\frac{1}{2}"),
        ("４２", "42"),
        ("x≥1", r"x\ge 1"),
        ("x=1或x=2", "x=1 or x=2"),
        ("3小时", r"3 \text{hours}"),
        ("①、③", r"\textcircled{1},\textcircled{3}"),
        # layout
        (r"\textcolor{red}{42}", "42"),
        (r"{\color{blue}42}", "42"),
        (r"\Large\frac{1}{2}", r"\frac{1}{2}"),
        (r"42\tag{1}", "42"),
        (r"0\phantom{42}", "0"),
        (r"\begin{aligned}x&=5\end{aligned}", "x =5"),
        (r"\dfrac {n^2} 4", r"\frac{n^2}{4}"),
        (r"\frac\pi2", r"\frac{\pi}{2}"),
        (r"{n \choose k}", r"\binom{n}{k}"),
        (r"\frac{1}{\cos 20^{\circ}}", r"\frac{1}{\cos \frac{20\pi}{180} }"),
        (r"2 i", "2i"),
        (r"\mathrm e^x", "e ^x"),
        ("x^(1/2)", "x^{1/2}"),
        ("sqrt(x+(y+1))", r"\sqrt{x+(y+1)}"),
        (r"\begin{cases}x=1\\y=2\end{cases}", "x=1, y=2"),
        # sentences
        (r"\text{The answer is }42", "42"),
        ("42 is the answer", "42"),
        ("42 (by symmetry)", "42"),
        (r"f(x)=x \text{ for all } x\in\mathbb{R}", "y=x"),
        (r"n\pi, n\in\mathbb{Z}", r"k\pi"),
        (r"n\pi, n\in\mathbb{N}", r"k\pi, k\in\mathbb{N}"),
        # numbers
        (r"11,\! 111,\! 111", "11111111"),
        ("1,00,000", "100000"),
        (r"0.1\dot{6}", r"0.1\overline{6}"),
        ("0.333...", r"0.\overline{3}"),
        ("0.16...", "0.16..."),
        (r"2.5\text{ million}", "2500000"),
        (r"\frac{1}{2}\text{ dozen eggs}", r"6 \text{ eggs}"),
        ("One thousand six hundred twenty-five", "1625"),
        (r"\text{two thirds}", r"\frac{2}{3}"),
        (r"\text{one, two}", r"1 \text{ two}"),
        (r"12^{\text{th}}", "12"),
        (r"7\text{ squared}", "7^{2}"),
        # angles
        (r"60^\circ 24'", r"60.4^\circ"),
        (r"\tan 40^\circ", r"\tan \frac{40\pi}{180}"),
        (r"(3,90^\circ)", r"(3,\frac{90\pi}{180} )"),
        (r"(30^\circ,60^\circ)", r"(30^\circ ,60^\circ )"),
        # shapes
        ("3:4:5", r"(\frac{4}{3},\frac{5}{3})"),
        ("A(1,2)", "A=(1,2)"),
        ("1/2 x", r"\frac{1}{2} x"),
        (r"\frac{x^3}{3}+c", r"\frac{x^3}{3}+C"),
        # sets
        (r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt{5}}{2}, \frac{1-\sqrt{5}}{2}"),
        (r"(\pm1,\mp2)", "(1,-2), (-1,2)"),
        (r"\{x \mid x>3\}", "x>3"),
        ("3>x>1", "1 < x < 3"),
        (r"x<1 \text{ or } x\ge2", r"(-\infty,1) \cup [2,\infty)"),
        (r"x\ne1", r"(-\infty,\infty) \setminus \{1\}"),
        (r"1<x<3, x\ne2", r"(1,3) \setminus \{2\}"),
        (r"x>0\text{ and }y>0", r"x>0\text{ and }y>0"),
        (r"\text{all real numbers}", r"(-\infty,\infty)"),
        (r"\{x\in\mathbb{Z}: |x|\le 1\}", r"\{-1,0,1\}"),
    ],
)
def test_one_spelling(text, canonical):
    assert notation.canonical(text) == canonical


HOSTILE = [
    "{",
    "}",
    "\\text{",
    "(",
    "1,",
    "a ",
    "\\pm ",
    "x<",
    " or ",
    "A, ",
    "one ",
    "0.3",
    "'",
    "^\\circ ",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_reading_is_fast_on_any_text(piece):
    text = (piece * notation.MAX_CHARS)[: notation.MAX_CHARS]
    start = time.process_time()
    canonical = notation.canonical(text)
    notation.quantity(canonical)
    notation.literal(canonical)
    assert time.process_time() - start < 0.5


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*HOSTILE, "42", "x", "=", r"\frac", "I", ":", "$", "D", ".", "或"]))
)
def test_any_text_has_a_spelling(pieces):
    canonical = notation.canonical("".join(pieces))
    assert isinstance(notation.quantity(canonical).value, str)
    if literal := notation.literal(canonical):
        assert literal.read(canonical) is None or literal.answered_by(canonical)
    assert notation.labelled(canonical) is None or len(notation.labelled(canonical)[0]) == 1
    assert all(len(piece) == 2 for piece in notation.pieces(canonical) or [])
