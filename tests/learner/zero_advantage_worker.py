"""Updates in which some samples have advantage 0, with and without a backward pass for these.

Arguments: folder of a policy, file for the results.
"""

import dataclasses
import sys

import torch
from sample_batch import LOSS, TEMPERATURE, make_samples

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import PolicyLoss
from bandpo.ranks.collectives import Ranks


class Thorough(PolicyLoss):
    """The same loss, of which nothing is known."""

    vanishes_at_zero_advantage = False


PLAIN = dataclasses.replace(LOSS, reference_kl=None)
LOSSES = {
    "skipped": PLAIN,
    "computed": Thorough(**{f.name: getattr(PLAIN, f.name) for f in dataclasses.fields(PLAIN)}),
}
# Samples of advantage 0 among the 9: none, some (all of rank 1 of 2 with the third), all.
ZERO = {"none": (), "some": (1, 2, 3, 5, 7), "all": tuple(range(9))}
# Micro-batches of one sample are the same with and without the others.
ONE, MANY = 1, 4096


def share(zero):
    samples = make_samples()
    for index, sample in enumerate(samples):
        sample.id = f"p/{index}"
        sample.advantage = 0.0 if index in zero else sample.advantage
        sample.ref_logp = None
    return ranks.share(samples)


def updates(folder, stage, budget, loss):
    config = LearnerConfig(
        zero_stage=stage, lr=1e-2, micro_batch_tokens=budget, logits_chunk=7, weight_decay=0.1
    )
    learner = DeepSpeedLearner(config, ModelConfig(path=folder), folder, loss, ranks, TEMPERATURE)
    records, tokens = [], {"with gradient": 0, "without": 0}

    def record(output):
        batch = output.batch
        for row in range(len(batch.mask)):
            kept = batch.mask[row].bool()
            values = (batch.advantages, batch.old_logp, batch.logp.detach(), batch.entropy)
            records.append([value[row][kept].tolist() for value in values])

    def count(module, arguments, output):
        tokens["with gradient" if output.requires_grad else "without"] += arguments[0].shape[1]

    learner.observers.append(record)
    learner.lm.base_model.layers[0].register_forward_hook(count)
    found = {"results": [], "metrics": [], "tokens": []}
    for step, zero in enumerate(("none", "some", "all")):
        tokens.update(dict.fromkeys(tokens, 0))
        found["results"].append(dataclasses.asdict(learner.update(share(ZERO[zero]), step)))
        found["tokens"].append(dict(tokens))
        found["metrics"].append(learner.take_metrics())
    found["weights"] = {name: tensor.clone() for name, tensor in learner.weights()}
    found["records"] = records
    return found


def poisoned(folder):
    """An update with a nonfinite log-probability in a sample of advantage 0."""
    config = LearnerConfig(lr=1e-2)
    learner = DeepSpeedLearner(config, ModelConfig(path=folder), folder, PLAIN, ranks, TEMPERATURE)
    samples = share(ZERO["some"])
    for sample in samples:
        if sample.id == "p/2":
            sample.old_logp = sample.old_logp * torch.nan
    return dataclasses.asdict(learner.update(samples, 0))


def starved(folder):
    """An update whose micro-batches with a gradient do not fit, beside a long sample without."""
    config = LearnerConfig(lr=1e-2, micro_batch_tokens=MANY)
    learner = DeepSpeedLearner(config, ModelConfig(path=folder), folder, PLAIN, ranks, TEMPERATURE)

    def fail(module, arguments):
        if torch.is_grad_enabled() and arguments[0].shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. (injected)")

    learner.lm.base_model.layers[1].register_forward_pre_hook(fail)
    samples = make_samples(longest=300)
    samples[3].advantage = 0.0
    result = learner.update(ranks.share(samples), 0)
    return {"budget": learner.micro_batches.tokens, **dataclasses.asdict(result)}


folder, target = sys.argv[1:]
ranks = Ranks()
stages = (0, 2, 3) if ranks.size == 1 else (0, 2)
results = {
    (stage, budget): {name: updates(folder, stage, budget, loss) for name, loss in LOSSES.items()}
    for stage in stages
    for budget in (ONE, MANY)
}
results |= {"poisoned": poisoned(folder), "starved": starved(folder)}
if ranks.is_first:
    torch.save(results, target)
    print('RESULT {"saved": true}', flush=True)
ranks.close()
