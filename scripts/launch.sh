#!/usr/bin/env bash
# Starts `bandpo train` on every rank with the launcher at hand; --dry-run prints the command.
#   bandpo launch [--nproc N] -- OVERRIDES…           this machine, torchrun
#   bandpo launch [--nproc N] eval OVERRIDES…         `bandpo eval`, problems shared out
#   bandpo launch --nodes N --head HOST[:PORT] -- …   on each node, torchrun
#   bandpo launch --hostfile FILE -- …                on one node, deepspeed over ssh
#   sbatch --nodes 2 --gpus-per-node 8 --wrap "bandpo launch --slurm -- …"   in a SLURM allocation
# A node runs one process per GPU, or --nproc of them; with --hostfile, as many as its slots.
# In a checkout `bash scripts/launch.sh` is the same with its .venv, or with BANDPO_VENV.
set -euo pipefail
fail() { echo "launch: $*" >&2; exit 2; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

nproc="" nodes="" head="" hostfile="" slurm="" dry_run=""
job=train
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    train | eval) job=$1; break ;;
    --nproc | --nodes | --head | --hostfile)
      { [ $# -gt 1 ] && [ "$2" != -- ]; } || fail "$1 needs a value"
      declare "${1#--}=$2"; shift 2 ;;
    --slurm) slurm=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    *) fail "unknown option $1; overrides come after --, or after train or eval" ;;
  esac
done
[ $# -gt 0 ] || fail "put -- before the overrides, even if there are none"
shift
[ "${1:-}" != -- ] || shift  # eval -- OVERRIDES…
chosen=("$nodes" "$hostfile" "$slurm")
[ "$(printf '%s\n' "${chosen[@]}" | grep -c .)" -le 1 ] || fail "choose one of --nodes, --hostfile and --slurm"
[ -z "$nodes" ] || [ -n "$head" ] || fail "--nodes needs --head, a node that the others reach"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -e "$root/pyproject.toml" ] || root=${SLURM_SUBMIT_DIR:-.}  # sbatch runs a copy from elsewhere
bin=${BANDPO_VENV:-$root/.venv}/bin
[ -x "$bin/python" ] || bin=$(dirname "$(command -v python3)")
python=$bin/python
[ -x "$python" ] || python=$bin/python3

if [ -z "$hostfile" ]; then
  # torch counts what it can use: CUDA_VISIBLE_DEVICES and MIG instances are taken into account.
  : "${nproc:=${SLURM_GPUS_ON_NODE:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}}"
  # torchrun would give each rank a single thread.
  # nproc knows what a scheduler or a container leaves to this one; macOS has none.
  cores=$(OMP_NUM_THREADS= nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  share=$((cores / nproc))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}
fi
work=(-m bandpo.cli "$job" "$@")
torchrun=("$python" -m torch.distributed.run --nproc-per-node "$nproc")
meeting=(--rdzv-backend c10d --rdzv-id bandpo --rdzv-endpoint)

if [ -n "$hostfile" ]; then
  [ -r "$hostfile" ] || fail "$hostfile: no such file; its lines are like: node1 slots=8"
  command=("$bin/deepspeed" --hostfile "$hostfile" --module "${work[@]:1}")
  # deepspeed passes PYTHON…, NCCL… and MLFLOW… on to the nodes, and what a file of variables holds.
  # It shows all of them in its log and in the nodes' process lists, so that secrets stay out of it.
  known=$(env | grep -E '^(BANDPO|GLOO|HF|TRITON|VLLM|WANDB)_[A-Z0-9_]*=' || true)
  secrets=$(echo "$known" | cut -d= -f1 | grep -E 'KEY|TOKEN|SECRET|PASSWORD' | paste -sd ' ' || true)
  [ -z "$secrets" ] || echo "launch: not passed on, set them on each node: $secrets" >&2
  if [ -z "${DS_ENV_FILE:-}" ] && [ -z "$dry_run" ]; then
    DS_ENV_FILE=$(mktemp) && export DS_ENV_FILE
    trap 'rm -f "$DS_ENV_FILE"' EXIT
    echo "$known" | grep -vE '^[A-Z0-9_]*(KEY|TOKEN|SECRET|PASSWORD)' | grep . > "$DS_ENV_FILE" || true
    "${command[@]}"
    exit
  fi
elif [ -n "$slurm" ]; then
  [ -n "${SLURM_JOB_NODELIST:-}" ] || fail "--slurm needs an allocation: sbatch or salloc first"
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  command=(srun --nodes "$SLURM_JOB_NUM_NODES" --ntasks-per-node 1 --kill-on-bad-exit
    # srun does not take it over from sbatch (SLURM 22.05 and newer).
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task "$SLURM_CPUS_PER_TASK"}
    "${torchrun[@]}" --nnodes "$SLURM_JOB_NUM_NODES" "${meeting[@]}" "$first:29500" "${work[@]}")
elif [ -n "$nodes" ]; then
  [[ $head == *:* ]] || head=$head:29500
  [ -n "$dry_run" ] || "$python" -m bandpo.ranks.head "$head"
  command=("${torchrun[@]}" --nnodes "$nodes" "${meeting[@]}" "$head" "${work[@]}")
else
  command=("${torchrun[@]}" --standalone "${work[@]}")
fi

if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
