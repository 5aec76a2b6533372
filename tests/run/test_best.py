"""`trainer.keep_best` names what the run will measure, whatever its benchmarks are called."""

import pytest

from bandpo.cli import main
from bandpo.errors import UserError
from bandpo.evaluation.samples import Sample
from bandpo.evaluation.summary import logged_metrics, require_logged, summarize

KEY = "trainer.keep_best"
# As they are called after loading: a group's members, and a file by its stem.
BENCHMARKS = ["math500", "amc23", "mine"]


@pytest.mark.parametrize(
    ("metric", "taken"),
    [
        *((None, True), ("reward/mean", True), ("eval/mine/mean@8", True)),
        *(("eval/math500/pass@4", True), ("eval/amc23/maj@8", True)),
        *(("eval/mine/correct_frac", True), ("eval/amc23/length/mean", True)),
        *(("eval/mine/mean@4", False), ("eval/math/mean@8", False), ("eval/mine", False)),
        *(("eval/", False), ("eval/mine/cons@8", False)),
    ],
)
def test_what_is_measured_is_taken_and_all_else_refused_with_what_is(metric, taken):
    try:
        require_logged(KEY, metric, BENCHMARKS, 8)
        refusal = ""
    except UserError as error:
        refusal = str(error)
    assert taken == (refusal == "")
    assert taken or (f"{KEY}={metric} is not measured" in refusal and "eval/mine/mean@8" in refusal)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_the_names_are_those_of_any_summary(n):
    group = [Sample("p", i, "correct", "1", "1", 3, False, 0, "", "1") for i in range(n)]
    assert logged_metrics("mine", n) == list(summarize("mine", {"n": n}, [group]).scalars())


@pytest.mark.parametrize(("best", "code"), [("math500/mean@32", 0), ("math500/mean@4", 2)])
def test_plan_knows_a_groups_members(best, code, capsys):
    settings = ["eval.benchmarks=[math]", "model.path=Qwen/Qwen2.5-3B-Instruct", "data=dapo_math"]
    assert main(["plan", "--cluster", "8xH200", *settings, f"{KEY}=eval/{best}"]) == code
    assert ("is not measured" in capsys.readouterr().err) == (code == 2)
