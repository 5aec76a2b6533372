"""docs/gpu.md is what the recorded results say."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from document_gpu import document  # noqa: E402


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/gpu.md").read_text(encoding="utf-8") == document(), (
        "run python scripts/document_gpu.py"
    )
