"""`bandpo train` as a contender of vs_trl.py, with vLLM in process or a transformers model alone.

Arguments: the setting as JSON (see vs_trl.py).
"""

from __future__ import annotations

import json
import sys
import time

import torch
from jobs import job_of
from turns import report, wait_for_turn

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.run.stops import Stops
from bandpo.train import train

LEARNER = ("exchange", "logprob", "learn")  # the phases that are no generation and no sync
ENGINES = {"vllm": "vllm_local", "transformers": "hf"}
REWARD = {
    "_target_": "bandpo.reward.FunctionReward",
    "function": {"_target_": "bandpo_contender.even_tokens", "_partial_": True},
}


def even_tokens(problem, completion) -> float:
    """The share of tokens of even number: any vocabulary has as many of both."""
    return sum(token % 2 == 0 for token in completion.token_ids) / len(completion.token_ids)


def overrides(setting: dict) -> list[str]:
    """The same training as TRL's: no reference, one clip, the same optimizer."""
    return [
        "policy=embedded",
        f"model.path={setting['model']}",
        f"data.train={setting['problems']}",
        "data.template=none",
        f"data.max_prompt_tokens={setting['max_model_len'] - setting['max_tokens']}",
        f"run.dir={setting['folder']}",
        f"rollout={ENGINES[setting['engine']]}",
        "method=grpo",
        "method.kl_coef=0",
        f"rollout.prompts_per_step={setting['prompts']}",
        f"rollout.group_size={setting['group_size']}",
        f"rollout.max_tokens={setting['max_tokens']}",
        f"learner.updates_per_rollout={setting['updates']}",
        f"learner.lr={setting['lr']}",
        "learner.betas=[0.9,0.999]",
        "eval.benchmarks=[]",
        "trainer.steps=1000000",
        "trainer.sample_every=1000000",
        "trainer.checkpoint_every=0",
        "trainer.resume=never",
    ]


def main() -> None:
    """Trains step by step, each when it is asked for."""
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["threads"])
    prompt_tokens: dict[str, int] = {}
    config = compose("train", overrides(setting), Config).model_copy(update={"reward": REWARD})
    with job_of(config) as job:
        generate, begun = job.actor.rollout, time.perf_counter()

        def rollout(prompts):
            nonlocal begun
            wait_for_turn()
            begun = time.perf_counter()
            prompt_tokens["of the step"] = sum(len(p.token_ids) for p in prompts)
            return generate(prompts)

        def log(step, metrics):
            if step:
                seconds = time.perf_counter() - begun
                learner = sum(metrics[f"time/{phase}_s"] for phase in LEARNER)
                given = prompt_tokens["of the step"] * setting["group_size"]
                report(
                    {
                        "step_s": seconds,
                        "learner_s": learner,
                        "tokens": metrics["length/tokens"] + given,
                    }
                )

        job.actor.rollout, job.tracker.log = rollout, log
        with Stops(job.ranks, None, job.tracker.say, job.started) as stops:
            train(job, stops)


if __name__ == "__main__":
    main()
