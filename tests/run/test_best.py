"""`trainer.keep_best` names what the run will measure, whatever its benchmarks are called."""

import pytest

from bandpo.data.benchmarks import Benchmark
from bandpo.errors import UserError
from bandpo.evaluation.samples import Sample
from bandpo.evaluation.summary import logged_accuracies, summarize
from bandpo.run.inputs import _require_measured

# As they are called after loading: a group's members, and a file by its stem.
BENCHMARKS = [Benchmark(name, (), "", "") for name in ("math500", "amc23", "mine")]


@pytest.mark.parametrize(
    "best",
    [None, "reward/mean", "eval/mine/mean@8", "eval/math500/pass@4", "eval/amc23/maj@8"],
)
def test_what_is_measured_is_taken(best):
    _require_measured(best, BENCHMARKS, 8)


@pytest.mark.parametrize("best", ["eval/mine/mean@4", "eval/math/mean@8", "eval/mine", "eval/"])
def test_what_is_not_is_refused_with_what_is(best):
    with pytest.raises(UserError, match=r"is not measured.*eval/mine/mean@8"):
        _require_measured(best, BENCHMARKS, 8)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_the_names_are_those_that_a_summary_logs(n):
    group = [Sample("p", i, "correct", "1", "1", 3, False, 0, "", "1") for i in range(n)]
    logged = {name for name in summarize("mine", {"n": n}, [group]).scalars() if "@" in name}
    assert set(logged_accuracies("mine", n)) == logged
