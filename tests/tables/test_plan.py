"""`bandpo table table1 --plan` says first what it takes, offers less, and groups equal rows."""

import re
from pathlib import Path

import pytest

from bandpo.cli import main
from bandpo.tables import forecast

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """The lines of a plan, from the folder that holds the recipes."""

    def plan(*words: str) -> list[str]:
        monkeypatch.chdir(ROOT)
        assert main(["table", *words, "--plan", "--out", str(tmp_path)]) == 0
        return capsys.readouterr().out.splitlines()

    return plan


def bill(lines: list[str]) -> tuple[str, ...]:
    """Hours, GPU-hours, GiB and GiB without optimizer state of the line that sums up."""
    (line,) = [line for line in lines if line.startswith("It takes about")]
    numbers = r"about ([\d,]+) hours .* ([\d,]+) GPU-hours; ([\d,]+) GiB .*\(([\d,]+) without"
    return re.search(numbers, line).groups()


def test_the_plan_of_table1(planned):
    lines = planned("table1")
    assert "72 runs: 24 rows × seeds 0, 1, 2; 0 of them finished" in lines[1]
    hours, gpu_hours, gib, weights = bill(lines[:3])
    assert re.search(r"\(3\d\d days\) on 8xH200, one run at a time", lines[2])
    assert int(gpu_hours.replace(",", "")) == pytest.approx(8 * int(hours.replace(",", "")), abs=8)
    assert int(weights.replace(",", "")) < 0.2 * int(gib.replace(",", ""))

    tables = [
        line for line in lines if not line.startswith(("It takes", "resolved", "missing", "  "))
    ]
    assert max(map(len, tables)) <= 100
    text = "\n".join(lines)
    assert text.count("grpo, clip_higher,") == 4  # a group for each model
    assert "GiB of memory per GPU, of which 132 are usable" in text

    cut = {line.split(":")[0].strip(): line for line in lines if ": bandpo table table1" in line}
    assert list(cut) == [
        *("one model, the cheapest", "one seed", "fewer steps", "LoRA of rank 16", "all of these")
    ]
    assert cut["one seed"].endswith(": bandpo table table1 --plan --only seed=0")
    assert cut["fewer steps"].endswith(": bandpo table table1 --plan trainer.steps=100")
    for name in ("one model, the cheapest", "all of these"):
        row = next(line for line in lines if line.startswith(f"  {name}  "))
        shown = tuple(row.split()[-4:])
        words = cut[name].split(": bandpo table ")[1].replace(" --plan", "").split()
        assert bill(planned(*words)) == shown


def test_a_plan_for_a_cpu_offers_no_cuts(planned):
    lines = planned("steady")
    assert re.fullmatch(r"It takes \d+ GiB of disk for checkpoints \(\d+ without.*\)\.", lines[2])
    assert not any("bandpo table steady --plan" in line for line in lines)
    assert max(map(len, lines[3:-1])) <= 100


def test_a_cut_keeps_what_was_asked_for(planned):
    only = "model=qwen2.5-3b,method=grpo,method=band_kl_0.05"
    lines = planned("table1", "--only", only, "trainer.steps=50", "--cluster", "8xH100")
    cut = {line.split(":")[0].strip(): line for line in lines if ": bandpo table table1" in line}
    assert list(cut) == ["one seed", "LoRA of rank 16", "all of these"]
    assert cut["one seed"].endswith(f"--only {only},seed=0 trainer.steps=50 --cluster 8xH100")


def test_a_plan_of_smollm2_says_what_it_takes_and_what_is_missing(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(forecast, "find_spec", lambda name: None)
    shown = "\n".join(planned("smollm2"))
    assert "9 runs of 6 steps, two side by side: about 30 minutes on 2 cores" in shown
    missing = re.findall("missing here: (.*)", shown)
    assert missing == [
        *(f"the package {name}" for name in ("deepspeed", "peft", "gguf")),
        "the model smollm2 (98 MB from PyPI; downloaded when needed)",
    ]
