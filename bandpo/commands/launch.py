"""`bandpo launch … -- OVERRIDES`: starts `bandpo train` or `eval` on every rank.

scripts/launch.sh, which ships with the package, with the Python that runs this command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from bandpo.disk.shipped import shipped


def main(argv: Sequence[str]) -> int:
    """Becomes the script, so that signals reach the launcher and the exit code is its own."""
    script = ["bash", str(shipped("scripts") / "launch.sh")]
    if argv and argv[0] in ("-h", "--help"):
        print(subprocess.run([*script, "--help"], capture_output=True, check=True).stdout.decode())
        return 0
    sys.stdout.flush()
    os.execvpe("bash", [*script, *argv], {**os.environ, "BANDPO_VENV": sys.prefix})
