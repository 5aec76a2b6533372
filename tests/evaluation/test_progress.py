"""How far an evaluation is: whole numbers on a narrow terminal, few lines in a log."""

import pytest
from screen import Screen

from bandpo.evaluation.progress import ProgressDisplay


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_of_any_width_shows_name_and_count(width, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    with ProgressDisplay(shown=True) as advance:
        for name in ("arithmetic", "contest24"):
            advance(name, 120, 200)
    screen = Screen(width)
    screen.feed(capsys.readouterr().err.replace("\n", "\r\n"))  # as a terminal does
    assert screen.wrapped == 0 and not screen.cursor_is_hidden
    for name in ("arithmetic", "contest24"):
        (line,) = (line for line in screen.rows if line.startswith(name))
        assert "━" in line and "120/200" in line and len(line) <= width


def test_a_log_gets_a_line_per_tenth(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    with ProgressDisplay(shown=True) as advance:
        for done in range(1, 41):
            advance("amc23", done, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"amc23: {done} of 40 problems" for done in range(4, 41, 4)]
