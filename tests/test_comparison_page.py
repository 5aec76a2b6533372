"""docs/comparison.md takes figures from recorded results and names the source of every claim."""

import re
from pathlib import Path

import pytest
from document_comparison import _read, document, speed

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/comparison.md").read_text(encoding="utf-8")
PEERS = ("TRL", "verl", "OpenRLHF", "prime-rl", "slime")
# Of the two without a wheel to read, a file is named with its commit.
BY_COMMIT = re.compile(r"`[\w./-]+`(?: and `[\w./-]+`)? @ [0-9a-f]{7}|\(listing\)")
POINTS = [
    [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    for table in re.findall(r"^\| \|.*\| source \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
]


def test_the_page_is_up_to_date():
    assert document() == PAGE, "run python scripts/document_comparison.py"


def test_every_point_has_a_line_for_all():
    assert len(POINTS) >= 15
    for lines in POINTS:
        assert [line[0] for line in lines] == ["bandpo", *PEERS]


def test_every_line_has_a_source():
    for name, told, source in (line for lines in POINTS for line in lines):
        assert told and source, (name, told)
        if name in ("prime-rl", "slime"):
            assert BY_COMMIT.search(source), source


def test_files_of_ours_that_are_named_exist():
    for lines in POINTS:
        for path in re.findall(r"`((?:tests|benchmarks)/[\w./]+\.py)`", lines[0][2]):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["vs_trl", "vs_trl_smollm2"])
def test_the_ratios_are_those_of_the_medians_beside_them(name):
    table = speed([_read(name)])
    cells = re.findall(r"([\d.,]+) \S+ against ([\d.,]+) \S+: \*\*([\d.]+)×", table)
    assert len(cells) == 3 * 2 * len(_read(name)["models"])
    for place, (ours, theirs, times) in enumerate(cells):
        first, second = (float(text.replace(",", "")) for text in (ours, theirs))
        better = first / second if place % 3 == 1 else second / first  # tokens/s, else less is more
        assert float(times) == pytest.approx(better, rel=0.05)
    versions = _read(name)["trl_environment"]["trl"]
    assert f"| TRL | {versions} |" in PAGE
