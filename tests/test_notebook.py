"""docs/first_run.ipynb runs, and is committed with the outputs of the code that it shows."""

import base64
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from document_notebook import NOTEBOOK, code_cells, executed, fingerprint  # noqa: E402


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook) -> str:
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    return "".join(out.text for out in outputs if out.output_type == "stream")


def test_the_saved_outputs_are_those_of_its_code(notebook):
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert notebook.metadata["outputs_of"] == fingerprint(notebook), (
        "run python scripts/document_notebook.py"
    )


def test_the_saved_outputs_are_small_and_of_no_machine(notebook):
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    images = [out.data["image/png"] for out in outputs if out.output_type == "display_data"]
    assert len(images) == 3
    assert max(len(base64.b64decode(image)) for image in images) < 60_000
    assert {out.output_type for out in outputs} == {"stream", "display_data"}
    assert {out.name for out in outputs if out.output_type == "stream"} == {"stdout"}
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)\b|\x1b", printed(notebook))


def test_its_links_lead_somewhere(notebook):
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#]+)\)", words)
    assert targets and [t for t in targets if not (NOTEBOOK.parent / t).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_trains_and_replays_from_any_folder(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    said = printed(executed(folder))
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    run = folder / "outputs/first-run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, after = lines[0]["eval/arithmetic/mean@32"], lines[-1]["eval/arithmetic/mean@32"]
    assert before < 0.3 and after > 0.55
    # What the notebook counts by `bandpo.loss` alone is what the run logged of these steps.
    sampled = {int(path.stem[5:]) for path in (run / "samples").iterdir()}
    assert sampled == {line["step"] for line in lines if line["step"] and line["step"] % 2 == 0}
    clipped, tokens = map(int, re.search(r"Band-KL 0.05 clips (\d+) of (\d+) ", said).groups())
    logged = [line for line in lines if line["step"] in sampled]
    assert tokens == sum(line["length/tokens"] for line in logged)
    rates = [line["clip/high_frac"] + line["clip/low_frac"] for line in logged]
    expected = sum(rate * line["length/tokens"] for rate, line in zip(rates, logged, strict=True))
    assert 0 < clipped == pytest.approx(expected, abs=1)
