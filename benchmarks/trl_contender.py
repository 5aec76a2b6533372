"""TRL's GRPOTrainer as a contender of vs_trl.py; runs in TRL's environment.

Arguments: the setting as JSON (see vs_trl.py).
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

setting = json.loads(sys.argv[1])
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
)

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from turns import report, wait_for_turn  # noqa: E402

torch.set_num_threads(setting["threads"])
samples = setting["prompts"] * setting["group_size"]
micro_batches = samples // setting["updates"] // setting["trl_rows"]  # of an update


def even_tokens(completion_ids, **_):
    """The share of tokens of even number: any vocabulary has as many of both."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


class Trainer(GRPOTrainer):
    """Notes how long generation (with its weight sync) took and how many tokens came of it."""

    generation_s = 0.0
    tokens = 0

    def _generate(self, prompts):
        begun = time.perf_counter()
        result = super()._generate(prompts)
        self.generation_s += time.perf_counter() - begun
        self.tokens += sum(map(len, result[0])) + sum(map(len, result[1]))
        return result


def sync_weights(generation) -> None:
    """TRL's stream of weights through vLLM's reload.

    TRL hands vLLM a tensor at a time, which fails on a CPU: the layers there have been packed.
    """

    def weights():
        for name, parameter in generation._iter_named_params():
            yield name, parameter.data
            if name == "model.embed_tokens.weight":  # the tied head is a copy in vLLM
                yield "lm_head.weight", parameter.data

    generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights()})
    generation.llm.reset_prefix_cache()


class Turns(TrainerCallback):
    """A rollout with all its updates is one step."""

    def on_step_begin(self, arguments, state, control, **_):
        if state.global_step % setting["updates"] == 0:
            wait_for_turn()
            self.begun = time.perf_counter()
            trainer.generation_s, trainer.tokens = 0.0, 0

    def on_step_end(self, arguments, state, control, **_):
        if state.global_step % setting["updates"] == 0:
            step = time.perf_counter() - self.begun
            learner = step - trainer.generation_s
            report({"step_s": step, "learner_s": learner, "tokens": trainer.tokens})


problems = [json.loads(line) for line in Path(setting["problems"]).read_text().splitlines()]
arguments = GRPOConfig(
    output_dir=setting["folder"],
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    logging_steps=10**6,
    max_steps=10**6,
    per_device_train_batch_size=setting["trl_rows"],
    gradient_accumulation_steps=micro_batches,
    steps_per_generation=setting["updates"] * micro_batches,
    num_generations=setting["group_size"],
    max_completion_length=setting["max_tokens"],
    temperature=1.0,
    beta=0.0,
    loss_type="grpo",
    learning_rate=setting["lr"],
    lr_scheduler_type="constant",
    optim="adamw_torch_fused",
    max_grad_norm=1.0,
    model_init_kwargs={"dtype": "float32"},
    use_vllm=setting["engine"] == "vllm",
    vllm_mode="colocate",
    vllm_max_model_length=setting["max_model_len"],
)
trainer = Trainer(
    model=setting["model"],
    args=arguments,
    reward_funcs=even_tokens,
    train_dataset=Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["problem"]}]} for row in problems]
    ),
    processing_class=AutoTokenizer.from_pretrained(setting["model"]),
    callbacks=[Turns()],
)
if setting["engine"] == "vllm":
    trainer.vllm_generation.sync_weights = partial(sync_weights, trainer.vllm_generation)
trainer.train()
