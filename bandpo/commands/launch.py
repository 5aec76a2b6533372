"""`bandpo launch … -- OVERRIDES`: starts `bandpo train` or `eval` on every rank.

scripts/launch.sh, which ships with the package, with the Python that runs this command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bandpo.disk.shipped import shipped


def usage() -> str:
    """The script's own help."""
    script = ["bash", str(_script()), "--help"]
    return subprocess.run(script, capture_output=True, check=True, encoding="utf-8").stdout


def main(argv: Sequence[str]) -> int:
    """Becomes the script, so that signals reach the launcher and the exit code is its own."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    sys.stdout.flush()
    os.execvpe("bash", ["bash", str(_script()), *argv], {**os.environ, "BANDPO_VENV": sys.prefix})


def _script() -> Path:
    return shipped("scripts") / "launch.sh"
