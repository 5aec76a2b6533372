"""Tutorial, how-tos, theory and troubleshooting: their commands, keys, metrics and messages."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from printed_commands import blocks, commands, files, try_command, write_files

from bandpo.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOWTOS = sorted((DOCS / "howto").glob("*.md"))
PAGES = [DOCS / f"{name}.md" for name in ("tutorial", "theory", "troubleshooting", "glossary")]
PAGES += HOWTOS
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
# Rules and methods of a user's own, which how-tos refer to.
OWN = (DOCS / "extending.md").read_text(encoding="utf-8")
PRINTED = [(page, line) for page, text in TEXTS.items() for line in dict.fromkeys(commands(text))]
TROUBLE = TEXTS[DOCS / "troubleshooting.md"]


def test_there_are_pages_for_tasks():
    assert len(HOWTOS) >= 11 and len(PRINTED) >= 60
    for page in HOWTOS:
        assert len(TEXTS[page].splitlines()) <= 80, page.name


@pytest.mark.parametrize(("page", "line"), PRINTED, ids=[f"{p.stem}-{c}" for p, c in PRINTED])
def test_a_printed_command_is_understood(page, line, tmp_path, monkeypatch, capsys):
    write_files(OWN, tmp_path)
    write_files(TEXTS[page], tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try_command(line, tmp_path, capsys)


def test_python_of_the_pages_compiles():
    codes = [(page.name, code) for page, text in TEXTS.items() for code in blocks(text, "python")]
    assert len(codes) >= 3
    for name, code in codes:
        compile(code, name, "exec")


@pytest.mark.parametrize("page", ["howto/rule.md", "troubleshooting.md"])
def test_python_that_needs_nothing_runs(page, capsys):
    (code,) = (c for c in blocks(TEXTS[DOCS / page], "python") if "from bandpo" in c)
    exec(compile(code, page, "exec"), {})
    shown = capsys.readouterr().out
    assert "Interval(low=" in shown or "detail='unevaluated'" in shown


def test_the_tutorials_problems_are_those_that_it_shows(tmp_path, monkeypatch, capsys):
    text = TEXTS[DOCS / "tutorial.md"]
    monkeypatch.chdir(tmp_path)
    exec(files(text)["make_sums.py"], {})
    assert main(["data", "check", "sums.jsonl"]) == 0
    assert capsys.readouterr().out in text
    (show,) = (line for line in commands(text) if line.startswith("bandpo data show sums"))
    assert main(show.split()[1:]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    (block,) = (b for b in blocks(text, "text") if b.startswith("problem '"))
    for line in block.splitlines():
        assert " ".join(line.removesuffix("…").split()) in shown


def test_the_tutorials_reward_is_what_it_says():
    scope = {}
    exec(files(TEXTS[DOCS / "tutorial.md"])["my_reward.py"], scope)

    class Problem:
        answer = "7"

    class Completion:
        text, token_ids = r"3+4=7;\boxed{7}", range(16)

    assert scope["score"](Problem, Completion) == {"answer": 1.0, "brief": -0.25}


def plans():
    """The `bandpo plan` commands of the tutorial with the lines that it shows of each."""
    text = TEXTS[DOCS / "tutorial.md"]
    for part in text.split("<!-- printed by: plan -->")[:-1]:
        line = [c for c in commands(part) if c.startswith("bandpo plan")][-1]
        rest = text[len(part) :] if text.startswith(part) else text.partition(part)[2]
        yield line, blocks(rest, "text")[0].splitlines()


PLANS = list(plans())


@pytest.mark.parametrize(("line", "shown"), PLANS, ids=[line for line, _ in PLANS])
def test_the_tutorials_plans_are_what_plan_prints(line, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(line.split()[1:]) == 0
    printed = [" ".join(part.split()) for part in capsys.readouterr().out.splitlines()]
    for row in shown:
        start = " ".join(row.removesuffix("…").split())
        assert any(part.startswith(start) for part in printed), row


def keys_of(tree, prefix=""):
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}{name}"
        yield from keys_of(value, f"{prefix}{name}.")


@cache
def known_keys() -> frozenset[str]:
    """Of `bandpo train` and `bandpo eval`: the reference's, and those of all groups' files."""
    reference = (DOCS / "configuration.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^\| `([\w.]+)` \|", reference, re.MULTILINE))
    for path in (ROOT / "configs").rglob("*.yaml"):
        group = path.parent.relative_to(ROOT / "configs").as_posix()
        prefix = "" if group in (".", "policy", "protocol") else f"{group.split('/')[0]}."
        found |= set(keys_of(yaml.safe_load(path.read_text(encoding="utf-8")), prefix))
    return frozenset(found | {key.rpartition(".")[0] for key in found})


FILES = (".md", ".py", ".json", ".jsonl", ".log")
SECTION = r"run|model|data|method|rollout|learner|trainer|eval|tracking|reward|alarms"
KEY = re.compile(rf"(?<![\w./-])(?:{SECTION})(?:\.[a-z_]+)+(?![\w/])(?!\()")


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_keys_and_metrics_of_the_pages_exist(page):
    ours = re.sub(
        r"(?m)^(\| [^|]*\|).*\|.*\|.*\|$", r"\1", TEXTS[page]
    )  # peers' names stand beside
    named = re.findall(r"`([^`\n]+)`", ours if page.stem == "migrate" else TEXTS[page])
    keys = {key for name in named for key in KEY.findall(name)}
    wrong = {key for key in keys - known_keys() if not key.endswith(FILES)}
    assert {key for key in wrong if not key.startswith("data.chat_template_kwargs.")} == set()
    metrics = {name for name in named if METRIC.fullmatch(name)}
    assert {name for name in metrics if not known_metrics().fullmatch(name)} == set()


PARTS = "reward rollout policy ratio clip bounds reach mismatch sync loss grad learn length"
PARTS += " verifier time throughput kept source problems entropy"
METRIC = re.compile(rf"(?:{'|'.join(PARTS.split())})/[\w.<>…]+(?:/[\w.<>…]+)*")


@cache
def known_metrics() -> re.Pattern[str]:
    """The names of the page that describes the metrics, with what they leave open."""
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`\w+/.*?) \|", page, re.MULTILINE)
    found = []
    for cell in cells:
        first, *others = re.findall(r"`([^`]+)`", cell)
        names = [first]
        for name in others:
            stem = first.rpartition("_" if name.startswith("…_") else "/")[0]
            names.append(stem + name.removeprefix("…") if name.startswith("…") else name)
        found += names
    patterns = [re.sub(r"…|<\w+>|\\<\w+\\>", r"[\\w.…<>]+", re.escape(name)) for name in found]
    patterns += [f"time/{name}_s" for name in ("rollout", "exchange", "logprob", "learn", "sync")]
    return re.compile("|".join([*patterns, r"clip/bin_…/\w+"]))


# --- Messages ---


@cache
def templates() -> list[str]:
    """The texts of the package, with `…` for the values that they are filled with."""
    found = []
    for path in (ROOT / "bandpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(?:\.\d+)?[sdrf]", "…", node.value))
    return found


def messages() -> list[str]:
    """The quoted messages of docs/troubleshooting.md, each as one line."""
    lines = [line for block in blocks(TROUBLE, "text") for line in block.splitlines()]
    return [line for line in lines if not line.startswith("tail ")]


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_one_of_the_package(message):
    pieces = [piece.strip(" ;:,.()") for piece in message.split("…")]
    for piece in pieces:
        assert any(piece in template for template in templates()), piece


def test_every_symptom_has_a_section_with_what_to_do():
    sections = re.split(r"^## ", TROUBLE, flags=re.MULTILINE)[1:]
    assert len(sections) == 13
    for section in sections:
        assert "| what to do |" in section or "| what it says |" in section, section[:40]
