"""What the comparison takes for equal, by kind; both directions of each rule."""

import time

import pytest

from bandpo.reward.equality import judge

SAME_NUMBER = [
    (r"\text{negative }7", "-7"),
    (r"\text{minus seven}", "-7"),
    (r"\text{negative } 7 \text{ degrees}", r"-7^\circ"),
    (r"2019\cdot 2018!", "2019!"),
    (r"\frac{100!}{50!\,50!}", r"\binom{100}{50}"),
    (r"\frac{2006!}{2004!}", r"2005\cdot 2006"),
    ("2^{-99}", r"\frac{1}{2^{99}}"),
    (r"\frac{2}{2^{100}}", r"\frac{1}{2^{99}}"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
    (r"\frac{1}{\sqrt2}", r"\sin\frac{\pi}{4}"),
    (r"\tan 15^\circ", r"2-\sqrt{3}"),
    (r"e^{-998}\cdot e^{-1}", "e^{-999}"),
    (r"\log_4 9", r"\log_2 3"),
    (r"\cos\frac{\pi}{7}\cos\frac{2\pi}{7}\cos\frac{3\pi}{7}", r"\frac{\pi}{8\pi}"),
    (r"\frac{1}{2}+\frac{1}{2\cdot 3^{100}}", r"\frac12\left[\left(\frac13\right)^{100}+1\right]"),
]
OTHER_NUMBER = [
    (r"\text{minus seven}", "7"),
    (r"\text{negative}", "-1"),
    ("e^{-999}", "0"),
    ("e^{-999}", "2013"),
    ("e^{-999}", r"\frac{2^{2005}+1}{3\cdot 2^{2006}}"),
    (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
    (r"\frac{\sqrt3}{10^{20}}", r"\frac{\sqrt2}{10^{20}}"),
    (r"\sqrt2+10^{-40}", r"\sqrt2"),
    (r"\sqrt2+e^{-999}", r"\sqrt2"),
    ("1", "1-2^{-60}"),
    ("e^{101}", "e^{100}"),
    ("2^{2^{11}}", "2^{2^{10}}"),
    (r"\tan 40", r"\tan 40^\circ"),
    ("10^{10^{10}}", "10^{10^{10}}+1"),
    (r"\frac{1}{2^{2012}}", r"\frac{2013^{2014}}{2013^{2013}-1}"),
    ("1.41421356", r"\sqrt2"),
    ("0.333333", r"\frac13"),
]
SAME_FUNCTION = [
    ("2 sin x", r"2\sin x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{2}{\sin 2x}", r"\tan x+\cot x"),
    (r"\arccos(1-2a)", r"2\arcsin\sqrt a"),
    (r"\sqrt{x^2}", "|x|"),
    (r"\frac{(2n)!}{(n!)^2}", r"\binom{2n}{n}"),
    ("(-1)^{n+2}", "(-1)^n"),
    (r"a^x\ln a", r"\ln(a)\cdot a^x"),
    (r"\frac{n(n-1)}{2}", r"\binom{n}{2}"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    (r"\frac{\pi}{4}+n\pi", r"\frac{\pi}{4}+k\pi"),
]
OTHER_FUNCTION = [
    (r"\sqrt{x^2}", "x"),
    (r"\ln x+C", r"\ln|x|+C"),
    ("(-1)^{n+1}", "(-1)^n"),
    ("x+e^{-999}", "x"),
    (r"\lfloor x\rfloor", "x"),
    (r"\sqrt{1-\frac{2R}{r}}", r"\sqrt{1-\frac{2r}{R}}"),
    (r"\frac{V}{v}", r"\frac{v}{V}"),
    ("n-N", "N-n"),
    ("2a", "A+a"),
    ("0", "R^2-r^2"),
    ("f'(x)", "f(x)"),
    ("(k,k+1)", "(n,n+1)"),
]
SAME_RELATION = [
    ("4x+2y=6", "y=-2x+3"),
    ("2x+3", "y=2x+3"),
    ("f(x)=2x+3", "y=2x+3"),
    (r"\frac{x-1}{2}", r"f^{-1}(x)=\frac{x-1}{2}"),
    (r"y=\frac6x", "xy=6"),
    (r"\rho=\sqrt3\csc\theta", r"\rho\sin\theta=\sqrt3"),
    ("5=x", "x=5"),
    ("(3,4)", "x=3,y=4"),
    ("3,4", "x=3,y=4"),
    ("y=4,x=3", "x=3,y=4"),
    ("b=3, a=2", "(a,b)=(2,3)"),
    (r"x \ne 3", r"x \not= 3"),
    ("5<x", "x>5"),
    ("-2x<-10", "x>5"),
]
OTHER_RELATION = [
    ("x=3", r"\log_2 x=3"),
    ("x=3", "|x|=3"),
    ("x=3", r"\sqrt{x}=3"),
    (r"x=\frac12", r"\sin x=\frac12"),
    (r"\cos x=\frac12", r"\sin x=\frac12"),
    (r"\theta=2", r"\tan\theta=2"),
    ("x=6", "2x=6"),
    ("xz=12", "xy=12"),
    ("x=3y", "y=3x"),
    ("y=1", "xy=x"),
    (r"y=2\sqrt x", "y^2=4x"),
    ("(4,3)", "x=3,y=4"),
    ("4,3", "x=3,y=4"),
    ("x=4,y=3", "x=3,y=4"),
    (r"\{3,4\}", "x=3,y=4"),
    (r"x \not= 3", "3"),
    (r"x\neq 3", "x=3"),
    ("-2x<10", "x>5"),
    ("5=7", "7"),
    ("x<5", r"x\le 5"),
    ("f(x)=x", "f(x)=x,f(x)=-x"),
]
SAME_COLLECTION = [
    (r"\{(1,2)\}", "(1,2)"),
    (r"\{(1,2),(3,4)\}", "(1,2),(3,4)"),
    ("2,1", r"\{1,2\}"),
    ("(1;2)", "(1,2)"),
    (r"\{\sqrt{8},1\}", r"1,2\sqrt2"),
    (r"\begin{pmatrix}3\\-4\end{pmatrix}", "(3,-4)"),
    ("(2,1),(1,2)", "(1,2),(2,1)"),
    ("x<-1 or x>3", r"(-\infty,-1)\cup(3,\infty)"),
    (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"\{3\}", "3"),
    (r"\angle CBA", r"\angle ABC"),
]
OTHER_COLLECTION = [
    (r"\{(1,2)\}", "(2,1)"),
    (r"\{(1,2),(3,4)\}", "(1,2)"),
    ("(1,2)", r"\{1,2\}"),
    ("(2,1)", "(1,2)"),
    ("[1,2]", "(1,2)"),
    (r"\{1,2\}", "[1,2]"),
    ("1,2,3,4", "(1,2),(3,4)"),
    (r"\{\emptyset\}", r"\emptyset"),
    (r"\emptyset", r"\{\emptyset\}"),
    (r"\angle ACB", r"\angle ABC"),
    ("1,2", "1,2,3"),
    ("(2,1),(1,3)", "(1,2),(2,1)"),
    ("A. B. C. D.", "A"),
    ("AB", "A"),
    ("A and B", "A"),
    ("A", "ACD"),
]


def pairs(*lists):
    return [pair for cases in lists for pair in cases]


@pytest.mark.parametrize(
    ("answer", "gold"),
    pairs(SAME_NUMBER, SAME_FUNCTION, SAME_RELATION, SAME_COLLECTION),
)
def test_equal(answer, gold):
    assert judge(answer, gold) == "equal"


@pytest.mark.parametrize(
    ("answer", "gold"),
    pairs(OTHER_NUMBER, OTHER_FUNCTION, OTHER_RELATION, OTHER_COLLECTION),
)
def test_different(answer, gold):
    assert judge(answer, gold, lowest_form="off") != "equal"


@pytest.mark.parametrize(("answer", "gold"), pairs(SAME_NUMBER, SAME_FUNCTION))
def test_values_are_equal_in_both_directions(answer, gold):
    assert judge(gold, answer, lowest_form="off") == "equal"


@pytest.mark.parametrize(
    ("answer", "gold", "reason"),
    [
        ("5 km", r"5\text{ m}", "other_unit"),
        ("(1,2)", r"\{1,2\}", "other_brackets"),
        ("37+14", "51", "unevaluated"),
        (r"\sqrt8+\sqrt2", r"3\sqrt2", "unevaluated"),
        (r"\frac{", "51", "unparsed"),
        ("52", "51", "different"),
    ],
)
def test_a_wrong_answer_has_its_reason(answer, gold, reason):
    assert judge(answer, gold) == reason


# --- lowest form -----------------------------------------------------------------------------

CLOSED_FORMS = [
    ("2^{10}", "1024"),
    (r"\binom52", "10"),
    (r"\log_2 8", "3"),
    (r"\frac24", r"\frac12"),
    ("e^{i\\pi}", "-1"),
    ("6!", "720"),
    (r"\sqrt{2601}", "51"),
    (r"\sin\frac{\pi}{6}", "0.5"),
]
ARITHMETIC = [
    ("37+14", "51"),
    ("60-9", "51"),
    (r"3\times 17", "51"),
    ("51+0", "51"),
    (r"51\cdot 1", "51"),
    (r"\frac{50}{2}-1", "24"),
    ("-(-5)", "5"),
    (r"7\frac{2}{4}", "7.5"),
    (r"\sum_{i=1}^{4} i", "10"),
]


@pytest.mark.parametrize(("answer", "gold"), CLOSED_FORMS)
def test_closed_forms_count_unless_strict(answer, gold):
    assert judge(answer, gold) == judge(answer, gold, lowest_form="off") == "equal"
    assert judge(answer, gold, lowest_form="strict") == "no_numeral"


@pytest.mark.parametrize(("answer", "gold"), ARITHMETIC)
def test_arithmetic_that_is_left_counts_only_where_form_is_off(answer, gold):
    assert judge(answer, gold) == "unevaluated"
    assert judge(answer, gold, lowest_form="strict") == "no_numeral"
    assert judge(answer, gold, lowest_form="off") == "equal"


# --- cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("9^{9^{9^9}}", "3"),
        ("10000000!", "3"),
        (r"10^{10^{10}}", r"\sqrt2"),
        ("((9!)!)!", r"\pi"),
        ("2^{2^{2^{2^{2^{2}}}}}", "x"),
        ("x^{9^{9^9}}", "x"),
        ("(1+x)^{10000000}", "1+x"),
    ],
)
def test_towers_cost_no_more_than_their_digits(answer, gold):
    judge("1", gold)
    start = time.process_time()
    assert judge(answer, gold, lowest_form="off") != "equal"
    assert time.process_time() - start < 3
