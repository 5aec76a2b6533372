"""`bandpo replay` on files and run folders: tables, figure, JSON, and bad input in words."""

import json
from pathlib import Path

import pytest
from token_dumps import random_batch, write_dump

from bandpo.cli import main
from bandpo.methods.method import load_methods
from bandpo.methods.records import dump_path, find_dumps
from bandpo.methods.replay import replay

BOUNDS = """
from dataclasses import dataclass
from bandpo.loss import Bounds, Interval

@dataclass(frozen=True)
class Never(Bounds):
    def __call__(self, old_logp):
        one = 0 * old_logp + 1
        return Interval(one, one)
"""
METHOD = """
defaults: [_clip]
name: never
loss:
  surrogate:
    surrogate:
      bounds: {_target_: my_never.Never}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (10, 20):
        for rank in (0, 1):
            batches = [random_batch(step + rank, step=step)]
            write_dump(dump_path(tmp_path / "run", step, rank), batches)
    return tmp_path / "run"


def test_a_run_gives_tables_a_figure_and_json(run, capsys):
    assert main(["replay", str(run), "--methods", "all,band_kl:delta=0.1"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((run / "replay" / "replay.json").read_text())
    tokens = sum(int(random_batch(s + r).mask.sum()) for s in (10, 20) for r in (0, 1))
    assert result["tokens"] == tokens and f"{tokens:,} tokens" in shown
    assert len(result["files"]) == 4
    assert {"grpo", "gspo", "cfpo", "band_kl", "band_kl:delta=0.1"} <= result["methods"].keys()
    for name, method in result["methods"].items():
        assert name in shown
        assert sum(cell["tokens"] for cell in method["cells"]) == tokens
    assert result["methods"]["cispo"]["note"] == "no clip: caps the weight"
    assert (run / "replay" / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_what_the_library_computes(run, tmp_path):
    out = tmp_path / "out"
    assert main(["replay", str(run), "--methods", "grpo,gspo", "--out", str(out)]) == 0
    expected = replay(find_dumps([run]), load_methods("grpo,gspo")).to_json()
    assert json.loads((out / "replay.json").read_text()) == json.loads(json.dumps(expected))


def test_wider_regions_keep_more(run, tmp_path):
    names = [f"band_kl:delta={delta}" for delta in (0.01, 0.05, 0.2, 1.0)]
    main(["replay", str(run), "--methods", ",".join(names), "--out", str(tmp_path)])
    methods = json.loads((tmp_path / "replay.json").read_text())["methods"]
    kept = [methods[name]["total"]["gradient_kept"] for name in names]
    assert kept == sorted(kept) and kept[0] < kept[-1]


def test_a_method_of_the_users_own(run, tmp_path, monkeypatch):
    (tmp_path / "my_never.py").write_text(BOUNDS)
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "never.yaml").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--configs", str(tmp_path / "mine"), "--out", str(tmp_path / "out")]
    assert main(["replay", str(run), "--methods", "never", *arguments]) == 0
    result = json.loads((tmp_path / "out" / "replay.json").read_text())
    # All that is left is what leads back to the old policy.
    assert 0 < result["methods"]["never"]["total"]["gradient_kept"] < 0.5
    assert main(["replay", str(run), "--methods", "all", *arguments]) == 0
    assert "never" in (tmp_path / "out" / "replay.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere cannot be read"),
        (["{tmp}"], "holds no token records"),
        (["{run}", "--methods", "grpo,nonsense"], "nonsense: method=nonsense"),
        (["{run}", "--methods", "band_kl:delta=-1"], "delta must be positive"),
        (["{run}", "--methods", "band_kl:delta=abc"], "delta must be positive"),
        (["{run}", "--methods", "band_kl:delta"], "'delta' is not key=value"),
        (["{run}", "--methods", "band_kl:detla=1"], "detla"),
        (["{run}", "--methods", ","], "names no method"),
        (["{run}", "--configs", "nowhere"], "no folder nowhere/method"),
        (["{run}", "--out", "{run}/tokens/step_000010-rank0.parquet"], "--out"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(run, tmp_path, capsys, arguments, message):
    filled = [word.format(run=run, tmp=tmp_path) for word in arguments]
    assert main(["replay", *filled]) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err


def test_all_wrong_methods_are_told_together(run, capsys):
    assert main(["replay", str(run), "--methods", "a,b:x,band_tv:delta=0"]) == 2
    said = capsys.readouterr().err
    assert all(f"  - {name}: " in said for name in ("a", "b:x", "band_tv:delta=0"))
