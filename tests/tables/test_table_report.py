"""Tables of fabricated runs, by numbers computed by hand."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
from fabricated import finish
from scipy import stats

from bandpo.cli import main
from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate
from bandpo.tables.recipe import find_recipe
from bandpo.tables.report import _trained, latex
from bandpo.tables.results import (
    Entry,
    accuracy_lines,
    collect,
    late_training,
    training_lines,
)
from bandpo.tables.runs import plan_runs
from bandpo.tables.statistics import Effect

RECIPE = """
title: "Fabricated & 100% <made up>"
models: {one: {}}
methods: {grpo: {}, clip_higher: {}, band_kl: {}}
seeds: 2
expected: expected.json
overrides: {trainer.steps: 10, eval.n: 4, eval.benchmarks: [amc23, aime24]}
"""
EXPECTED = {"one": {"grpo": {"amc23": {"mean@4": 50.0, "best@4": None}, "aime24": None}}}
# Right samples of 4, by problem; seed 0 and seed 1.
COUNTS = {
    "grpo": ({"amc23": [0, 2], "aime24": [0, 1]}, {"amc23": [0, 4], "aime24": [0, 1]}),
    "clip_higher": ({"amc23": [4, 4], "aime24": [1, 1]}, {"amc23": [4, 4], "aime24": [1, 1]}),
}
ENTROPIES = {"grpo": (0.2, 0.4), "clip_higher": (0.3, 0.6)}


@pytest.fixture
def table(tmp_path):
    """A recipe of three methods of which two are finished."""
    folder = tmp_path / "recipes" / "made"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "expected.json").write_text(json.dumps({"values": EXPECTED}))
    out = tmp_path / "out"
    runs = plan_runs(find_recipe(str(folder)).recipe(), out)
    for run in runs:
        if run.method in COUNTS:
            late = ENTROPIES[run.method][run.seed]
            finish(run, COUNTS[run.method][run.seed], [9.0] * 8 + [late - 0.1, late + 0.1])
    return folder, out, runs


def half_width(*sources: tuple[float, int]) -> float:
    """Half of the 95% interval of variances of a mean with their degrees of freedom."""
    return sqrt(sum(stats.t.ppf(0.975, nu) ** 2 * variance for variance, nu in sources))


def share_ends(value: float, half: float) -> tuple[float, float]:
    """Clopper's and Pearson's ends, in percent, for draws with that half-width."""
    p = value / 100
    draws = p * (1 - p) * (stats.norm.ppf(0.975) / (half / 100)) ** 2
    low = stats.beta.ppf(0.025, p * draws, (1 - p) * draws + 1)
    return 100 * low, 100 * stats.beta.ppf(0.975, p * draws + 1, (1 - p) * draws)


def test_accuracies_by_hand(table):
    _, _, runs = table
    found = {
        (line.method, line.benchmark): line for line in accuracy_lines(collect(runs), EXPECTED)
    }
    assert list(found)[:3] == [(m, "amc23") for m in ("grpo", "clip_higher", "band_kl")]
    grpo = found["grpo", "amc23"]
    # mean@4 by seed and problem: [[0, 50], [0, 100]]: by seed 25 and 50, by problem 0 and 75.
    mean = grpo.entries["mean@4"]
    assert mean.obtained.value == pytest.approx(37.5)
    half = half_width((312.5 / 2, 1), (2812.5 / 2, 1))
    low, high = share_ends(37.5, half)
    assert (mean.obtained.low, mean.obtained.high) == pytest.approx((low, high))
    assert mean.paper == 50.0 and mean.to_paper.value == pytest.approx(-12.5)
    assert mean.to_paper.high == pytest.approx(mean.obtained.high - 50)
    # best@4 = 1 − (1 − c/4)⁴: 15/16 for two of four right; pass@4 is 1 for them.
    assert grpo.entries["best@4"].obtained.value == pytest.approx(100 * (15 / 16 + 1) / 4)
    assert grpo.entries["best@4"].paper is None
    assert grpo.entries["pass@4"].obtained.value == pytest.approx(50.0)
    assert found["grpo", "average"].entries["mean@4"].obtained.value == pytest.approx(
        (37.5 + 12.5) / 2
    )
    assert found["band_kl", "amc23"].finished == 0
    assert found["band_kl", "amc23"].entries["mean@4"].obtained is None


def test_differences_are_paired_by_seed_and_problem(table):
    _, _, runs = table
    found = {(line.method, line.benchmark): line for line in accuracy_lines(collect(runs), {})}
    effect = found["clip_higher", "amc23"].entries["mean@4"].effect
    # Differences [[100, 50], [100, 0]]: by seed 75 and 50, by problem 100 and 25.
    assert effect.difference.value == pytest.approx(62.5)
    half = half_width((312.5 / 2, 1), (2812.5 / 2, 1))
    assert effect.difference.low == pytest.approx(62.5 - half)
    assert effect.verdict == ""  # two seeds and two problems show nothing
    assert found["grpo", "amc23"].entries["mean@4"].effect is None
    assert found["band_kl", "amc23"].entries["mean@4"].effect is None


def test_training_is_summed_up_over_its_last_fifth(table):
    _, _, runs = table
    found = {line.method: line.entries["policy/entropy"] for line in training_lines(collect(runs))}
    assert found["grpo"].obtained.value == pytest.approx(0.3)  # of 0.2 and 0.4, not of 9.0
    assert found["clip_higher"].effect.difference.value == pytest.approx(0.15)
    t = 0.15 / 0.05  # differences 0.1 and 0.2
    assert found["clip_higher"].effect.p == pytest.approx(2 * stats.t.sf(t, 1))


class Cells(HTMLParser):
    """The texts of a page's table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data.strip())


@pytest.mark.parametrize("filtered", [False, "accuracy"])
@pytest.mark.parametrize("earlier", [False, True])
def test_rewards_of_kept_groups_alone_are_not_compared(tmp_path, filtered, earlier):
    unfiltered = {"policy/entropy": 1.0, "reach/above_high_frac": 0.25}
    metrics = {**unfiltered, "reward/mean": 0.5, "length/mean": 9.0}
    new = {} if earlier else {"rollout/groups_kept": 4.0}
    lines = [{"step": 0}, *({"step": i, **metrics, **new} for i in range(1, 11))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rollout = SimpleNamespace(filter_groups=filtered)
    run = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(rollout=rollout))
    expected = unfiltered if filtered and earlier else metrics
    assert late_training(run) == expected


def test_report_writes_all_files_and_says_what_is_not_finished(table, capsys):
    folder, out, _ = table
    assert main(["table", str(folder), "--report", "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("not finished: one, band_kl") == 2
    names = ["table.md", "table.tex", "table.html", "results.json", "plots/entropy.png"]
    for name in [*names, "plots/mean_at_4.png", "plots/best_at_4.png", "plots/pass_at_4.png"]:
        assert (out / name).stat().st_size > 0, name
    half = half_width((312.5 / 2, 1), (2812.5 / 2, 1))
    low, high = share_ends(37.5, half)
    obtained = f"37.5 [{low:.1f}, {high:.1f}]"
    row = f"| grpo | amc23 | 2 | 50.00 | {obtained} | -12.5 [{low - 50:+.1f}, {high - 50:+.1f}] |"
    assert row in (out / "table.md").read_text()
    assert "| band_kl | amc23 | 0 of 2 | – | – | – |" in (out / "table.md").read_text()
    page = Cells()
    page.feed((out / "table.html").read_text())
    assert obtained in page.found and "Fabricated & 100% <made up>" in page.found
    tex = (out / "table.tex").read_text()
    assert r"clip\_higher & amc23 & 2 & -- & 100.0 [?] & --" in tex  # all right: no spread
    used = {r"\toprule": "booktabs", r"\includegraphics": "graphicx", r"\resizebox": "graphicx"}
    body = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    for command, package in used.items():
        assert command in body and f"%   \\usepackage{{{package}}}" in tex
    assert tex.isascii()
    page = (out / "table.html").read_text()
    assert '<meta name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert page.count("<table>") == page.count('<div class="wide"><table>') > 0
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3
    numbers = json.loads((out / "results.json").read_text())
    assert numbers[0]["entries"]["mean@4"]["obtained"]["value"] == pytest.approx(37.5)
    (perfect,) = (n for n in numbers if (n["method"], n["benchmark"]) == ("clip_higher", "amc23"))
    unknown = {"value": pytest.approx(100.0), "low": None, "high": None}
    assert perfect["entries"]["mean@4"]["obtained"] == unknown


def test_every_line_of_the_markdown_tables_has_as_many_cells_as_its_header(table):
    folder, out, _ = table
    main(["table", str(folder), "--report", "--out", str(out)])
    blocks = (out / "table.md").read_text().split("\n\n")
    tables = [block.strip().splitlines() for block in blocks if block.strip().startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1


def test_runs_on_different_problems_are_not_compared(table):
    _, _, runs = table
    other = next(run for run in runs if run.method == "band_kl" and run.seed == 0)
    finish(other, {"amc23": [1, 2, 3], "aime24": [1, 1]}, [1.0])
    (other.folder / "metrics.jsonl").write_text('{"step": 10}\n')
    with pytest.raises(UserError, match="saw different problems"):
        accuracy_lines(collect(runs), {})


def test_runs_on_different_benchmarks_are_not_compared(table):
    _, _, runs = table
    other = next(run for run in runs if run.method == "band_kl" and run.seed == 0)
    finish(other, {"amc23": [1, 2]}, [1.0] * 10)
    with pytest.raises(UserError, match="band_kl was not evaluated on aime24"):
        accuracy_lines(collect(runs), {})


def test_runs_on_other_contents_of_a_benchmark_are_not_compared(table):
    _, _, runs = table
    for run, content in zip(runs, ("a", "a", "a", "b"), strict=False):
        summary = json.loads(run.summary.read_text())
        for benchmark in summary.values():
            benchmark["settings"]["dataset_sha256"] = content
        run.summary.write_text(json.dumps(summary))
    with pytest.raises(UserError, match="amc23: one, clip_higher was evaluated on other problems"):
        accuracy_lines(collect(runs), {})


def test_a_run_of_another_configuration_is_not_taken_for_finished(table):
    folder, out, runs = table
    assert [run.method for run in runs if run.is_finished()] == ["grpo"] * 2 + ["clip_higher"] * 2
    recipe = find_recipe(str(folder)).recipe()
    same = plan_runs(recipe, out, extra=["tracking.project=x", "trainer.eval_every=7"])
    assert sum(run.is_finished() for run in same) == 4
    for changed in ("learner.lr=1e-5", "eval.n=8", "trainer.steps=11"):
        runs = plan_runs(recipe, out, extra=[changed])
        assert not any(run.is_finished() for run in runs), changed
    # In the very folder, too.
    run = plan_runs(recipe, out)[0]
    text = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(text.replace("lr: 0.0002", "lr: 0.0003"))
    assert not run.is_finished()


def test_the_entropy_study_reads_another_tables_runs(table, tmp_path, monkeypatch):
    _, out, _ = table
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "recipes" / "entropy"
    study.mkdir()
    (study / "recipe.yaml").write_text(
        "_target_: entropy_study.EntropyOfTable\nof: made\npublished: {grpo: 0.02}\n"
    )
    assert main(["table", "entropy", f"runs={out}"]) == 0
    page = Path("outputs/tables/entropy/table.md").read_text()
    # Seeds 0.2 and 0.4 at the end: 0.3 ± t(1) · 0.1.
    half = stats.t.ppf(0.975, 1) * 0.1
    assert f"| one | grpo | 2 | 9.000 ± ? | 0.300 ± {half:.3f} | about 0.02 |" in page
    assert Path("outputs/tables/entropy/plots/entropy.png").stat().st_size > 0
    assert main(["table", "entropy", "runs=nowhere"]) == 2


def test_a_significant_difference_is_said_in_words():
    obtained, change = Estimate(0.3, 0.2, 0.4), Estimate(0.15, 0.1, 0.2)
    assert _trained(Entry(obtained, effect=Effect(change, 0.01))) == ("0.3 ± 0.1 (+0.15, p < 0.05)")
    assert _trained(Entry(obtained, effect=Effect(change, 0.2))) == "0.3 ± 0.1 (+0.15)"


def test_latex_escapes_what_latex_would_read():
    assert latex(r"50% & a_b ± \x") == r"50\% \& a\_b $\pm$ \textbackslash{}x"


def test_the_report_needs_no_engine(table):
    """A table is reported on machines that could not train it."""
    folder, out, _ = table
    program = (
        "import sys; sys.modules['vllm'] = sys.modules['deepspeed'] = None; "
        f"from bandpo.cli import main; main(['table', {str(folder)!r}, '--report', "
        f"'--out', {str(out)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "37.5" in done.stdout, done.stderr
