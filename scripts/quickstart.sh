#!/usr/bin/env bash
# Trains the embedded policy that ships with BandPO (Band-KL, δ = 0.05), in a few minutes:
#   bash scripts/quickstart.sh [hydra overrides, e.g. seed=1 method=clip_higher]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
bandpo=${BANDPO_VENV:-.venv}/bin/bandpo
exec "$bandpo" train run.name=quickstart trainer.resume=never "$@"
