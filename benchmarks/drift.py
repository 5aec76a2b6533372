#!/usr/bin/env python3
"""How far training has moved a policy, on texts that `bandpo eval` saved of the model before it.

For each model the mean over problems of

    (1/T) Σ_t [log π_before(y_t) − log π_model(y_t)],  y ~ π_before,

an estimate of KL(π_before ‖ π_model) in nats per token, with its 95% interval. Accuracy cannot show
what a model loses where it has none to lose; this can.

    python benchmarks/drift.py outputs/eval-smollm2/gsm8k.jsonl smollm2 outputs/<run> outputs/<run>
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bandpo.evaluation.intervals import mean_of
from bandpo.model.loading import load_causal_lm
from bandpo.model.source import find_model, load_tokenizer


def first_samples(path: Path, problems: int) -> dict[str, tuple[str, str]]:
    """The prompt and the completion of the first sample of so many problems, by their ids."""
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    found = {r["problem_id"]: (r["prompt"], r["completion"]) for r in records if r["sample"] == 0}
    return {id: found[id] for id in sorted(found)[:problems] if found[id][1]}


def tokens_of(tokenizer: Any, texts: dict[str, tuple[str, str]]) -> list[tuple[int, torch.Tensor]]:
    """For each text the length of its prompt and all its tokens [1, T]."""
    parts = [
        [tokenizer(part, add_special_tokens=False)["input_ids"] for part in text]
        for text in texts.values()
    ]
    return [(len(prompt), torch.tensor([prompt + completion])) for prompt, completion in parts]


@torch.inference_mode()
def mean_logprobs(spec: str, texts: list[tuple[int, torch.Tensor]]) -> list[float]:
    """The mean log-probability of each completion's tokens under a model, in float32."""
    lm = load_causal_lm(find_model(spec).path, dtype="float32", attention="sdpa").eval()
    means = []
    for prompt, tokens in texts:
        completion = tokens[0, prompt:]
        logits = lm(tokens, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, completion[:, None])
        means.append(chosen.mean().item())
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path, help="a benchmark's .jsonl of the model before")
    parser.add_argument("before", help="that model")
    parser.add_argument("models", nargs="+", help="models after training, or their runs")
    parser.add_argument("--problems", type=int, default=100, help="how many, one sample of each")
    parser.add_argument("--out", type=Path, help="a .json for the figures")
    arguments = parser.parse_args()
    samples = first_samples(arguments.samples, arguments.problems)
    texts = tokens_of(load_tokenizer(find_model(arguments.before)), samples)
    before = mean_logprobs(arguments.before, texts)
    figures = {}
    for spec in arguments.models:
        after = mean_logprobs(spec, texts)
        drift = mean_of([b - a for b, a in zip(before, after, strict=True)]).interval
        figures[Path(spec).name] = {"value": drift.value, "low": drift.low, "high": drift.high}
        print(f"{Path(spec).name}: {drift.value:.4f} [{drift.low:.4f}, {drift.high:.4f}]")
    print(f"{len(texts)} completions; before: {-mean_of(before).value:.4f} nats per token")
    if arguments.out:
        facts = {"problems": len(texts), "cross_entropy_before": -mean_of(before).value}
        arguments.out.write_text(json.dumps({**facts, "kl": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
