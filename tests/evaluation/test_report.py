"""Reports show what was found, and hostile model output stays text."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from eval_fakes import SAMPLING, FakeEngine, fake_task, run
from rich.console import Console

from bandpo.cli import main
from bandpo.errors import UserError
from bandpo.evaluation.comparison import compare, compare_folders, evaluations_of, milestones
from bandpo.evaluation.intervals import Estimate
from bandpo.evaluation.mathml import render
from bandpo.evaluation.report import interval, problem_texts, summary_table, write_report
from bandpo.evaluation.standalone import cut_or_unanswered
from bandpo.evaluation.summary import read_summaries, write_summaries
from bandpo.types import Completion


class Inventory(HTMLParser):
    """Every tag and attribute of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value)

    def handle_data(self, data):
        self.text.append(data)


def test_ordinary_mathematics_becomes_mathml():
    page = render(r"so $\frac{1}{2} < x$ & \[\sqrt{3}\] is \(90^\circ\), $$\boxed{42}$$ costs \$5")
    tags = Inventory(page).tags
    assert {"mfrac", "msqrt", "msup", "menclose"} <= tags
    assert page.count('display="block"') == 2 and page.count('display="inline"') == 2
    assert "&amp;" in page and r"costs \$5" in page
    formulas = re.sub("<code>.*?</code>", "", page)
    assert "".join(Inventory(formulas).text).replace(" ", "").startswith("so12<x&")


def test_a_browser_without_mathml_shows_the_source_of_a_formula(tmp_path):
    page = render(r"$\frac{1}{2} < x$")
    assert page.endswith(r"</math><code>$\frac{1}{2} &lt; x$</code>")
    write_summaries(tmp_path, [run(tmp_path)])
    style = write_report(tmp_path).read_text()
    assert "math + code { display: none }" in style
    assert "@supports not (math-style: normal) { math { display: none }" in style


HOSTILE = [
    r"<script>alert(1)</script>",
    r"$\text{<script>alert(1)</script>}$",
    r"$\text{&lt;img src=x onerror=alert(1)&gt;}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\style{background:url(x)}{y}$ $\class{a}{b}$",
    "$\\color{red\"><script>}x$",
    r"$\frac{1$ $x_{$ \[\left(\] $\unknown{<b>}$",
    "$" + "{" * 900 + "}" * 900 + "$",
    "$" * 5001,
    r"\[" * 5000,
    r"\(" + "a" * 10_000 + r"\)",
    "</div></details></html>",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_gains_no_markup(text):
    start = time.perf_counter()
    seen = Inventory(render(text))
    assert time.perf_counter() - start < 5
    assert not seen.tags & {"script", "img", "a", "b", "div", "html", "style"}
    assert not seen.attributes.keys() & {"href", "style", "class", "onerror", "src", "mathcolor"}


class HostileEngine(FakeEngine):
    def sample(self, rng, prompt, sampling):
        text = rng.choice([*HOSTILE, f"so {prompt.problem.answer}", "lone \ud800 surrogate"])
        return Completion(text, (1, 2), (-0.5, -0.5), "stop")


def test_the_report_is_one_file_without_script_or_outside_resources(tmp_path):
    summary = run(tmp_path, engine=HostileEngine())
    write_summaries(tmp_path, [summary])
    page = write_report(tmp_path, samples_per_problem=3).read_text()
    seen = Inventory(page)
    assert "script" not in seen.tags and "img" not in seen.tags and "link" not in seen.tags
    assert all(href.startswith("#") for href in seen.attributes["href"])
    assert not [name for name in seen.attributes if name.startswith("on")]
    text = "".join(seen.text)
    for problem in summary.problems:
        assert f": {problem.correct}/4 right" in text and f"problem {problem.id}" in text
    assert "1 more samples are in toy.jsonl" in text
    assert f"{100 * summary.metrics['mean@4'].value:.1f}" in text
    assert "dataset_sha256" in text and summary.settings["dataset_sha256"] in text
    assert page.count("<svg") == 2
    assert write_report(tmp_path, samples_per_problem=3).read_text() == page


def test_the_page_fits_a_phone_and_the_dark_and_says_of_what_it_is_percent(tmp_path):
    write_summaries(tmp_path, [run(tmp_path)])
    page = write_report(tmp_path).read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (prefers-color-scheme: dark)" in page and "color-scheme: light dark" in page
    # Everything wide scrolls by itself, so that the page does not.
    assert page.count("<table") - page.count('<table class="settings"') == page.count(
        '<div class="wide"><table>'
    )
    rows = re.findall(r"<tr><td>([^<]*?)\s*<td>", page)
    assert rows[:3] == ["mean@4, avg@4, pass@1 [%]", "pass@2 [%]", "pass@4 [%]"]
    assert "tokens" in rows and "tokens [%]" not in rows and "no answer [%]" in rows


def test_problems_are_named_by_their_text():
    before, after = "<|user|>Solve step by step.\n\n", "\n\nEnd with Answer: x<|assistant|>"
    texts = {"a1f3": "Find $x$  if\nx > 1.", "b7": "Find " + "y" * 100, "c": "Fred has 2 cows."}
    prompts = {name: f"{before}{text}{after}" for name, text in texts.items()}
    assert problem_texts(prompts) == {
        "a1f3": "Find $x$ if x > 1.",
        "b7": "Find " + "y" * 75 + "…",
        "c": "Fred has 2 cows.",
    }
    chat = {"1": "<|user|>Compute 1+2.<|assistant|>", "2": "<|user|>Compute 1+3.<|assistant|>"}
    assert problem_texts(chat) == {"1": "Compute 1+2.", "2": "Compute 1+3."}
    assert problem_texts({"only": "x"}) == {"only": "only"}
    assert problem_texts({"b": "<p>", "a": "<p>x"}) == {"b": "b", "a": "x"}


@pytest.mark.parametrize(
    ("name", "estimate", "shown"),
    [
        ("mean@4", Estimate(0.99, 0.9, 1.02), "[90.0, 100.0]"),
        ("length/mean", Estimate(3.0, -1.0, 7.0), "[0, 7]"),
        ("pass@2", Estimate(1.0), "[?]"),
    ],
)
def test_intervals_end_where_nothing_is_possible(name, estimate, shown):
    assert interval(name, estimate) == shown


def test_the_interval_of_a_difference_may_be_negative():
    assert interval("mean@4", Estimate(-0.2, -1.3, 0.1), least=-1.0) == "[-100.0, 10.0]"


def test_benchmarks_of_different_n_share_an_order_of_rows(tmp_path):
    summaries = [run(tmp_path / str(n), sampling=replace(SAMPLING, n=n)) for n in (2, 4)]
    rows = shown(summary_table(summaries)).splitlines()[4:-1]
    names = [row.split("│")[1].strip() for row in rows]
    assert names[:10] == [
        *("mean@2, avg@2, pass@1 [%]", "mean@4, avg@4, pass@1 [%]", "pass@2 [%]", "pass@4 [%]"),
        *(
            "best@2 [%]",
            "best@4 [%]",
            "g-pass@2, τ = 0.5 [%]",
            "g-pass@2, τ = 1.0 [%]",
            "mg-pass@2 [%]",
        ),
        "maj@2 [%]",
    ]


def shown(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_table_has_every_number_and_warning(tmp_path):
    summary = run(tmp_path)
    text = shown(summary_table([summary]))
    mean = summary.metrics["mean@4"]
    assert f"{100 * mean.value:.1f}" in text
    assert f"[{100 * mean.low:.1f}, {100 * mean.high:.1f}]" in text


def evaluated(folder, seed=0, **options):
    write_summaries(folder, [run(folder, seed=seed, **options)])
    return folder


class Improved(FakeEngine):
    def sample(self, rng, prompt, sampling):
        right = Completion(f"so {prompt.problem.answer}", (1,), (0.0,), "stop")
        return super().sample(rng, prompt, sampling) if rng.random() < 0.5 else right


def test_a_comparison_is_paired_and_of_equal_settings(tmp_path, capsys):
    a = evaluated(tmp_path / "a")
    b = evaluated(tmp_path / "b", engine=Improved(), model={"path": "better"})
    rows = {row.metric: row for row in compare_folders(a, b)["toy"]}
    assert set(rows) == {"mean@4", "pass@2", "pass@4", "best@4", "mg-pass@4", "maj@4"}
    mean = rows["mean@4"]
    counts = [[p.correct for p in read_summaries(f)["toy"].problems] for f in (a, b)]
    assert mean.paired.value == pytest.approx((sum(counts[1]) - sum(counts[0])) / 48)
    assert mean.paired.value == pytest.approx(mean.b - mean.a)
    assert 0 < mean.paired.low < mean.paired.value < mean.paired.high
    assert main(["compare", str(a), str(b)]) == 0
    output = capsys.readouterr().out
    (row,) = (line for line in output.splitlines() if "mean@4, avg@4, pass@1" in line)
    assert row.split("│")[-2].strip() == "B"
    told = " ".join(output.split())
    assert f"A: {a} B: {b} B − A: positive where B is better. Its interval is paired" in told
    assert "0 is outside the interval" in told and "By mean@4, B is better than A." in told
    assert main(["compare", str(a), str(a)]) == 0
    assert "By mean@4, neither is shown to be better." in " ".join(capsys.readouterr().out.split())

    other = evaluated(tmp_path / "c", seed=1)
    with pytest.raises(UserError, match=r"toy: .*not comparable.*\n  - seed: 0 → 1"):
        compare_folders(a, other)
    assert main(["compare", str(a), str(other)]) == 2
    assert main(["compare", str(a), str(other), "--force"]) == 0
    assert main(["compare", str(a), str(tmp_path)]) == 2


def test_different_problems_are_never_compared(tmp_path):
    a, b = run(tmp_path / "a"), run(tmp_path / "b", task=fake_task(11))
    with pytest.raises(UserError, match="same problems"):
        compare(a, b, force=True)


def test_the_best_step_never_stands_alone(tmp_path, capsys):
    engines = {"step_000000": FakeEngine(), "step_000010": Improved(), "step_000020": FakeEngine()}
    for i, (step, engine) in enumerate(engines.items()):
        evaluated(tmp_path / "eval" / step, engine=engine, seed=i)
    found = {m.label: m.step for m in milestones(evaluations_of(tmp_path), "toy", 20)}
    assert found == {"preregistered": 20, "first": 0, "last": 20, "best, chosen afterwards": 10}
    assert main(["compare", str(tmp_path), "--step", "20"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"10\s.*best, chosen afterwards", output) and "preregistered" in output
    assert main(["compare", str(tmp_path), "--step", "15"]) == 2
    assert "only 0, 10, 20" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "eval")]) == 2


def test_summaries_survive_the_file(tmp_path):
    summary = run(tmp_path)
    path = write_summaries(tmp_path, [summary])
    assert read_summaries(tmp_path) == {"toy": summary}
    assert json.loads(path.read_text())["toy"]["metrics"]["mean@4"]["value"] > 0


def test_completions_without_an_answer_are_warned_of(tmp_path):
    summary = run(tmp_path)
    assert cut_or_unanswered(summary) == []
    most = {"no_answer_frac": Estimate(0.625, 0.5, 0.7)}
    (told,) = cut_or_unanswered(replace(summary, metrics={**summary.metrics, **most}))
    assert told.startswith("62% of the completions hold no answer that can be read: is eval.templ")
