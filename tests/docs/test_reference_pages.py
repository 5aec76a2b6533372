"""Pages and pictures that scripts write are in step with the code."""

import re
from pathlib import Path

import document_cli
import document_figures
import pytest
from document_config import rows

from bandpo.cli import COMMANDS
from bandpo.config.schema import Config

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_commands_is_in_step_with_their_parsers():
    page = document_cli.document()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == page
    assert all(f"\n## bandpo {command}\n" in page for command in COMMANDS)
    assert str(DOCS.parent) not in page


@pytest.fixture(scope="module")
def figures():
    return document_figures.document()


def test_the_figures_are_in_step_with_the_losses(figures):
    committed = {path.name: path.read_text() for path in (DOCS / "figures").glob("*.svg")}
    assert committed == figures


def test_a_figure_shows_the_bound_where_it_is(figures):
    """Band-TV's upper bound 1 + δ/p leaves the picture, at 20, where p = 0.05/19."""
    chart = document_figures.Chart(document_figures.P, document_figures.RATIO)
    x, top = map(float, chart.point(0.05 / 19, 20).split(","))
    curves = re.findall(r'class="line k2 d1" points="(\S+)', figures["bounds.svg"])
    firsts = [tuple(map(float, point.split(","))) for point in curves]
    (upper,) = [across for across, down in firsts if down == top]
    assert upper == pytest.approx(x, abs=4)


def test_every_key_of_the_configuration_is_described():
    keys = [line.split(" | ") for line in rows(Config) if line.startswith("| `")]
    assert len(keys) > 90
    assert [cells[0] for cells in keys if not cells[-1].rstrip("| ")] == []
