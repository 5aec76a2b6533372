"""docs/models.md says what was measured, and what was measured is so."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from document_models import COLUMNS, document  # noqa: E402

from benchmarks.models import ARCHITECTURES, RESULTS, measured  # noqa: E402

FEW = ("qwen3", "gemma2", "phi")  # all works; settings are needed; refused


def recorded():
    return json.loads(RESULTS.read_text(encoding="utf-8"))["models"]


def test_the_page_is_what_was_recorded():
    assert (ROOT / "docs/models.md").read_text(encoding="utf-8") == document(), (
        "run python scripts/document_models.py"
    )


def test_every_architecture_was_tried_in_every_column():
    """vLLM's may lack: it takes minutes for each, and is run apart."""
    tried = {kind: {*found, "vllm"} for kind, found in recorded().items()}
    assert tried == {kind: set(COLUMNS) for kind in ARCHITECTURES}
    for kind, found in recorded().items():
        for column, verdict in found.items():
            assert verdict["works"] or verdict["reason"], (kind, column)


def comparable(verdict):
    """Without a refusal's numbers, which are rounded otherwise elsewhere, and the order of sets."""
    return {**verdict, "reason": sorted(re.findall(r"[^\W\d]+", verdict["reason"]))}


def found_again(kind, tmp_path, host):
    found = measured(kind, tmp_path, host.ranks)
    return {name: comparable(asdict(verdict)) for name, verdict in found.items()}


def without_vllm(kind):
    return {n: comparable(verdict) for n, verdict in recorded()[kind].items() if n != "vllm"}


@pytest.mark.parametrize("kind", FEW)
def test_what_was_recorded_is_found_again(kind, tmp_path, host):
    assert found_again(kind, tmp_path, host) == without_vllm(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in FEW])
def test_what_was_recorded_of_the_others_is_found_again(kind, tmp_path, host):
    assert found_again(kind, tmp_path, host) == without_vllm(kind)
