"""metrics.jsonl read while it is written, cut, replaced and removed; curves folded."""

import json
import math

import numpy as np
import pytest
from watched_runs import BINS, line, unusual_numbers, write_lines

from bandpo.watch.clipping import rates
from bandpo.watch.series import SeriesFile, folded


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def metrics(tmp_path):
    return SeriesFile(tmp_path)


def rewards(metrics):
    steps, values = metrics.read(lambda m: m.points("reward/mean"))
    return dict(zip(steps.astype(int).tolist(), values.round(6).tolist(), strict=True))


def test_lines_are_read_once_they_are_whole(path, metrics):
    assert rewards(metrics) == {}
    text = json.dumps(line(1)) + "\n" + json.dumps(line(2)) + "\n"
    seen = []
    for end in range(0, len(text) + 1, 97):
        path.write_text(text[:end])  # another inode now and then, the same bytes before
        seen.append(len(rewards(metrics)))
    path.write_text(text)
    assert rewards(metrics) == {1: 0.1, 2: 0.2}
    assert seen == sorted(seen) and set(seen) == {0, 1}


def test_only_what_is_new_is_parsed(path, metrics, monkeypatch):
    write_lines(path, [line(step) for step in range(50)])
    rewards(metrics)
    parsed = []
    add = metrics._add
    monkeypatch.setattr(metrics, "_add", lambda text: (parsed.append(text), add(text)))
    with path.open("a") as file:
        file.write(json.dumps(line(50)) + "\n")
    assert rewards(metrics)[50] == 5.0
    assert len(parsed) == 1


def test_a_resumed_run_that_cut_its_file_is_read_anew(path, metrics):
    write_lines(path, [line(step) for step in range(6)])
    assert max(rewards(metrics)) == 5
    aside = path.with_name("aside")
    write_lines(aside, [line(0), line(1), line(2), line(3, **{"reward/mean": 0.9})])
    aside.replace(path)
    assert rewards(metrics) == {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.9}


def test_a_file_cut_in_place_and_grown_again_is_read_anew(path, metrics):
    write_lines(path, [line(step) for step in range(6)])
    rewards(metrics)
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.truncate(0)
        for step in range(6):
            file.write(json.dumps(line(step, **{"reward/mean": 0.7})).encode() + b"\n")
        file.write(json.dumps(line(6)).encode() + b"\n")
    assert path.stat().st_ino == inode
    assert set(list(rewards(metrics).values())[:6]) == {0.7}


def test_a_step_that_is_written_again_replaces_the_former_one_and_those_behind_it(path, metrics):
    again = line(2, **{"reward/mean": 0.8})
    write_lines(path, [line(0), line(1), line(2), line(3, only=1.0), again])
    assert rewards(metrics) == {0: 0.0, 1: 0.1, 2: 0.8}
    assert "only" not in metrics.series


def test_a_removed_file_is_a_run_without_steps(path, metrics):
    write_lines(path, [line(0), line(1)])
    assert rewards(metrics)
    path.unlink()
    assert rewards(metrics) == {} and metrics.size == 0


def test_lines_that_are_no_steps_are_skipped(path, metrics):
    hostile = (
        *("", "[]", "null", '{"step": "1"}', '{"step": -1}', f'{{"step": {10**30}}}', "\xff\xfe"),
        *('{"step": 1, "reward/mean": "high"}', "[" * 100_000, '{"step": 2, "reward/mean": 1e999}'),
    )
    path.write_text("\n".join([*hostile, json.dumps(line(3))]) + "\n", encoding="latin-1")
    assert math.isnan(rewards(metrics).pop(2)) and rewards(metrics)[3] == 0.3
    assert list(metrics.steps) == [1, 2, 3]


def test_nonfinite_values_are_gaps(path, metrics):
    write_lines(path, unusual_numbers())
    x, values = metrics.read(lambda m: m.points("reward/mean"))
    curve = folded(x, values, 100)
    assert curve == {"x": [0, 1, 2, 3, 4], "mean": [None, None, None, None, 0.5]}


def test_axes_count_hours_and_tokens_up_to_a_step(path, metrics):
    write_lines(path, [line(step) for step in range(1, 5)])
    x, _ = metrics.read(lambda m: m.points("reward/mean", "hours"))
    assert x == pytest.approx([2 / 3600, 4 / 3600, 6 / 3600, 8 / 3600])
    x, values = metrics.points("eval/toy/mean@4", "tokens")
    assert x.tolist() == [200, 400] and values.tolist() == [0.25, 0.5]


def test_a_fold_keeps_means_and_extremes():
    x = np.arange(10_000.0)
    values = np.sin(x / 700)
    values[5_003] = 40.0
    values[7_000:7_040] = np.nan
    curve = folded(x, values, 500)
    assert {len(column) for column in curve.values()} == {500}
    assert max(v for v in curve["high"] if v is not None) == 40
    assert curve["mean"][350:352] == [None, None]  # nothing finite is in these
    rows = [row for row in zip(*curve.values(), strict=True) if row[1] is not None]
    assert all(low <= mean <= high for _, mean, low, high in rows)
    assert np.mean([r[1] for r in rows]) == pytest.approx(np.nanmean(values), abs=1e-3)


def test_rates_of_bins_are_weighted_by_tokens(path, metrics):
    first, second = line(1), line(2)
    second["clip/bin_0_0.0001/count"] = 30.0
    write_lines(path, [line(0), first, second])
    found = metrics.read(lambda m: rates(m, "high_frac", last=2))
    assert [f"{b['from']}_{b['to']}" for b in found] == list(BINS)
    assert found[0] == {
        **{"from": "0", "to": "0.0001", "tokens": 40.0},
        "rate": pytest.approx((10 * 0.1 + 30 * 0.2) / 40),
    }
    every = metrics.read(lambda m: rates(m, "high_frac", last=0))
    assert every[0]["rate"] == pytest.approx((10 * 0.1 + 30 * 0.2) / 50)
    assert metrics.read(lambda m: rates(m, "low_frac", last=0))[0]["rate"] is None
