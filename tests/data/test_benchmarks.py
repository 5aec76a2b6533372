"""The registry: every benchmark file is valid, local copies come first, and nothing odd passes."""

import dataclasses
import json
from pathlib import Path

import pytest

from bandpo.data import arithmetic
from bandpo.data.benchmarks import (
    benchmark_spec,
    content_sha256,
    load_benchmark,
    load_benchmarks,
    registered,
)
from bandpo.data.sources import HubSource
from bandpo.disk import hub
from bandpo.errors import UserError
from bandpo.types import Problem

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


def write(folder: Path, name: str, rows) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_registered_benchmark_is_valid():
    assert set(registered()) >= {"amc23", "aime24", "aime25", "math500", "gsm8k", "arithmetic"}
    for name in registered():
        spec = benchmark_spec(name)
        assert spec.name == name and spec.size


def test_hub_ids_of_the_papers_benchmarks():
    hubs = {name: benchmark_spec(name).source for name in ("amc23", "aime24", "aime25")}
    assert hubs["aime24"] == HubSource(hub="HuggingFaceH4/aime_2024", split="train")
    assert (hubs["amc23"].hub, hubs["amc23"].split) == ("math-ai/amc23", "test")
    assert (hubs["aime25"].hub, hubs["aime25"].split) == ("yentinglin/aime_2025", "train")


@needs_shared
@pytest.mark.parametrize("name", ["amc23", "aime24", "aime25", "math500", "gsm8k"])
def test_local_copies_have_the_expected_size_and_content(name):
    benchmark = load_benchmark(name, SHARED)
    assert benchmark.warnings == ()
    assert benchmark.origin.startswith(str(SHARED))


def test_the_embedded_benchmark_needs_no_files():
    benchmark = load_benchmark("arithmetic")
    assert len(benchmark.problems) == 200 and benchmark.warnings == ()
    assert len(benchmark.head(7).problems) == 7
    assert benchmark.head(7).sha256 != benchmark.sha256
    assert "first 7 of 200" in benchmark.head(7).warnings[0]
    assert benchmark.head(None) == benchmark.head(200) == benchmark


def test_a_local_copy_comes_before_the_hub_and_oddities_are_reported(tmp_path):
    write(tmp_path, "aime24.jsonl", [{"problem": "1+1?", "answer": "002"}])
    benchmark = load_benchmark("aime24", tmp_path)
    assert benchmark.problems[0].answer == "2"
    assert len(benchmark.warnings) == 2
    assert "has 1 problems, expected 30" in benchmark.warnings[0]
    assert "not the copy" in benchmark.warnings[1]


def test_a_root_without_the_file_leaves_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(HubSource, "problems", lambda self: [Problem("a", "q", "1")])
    assert load_benchmark("aime24", tmp_path).origin == "HuggingFaceH4/aime_2024@newest/train"
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: no such folder"):
        load_benchmark("aime24", tmp_path / "nowhere")


def test_the_users_own_file_and_mapping(tmp_path):
    path = write(tmp_path, "mine.jsonl", [{"q": "1+1?", "answer": 2}])
    with pytest.raises(UserError, match="no column 'problem'"):
        load_benchmark(f"file:{path}")
    source = {"path": path, "columns": {"problem": "q"}}
    own = load_benchmark({"name": "own", "source": source})
    assert (own.name, own.problems[0].problem) == ("own", "1+1?")
    write(tmp_path, "mine.jsonl", [{"problem": "1+1?", "answer": 2}])
    assert load_benchmark(f"file:{path}").name == load_benchmark(str(path)).name == "mine"
    with pytest.raises(UserError, match="named twice: mine"):
        load_benchmarks([f"file:{path}", str(path)])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"problem": "a  b", "answer": 1}, {"problem": "A b", "answer": 1}], "the same problem"),
        ([{"problem": "a", "answer": "1/2"}], "'1/2' is no integer"),
    ],
)
def test_duplicates_and_wrong_answers_are_errors(tmp_path, rows, message):
    source = {"path": write(tmp_path, "a.jsonl", rows)}
    with pytest.raises(UserError, match=message):
        load_benchmark({"name": "a", "source": source, "answer_type": "integer"})


def test_unknown_names_and_keys():
    with pytest.raises(UserError, match="no benchmark 'aime99'; there are aime24, aime25, aime26"):
        load_benchmark("aime99")
    with pytest.raises(UserError, match="sise: Extra inputs"):
        load_benchmark({"name": "a", "source": "a/b", "sise": 3})


def test_the_content_hash_sees_problems_and_answers_alone():
    problems = [Problem("1", "a  b\n", "1", "s"), Problem("2", "c", "2", "s", {"level": 1})]
    same = [Problem("x", "c", "2"), Problem("y", " a b", "1")]
    assert content_sha256(problems) == content_sha256(same)
    assert content_sha256(problems) != content_sha256(
        [dataclasses.replace(problems[0], answer="3"), problems[1]]
    )
    # moving text between problem and answer is another content
    assert content_sha256([Problem("1", "a b", "c")]) != content_sha256([Problem("1", "a", "b c")])


def test_a_local_copy_has_either_of_its_names(tmp_path):
    for name in ("gsm8k_test.jsonl", "gsm8k.jsonl"):
        path = write(tmp_path, name, [{"problem": "1+1?", "answer": "2"}])
        assert load_benchmark("gsm8k", tmp_path).origin == str(path)
        path.unlink()


@pytest.fixture
def unreachable_hub(monkeypatch):
    """Counts the requests; every name is unknown."""
    import datasets
    from huggingface_hub import constants

    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(url)
            raise OSError("Name or service not known")

    def load_dataset(hub, *arguments, **settings):
        asked.extend([] if datasets.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE else [hub])
        raise ConnectionError(f"Couldn't reach {hub}")

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._answers.cache_clear()
    yield asked
    hub._answers.cache_clear()
    assert not constants.HF_HUB_OFFLINE


def test_without_the_hub_the_names_of_local_copies_are_told(unreachable_hub, tmp_path, caplog):
    caplog.set_level("INFO", "bandpo")
    for name in ("gsm8k", "amc23"):
        with pytest.raises(UserError) as told:
            load_benchmark(name, tmp_path)
    assert (
        f"A local copy would be amc23.jsonl, amc23.parquet or amc23.csv in data.root={tmp_path}, "
        "with the columns problem and answer (id is optional)." in str(told.value)
    )
    assert (
        "gsm8k: no gsm8k_test.jsonl, gsm8k_test.parquet, gsm8k_test.csv, gsm8k.jsonl, "
        f"gsm8k.parquet or gsm8k.csv in {tmp_path}, so the hub is asked for openai/gsm8k"
    ) in caplog.messages
    assert len(unreachable_hub) == 1  # once for both, and never for a file
    with pytest.raises(UserError, match=r"A local copy .* in the folder of data\.root=…"):
        load_benchmark("aime24")


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [
        ("test", 5, "split=test: the arithmetic task has train and heldout"),
        ("heldout", 200, "count=200: the split heldout of the arithmetic task has fewer problems"),
    ],
)
def test_problems_that_are_not_there_are_refused(monkeypatch, split, count, message):
    monkeypatch.setattr(arithmetic, "OPERANDS", 2)
    with pytest.raises(UserError, match=message):
        arithmetic.problems(split, count)
