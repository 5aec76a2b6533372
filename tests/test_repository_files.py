"""CITATION.cff and the forms of issues say what is true of the package."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import bandpo
from bandpo.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*_*.yml"))


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert {"message", "title", "authors"} <= cited.keys()
    assert cited["title"] == PROJECT["name"]
    assert str(cited["version"]) == bandpo.__version__
    assert cited["license"] == PROJECT["license"]
    (paper,) = cited["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2603.04918"
    assert "arXiv 2603.04918" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form.keys() >= {"name", "description", "body"}
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked)
    assert any(field.get("validations", {}).get("required") for field in asked)
    for field in asked:
        assert field["attributes"]["label"]


def test_commands_that_forms_name_exist():
    for path in (*FORMS, ROOT / "SECURITY.md", ROOT / ".github/PULL_REQUEST_TEMPLATE.md"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"bandpo (\w+)`", text)) <= COMMANDS.keys()
        for file in re.findall(r"(?:docs|scripts)/[\w-]+\.(?:md|sh|py)", text):
            assert (ROOT / file).exists(), file


def test_a_bug_report_asks_for_what_a_run_leaves():
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text(encoding="utf-8")
    named = (ROOT / "docs/run-folder.md").read_text(encoding="utf-8")
    for file in ("run.log", "run.json", "config.yaml", "metrics.jsonl"):
        assert file in text and re.search(rf"\b{re.escape(file)}\b", named), file
    assert "bandpo doctor" in text
