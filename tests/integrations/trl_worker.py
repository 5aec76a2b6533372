"""Tries `bandpo.integrations.trl` in TRL's environment, which has no pytest.

Arguments: a folder for the model, then the file for results, {case: {name: number}}, as JSON. With
RANK set (by torchrun) only the case of several ranks is tried.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from bandpo.errors import UserError
from bandpo.integrations.trl import BoundsTrainer, PolicyLossTrainer
from bandpo.loss import (
    K3,
    BandKL,
    BatchTotals,
    Capped,
    Clip,
    ConstantNorm,
    DualClip,
    EntropyBonus,
    EntropyRadius,
    Fixed,
    LinearRadius,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceRatio,
    TokenBatch,
    TokenMean,
    TokenMismatch,
    TokenRatio,
    Truncate,
)

BAND = Capped(BandKL(0.05), 10.0)
AGGREGATES = {
    "grpo": SequenceMeanTokenMean(),
    "dr_grpo": ConstantNorm(8),
    "dapo": TokenMean(),
    "luspo": SequenceMeanTokenSum(),
}
SETTINGS = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}, "max_steps": 2}
ROWS, LENGTH, WORDS = 6, 8, 40
folder = Path(sys.argv[1])


def make_model() -> str:
    """A Qwen2 of random weights, and a tokenizer of forty words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *map(str, range(WORDS - 2))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    return str(folder / "model")


def even(completion_ids, **_):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def trainer_of(kind, settings=None, **given):
    arguments = GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=LENGTH,
        learning_rate=0.1,
        **SETTINGS | (settings or {}),
    )
    return kind(
        model=str(folder / "model"),
        args=arguments,
        reward_funcs=even,
        train_dataset=Dataset.from_list([{"prompt": f"{n} {n + 1}"} for n in range(16)]),
        **given,
    )


def samples(seed=0, dtype=torch.float64, rows=ROWS) -> dict:
    """A micro-batch as TRL makes it, with ratios on both sides of every bound."""
    torch.manual_seed(seed)
    ids = torch.randint(2, WORDS, (rows, LENGTH))
    mask = (torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (rows, 1))).int()
    old = -3 * torch.rand(rows, LENGTH, dtype=dtype)
    return {
        "prompt_ids": torch.randint(2, WORDS, (rows, 3)),
        "prompt_mask": torch.ones(rows, 3, dtype=torch.int),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.randn(rows, dtype=dtype),
        "num_items_in_batch": mask.sum() * 3 + 1,
        "old_per_token_logps": old,
        "ref_per_token_logps": old + 0.1 * torch.randn(rows, LENGTH, dtype=dtype),
        "sampling_per_token_logps": old + 0.1 * torch.randn(rows, LENGTH, dtype=dtype),
    }


def given_logprobs(trainer, inputs, seed=1):
    """Log-probabilities that the trainer's forward pass returns, a leaf of the graph.

    With them the entropy and the loss of a router.
    """
    torch.manual_seed(seed)
    old = inputs["old_per_token_logps"]
    logp = (old + 0.7 * torch.randn_like(old)).clamp(max=0).requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        logp,
        -logp,
        logp.square().mean(),
    )
    return logp


def loss_and_gradient(trainer, inputs, micro_batches=2):
    logp = given_logprobs(trainer, inputs)
    trainer.current_gradient_accumulation_steps = micro_batches
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.detach(), gradient


def expected(loss: PolicyLoss, trainer, inputs, micro_batches=2, ranks=1):
    """The loss of bandpo on the same tokens, all its numbers written out."""
    logp = given_logprobs(trainer, inputs)
    advantages = inputs["advantages"][:, None].expand_as(logp)
    batch = TokenBatch(
        logp,
        inputs["old_per_token_logps"],
        advantages,
        inputs["completion_mask"],
        ref_logp=inputs["ref_per_token_logps"],
        rollout_logp=inputs["sampling_per_token_logps"],
        new_entropy=-logp,
    )
    tokens = inputs["num_items_in_batch"].item() * micro_batches
    totals = BatchTotals(ROWS * micro_batches * ranks, tokens / trainer.args.steps_per_generation)
    output = loss(batch, totals)
    (gradient,) = torch.autograd.grad(output.loss, logp)
    return output, gradient


def difference(one, other) -> dict:
    (loss, gradient), (other_loss, other_gradient) = one, other
    return {
        "loss": (loss - other_loss).abs().item(),
        "gradient": (gradient - other_gradient).abs().max().item(),
        "largest": other_gradient.abs().max().item(),
        "other_zeros": ((gradient == 0) != (other_gradient == 0)).sum().item(),
        "zeros": (other_gradient == 0).sum().item(),
    }


def bounds_cases(results: dict) -> None:
    canonical = trainer_of(GRPOTrainer, {"delta": 2.0})
    own = trainer_of(BoundsTrainer, {"delta": 2.0}, bounds=BAND)
    inputs = samples()
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
        for level in ("token", "sequence"):
            for trainer in (canonical, own):
                trainer.loss_type, trainer.importance_sampling_level = loss_type, level
            own.bounds = Fixed(0.2, 0.2)
            pair = loss_and_gradient(own, inputs), loss_and_gradient(canonical, inputs)
            results[f"canonical bounds/{loss_type}/{level}"] = difference(*pair)
    own.args.delta = None
    for loss_type, aggregate in AGGREGATES.items():
        for level, ratio in (("token", TokenRatio()), ("sequence", SequenceRatio())):
            own.loss_type, own.importance_sampling_level = loss_type, level
            own.bounds = BAND
            output, gradient = expected(PolicyLoss(ratio, Clip(BAND), aggregate), own, inputs)
            pair = loss_and_gradient(own, inputs), (output.loss.detach(), gradient)
            results[f"bounds/{loss_type}/{level}"] = difference(*pair)
            if level == "token":
                mask, clipped = output.batch.mask, output.binding_high | output.binding_low
                share = (clipped * mask).sum() / mask.sum()
                told = own._metrics["train"]["clip_ratio/region_mean"][-1]
                results[f"bounds/{loss_type}/{level}"]["clip_ratio"] = abs(told - share.item())
    on_policy = {k: v for k, v in inputs.items() if k != "old_per_token_logps"}
    own.loss_type = canonical.loss_type = "dapo"
    own.importance_sampling_level = canonical.importance_sampling_level = "token"
    logp = given_logprobs(own, inputs)
    canonical._get_per_token_logps_and_entropies = own._get_per_token_logps_and_entropies
    pair = [
        (loss.detach(), torch.autograd.grad(loss, logp)[0])
        for loss in (t._compute_loss(t.model, on_policy) for t in (own, canonical))
    ]
    results["bounds/on policy"] = difference(*pair)
    results["bounds/restored"] = {"epsilon": own.epsilon_low + own.epsilon_high}


def loss_cases(results: dict) -> None:
    inputs = samples()
    canonical = trainer_of(GRPOTrainer, {"beta": 0.1, "use_bias_correction_kl": False})
    for name, aggregate in AGGREGATES.items():
        loss = PolicyLoss(
            TokenRatio(), Clip(Fixed(0.2, 0.2)), aggregate, ReferenceKL(0.1, K3(limit=1e9))
        )
        own = trainer_of(PolicyLossTrainer, {"beta": 0.1}, loss=loss)
        canonical.loss_type = name
        pair = loss_and_gradient(own, inputs), loss_and_gradient(canonical, inputs)
        results[f"canonical loss/{name}"] = difference(*pair)
        for metric in ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/region_mean"):
            mine, theirs = (t._metrics["train"][metric][-1] for t in (own, canonical))
            results[f"canonical loss/{name}"][metric] = abs(mine - theirs)
        for trainer in (own, canonical):
            trainer.model.eval()
        logp = given_logprobs(own, inputs)
        canonical._get_per_token_logps_and_entropies = own._get_per_token_logps_and_entropies
        losses = [t._compute_loss(t.model, inputs) for t in (own, canonical)]
        results[f"evaluation/{name}"] = difference(
            *((loss.detach(), torch.autograd.grad(loss, logp)[0]) for loss in losses)
        )
    for trainer in (own, canonical):
        trainer.aux_loss_enabled, trainer.router_aux_loss_coef = True, 0.1
    pair = loss_and_gradient(own, inputs), loss_and_gradient(canonical, inputs)
    results["router"] = difference(*pair)
    loss = PolicyLoss(
        TokenRatio(),
        DualClip(Clip(BAND)),
        TokenMean(),
        ReferenceKL(0.1),
        correction=Truncate(TokenMismatch(), 1.05),
        max_weight=1.5,
        entropy=EntropyBonus(0.01),
    )
    own = trainer_of(PolicyLossTrainer, {"beta": 0.1}, loss=replace(loss, correction=None))
    own.policy_loss = loss  # a correction is for samples of vLLM
    unscored = samples()
    unscored["sampling_per_token_logps"][0, 0] = float("nan")
    scored = samples()
    scored["sampling_per_token_logps"][0, 0] = scored["old_per_token_logps"][0, 0]
    output, gradient = expected(loss, own, scored)
    pair = loss_and_gradient(own, unscored), (output.loss.detach(), gradient)
    results["loss/everything"] = difference(*pair)


def through_the_model(results: dict) -> None:
    """Gradients of the parameters: both trainers' own forward passes of the same samples."""
    inputs, gradients = samples(dtype=torch.float32), []
    loss = PolicyLoss(
        TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean(), ReferenceKL(0.1, K3(limit=1e9))
    )
    settings = {"beta": 0.1, "use_bias_correction_kl": False}
    for kind, given in ((PolicyLossTrainer, {"loss": loss}), (GRPOTrainer, {})):
        trainer = trainer_of(kind, settings, **given)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainer._compute_loss(trainer.model, inputs).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    own, canonical = gradients
    results["model"] = {
        "gradient": ((own - canonical).abs().max() / canonical.abs().max()).item(),
        "largest": canonical.abs().max().item(),
    }


def refused(results: dict) -> None:
    loss = PolicyLoss(TokenRatio(), Clip(BAND), TokenMean())
    cases = {
        "loss_type": lambda: trainer_of(BoundsTrainer, {"loss_type": "cispo"}, bounds=BAND),
        "EntropyRadius": lambda: trainer_of(BoundsTrainer, bounds=BandKL(EntropyRadius(0.01, 0.1))),
        "top_entropy_quantile": lambda: trainer_of(
            PolicyLossTrainer, {"top_entropy_quantile": 0.2}, loss=loss
        ),
        "beta": lambda: trainer_of(PolicyLossTrainer, {"beta": 0.01}, loss=loss),
        "rollout_logp": lambda: trainer_of(
            PolicyLossTrainer,
            loss=PolicyLoss(
                TokenRatio(), Clip(BAND), TokenMean(), correction=Truncate(TokenMismatch())
            ),
        ),
    }
    for name, make in cases.items():
        try:
            make()
            results[f"refused/{name}"] = {"message": ""}
        except UserError as error:
            results[f"refused/{name}"] = {"message": str(error)}


def training_cases(results: dict) -> None:
    """Two optimizer steps of a generation: the second is off policy."""
    settings = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 4}
    schedule = BandKL(LinearRadius(0.1, 0.01, 4))
    loss = PolicyLoss(
        TokenRatio(), DualClip(Clip(schedule)), TokenMean(), entropy=EntropyBonus(0.01)
    )
    half = {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}
    for name, kind, given, more in (
        ("bounds", BoundsTrainer, {"bounds": schedule}, {}),
        ("loss", PolicyLossTrainer, {"loss": loss}, {}),
        ("bounds in bfloat16", BoundsTrainer, {"bounds": schedule}, half),
        ("loss in bfloat16", PolicyLossTrainer, {"loss": loss}, half),
    ):
        trainer = trainer_of(kind, settings | more, **given)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        lines = [line for line in trainer.state.log_history if "loss" in line]
        results[f"training/{name}"] = {
            "steps": trainer.state.global_step,
            "moved": (after - before).abs().max().item(),
            "finite": bool(after.isfinite().all()),
            "lines": len(lines),
            "clipped": max(line["clip_ratio/region_mean"] for line in lines),
            "entropy": lines[-1]["entropy"],
        }


def of_ranks(results: dict) -> None:
    """Two ranks' gradients, averaged as DDP does, against one rank with all rows."""
    rank = int(os.environ["RANK"])
    for name, aggregate in AGGREGATES.items():
        loss = PolicyLoss(TokenRatio(), DualClip(Clip(BAND)), aggregate)
        own = trainer_of(PolicyLossTrainer, loss=loss)
        ranks = own.accelerator.num_processes
        whole = samples()
        half = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
        part = {k: v if v.dim() == 0 else v[half] for k, v in whole.items()}
        output, gradient = expected(loss, own, whole, micro_batches=1)
        logp = output.batch.logp.detach()[half].clone().requires_grad_()
        own._get_per_token_logps_and_entropies = lambda *_, logp=logp, **__: (logp, -logp, None)
        own.current_gradient_accumulation_steps = 1
        own.model.train()
        value = own._compute_loss(own.model, part)
        (own_gradient,) = torch.autograd.grad(value, logp)
        kept = part["completion_mask"].bool()
        results[name] = {
            "ranks": ranks,
            "gradient": (own_gradient / ranks - gradient[half])[kept].abs().max().item(),
            "largest": gradient.abs().max().item(),
            "loss": abs(own.accelerator.reduce(value.detach(), "mean").item() - output.loss.item()),
        }


def documented(results: dict) -> None:
    """The blocks of docs/integrations.md, with this model and these settings of a CPU."""
    import trl

    own = SimpleNamespace(**vars(trl))
    cpu = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": LENGTH,
        "max_steps": 2,
    }
    trl.GRPOConfig = lambda *given, **named: own.GRPOConfig(*given, **{**named, **cpu})
    page = Path(os.environ["BANDPO_PAGE"]).read_text()
    for index, block in enumerate(page.split("```python\n")[1:]):
        source = block.split("```")[0]
        if "integrations.trl" not in source:
            continue
        names: dict = {}
        os.chdir(folder)
        exec(source.replace("Qwen/Qwen2.5-0.5B-Instruct", str(folder / "model")), names)
        results[f"documented/{index}"] = {"steps": names["trainer"].state.global_step}


if __name__ == "__main__":
    results: dict = {}
    if "RANK" in os.environ:
        of_ranks(results)
        if os.environ["RANK"] == "0":
            Path(sys.argv[2]).write_text(json.dumps(results))
    else:
        make_model()
        for cases in (bounds_cases, loss_cases, through_the_model, refused, training_cases):
            cases(results)
        documented(results)
        Path(sys.argv[2]).write_text(json.dumps(results, indent=1))
