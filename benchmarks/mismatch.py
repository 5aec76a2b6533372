"""The embedded policy trained in float32 on samples of a bfloat16 engine, with each correction.

    python benchmarks/mismatch.py [--steps 12] [--seeds 0 1 2 3 4] [--only none icepop] [overrides]

Trains it with every `method.correction`, and once with a float32 engine, seed by seed, and writes
results/mismatch.json after every run: a run that is in it is not repeated. With --draw it only
draws docs/mismatch.png and prints the table of docs/mismatch.md: means over the seeds of the reward
of the last five steps, and the standard error of its paired difference to no correction.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from results import FOLDER, keep
from step_time import QUIET

from bandpo.artifacts.display import Display
from bandpo.artifacts.figures import styles
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.loss.correction import PRESETS
from bandpo.run.console import RunLog
from bandpo.run.host import Host
from bandpo.run.job import Job
from bandpo.run.stops import Stops
from bandpo.train import train

NAME = "mismatch"
FIGURE = Path(__file__).parents[1] / "docs" / "mismatch.png"
LAST = 5
FLOAT32 = "float32 engine"
SETTINGS = {
    FLOAT32: ["method.correction=none"],
    **{name: [f"method.correction={name}", "rollout.engine.dtype=bfloat16"] for name in PRESETS},
}
COMMON = [
    *("rollout=hf", "rollout.prompts_per_step=8", "rollout.group_size=16", "rollout.max_tokens=48"),
    *("learner.lr=0.0001", "learner.epochs_per_rollout=2", "learner.updates_per_rollout=2"),
]
SHOWN = {
    "reward": "reward/mean",
    "kl": "mismatch/kl",
    "k3": "mismatch/k3",
    "masked": "mismatch/masked_frac",
    "weight": "mismatch/sequence_weight_max",
    "gradient": "grad/norm",
}
PANELS = {"reward": "reward", "k3": "mismatch/k3 [nats]", "masked": "mismatch/masked_frac"}


def curves(overrides: Sequence[str], host: Host) -> dict[str, list[float]]:
    """The values of `SHOWN` in each step of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = compose("train", [*QUIET, f"run.dir={folder}", *COMMON, *overrides], Config)
        with (
            RunLog() as log,
            Display(log.stdout, log.stderr, log.file) as display,
            Job(config, log, display, host) as job,
            Stops(job.ranks, None, job.tracker.say, job.started) as stops,
        ):
            train(job, stops)
        text = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if SHOWN["reward"] in line]
    return {short: [line[name] for line in lines] for short, name in SHOWN.items()}


def known(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of these settings that are done."""
    try:
        before = json.loads((FOLDER / f"{NAME}.json").read_text(encoding="utf-8"))
    except OSError:
        return []
    return list(before["runs"]) if before["settings"] == settings else []


def draw(runs: Sequence[Mapping[str, Any]]) -> None:
    """Draws means over seeds, by step, of each setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (short, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, style in zip(SETTINGS, styles(), strict=False):
            found = [run["curves"][short] for run in runs if run["correction"] == name]
            if found:
                means = [fmean(step) for step in zip(*found, strict=True)]
                axes.plot(range(1, len(means) + 1), means, label=name, linewidth=1.3, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[1].set_yscale("log")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(FIGURE, dpi=110)
    print(f"drawn to {FIGURE}")


def table(runs: Sequence[Mapping[str, Any]]) -> None:
    """Prints a row of markdown for each setting."""
    final = {
        (run["correction"], run["seed"]): fmean(run["curves"]["reward"][-LAST:]) for run in runs
    }
    print("| correction | seeds | reward | − none | k3 | masked | largest sequence weight |")
    print("|---|---|---|---|---|---|---|")
    for name in SETTINGS:
        own = [run for run in runs if run["correction"] == name]
        if not own:
            continue
        pairs = [
            final[name, run["seed"]] - final["none", run["seed"]]
            for run in own
            if ("none", run["seed"]) in final
        ]
        gap = "" if name == "none" or not pairs else f"{fmean(pairs):+.3f}"
        if gap and len(pairs) > 1:
            gap += f" ± {stdev(pairs) / len(pairs) ** 0.5:.3f}"
        reward = fmean(final[name, run["seed"]] for run in own)
        k3, masked = (fmean(fmean(run["curves"][k]) for run in own) for k in ("k3", "masked"))
        weight = max(max(run["curves"]["weight"]) for run in own)
        print(
            f"| {name} | {len(own)} | {reward:.3f} | {gap} | {k3:.1e} | {masked:.3f} "
            f"| {weight:.2f} |"
        )


def main() -> None:
    """Trains, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--draw", action="store_true")
    arguments, overrides = parser.parse_known_args()
    settings = {"steps": arguments.steps, "common": COMMON, "overrides": overrides}
    runs = known(settings)
    done = {(run["correction"], run["seed"]) for run in runs}
    wanted = [(name, seed) for seed in arguments.seeds for name in arguments.only]
    if not arguments.draw:
        with Host() as host:
            for name, seed in wanted:
                if (name, seed) in done:
                    continue
                steps = [f"trainer.steps={arguments.steps}", f"seed={seed}"]
                found = curves([*steps, *SETTINGS[name], *overrides], host)
                runs.append({"correction": name, "seed": seed, "curves": found})
                keep(NAME, {"settings": settings, "runs": runs})
    draw(runs)
    table(runs)


if __name__ == "__main__":
    main()
