"""A run on a terminal: lines that stay, a bar below them, and no trace of it at the end."""

import os
import re
import sys
import time

import pytest
from screen import Screen, Terminal
from small_runs import FIXTURES

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{FIXTURES.parents[1]}{os.pathsep}{FIXTURES}"}
for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
    ENVIRONMENT.pop(name, None)
WIDTHS = (60, 80, 100)
TIMES = re.compile(r"tok/s \S+|\d+\.\d min")


def unfolded(lines: list[str]) -> list[str]:
    """Lines of steps without the breaks between their entries; times hidden."""
    text = re.sub(r"\n {10}(?=\w)", "  ", "\n".join(lines))
    return [TIMES.sub("…", line) for line in text.splitlines()]


def steps_of(lines: list[str]) -> list[str]:
    return [line for line in unfolded(lines) if re.match(r"step \d/2  ", line)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, untrained):
    """The folder of four runs, and for each width what was on the screen while it ran."""
    folder = tmp_path_factory.mktemp("terminal")
    script = [sys.executable, str(FIXTURES / "terminal_runs.py"), str(folder), str(untrained())]
    terminal = Terminal(80, [*script, *map(str, WIDTHS)], ENVIRONMENT)
    text = "".join(terminal.output())
    assert terminal.wait() == 0, text[-3000:]
    _, *parts = re.split(r"=== (\d+)\r\n", text)
    return folder, dict(zip(map(int, parts[::2]), parts[1::2], strict=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_lines_of_a_run_stay_and_none_runs_over(width, runs):
    screen = Screen(width)
    screen.feed(runs[1][width])
    assert screen.wrapped == 0 and not screen.cursor_is_hidden
    assert max(map(len, screen.rows)) <= width
    assert "━━ " not in "".join(line for line in screen.rows if not line.startswith("┏"))
    steps = steps_of(screen.rows)
    assert [line[:8] for line in steps] == ["step 0/2", "step 1/2", "step 2/2"]
    for line in steps:
        assert "contest24 mean@2" in line and "contest25 mean@2" in line
    end = [
        "  contest24  mean@2 0 → 0",
        "  contest25  mean@2 0 → 0",
        f"checkpoint: wide{width}/checkpoints/latest/hf",
        "next, the gain, with its interval:",
        f"  bandpo compare wide{width}/eval/000000 wide{width}/eval/000002",
        "next, the policy on other benchmarks, with a report:",
        f"  bandpo eval model=wide{width}",
        "next, 2 more steps:",
        "  bandpo train trainer.steps=4",
    ]
    shown = [re.sub(r"@2 [\d.]+ → [\d.]+", "@2 0 → 0", line) for line in screen.rows]
    assert [line for line in shown if line][-len(end) :] == end


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_names_step_and_phase(width, runs):
    """Every state of the bar is on one line, and the counter is whole."""
    bars = []
    for part in re.split(r"\x1b\[2K", runs[1][width]):
        screen = Screen(width)
        screen.feed(part)
        assert len(screen.rows) == 1 or not screen.rows[0].startswith("step 1/2 ━")
        bars += [line for line in screen.rows if "━ " in line]
    named = [re.sub(r"━+[━╺╸]* ", "", line) for line in bars]
    for phase in (
        "reading the data",
        "loading the policy",
        "starting HFGenerate",
        "evaluating contest24 3/3",
        "generating",
        "learning",
        "syncing weights",
        "saving a checkpoint",
    ):
        assert any(phase in line for line in named), (phase, named)
    training = [line for line in named if "learning" in line]
    assert {line[:8] for line in training} == {"step 1/2", "step 2/2"}


def test_a_file_gets_the_same_lines_and_run_log_all_output(runs):
    folder, texts = runs
    written = (folder / "file.out").read_text().splitlines()
    screen = Screen(100)
    screen.feed(texts[100])
    assert steps_of(written) == steps_of(screen.rows)
    assert "\x1b" not in "".join(written)
    for width in (*WIDTHS, "file"):
        log = (folder / f"wide{width}" / "run.log").read_text()
        assert "\x1b" not in log and "━ " not in log.replace("┏━", "")
        assert steps_of(log.splitlines()) == steps_of(written)
        assert "  bandpo eval model=" in log and "one sample of 2 prompts" in log
        assert re.match(r"\n--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", log)


INTERRUPTED = """
import os, sys, time
from bandpo.artifacts.display import Display
from bandpo.ranks.collectives import Alone
from bandpo.run.console import RunLog, protect_output
from bandpo.run.stops import Stops

protect_output()
with RunLog() as log, Display(log.stdout, log.stderr, log.file) as display:
    print("noise of a library")
    os.system("echo noise of its compiler")
    display.step(1, 40, 0)
    display.phase("generating")
    with Stops(Alone(), None, display.say) as stops:
        display.say("ready")
        while not stops.reason():
            time.sleep(0.05)
        if sys.argv[1:]:
            time.sleep(30)
        display.say("stopped after step 1")
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_a_clean_screen(presses):
    more = ["again"] * (presses - 1)
    terminal = Terminal(60, [sys.executable, "-c", INTERRUPTED, *more], ENVIRONMENT)
    screen, pressed = Screen(60), 0
    said = ("ready", "SIGINT: stopping after this step; a second one stops at once")
    for text in terminal.output():
        screen.feed(text)
        if pressed < presses and said[pressed] in screen.rows:
            pressed += 1
            if pressed == 2:
                time.sleep(1.2)  # sooner it is the echo of a launcher
            terminal.press("\x03")
    assert terminal.wait() == {1: 0, 2: 130}[presses]
    last = {1: "stopped after step 1", 2: "SIGINT again: stopped at once"}[presses]
    lines = [line.replace("^C", "") for line in screen.rows]
    # The first of the two is said by a thread of its own.
    assert sorted(line for line in lines if line) == sorted([*said, last])
    assert not screen.cursor_is_hidden
