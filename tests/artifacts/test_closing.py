"""The last lines of a run: the gain per benchmark, and commands that can be typed as they are."""

from pathlib import Path

from bandpo.artifacts.closing import gains, next_commands

LINES = [
    {"step": 0, "eval/amc23/mean@32": 0.25, "eval/amc23/pass@32": 0.7, "eval/b/mean@4": 0.1},
    {"step": 20, "eval/amc23/mean@32": 0.9, "eval/amc23/pass@32": 0.9},
    {"step": 30, "reward/mean": 1.0},
    {"step": 40, "eval/amc23/mean@32": 0.5, "eval/amc23/pass@32": 0.8, "eval/b/mean@4": 0.3},
]


def test_the_gain_is_from_the_first_to_the_last_evaluation():
    assert gains(LINES) == [
        "amc23  mean@32 0.25 → 0.5  pass@32 0.7 → 0.8",
        "b  mean@4 0.1 → 0.3",
    ]
    assert gains(LINES[:1]) == gains([]) == []


def test_the_commands_that_follow():
    command = "bandpo train run.dir='my run' trainer.steps=40 trainer.resume=never method=dapo"
    assert [text for _, text in next_commands(Path("my run"), LINES, 40, command)] == [
        "bandpo compare 'my run'/eval/000000 'my run'/eval/000040",
        "bandpo eval model='my run'",
        "bandpo train 'run.dir=my run' method=dapo trainer.steps=80",
    ]
    assert [text for _, text in next_commands(Path("run"), [], 40)] == [
        "bandpo plot timeline run",
        "bandpo eval model=run",
        "bandpo plot training run",
    ]
