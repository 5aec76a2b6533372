"""The GPU checks' logic on a CPU, on toys; and what comes of checks that fail, hang or die."""

import json
import os
import time
from dataclasses import replace

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import learning, results
from benchmarks.gpu.check import Check, Figure, Lab, Outcome
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.worker import Worker

# Minutes where a small machine compiles an operator or starts an engine.
LONG = (
    "quickstart_hf",
    "quickstart_vllm",
    "probe_bfloat16",
    "sleep_and_wake",
    "ipc",
    "lora",
    "offload",
)
# The same functions at other sizes.
ELSEWHERE = ("learner_3B", "learner_1.5B_liger", "packing_flash", "packing_flex")


def fine(lab: Lab) -> dict[str, Figure]:
    return {"error": Figure(0.1, at_most=0.2)}


def above(lab: Lab) -> dict[str, Figure]:
    return {"error": Figure(0.3, at_most=0.2), "speed": Figure(1.0)}


def unknown(lab: Lab) -> dict[str, Figure]:
    return {"error": Figure(float("nan"), at_most=0.2)}


def broken(lab: Lab) -> dict[str, Figure]:
    raise ValueError("no kernel image")


def killed(lab: Lab) -> dict[str, Figure]:
    os._exit(9)


def hangs(lab: Lab) -> dict[str, Figure]:
    time.sleep(60)
    return {}


def check(run, **settings) -> Check:
    return Check(run.__name__, "a question", run, **{"seconds": 0.1, **settings})


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name, marks=pytest.mark.slow if check.name in LONG else ())
        for check in CHECKS
        if check.name not in ELSEWHERE
    ],
)
def test_it_passes_on_toys(check: Check, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if missing := check.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    outcome = Outcome.of(check, Lab(tiny=True))
    assert outcome.verdict == "passed", outcome
    assert outcome.figures and outcome.seconds > 0


def test_flops_are_those_of_what_is_computed():
    """2 FLOPs for each weight that a token meets; a shared prompt meets them once."""
    from bandpo.config.sections.model import ModelConfig
    from bandpo.model.architecture import shape_of
    from benchmarks.gpu.networks import forward_flops, network, samples_for

    shape = shape_of(ModelConfig(path=str(network(Lab(tiny=True), "1.5B"))))
    samples = samples_for(1000, prompts=2, group=2, prompt=16, longest=48)
    assert sorted(len(s.completion_ids) for s in samples) == [30, 30, 48, 48]
    width, vocabulary = 64, 1000
    layers = 2 * (2 * width**2 + 2 * width * 32 + 3 * width * 128)
    row, answers = 2 * 16 + 156, 156
    matrices = 2 * layers * row + 2 * width * vocabulary * answers
    attention = sum(2 * 2 * width * len(sample) ** 2 for sample in samples)
    # Norms and biases count as matrices: a hundredth.
    assert forward_flops(shape, samples) == pytest.approx(matrices + attention, rel=0.02)


@pytest.mark.parametrize(("name", "flops"), [("NVIDIA H200", 989e12), ("NVIDIA H20", 148e12)])
def test_a_gpu_is_held_against_its_own_data_sheet(name, flops, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    (figure,) = learning._against_sheet(reached=100).values()
    assert figure.value == pytest.approx(100e12 / flops)


def run(checks, folder, minutes=5.0):
    record = results.Record(folder)
    outcomes = command.run(checks, Lab(tiny=True), minutes, record)
    kept = json.loads(record.path.read_text())["checks"]
    assert {name: found["verdict"] for name, found in kept.items()}.keys() == outcomes.keys()
    return outcomes, kept


def test_a_check_that_fails_or_dies_takes_no_other_along(tmp_path):
    missing = check(fine, needs=("no_such_package",))
    checks = [check(broken), check(killed), check(above), check(unknown), check(fine)]
    outcomes, kept = run([replace(missing, name="missing"), *checks], tmp_path)
    assert {name: (found.verdict, found.reason) for name, found in outcomes.items()} == {
        "missing": ("not run", "needs no_such_package"),
        "broken": ("failed", "ValueError: no kernel image"),
        "killed": ("failed", "its process was lost (exit code 9)"),
        "above": ("failed", "misses its bar: error"),
        "unknown": ("failed", "misses its bar: error"),
        "fine": ("passed", ""),
    }
    assert kept["above"]["figures"]["error"] == {"value": 0.3, "at_most": 0.2}


def test_a_check_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(command, "PATIENCE", 1.0)
    monkeypatch.setattr(command, "GRACE", 5.0)
    worker = Worker(Lab(tiny=True))
    late = command._outcome(worker, check(hangs), left=100.0)
    over = command._outcome(worker, check(hangs), left=1.0)
    too_much = command._outcome(worker, check(hangs, seconds=20), left=10.0)
    worker.close()
    assert (late.verdict, late.reason) == ("failed", "takes longer than 5 s")
    assert (over.verdict, over.reason) == ("not run", "the minutes were over after 1 s of it")
    assert (too_much.verdict, too_much.reason) == ("not run", "needs 20 s, 10 s left")


def test_what_was_found_stays_until_the_check_runs_again(tmp_path):
    record = results.Record(tmp_path)
    record.keep(check(above), Outcome.of(check(above), Lab(tiny=True)))
    again = results.Record(tmp_path)
    again.keep(check(above), Outcome("not run", reason="needs vllm"))
    assert again.checks["above"]["verdict"] == "failed"
    again.keep(check(above), Outcome("passed"))
    assert json.loads(again.path.read_text())["checks"]["above"]["verdict"] == "passed"


def test_an_empty_cell_has_not_run():
    ran = {"verdict": "passed", "date": "2026-11-26", "figures": {"error": {"value": 0.1}}}
    records = {"A": {"checks": {"fine": ran}}, "B": {"checks": {"fine": {"verdict": "not run"}}}}
    *_, row = results.table([check(fine)], records).splitlines()
    assert row == "| `fine`: a question | passed 2026-11-26 |  |"
