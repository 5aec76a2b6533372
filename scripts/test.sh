#!/usr/bin/env bash
# Lint, types, and the whole test suite, in the environment that scripts/setup.sh makes.
#   bash scripts/test.sh                 what continuous integration runs, two files at a time
#   bash scripts/test.sh -m slow         the long tests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
bin=${BANDPO_VENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
# Stale calls; benchmarks/*.py import each other as the scripts that they are.
"$bin/mypy" --config-file tests/mypy.ini
MYPYPATH=benchmarks "$bin/mypy" --config-file tests/mypy.ini benchmarks/*.py
if [ $# -eq 0 ]; then
  set -- -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder
fi
exec "$bin/python" -m pytest "$@"
