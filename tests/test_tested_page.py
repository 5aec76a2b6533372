"""docs/tested.md is what tests/tested.yaml, the markers and the recorded results say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from document_tested import (
    TESTS,
    Feature,
    document,
    features,
    outcomes,
    row,
    suites,
    suites_by_test,
    suites_in,
)

from benchmarks.gpu.checks import CHECKS

ROOT = Path(__file__).resolve().parents[1]
LINES = [line for lines in features().values() for line in lines]
MODULE = """
import pytest
{pytestmark}

def test_quick(): ...

@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_long(ranks): ...

@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_both(ranks): ...

class TestRules:
    @pytest.mark.gpu
    def test_card(self): ...
"""


COLLECT = """
import sys
import pytest

class Sorted:
    def pytest_collection_modifyitems(self, session, items):
        for item in items:
            marks = [name for name in ("gpu", "slow") if item.get_closest_marker(name)]
            file = item.path.relative_to(session.config.invocation_params.dir)
            print("suite", file.as_posix(), item.originalname, (marks or ["fast"])[0])

sys.exit(pytest.main(["--collect-only", "-qq", *sys.argv[1:]], plugins=[Sorted()]))
"""


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/tested.md").read_text(encoding="utf-8") == document(), (
        "run python scripts/document_tested.py"
    )


def test_every_check_of_a_gpu_belongs_to_a_feature_and_every_one_named_exists():
    named = {check for line in LINES for check in line.gpu or ()}
    assert named == {check.name for check in CHECKS}


def test_every_feature_says_something():
    for line in LINES:
        assert any(row(line)[1:]), line.feature
    assert len({line.feature for line in LINES}) == len(LINES)


@pytest.mark.parametrize("test", ["rollout/test_hf.py::test_that_never_was", "rollout/conftest.py"])
def test_a_test_that_is_not_there_is_named(test):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(test)):
        suites(test)


@pytest.mark.parametrize(
    ("mark", "quick", "both"),
    [
        ("", {"fast"}, {"fast", "slow"}),
        ("pytestmark = pytest.mark.slow", {"slow"}, {"slow"}),
        ("pytestmark = [pytest.mark.slow, pytest.mark.skipif(True)]", {"slow"}, {"slow"}),
    ],
)
def test_markers_decide_the_suite(mark, quick, both):
    found = suites_by_test(MODULE.format(pytestmark=mark))
    assert found == {
        "test_quick": quick,
        "test_long": {"slow"},
        "test_both": both,
        "test_card": {"gpu"},
    }


def test_what_has_not_run_on_a_gpu_is_in_the_last_column():
    without = [check.name for check in CHECKS if not outcomes(check.name)]
    for check in without:
        (line, *_) = [line for line in LINES if check in (line.gpu or ())]
        assert f"`{check}`" in row(line)[-1]
    assert row(Feature("x", (), gpu=()))[-1] == "on a GPU"
    assert row(Feature("x", (), gpu=None))[-2:] == ["makes no difference", ""]


@pytest.mark.slow  # it imports every test file named
@pytest.mark.timeout(3600)
def test_pytest_sorts_them_alike():
    files = sorted({test.partition("::")[0] for line in LINES for test in line.tests})
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *files],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[tuple[str, str], set[str]] = {}
    for file, test, suite in re.findall(r"^suite (\S+) (\S+) (\S+)$", done.stdout, re.MULTILINE):
        found.setdefault((file, test), set()).add(suite)
    for (file, test), sorted_into in found.items():
        assert sorted_into == suites_in(file)[test], (file, test)
    assert {file for file, _ in found} == set(files)
