"""Run by TRL's own Python: losses and gradients of its trainers' `_compute_loss` on given numbers.

Reads {"batch": {name: rows}, "cases": [{"trainer", "options"}]} as JSON from standard input and
writes a list of [loss, gradient rows] to standard output. The trainer is an object of the class
without its constructor: a model that returns the given log-probabilities is all that its loss asks.
"""

import collections
import json
import sys
from types import SimpleNamespace

import torch
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

TRAINERS = {"grpo": GRPOTrainer, "gmpo": GMPOTrainer}


class OneProcess(SimpleNamespace):
    """What the losses use of accelerate."""

    num_processes = 1
    sync_gradients = False

    def gather(self, tensor):
        return tensor

    def reduce(self, tensor, reduction="sum"):
        return tensor


def trainer_of(kind, logp, options):
    trainer = object.__new__(TRAINERS[kind])
    settings = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "off_policy_mask_threshold": None,
        **options,
    }
    arguments = {
        "use_bias_correction_kl": False,
        "delta": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }
    for name in [name for name in settings if name in arguments]:
        arguments[name] = settings.pop(name)
    constant = {
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "_entropy_bonus_enabled": False,
        "aux_loss_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": logp.shape[1],
        "model": SimpleNamespace(training=True),
        "args": SimpleNamespace(**arguments),
        "accelerator": OneProcess(device=torch.device("cpu")),
        "_metrics": collections.defaultdict(lambda: collections.defaultdict(list)),
    }
    vars(trainer).update(constant | settings)
    found = (logp, torch.zeros_like(logp), None)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: found
    return trainer


def main():
    given = json.load(sys.stdin)
    batch = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in given["batch"].items()}
    ids = torch.zeros_like(batch["mask"], dtype=torch.long)
    results = []
    for case in given["cases"]:
        logp = batch["logp"].clone().requires_grad_()
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1] + 1,
            "completion_ids": ids,
            "completion_mask": batch["mask"],
            "advantages": batch["advantages"][:, 0],
            "old_per_token_logps": batch["old_logp"],
            "ref_per_token_logps": batch["ref_logp"],
            "sampling_per_token_logps": batch["rollout_logp"],
            "num_items_in_batch": batch["mask"].sum(),
        }
        loss = trainer_of(case["trainer"], logp, case["options"])._compute_loss(None, inputs)
        (gradient,) = torch.autograd.grad(loss, logp)
        results.append([loss.item(), gradient.tolist()])
    json.dump(results, sys.stdout)


main()
