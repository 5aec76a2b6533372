#!/usr/bin/env bash
# Makes an environment for tests/integrations/test_verl.py, with the CPU build of torch:
#   bash benchmarks/verl_env.sh [folder]       (default: .verl-venv beside the checkout's .venv)
# It holds what verl's losses and configuration import: no engine, no flash-attention.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.verl-venv}
. benchmarks/peer_env.sh
"${pip[@]}" "tensordict>=0.8,<=0.10" "transformers>=5.5.3,<5.11" "numpy>=2" ray hydra-core pandas \
  packaging codetiming dill cachetools datasets accelerate peft torchdata pillow
"${pip[@]}" --no-deps "verl==${VERL_VERSION:-0.9.1}"
echo "$venv/bin/python"
