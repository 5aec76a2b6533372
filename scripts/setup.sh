#!/usr/bin/env bash
# Creates .venv with everything bandpo needs on this machine; a second call does nothing.
#   bash scripts/setup.sh            CPU or GPU build, whichever fits the machine
#   BANDPO_VENV=dir                  another place for the environment
#   BANDPO_PYTHON=python3.12         another interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${BANDPO_VENV:-.venv}
fail() { echo "setup: $*" >&2; exit 2; }
pinned() { sed -n "s/^$1==//p" configs/constraints*.txt; }

python=${BANDPO_PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.12 python3.11 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate; break
    fi
  done
fi
[ -n "$python" ] || fail "no Python 3.11 or newer found; set BANDPO_PYTHON to one"
command -v g++ >/dev/null || fail "no C++ compiler (g++) found; vLLM and DeepSpeed compile small kernels at first use"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  fail "$python has no Python.h, which those kernels include: install its headers (Debian and Ubuntu: apt install" \
    "$(basename "$python")-dev; Fedora: dnf install $(basename "$python")-devel), or set BANDPO_PYTHON to another one"

case $(realpath -m "$venv") in
  *\ *) fail "torch.compile fails in an environment whose path has a space: set BANDPO_VENV to another folder" ;;
esac

# CUDA_VISIBLE_DEVICES= (empty) hides the GPUs: such a machine gets the CPU build.
if [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then build=gpu; else build=cpu; fi
stamp="$build $(cat pyproject.toml configs/constraints*.txt scripts/setup.sh | sha256sum | cut -c1-16)"
if [ "$(cat "$venv/.bandpo-setup" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

echo "setup: installing the $build build into $venv (several minutes the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check)
export DS_BUILD_OPS=0

if [ "$build" = cpu ]; then
  torch="torch==$(pinned torch)+cpu"
  # PyTorch's CPU builds live on PyTorch's own index; a machine may have them at hand already.
  if "${pip[@]}" "$torch" 2>/dev/null; then
    echo "setup: $torch from the configured package index"
  else
    echo "setup: $torch from PyTorch's CPU wheel index"
    "${pip[@]}" "$torch" --index-url https://download.pytorch.org/whl/cpu
  fi
  "${pip[@]}" -c configs/constraints-cpu.txt -e ".[cpu,dev]"
  # They are CUDA builds here, and vLLM imports them if it finds them.
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
else
  # vLLM pins the torch it was built for and brings the CUDA libraries with it.
  "${pip[@]}" "vllm==$(pinned vllm)"
  "${pip[@]}" -c configs/constraints.txt -e ".[gpu,dev]"
  "$venv/bin/python" -c 'import sys; from bandpo.environment import unusable_gpus; sys.exit(unusable_gpus())' ||
    fail "the GPU build is installed, but it cannot use the GPUs"
fi
echo "$stamp" > "$venv/.bandpo-setup"
echo "setup: done; '$venv/bin/bandpo doctor' says what this machine can run"
