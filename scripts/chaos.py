#!/usr/bin/env python3
"""Kills a training run at random moments, restarts it, and compares its end with a quiet run's.

    python scripts/chaos.py --rounds 30 --seed 0 --table docs/chaos.md

A round trains the embedded policy (float32) in a fresh folder, disturbs the run once at a moment
drawn from the seed, starts it again with the same command until it has ended with exit code 0, and
holds the end against that of a run nobody disturbed: final weights bitwise, metrics.jsonl but for
times, every completion sampled. After every end, expected or not, no process of the job may be
left and the run folder must open. What can happen to a run:

    kill       SIGKILL to one of the job's processes: a rank, the launcher, a verifier's worker
    term       SIGTERM to a rank or to the launcher
    full disk  the run folder, on a small tmpfs of its own, fills up and is freed later
    truncate   SIGKILL, then a file of the newest checkpoint is cut in half

The small tmpfs wants the right to mount; without it those rounds are left out, and it is said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
MARK = "BANDPO_CHAOS_JOB"
STEPS = 6
START_LIMIT_S, END_LIMIT_S = 600.0, 900.0
LINGER_S = 10.0
"""How long after a job's end its processes may take to go."""
DISK_MIB, ROOM_KIB = 64, 256
"""Size of the small disk, and what its filling leaves: metrics still fit, a checkpoint does not."""
RUN = [
    *(f"trainer.steps={STEPS}", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=3"),
    *("trainer.sample_every=1", "eval.benchmarks=[]", "run.name=chaos"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=32"),
    *("learner.updates_per_rollout=2", "learner.lr=1e-3", "data.max_prompt_tokens=64"),
    *("reward.workers=1",),
]


@dataclass(frozen=True)
class Setting:
    """The settings of a run."""

    name: str
    ranks: int
    overrides: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        """The command line of a run into a folder."""
        launcher = [sys.executable]
        if self.ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={self.ranks}"]
        return [*launcher, "-m", "bandpo.cli", "train", *RUN, *self.overrides, f"run.dir={folder}"]


VLLM = ("rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=32")
SETTINGS = {
    "hf": Setting("transformers, ZeRO 0", 1, ("rollout=hf",)),
    "hf2": Setting("transformers, ZeRO 2, 2 ranks", 2, ("rollout=hf", "learner.zero_stage=2")),
    "vllm": Setting("vLLM, ZeRO 0", 1, ("rollout=vllm_local", *VLLM)),
    "vllm2": Setting(
        "vLLM, ZeRO 2, 2 ranks", 2, ("rollout=vllm_local", *VLLM, "learner.zero_stage=2")
    ),
}
# Which setting and which disturbance the rounds take, in turn.
SETTING_CYCLE = ("hf", "hf2", "hf", "vllm", "hf", "hf", "vllm2")
DISTURBANCES = ("kill", "term", "truncate", "full disk")


class Launched:
    """A command in a session of its own, and every process that comes of it."""

    def __init__(self, command: Sequence[str], log: Path, **settings: Any) -> None:
        """Starts it with `settings` for subprocess.Popen; stdout and stderr go to `log`."""
        self._mark = uuid.uuid4().hex
        self._seen: set[psutil.Process] = set()
        self.log = log
        environment = {**settings.pop("env", os.environ), MARK: self._mark}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **settings,
            )

    def alive(self) -> list[psutil.Process]:
        """The job's processes that have not ended, oldest first.

        Most carry the mark in their environment; the verifier's workers, which start with a clean
        one, are known as children of those.
        """
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    self._seen |= {process, *process.children(recursive=True)}
        return sorted(filter(_is_alive, self._seen), key=lambda process: process.create_time())

    def role(self, process: psutil.Process) -> str:
        """The role of a process in the job."""
        try:
            words = process.cmdline()
            if any("bandpo.reward.worker" in word for word in words):
                return "a verifier's worker"
            if "torch.distributed.run" in words:
                return "the launcher"
            if "bandpo.cli" not in words:
                return f"a helper ({words[-1][:40]})"
            return f"rank {process.environ().get('RANK', '0')}"
        except psutil.Error:
            return "a process"

    def wait(self, timeout: float) -> int:
        """The exit code of the command."""
        return self.process.wait(timeout)

    def left_after(self, seconds: float) -> list[psutil.Process]:
        """Processes that outlive the command by so many seconds; none are wanted."""
        deadline = time.monotonic() + seconds
        while (alive := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def kill(self) -> None:
        """Ends whatever is left."""
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Round:
    """A round as a row of the table."""

    number: int
    setting: Setting
    disturbance: str
    story: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> str:
        """A line of a Markdown table."""
        end = "; ".join(self.faults) or "equal"
        cells = (self.number, self.setting.name, self.disturbance, "; ".join(self.story), end)
        return f"| {' | '.join(map(str, cells))} | {self.seconds:.0f} |"


def steps_logged(folder: Path) -> int:
    """The number of whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def await_moment(job: Launched, folder: Path, rng: random.Random) -> str:
    """Waits for a moment drawn from the seed, from the first weight sync to the last checkpoint."""
    lines = rng.randrange(1, STEPS + 1)  # the first line is that of step 0
    fraction = rng.random()
    deadline = time.monotonic() + START_LIMIT_S
    reached = last = time.monotonic()
    seen = 0
    while seen < lines and job.process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no step within {START_LIMIT_S:.0f} s: {job.log}")
        if (now := steps_logged(folder)) > seen:
            seen, last, reached = now, reached, time.monotonic()
        time.sleep(0.01)
    step_s = min(5.0, reached - last) if lines > 1 else 1.0
    time.sleep(fraction * step_s)
    return f"{fraction:.2f} steps after step {lines - 1}"


def check_end(job: Launched, folder: Path, faults: list[str]) -> None:
    """After a job's end: no process of it is left, and the run folder opens."""
    if left := job.left_after(LINGER_S):
        faults.append(f"{len(left)} process(es) left: {[p.name() for p in left]}")
        job.kill()
    try:
        yaml.safe_load((folder / "config.yaml").read_text())
        json.loads((folder / "run.json").read_text())
        for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]:
            json.loads(line)
        for state in (folder / "checkpoints").glob("step_*/state.json"):
            json.loads(state.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        faults.append(f"the run folder does not open: {error}")


def kill(job: Launched, folder: Path, rng: random.Random) -> str:
    """SIGKILL to any process of the job."""
    processes = job.alive()
    if not processes:
        return "had ended"
    victim = rng.choice(processes)
    what = job.role(victim)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    return f"SIGKILL to {what}"


def term(job: Launched, folder: Path, rng: random.Random) -> str:
    """SIGTERM to a rank, or to the launcher where there is one."""
    processes = [p for p in job.alive() if job.role(p).startswith(("rank", "the launcher"))]
    if not processes:
        return "had ended"
    victim = rng.choice(processes)
    what = job.role(victim)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.terminate()
    return f"SIGTERM to {what}"


def truncate(job: Launched, folder: Path, rng: random.Random) -> str:
    """SIGKILL to all of the job, and half of a file of the newest checkpoint is lost."""
    job.kill()
    checkpoints = sorted((folder / "checkpoints").glob("step_*"))
    if not checkpoints:
        return "SIGKILL to all, before the first checkpoint"
    files = sorted(p for p in checkpoints[-1].rglob("*") if p.is_file() and p.stat().st_size)
    path = rng.choice(files)
    os.truncate(path, path.stat().st_size // 2)
    return f"SIGKILL to all, {path.relative_to(folder / 'checkpoints')} cut in half"


def fill_disk(job: Launched, folder: Path, rng: random.Random) -> str:
    """Fills the small disk until two more steps were taken, or the run has ended."""
    filler = folder.parent / "filler"
    free = os.statvfs(folder.parent)
    size = free.f_bavail * free.f_frsize - ROOM_KIB * 1024
    with contextlib.suppress(OSError), filler.open("wb") as file:
        file.write(bytes(max(0, size)))
    goal = steps_logged(folder) + 2
    deadline = time.monotonic() + END_LIMIT_S
    while steps_logged(folder) < goal and job.process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    full_until = steps_logged(folder) - 1
    filler.unlink()
    return f"disk full until after step {full_until}"


ACTIONS: dict[str, Callable[[Launched, Path, random.Random], str]] = {
    "kill": kill,
    "term": term,
    "truncate": truncate,
    "full disk": fill_disk,
}


@contextlib.contextmanager
def small_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """The folder is a tmpfs of DISK_MIB while the context lasts, where it is wanted."""
    folder.mkdir(parents=True)
    if wanted:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        if wanted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether a small disk can be had."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", True):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def play(
    number: int, setting: Setting, disturbance: str, quiet: Path, base: Path, seed: int
) -> Round:
    """One round in a folder of its own."""
    found = Round(number, setting, disturbance)
    rng = random.Random(f"{seed}/{number}")
    begun = time.monotonic()
    home = base / f"round_{number:02d}"
    with small_disk(home, disturbance == "full disk"):
        folder, log = home / "run", base / f"round_{number:02d}.log"
        job = Launched(setting.command(folder), log, cwd=ROOT)
        try:
            moment = await_moment(job, folder, rng)
            found.story.append(f"{ACTIONS[disturbance](job, folder, rng)} {moment}")
            for _ in range(3):
                code = job.wait(END_LIMIT_S)
                check_end(job, folder, found.faults)
                done = steps_logged(folder) == STEPS + 1 and (final(folder) / "state.json").exists()
                if code == 0 and done:
                    break
                found.story.append(f"exit {code} at step {steps_logged(folder) - 1}, started again")
                job = Launched(setting.command(folder), log, cwd=ROOT)
            else:
                found.faults.append(f"it does not come to its end: {log}")
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            found.faults.append(str(error))
        finally:
            job.kill()
        found.faults += differences(quiet, folder)
    found.seconds = time.monotonic() - begun
    return found


def final(folder: Path) -> Path:
    """The checkpoint of the last step."""
    return folder / "checkpoints" / f"step_{STEPS:06d}"


def differences(quiet: Path, folder: Path) -> list[str]:
    """Differences of a run's end from the undisturbed one's."""
    found = []
    names = [f"checkpoints/step_{STEPS:06d}/hf/model.safetensors"]
    names += [str(p.relative_to(quiet)) for p in sorted((quiet / "samples").iterdir())]
    for name in names:
        if not (folder / name).exists():
            found.append(f"{name} is missing")
        elif (folder / name).read_bytes() != (quiet / name).read_bytes():
            found.append(f"{name} differs")
    if (metrics := timeless(folder)) != (expected := timeless(quiet)):
        steps = [line.get("step") for line in metrics]
        wrong = [a["step"] for a, b in zip(expected, metrics, strict=False) if a != b]
        found.append(f"metrics.jsonl differs: steps {steps}, of which {wrong} are not the same")
    return found


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run but for times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))}
        for line in lines
    ]


def schedule(
    rounds: int, settings: Sequence[str], disturbances: Sequence[str]
) -> list[tuple[str, str]]:
    """(setting, disturbance) of each round: both in turn, shifted when they would repeat."""
    period = math.lcm(len(settings), len(disturbances))
    return [
        (settings[i % len(settings)], disturbances[(i + i // period) % len(disturbances)])
        for i in range(rounds)
    ]


def quiet_run(setting: Setting, folder: Path) -> Path:
    """A run that nobody disturbs, made once."""
    log = folder.with_suffix(".log")
    job = Launched(setting.command(folder), log, cwd=ROOT)
    try:
        code = job.wait(END_LIMIT_S)
        faults: list[str] = []
        check_end(job, folder, faults)
    finally:
        job.kill()
    if code or faults:
        raise SystemExit(f"the quiet run failed with exit code {code} {faults}: {log}")
    return folder


def main() -> int:
    """Plays the rounds; 1 where one did not end as the quiet run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTING_CYCLE))
    parser.add_argument("--disturbances", nargs="+", choices=ACTIONS, default=list(DISTURBANCES))
    parser.add_argument("--folder", type=Path, help="where runs are kept; else a temporary folder")
    parser.add_argument("--table", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    disturbances = list(given.disturbances)
    if "full disk" in disturbances and not can_mount():
        print("no right to mount a small disk: rounds with a full disk are left out", flush=True)
        disturbances.remove("full disk")
    base = (given.folder or Path(tempfile.mkdtemp(prefix="bandpo-chaos-"))).resolve()
    base.mkdir(parents=True, exist_ok=True)
    quiet: dict[str, Path] = {}
    played: list[Round] = []
    for number, (name, disturbance) in enumerate(
        schedule(given.rounds, given.settings, disturbances), 1
    ):
        if name not in quiet:
            quiet[name] = quiet_run(SETTINGS[name], base / f"quiet-{name}")
        found = play(number, SETTINGS[name], disturbance, quiet[name], base, given.seed)
        played.append(found)
        print(found.row(), flush=True)
        if given.table:
            given.table.write_text(page(played, given.seed))
    failed = [found.number for found in played if found.faults]
    print(f"{len(played) - len(failed)} of {len(played)} rounds ended as the quiet run; {base}")
    return 1 if failed else 0


def page(played: Sequence[Round], seed: int) -> str:
    """The table with what it shows."""
    equal = sum(not found.faults for found in played)
    about = f"""# Rounds of chaos

`python scripts/chaos.py --rounds {len(played)} --seed {seed} --table docs/chaos.md`

Each round trains the embedded policy for {STEPS} steps with a checkpoint after each,
disturbs the run once, and starts it again with the same command until it is through. In {equal} of
{len(played)} rounds the end was that of an undisturbed run: final weights and all completions
bitwise, metrics but for times. After each end no process was left and the run folder opened. The
seed draws the moment and the victim; how far the run is by then depends on the machine.

| | run | disturbance | what happened | end | s |
|---|---|---|---|---|---|
"""
    return about + "\n".join(found.row() for found in played) + "\n"


if __name__ == "__main__":
    sys.exit(main())
