"""Every command of README.md and docs/ is run, or, where it needs a run or hours, composed."""

import re
import sys
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from printed_commands import (
    LAUNCH,
    bandpo_arguments,
    blocks,
    commands,
    compose_launch,
    compose_training,
    write_files,
)

from bandpo.cli import main
from bandpo.commands.table import _parser
from bandpo.config.composition import compose
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.presets import with_preset
from bandpo.tables.recipe import find_recipe

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
# tests/test_pages.py has the others.
ELSEWHERE_TRIED = ("tutorial", "theory", "troubleshooting", "glossary")
DOCS = sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem not in ELSEWHERE_TRIED)
TEXTS = {page: page.read_text(encoding="utf-8") for page in (README, *DOCS)}
# Run by tests/train/test_quickstart.py; by tests/gpu; with the hosts of tests/integrations and
# tests/rollout; as a job by tests/ranks/test_launch.py; by tests/completion and tests/watch; other
# programs.
ELSEWHERE = re.compile(
    r"(for seed in 0 1 2; do )?bash scripts/quickstart\.sh|bash scripts/gpu_check\.sh|sbatch "
    r"|export |([A-Z_]+=\S+ +)*python -m (verl|vllm)\.|(source <\()?bandpo (--|watch )"
    r"|(python -m )?(pip|build|twine|ssh|rm) "
)
# What … stands for in a command.
USUAL = "model.path=MODEL data.train=my.jsonl eval.benchmarks=amc23"
# An indented block that starts with a command; what else it shows is that command's output.
INDENTED = re.compile(
    r"(?<=\n\n)(?: {4}(?:\$ )?(?:[A-Z_]+=|bandpo|bash|export)\b.*\n)(?: {4}.*\n)*"
)


def indented(text: str) -> list[str]:
    """The commands of the indented blocks of a page, continued lines joined."""
    lines = "".join(INDENTED.findall(text)).replace("\\\n", " ").splitlines()
    lines = [line.split("  #")[0].strip().removeprefix("$ ") for line in lines]
    return [line for line in lines if re.match(r"([A-Z_]+=\S* +)*(bandpo|bash|python) ", line)]


PRINTED = {
    line: page
    for page, text in TEXTS.items()
    for line in [*commands(text), *indented(re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
    if not ELSEWHERE.match(line)
}


def test_the_pages_have_commands():
    readme = commands(TEXTS[README])
    assert any(line.startswith("bash scripts/quickstart.sh") for line in readme)
    assert len(readme) >= 4 and len(PRINTED) >= 60 and len(set(PRINTED.values())) >= 12


@pytest.mark.parametrize("line", PRINTED, ids=str)
def test_a_command_is_understood(line, tmp_path, monkeypatch, capsys):
    write_files(TEXTS[PRINTED[line]], tmp_path)
    (tmp_path / "question.txt").write_text("Question: {problem}\nAnswer:")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    if line.startswith(LAUNCH):
        return compose_launch(line, tmp_path)
    line = line.rpartition(" && ")[2].replace(" … ", f" {USUAL} ").replace("=…", "=.")
    name, *arguments = bandpo_arguments(line.removeprefix(".venv/bin/"))
    if "--cfg" in arguments:
        assert main([name, *arguments]) == 0
        return None
    if name in ("train", "plan") and "--cluster" not in arguments:
        return compose_training(arguments)
    if name == "eval":
        compose("eval", with_preset(arguments), EvalCommand)
        return None
    if name == "table":
        return understand_table(arguments, monkeypatch)
    code = main([name, *arguments])
    if code == 2:  # all is understood but an input that is not here, which it names
        inputs = [word.split("=")[-1].split("*")[0] for word in arguments if word[0] != "-"]
        said = capsys.readouterr().err
        assert any(place in said for place in (*inputs, "on the Hub (Offline")), said
        assert "no such key" not in said and "could mean" not in said, said
    else:
        assert code == 0 or (name, code) == ("doctor", 1)
    return None


def understand_table(arguments: list[str], monkeypatch) -> None:
    """Plans the table where that is all; takes seconds. Its recipe is in the checkout."""
    out = ["--out", str(Path.cwd() / "table")]
    monkeypatch.chdir(ROOT)
    if "--plan" in arguments:
        assert main(["table", *arguments, *out]) == 0
    else:
        parsed = _parser().parse_intermixed_args(arguments)
        assert find_recipe(parsed.recipe).recipe().title and parsed.overrides == []


def test_python_of_the_readme_runs():
    codes = blocks(TEXTS[README], "python")
    assert codes
    for code in codes:
        scope = {}
        exec(code, scope)
        scope["loss"].check()


def test_its_page_on_a_package_index_has_no_link_into_the_repository():
    metadata = ProjectMetadata(str(ROOT), PluginManager())
    page = metadata.core.readme
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert targets and all(target.startswith("https://") for target in targets)
    for link in ("[tables of runs](docs/recipes.md)", "[`bandpo/train.py`](bandpo/train.py)"):
        assert link in TEXTS[README] and f"{link[1:].partition(']')[0]}" in page
    assert page.count("\n") == TEXTS[README].count("\n")


def test_the_page_of_keys_is_in_step_with_the_schema():
    sys.path.insert(0, str(ROOT / "scripts"))
    from document_config import document

    assert (ROOT / "docs/configuration.md").read_text() == document()


def test_links_lead_somewhere():
    for page in (README, *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
