"""One optimizer update with every method of configs/method; a line of results each."""

import json
import sys

import torch
from hydra.utils import instantiate
from sample_batch import make_samples

from bandpo.advantage import dual_variables
from bandpo.config.composition import compose, config_dir
from bandpo.config.schema import Config
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks

folder = sys.argv[1]
ranks = Ranks()
methods = sorted(p.stem for p in (config_dir() / "method").glob("*.yaml") if p.stem[0] != "_")
for method in methods:
    config = compose(
        "train",
        [f"method={method}", "policy=embedded", f"model.path={folder}", "rollout.max_tokens=4608"],
        Config,
    )
    loss = instantiate(config.method.loss)
    learner = DeepSpeedLearner(config.learner, config.model, folder, loss, ranks)
    samples = make_samples()
    rewards = torch.tensor([[float(i % 3 == 0) for i in range(len(samples))]])
    estimator = instantiate(config.method.advantage)
    duals = dual_variables(estimator, rewards)
    for sample, advantage in zip(samples, estimator(rewards)[0], strict=True):
        sample.advantage, sample.pass_rate = float(advantage), 1 / 3
        sample.dual = None if duals is None else float(duals[0])
    before = [p.detach().clone() for p in learner.lm.parameters()]
    learner.prepare([samples[:4], samples[4:]])
    first, second = learner.update(samples[:4], 1), learner.update(samples[4:], 1)
    result = {
        "method": method,
        "losses": [first.loss, second.loss],
        "grad_norm": first.grad_norm,
        "reference": learner.reference is not None,
        "moved": max(
            float((a - b).abs().max().detach())
            for a, b in zip(before, learner.lm.parameters(), strict=True)
        ),
        "metrics": sorted(learner.take_metrics()),
    }
    print("RESULT " + json.dumps(result), flush=True)
ranks.close()
