"""A SLURM job array over the runs of a table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bandpo.tables.runs import PlannedRun

_ARRAY = """\
#!/bin/bash
# Each task runs one line of commands.txt, which is one run: sbatch {name}
#SBATCH --job-name={job}
#SBATCH --array=0-{last}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={hours}:00:00
#SBATCH --output={folder}/slurm-%A_%a.log
#SBATCH --requeue
set -euo pipefail
cd {workdir}
mapfile -t commands < {commands}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$head:$((29500 + SLURM_ARRAY_TASK_ID % 1000))" RENDEZVOUS_ID="$SLURM_JOB_ID"
srun ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
  bash -c "${{commands[$SLURM_ARRAY_TASK_ID]}}"
"""
SLACK = 1.5  # of the estimated hours; a run that is cut off resumes from its checkpoint


def write_slurm(
    folder: Path, name: str, runs: Sequence[PlannedRun], gpus_per_node: int, hours: float
) -> list[Path]:
    """Writes `commands.txt`, one torchrun command per run, and their job array, `<name>.sbatch`.

    `hours` is the estimate for the longest run. A job that runs out of time resumes when it is
    submitted again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = runs[0].ranks
    nodes = -(-ranks // gpus_per_node)
    per_node = min(ranks, gpus_per_node)
    launcher = (
        f"{shlex.quote(sys.executable)} -m torch.distributed.run --nnodes {nodes} "
        f"--nproc-per-node {per_node} --rdzv-backend c10d "
        '--rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$RENDEZVOUS_ID" -m bandpo.cli train'
    )
    commands = folder / "commands.txt"
    lines = [f"{launcher} {shlex.join(run.overrides)}\n" for run in runs]
    commands.write_text("".join(lines), encoding="utf-8")
    script = folder / f"{name}.sbatch"
    script.write_text(
        _ARRAY.format(
            name=script.name,
            job=f"bandpo-{name}",
            last=len(runs) - 1,
            nodes=nodes,
            gpus=per_node,
            hours=max(1, round(hours * SLACK + 0.5)),
            folder=folder.absolute(),
            workdir=shlex.quote(str(Path.cwd())),
            commands=shlex.quote(str(commands.absolute())),
        ),
        encoding="utf-8",
    )
    return [commands, script]
