"""Files are read and written in UTF-8, whatever the locale; nothing dies of its console."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TALKATIVE = """
import sys
from bandpo.run.console import protect_output
protect_output()
from rich.console import Console
for _ in range(3000):
    print("→ 1 × 2", flush=True)
    Console().print("β ≥ ½")
print("α", file=sys.stderr)
with open(sys.argv[1], "w", encoding="utf-8") as file:
    assert file.fileno() > 2
    file.write("written")
"""


def opens_text_in_the_locales_encoding(call: ast.Call) -> bool:
    """`path.open("w")`, `open(path)`, `path.read_text()`, `run(…, text=True)` without encoding."""
    settings = {keyword.arg for keyword in call.keywords}
    if settings & {"encoding", "buffering"}:  # text cannot be unbuffered
        return False
    function = ast.unparse(call.func)
    if settings & {"text", "universal_newlines"} and function.startswith("subprocess."):
        return True
    if function.endswith((".read_text", ".write_text", ".fdopen")):
        return True
    if function == "os.open" or not (function == "open" or function.endswith(".open")):
        return False
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
    return not any("b" in str(mode) for mode in modes)


def test_every_text_file_is_opened_with_an_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted((ROOT / "bandpo").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_in_the_locales_encoding(node)
    ]
    assert found == []


@pytest.fixture
def talks(tmp_path):
    """Runs a process that prints much that ASCII lacks; its exit code, and what it has written."""

    def run(redirection: str, **environment: str) -> tuple[int, str, str]:
        script = tmp_path / "talkative.py"
        script.write_text(TALKATIVE, encoding="utf-8")
        command = f'"$1" "$2" "$3" {redirection}; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(
            ["bash", "-c", command, "bash", sys.executable, str(script), str(tmp_path / "file")],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            timeout=120,
        )
        written = (tmp_path / "file").read_text(encoding="utf-8")
        return done.returncode, written, done.stderr.decode()

    return run


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("| head -1 >/dev/null", "α\n"),
        (">&-", "α\n"),
        (">&- 2>&-", ""),
        ("<&- >&-", "α\n"),
        (">/dev/full", "α\n"),
        (">/dev/full 2>&1", ""),
    ],
)
def test_a_process_outlives_its_console(redirection, said, talks):
    assert talks(redirection, PYTHONIOENCODING="utf-8") == (0, "written", said)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_an_encoding_lacks_are_written_as_escapes(encoding, talks):
    code, written, said = talks(">/dev/null", PYTHONIOENCODING=encoding)
    assert (code, written, said) == (0, "written", "\\u03b1\n")
