"""`bandpo data show`: what is printed is what training sends."""

import io
import json
import re
import shutil

import pytest
from rich.console import Console

from bandpo.cli import main
from bandpo.commands.data import show as data_show
from bandpo.data.arithmetic import problems
from bandpo.data.prompting.display import histogram, length_line
from bandpo.data.prompts import build_prompts
from bandpo.model.embedded import build_tokenizer


def shown(capsys, *words):
    assert main(["data", "show", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"id": f"p{i}", "problem": "1+" * i + "1<|end|>", "answer": str(i)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_embedded_task_is_shown_as_it_is_trained_on(capsys):
    out = shown(capsys, "arithmetic", "--n", "2", "data.train.count=50")
    prompts, _ = build_prompts(problems("train", 50, 0), build_tokenizer(), "none", 64)
    assert out.count("problem '") == 2 and "\x1b" not in out
    for prompt in prompts[:2]:
        assert f"\n{prompt.text}\n" in out
        assert f"answer '{prompt.problem.answer}', {len(prompt.token_ids)} tokens" in out
    words = out.split("tokens: ")[1].split("\nproblem ")[0].split()
    ids = [int(re.match(r"\*?(\d+):", word)[1]) for word in words]
    assert tuple(ids) == prompts[0].token_ids
    assert next(word for word in words if word[0] == "*").endswith("<|user|>")
    assert "\n50 prompts of" in out and "0 (0.00%) have more than data.max_prompt_tokens=64" in out


def test_the_whole_of_a_file_is_measured_and_overrides_are_trainings(capsys, data):
    words = ["--model", "embedded", data, "data.template=none", "data.max_prompt_tokens=50"]
    out = shown(capsys, *words, "--n", "1", "--plain")
    lengths = [2 * i + 1 + len("<|end|>") + 3 for i in range(40)]
    beyond = sum(length > 50 for length in lengths)
    line = f"40 prompts of {min(lengths)} to {max(lengths)} tokens, median 50; {beyond} "
    assert line + f"({beyond / 40:.2%}) have more than data.max_prompt_tokens=50" in out
    assert "dropped in training" in out and "template='none'" in out
    assert "<|user|>1<|end|><|end|><|assistant|>" in out
    for more, text in (
        (["data.system_prompt=Hello"], "<|system|>Hello<|end|><|user|>1"),
        (["data.chat_template=none"], "\n1<|end|>\n"),
    ):
        assert text in shown(capsys, *words, *more)
    assert shown(capsys, data, "model=embedded", "--n=0", "data.template=none").count("p0") == 0


def test_control_tokens_are_coloured_where_the_template_writes_them(capsys, data, monkeypatch):
    class Terminal(Console):
        def __init__(self, **options):
            options["color_system"] = options["color_system"] and "standard"
            super().__init__(file=io.StringIO(), force_terminal=True, width=200, **options)
            made.append(self)

    monkeypatch.setattr(data_show, "Console", Terminal)
    for plain in ([], ["--plain"]):
        made = []
        shown(capsys, data, "--model=embedded", "data.template=none", *plain)
        out = made[0].file.getvalue()
        line = next(line for line in out.splitlines() if "<|assistant|>" in line)
        coloured = re.findall(r"\x1b\[1;35m(.*?)\x1b\[0m", line)
        # the first <|end|> is the problem's own text
        assert coloured == ([] if plain else ["<|user|>", "<|end|>", "<|assistant|>"])
        assert re.sub(r"\x1b\[[\d;]*m", "", line) == "<|user|>1<|end|><|end|><|assistant|>"


def test_a_benchmark_is_shown_by_its_name(capsys, tmp_path, data):
    shutil.copy(data, tmp_path / "amc23.jsonl")
    out = shown(capsys, "amc23", "--model=embedded", f"data.root={tmp_path}", "--n=1")
    assert "problem 'p0'" in out and "\n40 prompts of" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.jsonl"], "no model is named"),
        (["data.jsonl", "--model", "nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["missing.jsonl", "--model=embedded"], "missing.jsonl: no such file"),
        (["a.jsonl", "b.jsonl", "--model=embedded"], "takes one source, not 2"),
        (["data.jsonl", "--model=embedded", "data.templte=none"], "did you mean data.template"),
        (["data.jsonl", "--model=embedded", "data.chat_template=c.jinja"], "c.jinja is neither"),
        (["data.jsonl", "--model=embedded", "data.system_prompt=sys.txt"], "names a file that"),
        (["--n", "-1"], "'-1' is no number of prompts"),
        (["--n=x"], "'x' is no number of prompts"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_input_ends_with_a_message(words, message, capsys, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["data", "show", *words])
    except SystemExit as exit:
        code = exit.code
    told = capsys.readouterr()
    assert code == 2 and message in told.err and "Traceback" not in told.err


def test_words_after_an_option_count_in_every_subcommand(capsys, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"frage": "1+1?", "answer": "2"}\n')
    check = ["data", "check", str(path)]
    assert main([*check, "--fast"]) == 2 and "data.columns.problem=" in capsys.readouterr().err
    assert main([*check, "--fast", "data.columns.problem=frage"]) == 0
    with pytest.raises(SystemExit) as exit:
        main([*check, "--fst"])
    assert exit.value.code == 2 and "unrecognized arguments: --fst" in capsys.readouterr().err


def test_a_histogram_counts_every_prompt_once():
    for lengths in ([7], [5, 5, 9], list(range(1, 300)), [10, 4000]):
        lines = [line.plain for line in histogram(lengths, 100)]
        counts = [
            int(re.search(r"  ([\d,]+)(  beyond|$)", line)[1].replace(",", "")) for line in lines
        ]
        assert sum(counts) == len(lengths) and len(lines) <= 14
        assert any("beyond the limit" in line for line in lines) == (max(lengths) > 150)
    assert (
        "1 (50.00%) have more than data.max_prompt_tokens=100: an error (data.over"
        in length_line([10, 4000], 100, "error")
    )
