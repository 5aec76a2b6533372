"""LoRA for one ZeRO stage after another: reference, sync, checkpoint, resumption.

Arguments: folder of a policy, folder for the results.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from sample_batch import LOSS, make_samples
from transformers import AutoModelForCausalLM, AutoTokenizer

from bandpo.config.sections.learner import LearnerConfig, LoraConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.engine import EngineSpec
from bandpo.rollout.hf import HFGenerate
from bandpo.types import Completion, Problem, Prompt

folder, target = sys.argv[1], Path(sys.argv[2])
ranks = Ranks()
tokenizer = AutoTokenizer.from_pretrained(folder)


def make(stage):
    torch.manual_seed(0)
    lora = LoraConfig(rank=4, alpha=8)
    config = LearnerConfig(zero_stage=stage, lr=1e-2, lora=lora, micro_batch_tokens=64)
    return DeepSpeedLearner(config, ModelConfig(path=folder), folder, LOSS, ranks)


def fresh():
    """This rank's samples without what the learner fills in."""
    samples = ranks.share(make_samples())
    for sample in samples:
        sample.old_logp = sample.ref_logp = sample.entropy = None
    return samples


def gap(first, second):
    """Largest difference between per-token values, over all ranks."""
    worst = max(
        float((torch.tensor(a) - torch.tensor(b)).abs().max())
        for a, b in zip(first, second, strict=True)
    )
    return float(ranks.max(torch.tensor(worst)))


def scores_of(lm, samples):
    """A plain transformers model's log-probabilities."""
    found = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = lm(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        found.append(logits[range(len(sample.completion_ids)), sample.completion_ids].tolist())
    return found


@torch.no_grad()
def check(stage):
    learner = make(stage)
    base = AutoModelForCausalLM.from_pretrained(folder)
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    samples = fresh()
    start = learner.logprobs(samples)
    with torch.enable_grad():
        for step in range(3):
            batch = fresh()
            learner.prepare([batch, batch])
            update = learner.update(batch, step)
    own = learner.logprobs(samples)
    learner.score_reference(samples)

    engine = HFGenerate(EngineSpec(folder))
    engine.load_weights(learner.weights(), 1)
    theirs = []
    for sample in samples:
        prompt = Prompt(Problem("", "", ""), "", sample.prompt_ids)
        completion = Completion("", sample.completion_ids, (), "stop")
        theirs += engine.logprobs(prompt, [completion])

    place = target / str(stage)
    learner.save(place)
    learner.save_hf(place / "hf", tokenizer)
    ranks.barrier()
    merged = AutoModelForCausalLM.from_pretrained(place / "hf")
    adapted = PeftModel.from_pretrained(base, place / "adapter")
    result = {
        "moved": gap(own, start),
        "grad_norm": update.grad_norm,
        "reference": gap([s.ref_logp.tolist() for s in samples], start),
        "engine": gap(own, theirs),
        "merged": gap(own, scores_of(merged, samples)),
        "adapter": gap(own, scores_of(adapted, samples)),
        "frozen": sorted(
            name
            for name, parameter in merged.named_parameters()
            if torch.equal(parameter, before[name])
        ),
        "bytes": sum(file.stat().st_size for file in (place / "engine").iterdir()),
    }
    resumed = make(stage)
    resumed.load(place, ranks.size)
    result["resumed"] = gap(resumed.logprobs(samples), own)
    with torch.enable_grad():
        losses = []
        for each in (learner, resumed):
            batch = fresh()
            each.prepare([batch, batch])
            losses.append(each.update(batch, 4).loss)
    result["continued"] = [losses, gap(resumed.logprobs(samples), learner.logprobs(samples))]
    return result


for stage in (0, 2, 3):
    found = check(stage)
    if ranks.is_first:
        print("RESULT " + json.dumps({"stage": stage, **found}), flush=True)
ranks.close()
