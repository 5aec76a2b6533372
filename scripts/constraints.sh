#!/usr/bin/env bash
# The pins of configs/constraints*.txt: versions with which the tests have passed.
#   bash scripts/constraints.sh            sets each to the version that .venv (or BANDPO_VENV) has
#   bash scripts/constraints.sh --check    changes nothing; do both builds resolve on every Python?
# A pin of what is not installed there (vllm on a CPU) is left as it is. --check needs uv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" != --check ]; then
  exec "${BANDPO_VENV:-.venv}/bin/python" - configs/constraints*.txt <<'PYTHON'
import re, sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def installed(pin: re.Match[str]) -> str:
    try:
        return f"{pin[1]}=={version(pin[1]).split('+')[0]}"
    except PackageNotFoundError:
        return pin[0]


for path in map(Path, sys.argv[1:]):
    before = path.read_text()
    path.write_text(re.sub(r"^([\w-]+)==\S+", installed, before, flags=re.MULTILINE))
    print(f"{path}: {'unchanged' if path.read_text() == before else 'new pins'}")
PYTHON
fi

command -v uv >/dev/null || { echo "constraints: install uv first (pip install uv)" >&2; exit 2; }
# Which build of torch it is decides nothing else; CPU builds are on PyTorch's own index alone.
override=$(mktemp)
trap 'rm -f "$override"' EXIT
status=0
for build in cpu gpu; do
  file=configs/constraints.txt
  [ "$build" = gpu ] || file=configs/constraints-cpu.txt
  sed -n '/^torch==/p' "$file" > "$override"
  for python in $(sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml); do
    if uv pip compile --quiet pyproject.toml --extra "$build" --constraints "$file" --overrides "$override" \
      --python-version "$python" --python-platform x86_64-manylinux_2_28 > /dev/null; then
      echo "bandpo[$build] resolves on Python $python"
    else
      echo "bandpo[$build] does not resolve on Python $python" >&2
      status=1
    fi
  done
done
exit "$status"
