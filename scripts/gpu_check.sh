#!/usr/bin/env bash
# Checks everything here that a GPU runs, the most worth knowing first, as far as the minutes go:
#   bash scripts/gpu_check.sh [--minutes 9] [--models FOLDER,…] [--only CHECK,…] [--tiny]
# Installs nothing: what lacks a package (DeepSpeed, vLLM, flash-attn, Liger) is not run and said so.
# Writes benchmarks/results/gpu-<card>.json after every check, and docs/gpu.md and docs/tested.md
# from it.
# With --tiny the same checks run on toys, on a CPU too, and nothing is written.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${BANDPO_VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
status=0
"$python" -m benchmarks.gpu "$@" || status=$?
"$python" scripts/document_gpu.py
"$python" scripts/document_tested.py
exit "$status"
