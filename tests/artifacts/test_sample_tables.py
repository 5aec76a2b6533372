"""Completions as tables in the trackers: what they hold, and that no output breaks a page."""

import html
import html.parser
import json
import sys
import types

import pytest

from bandpo.artifacts.display import Display
from bandpo.artifacts.sample_tables import LONGEST, sample_table
from bandpo.artifacts.tracking import Tracker
from bandpo.config.sections.trainer import TrackingConfig
from bandpo.ranks.collectives import Alone
from bandpo.reward import Part, Score
from bandpo.rollout.scoring import ScoredGroup
from bandpo.types import Completion, Group, Problem, Prompt

HOSTILE = (
    "<script>alert(1)</script> **bold** | a | b |\n# heading\n```\ncode\n\n- list\n"
    "[link](javascript:x) &amp; \\| <td></table> \u2028\x02\x1b[31m\x00 $x$ ~ _ü_ 😀"
)
VISIBLE = HOSTILE.replace("\u2028\x02\x1b", "���").replace("\x00", "�")
PARTS = (Part("math", 1.0), Part("format", 0.0, 0.5))


def group(name, *texts, parts=()):
    prompt = Prompt(Problem(name, "what?", "1"), f"<|user|>{name}?", (1,))
    completions = tuple(Completion(text, (2, 3), (-1.0, -2.0), "stop") for text in texts)
    scores = tuple(Score(1.0, "wrong", "7", 0.1, "unparsed", parts) for _ in texts)
    return ScoredGroup(Group(prompt, completions), scores).summary()


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Logs steps' samples to a tracker, and closes it; the folder and what was said."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def log(*trackers, steps, active=True, **settings):
        tracking = TrackingConfig(trackers=trackers, project="bandpo", **settings)
        display = Display(sys.stdout, sys.stderr, active=active)
        t = Tracker(tmp_path, tracking, display, active=active, steps=3, name="run")
        for step, groups in steps.items():
            t.log(step, {"reward/mean": 0.5})
            t.log_samples(step, groups, Alone())
        t.close()
        return tmp_path

    return log


def lines(*groups):
    made = []
    for item in groups:
        scored = item.here
        rows = [
            {
                "step": 7,
                "problem_id": scored.group.problem.id,
                "prompt": "p",
                "completion": completion.text,
                "answer": "1",
                "tokens": 2,
                "value": 1.0,
                "status": "wrong",
                "detail": "",
                **({"parts": {"math": 1.0}} if item.scores[0].parts else {}),
            }
            for completion in scored.group.completions
        ]
        made.append("".join(json.dumps(row) + "\n" for row in rows).encode())
    return made


def test_the_first_of_each_group_come_before_the_second():
    table = sample_table(lines(group("a", "a0", "a1", "a2"), group("b", "b0", "b1")), 4)
    completion = table.columns.index("completion")
    assert [row[completion] for row in table.rows] == ["a0", "b0", "a1", "b1"]
    assert sample_table(lines(group("a", "a0")), 9).rows[0][0] == 7


def test_long_texts_lose_their_middle_and_secrets_are_hidden(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "k" * 30)
    secret = "k" * 30
    # The secret lies where the text is cut: half of it would not be recognised.
    text = "a" * (LONGEST // 2 - 15) + secret + "b" * 2 * LONGEST + "the end"
    table = sample_table(lines(group("a", text, f"say {secret}")), 2)
    first, second = (row[table.columns.index("completion")] for row in table.rows)
    assert "kk" not in first and "kk" not in second and "(hidden)" in second
    assert first.endswith("the end") and " characters …" in first
    assert len(first) < LONGEST + 60


def test_wandb_gets_a_table_per_step(logged):
    steps = {1: [group("a", HOSTILE, parts=PARTS)], 2: [group("b", "x" * 9, parts=PARTS)]}
    folder = logged("wandb", steps=steps)
    tables = [json.loads(p.read_text()) for p in folder.rglob("samples_*.table.json")]
    assert len(tables) == 2
    rows = [
        dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]
    ]
    first = next(row for row in rows if row["step"] == 1)
    assert first["completion"] == VISIBLE and first["prompt"] == "<|user|>a?"
    assert (first["reward"], first["verdict"], first["tokens"]) == (1.0, "wrong (unparsed)", 2)
    assert (first["reward/math"], first["reward/format"]) == (1.0, 0.0)


class Cells(html.parser.HTMLParser):
    """The tags of a page and the texts of its table's cells."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def rendered(text):
    """A Markdown text as TensorBoard's own page shows it."""
    from tensorboard.plugin_util import markdown_to_safe_html

    cells = Cells()
    cells.feed(markdown_to_safe_html(text))
    return cells


def texts_of(folder):
    """The texts in TensorBoard's event files, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path), size_guidance={"tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            if tag.startswith("samples"):
                for event in events.Tensors(tag):
                    found[event.step] = event.tensor_proto.string_val[0].decode()
    return found


def test_tensorboard_shows_hostile_output_as_it_is(logged):
    steps = {1: [group("a|b", HOSTILE, parts=PARTS)], 2: [group("b", "fine")]}
    texts = texts_of(logged("tensorboard", steps=steps))
    assert set(texts) == {1, 2}
    page = rendered(texts[1])
    assert page.tags <= {"table", "thead", "tbody", "tr", "td", "th", "br"}
    head, row = ([cell.strip() for cell in cells] for cells in page.rows)
    shown = dict(zip(head, row, strict=True))
    assert shown["problem_id"] == "a|b" and shown["reward/math"] == "1.0"
    assert shown["completion"].split() == VISIBLE.split()


def test_trackio_gets_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    tracking = TrackingConfig(trackers=("trackio",), project="bandpo")
    display = Display(sys.stdout, sys.stderr)
    t = Tracker(tmp_path, tracking, display, active=True, steps=3, name="run")
    t.log_samples(1, [group("a", HOSTILE)], Alone())
    t.close()
    (run,) = SQLiteStorage.get_runs("bandpo")
    (line,) = [line for line in SQLiteStorage.get_logs("bandpo", run) if "samples" in line]
    (row,) = line["samples"]["_value"]
    assert line["step"] == 1 and row["reward"] == 1.0
    assert html.unescape(row["completion"]) == VISIBLE and "<" not in row["completion"]


def test_the_call_of_trackio_is_the_one_that_it_documents(logged, monkeypatch):
    """`trackio.Table(dataframe=…)`, whose texts its page renders as Markdown."""
    sent = []

    class Run:
        def log(self, values, step=None):
            sent.append((step, values))

        def finish(self):
            """Nothing."""

    module = types.ModuleType("trackio")
    module.Table = lambda dataframe: dataframe
    module.init = lambda project, **_: Run()
    module.config = {}
    monkeypatch.setitem(sys.modules, "trackio", module)
    from accelerate import tracking as accelerates

    monkeypatch.setattr(
        accelerates.TrackioTracker, "store_init_configuration", lambda self, values: None
    )
    logged("trackio", steps={1: [group("a", HOSTILE)]})
    ((step, values),) = [(s, v) for s, v in sent if "samples" in v]
    assert step == 1
    (text,) = values["samples"]["completion"]
    assert "<script" not in text and "&#60;script&#62;" in text


def test_nothing_is_sent_without_rows_or_by_other_ranks(logged):
    folder = logged("tensorboard", steps={1: [group("a", "x")]}, samples=0)
    assert texts_of(folder) == {}


def test_other_ranks_send_nothing(logged):
    folder = logged("tensorboard", steps={1: [group("a", "x")]}, active=False)
    assert not (folder / "tensorboard").exists()


def test_a_tracker_that_fails_over_samples_is_reported_and_the_run_goes_on(
    logged, monkeypatch, capsys
):
    from accelerate.tracking import TensorBoardTracker

    log = TensorBoardTracker.log

    def fails(self, values, step=None, **more):
        if "samples" in values:
            raise ValueError("too large")
        log(self, values, step, **more)

    monkeypatch.setattr(TensorBoardTracker, "log", fails)
    folder = logged("tensorboard", steps={1: [group("a", "x")], 2: [group("a", "x")]})
    told = capsys.readouterr().out
    assert "tensorboard could not log the samples of step 1: too large" in told
    assert (folder / "samples/step_000002.jsonl").exists()


def test_samples_name_the_parts_of_their_reward(logged):
    folder = logged(steps={1: [group("a", "x", parts=PARTS)], 2: [group("a", "x")]})
    first, second = (
        json.loads((folder / f"samples/step_00000{step}.jsonl").read_text()) for step in (1, 2)
    )
    assert first["parts"] == {"math": 1.0, "format": 0.0}
    assert "parts" not in second
