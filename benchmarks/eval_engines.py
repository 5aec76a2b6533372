"""One model evaluated by every kind of engine with equal seeds: are the samples the same?

    python benchmarks/eval_engines.py [--model FOLDER] [--keep] [overrides of bandpo eval]

In-process vLLM, a vLLM server by its own protocol, and the same server as an OpenAI-compatible
endpoint, which is given tokens (completions) or conversations (chat). Prints, against in-process
vLLM, the share of equal completions and the statistics that a summary reports; exits with 1 where
they differ. `--keep` writes results/eval_engines.json. Not a timing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import keep
from serving import serving

from bandpo.disk.cache import cache_dir
from bandpo.evaluation.samples import Sample, read_samples
from bandpo.evaluation.summary import read_summaries

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 512
SAMPLING = ("eval.n=8", "eval.max_tokens=16", "eval.temperature=0.8", "eval.top_p=0.95")
NUMBERS = range(7, 400, 17)  # each followed by the number that is asked for
SHOTS = """\
Question: What number comes after 4? Answer: \\boxed{5}
Question: What number comes after 61? Answer: \\boxed{62}
Question: What number comes after 129? Answer: \\boxed{130}
Question: {problem} Answer:"""
BASE = "vllm_local"
SHOWN = ("length/mean", "length/truncated_frac", "no_answer_frac")


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, made on first use."""
    folder = cache_dir() / "smollm2-135m"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "smollm2.py"), str(folder)], check=True)
    return folder


def successors(folder: Path) -> list[str]:
    """Overrides for questions that a small model answers now and then, with files for them."""
    lines = [{"problem": f"What number comes after {n}?", "answer": str(n + 1)} for n in NUMBERS]
    file, template = folder / "successors.jsonl", folder / "shots.txt"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    template.write_text(SHOTS)
    return [f"benchmarks=[file:{file}]", f"eval.template={template}"]


def ways(model: Path, url: str) -> dict[str, list[str]]:
    """The overrides of each way to evaluate the model, by its name."""
    endpoint = ["rollout=openai", f"rollout.engine.url={url}/v1", f"model={model}"]
    continued = ["rollout.engine.api=completions", f"rollout.engine.tokenizer={model}"]
    # vLLM's own field: otherwise the lengths of a prompt's samples are known together alone.
    continued += ["rollout.engine.extra_body={return_token_ids: true}"]
    return {
        "vllm_server": ["rollout=vllm_server", f"rollout.engine.urls=[{url}]", f"model={model}"],
        "openai, completions": [*endpoint, *continued],
        "openai, chat": endpoint,
    }


def evaluate(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Samples and summary of one evaluation, of its only benchmark."""
    command = [sys.executable, "-m", "bandpo.cli", "eval", f"out={folder}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    ((name, summary),) = read_summaries(folder).items()
    samples = sorted(
        read_samples(folder / f"{name}.jsonl"),
        key=lambda sample: (sample.problem_id, sample.sample),
    )
    return {"samples": samples, "summary": summary}


def agreement(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Shares of samples that are equal to those of `base`, and the summary's statistics."""
    pairs: list[tuple[Sample, Sample]] = list(zip(base["samples"], other["samples"], strict=True))
    summary = other["summary"]
    names = [f"mean@{summary.n}", f"pass@{summary.n}", *SHOWN]
    return {
        "equal completions": sum(a.completion == b.completion for a, b in pairs) / len(pairs),
        "equal lengths": sum(a.tokens == b.tokens for a, b in pairs) / len(pairs),
        "equal verdicts": sum(a.verdict == b.verdict for a, b in pairs) / len(pairs),
        **{name: summary.metrics[name].value for name in names},
    }


def equal(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether all is equal but lengths, which an endpoint counts for all samples of a prompt."""
    names = one.keys() - {"equal lengths"}
    return all(abs(one[name] - other[name]) < 1e-9 for name in names)


def main() -> int:
    """Evaluates in every way and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; SmolLM2-135M-Instruct without it")
    parser.add_argument("--keep", action="store_true", help="write results/eval_engines.json")
    arguments, overrides = parser.parse_known_args()
    model = (arguments.model or smollm2()).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = [*successors(folder), *SAMPLING, *overrides]
        local = ["rollout=vllm_local", f"model={model}", *work]
        base = evaluate(folder / "local", local)
        found = {BASE: agreement(base, base)}
        with serving(str(model), folder / "server.log", LENGTH) as url:
            for number, (way, chosen) in enumerate(ways(model, url).items()):
                own = evaluate(folder / str(number), [*chosen, *work])
                found[way] = agreement(base, own)
    width = max(map(len, found[BASE]))
    print(" " * width, *(f"{way:>20}" for way in found))
    for name in found[BASE]:
        print(f"{name:<{width}}", *(f"{values[name]:>20.4f}" for values in found.values()))
    if arguments.keep:
        settings = {"sampling": SAMPLING, "problems": len(NUMBERS), "overrides": overrides}
        keep("eval_engines", {"model": model.name, **settings, "found": found})
    else:
        print(json.dumps(found))
    return 0 if all(equal(values, found[BASE]) for values in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
