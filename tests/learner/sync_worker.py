"""On each rank: engine and learner score the same samples, before and after updates and a sync.

Arguments: folders of policies. Prints, for each and ZeRO 0, 2 and 3, the largest difference of
log-probabilities before and after three updates, and how far the updates moved them.
"""

import itertools
import json
import sys

import torch

from bandpo.batching import samples_of
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import BandKL, Capped, Clip, PolicyLoss, TokenMean, TokenRatio
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.types import Problem, Prompt

ranks = Ranks()
loss = PolicyLoss(TokenRatio(), Clip(Capped(BandKL(0.05), 10.0)), TokenMean())
sampling = Sampling(n=4, temperature=0.8, max_tokens=12)
engine = None


def generate(round_: int):
    prompts = []
    for i in range(2):
        tokens = (3, *range(20 + 5 * i, 30 + 5 * i), 1, 4)
        seed = 4096 * (1 + i + 10 * ranks.rank + 100 * round_)
        prompts.append(Prompt(Problem(f"p{i}", "", ""), "", tokens, seed))
    return list(engine.generate(prompts, sampling))


def score(learner, groups):
    """(samples, learner's log-probabilities at the sampling temperature) of the groups."""
    samples = [s for group in groups for s in samples_of(group, [1.0, -1.0, 0.5, -0.5])]
    learner.score(samples)
    return samples


def gap(samples) -> float:
    worst = max(float((s.old_logp - s.rollout_logp).abs().max()) for s in samples)
    return float(ranks.max(torch.tensor(worst)))


for folder, stage in itertools.product(sys.argv[1:], (0, 2, 3)):
    config = LearnerConfig(zero_stage=stage, lr=1e-2, micro_batch_tokens=64, logits_chunk=16)
    model = ModelConfig(path=folder)
    learner = DeepSpeedLearner(config, model, folder, loss, ranks, sampling.temperature)
    if stage == 0:  # after the first learner: the order that DeepSpeed needs
        if engine is not None:
            engine.close()
        spec = EngineSpec(folder, max_model_len=128, ranks=ranks)
        engine = VLLMLocal(spec, max_num_seqs=32, enforce_eager=True)
    engine.load_weights(learner.weights(), 1)
    before = generate(0)
    samples = score(learner, before)
    result = {"folder": folder, "stage": stage, "before": gap(samples)}
    first = torch.cat([s.old_logp for s in samples])
    for step in range(3):
        learner.update(samples, step)
    engine.load_weights(learner.weights(), 2)
    after = generate(1)
    result["after"] = gap(score(learner, after))
    forced = engine.logprobs(after[0].prompt, after[0].completions)
    probe = samples_of(after[0], [0.0] * 4)
    result["probe"] = max(
        abs(a - b)
        for row in zip(forced, learner.logprobs(probe), strict=True)
        for a, b in zip(*row, strict=True)
    )
    learner.score(samples)
    result["moved"] = float((torch.cat([s.old_logp for s in samples]) - first).abs().max())
    result["version"] = after[0].completions[0].weight_version
    if ranks.is_first:
        print("RESULT " + json.dumps(result), flush=True)
engine.close()
ranks.close()
