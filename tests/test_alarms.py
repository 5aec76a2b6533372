"""Alarms go off when they should, once, and stop the run where they are told to."""

import math

import pytest

from bandpo.alarms import Above, AlarmPanel, Below, CutOff, Masked, Mismatch, StuckAt, always_on
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import RunHalted, UserError


def panel(*alarms, past=()):
    said: list[str] = []
    return AlarmPanel(alarms, past, said.append), said


def step(**metrics):
    return {"learn/updates": 1.0, **metrics}


@pytest.mark.parametrize(
    ("alarm", "values", "at"),
    [
        (Below("x", 0.1), [0.5, 0.1, 0.09], 3),
        (Above("x", 0.2), [0.2, 0.21], 2),
        (Above("x", 0.2, steps=2), [0.3, 0.1, 0.3, 0.3], 4),
        (StuckAt("x", 0.0, steps=3), [0.0, 0.0, 0.1, 0.0, 0.0, 0.0], 6),
        (Below("x", 0.1), [1.0, math.nan], 2),
        (Above("x", 1.0), [math.inf], 1),
        (StuckAt("x", 0.0, steps=2), [0.0, math.nan], 2),
    ],
)
def test_an_alarm_goes_off_at_its_step(alarm, values, at):
    messages = [alarm.message([{"x": v} for v in values[:n]]) for n in range(1, len(values) + 1)]
    assert [n for n, message in enumerate(messages, 1) if message] == [at]


def test_a_warning_comes_once_until_the_metric_was_right_again():
    alarms, said = panel(Below("x", 1.0))
    for number, value in enumerate([2.0, 0.5, 0.4, 2.0, 0.3], 1):
        alarms.check(number, step(x=value))
    assert said == [
        "step 2: alarm: x is below 1 (now 0.5)",
        "step 5: alarm: x is below 1 (now 0.3)",
    ]


def test_completions_that_are_nearly_all_cut_off_are_told_in_words():
    alarms, said = panel(CutOff())
    for number, share in enumerate([0.9, 0.96, 1.0], 1):
        alarms.check(number, {"learn/updates": 1.0, "length/truncated_frac": share})
    assert len(said) == 1
    assert said[0].startswith("step 2: alarm: nearly all completions were cut off")
    assert "rollout.max_tokens" in said[0] and "eos_token_id" in said[0]


def test_samples_from_another_distribution_stop_a_run_in_float32():
    name = "mismatch/logprob_abs_mean"
    alarms, said = panel(Mismatch.in_dtype("float32"))
    alarms.check(1, step(**{name: 2e-6}))
    with pytest.raises(RunHalted, match=r"its temperature, its cache .* is above 0\.001"):
        alarms.check(2, step(**{name: 0.02}))
    alarms, said = panel(Mismatch.in_dtype("bfloat16"))
    for number, value in enumerate([5e-3, 0.021, 0.065], 1):
        alarms.check(number, step(**{name: value}))
    assert len(said) == 1 and said[0].startswith("step 3: alarm: the engine samples from another")


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        ([], [("Mismatch", 1e-3, "stop")]),
        (["method.correction=icepop"], [("Mismatch", 1e-3, "stop"), ("Masked", 0.2, "warn")]),
        (
            ["rollout.engine.dtype=bfloat16"],
            [("Mismatch", 0.05, "warn"), ("Masked", 0.2, "warn")],
        ),
        (["rollout=vllm_server", "rollout.lag=1"], []),
        (
            ["rollout=vllm_server", "rollout.lag=1", "method.correction=kpop"],
            [("Masked", 0.2, "warn")],
        ),
    ],
)
def test_alarms_on_the_mismatch_follow_precision_correction_and_lag(overrides, kinds):
    cut_off, *others = always_on(compose("train", overrides, Config))
    assert isinstance(cut_off, CutOff)
    assert [(type(alarm).__name__, alarm.limit, alarm.action) for alarm in others] == kinds


def test_a_correction_that_masks_a_fifth_of_the_tokens_is_reported():
    alarms, said = panel(Masked())
    for number, share in enumerate([0.0, 0.2, 0.21], 1):
        alarms.check(number, step(**{"mismatch/masked_frac": share}))
    assert len(said) == 1 and said[0].startswith("step 3: alarm: the rollout correction discards")
    assert "method.correction" in said[0] and "above 0.2 (now 0.21)" in said[0]


def test_a_stop_names_every_alarm_that_stops():
    alarms, said = panel(
        Below("x", 1.0, action="stop"), Above("y", 0.0, action="stop"), Below("x", 1.0)
    )
    with pytest.raises(RunHalted, match=r"after step 7 by an alarm: x is below 1.*; y is above 0"):
        alarms.check(7, step(x=0.0, y=1.0))
    assert len(said) == 1


def test_a_resumed_run_remembers_the_steps_before():
    past = [{"x": 0.0}, {"x": 0.0}]
    alarms, _ = panel(StuckAt("x", 0.0, steps=3, action="stop"), past=past)
    with pytest.raises(RunHalted, match="x is 0 for 3 steps"):
        alarms.check(3, step(x=0.0))
    fresh, _ = panel(StuckAt("x", 0.0, steps=3, action="stop"))
    fresh.check(3, step(x=0.0))


def test_a_metric_that_does_not_exist_is_an_error_where_it_should():
    with pytest.raises(RunHalted, match="step 1 has no metric 'polcy/entropy'"):
        panel(Below("polcy/entropy", 1.0))[0].check(1, step(x=1.0))
    panel(Below("eval/a/mean@32", 1.0))[0].check(1, step(x=1.0))  # not evaluated at this step
    panel(Below("policy/entropy", 1.0))[0].check(1, {"learn/updates": 0.0})  # all were skipped


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"action": "shout"}, {"limit": math.nan}])
def test_alarms_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match="an alarm on x"):
        Below(**{"metric": "x", "limit": 1.0} | wrong)
