"""Tries `bandpo.integrations.verl` in verl's environment, which has no pytest.

Arguments: the file for results, {case: {name: number}}, as JSON, and the overrides of a command.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.import_utils import import_external_libs
from verl.utils.tensordict_utils import assign_non_tensor
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

import bandpo.loss as bp
from bandpo.errors import UserError

ROWS, LENGTH, RANKS, TOKENS, SEQUENCES, NORM = 8, 16, 2, 300.0, 20, 5
ROW_NUMBERS = torch.arange(ROWS)[:, None].expand(ROWS, LENGTH)
# loss_agg_mode and the aggregate that it is.
MODES = {
    "token-mean": bp.TokenMean(),
    "seq-mean-token-sum": bp.SequenceMeanTokenSum(),
    "seq-mean-token-mean": bp.SequenceMeanTokenMean(),
    "seq-mean-token-sum-norm": bp.ConstantNorm(NORM),
}
LOW, HIGH = 0.2, 0.3
REGION = bp.Fixed(LOW, HIGH)
BAND_KL = bp.DualClip(bp.Clip(bp.Capped(bp.BandKL(0.05), 10.0)), 10.0)


@dataclass(frozen=True)
class Peer:
    """A loss of verl's own as ours, and the settings of an actor with which they are one.

    `shift` is log r of every token, where verl chooses tokens by the policy being trained and ours
    by the old one: then both choose the same.
    """

    surrogate: bp.Surrogate
    ratio: bp.Ratio = field(default_factory=bp.TokenRatio)
    max_weight: float | None = None
    settings: Mapping = field(default_factory=dict)
    modes: tuple[str, ...] = tuple(MODES)
    shift: float | None = None


DIVERGENCE = {"clip_ratio": LOW, "clip_ratio_low": LOW, "clip_ratio_high": LOW}
CLIP = {"clip_ratio": LOW, "clip_ratio_low": LOW, "clip_ratio_high": HIGH}
OF_SEQUENCES = ("seq-mean-token-mean",)  # whatever loss_agg_mode says
ALL = bp.Fixed(1.0, 1e9)
PEERS = {
    "vanilla": Peer(bp.DualClip(bp.Clip(REGION), 3.0), settings=CLIP),
    "gspo": Peer(bp.Clip(REGION), bp.SequenceRatio(), settings=CLIP),
    "cispo": Peer(bp.TruncatedWeight(REGION), settings=CLIP),
    "dppo_tv": Peer(bp.Mask(bp.BandTV(LOW)), max_weight=3.0, settings=DIVERGENCE),
    "dppo_kl": Peer(bp.Mask(bp.BandKL(LOW)), max_weight=3.0, settings=DIVERGENCE),
    "sapo": Peer(bp.SoftGate(1.0, 1.05), modes=OF_SEQUENCES),
    "geo_mean": Peer(bp.GeometricMean(bp.FixedLog(LOW, HIGH)), settings=CLIP, modes=OF_SEQUENCES),
    "dro": Peer(
        bp.SquaredLogRatio(bp.TruncatedWeight(bp.Fixed(0.0, 0.0)), 0.05),
        settings={"policy_loss": PolicyLossConfig(dro_beta=0.1)},
    ),
    # All candidates, since verl's choice among them is random.
    "clip_cov": Peer(
        bp.ClipCovariance(bp.Clip(REGION), low=0.1, high=0.5, share=1.0),
        settings={
            **CLIP,
            "policy_loss": PolicyLossConfig(clip_cov_lb=0.1, clip_cov_ub=0.5, clip_cov_ratio=1.0),
        },
        shift=-0.3,
    ),
    "kl_cov": Peer(
        bp.KLCovariance(bp.Clip(ALL), coefficient=0.5, share=0.2),
        settings={"policy_loss": PolicyLossConfig(kl_cov_ratio=0.2, ppo_kl_coef=0.5)},
        shift=0.2,
    ),
}


def actor(**settings) -> ActorConfig:
    return ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_c=3.0, **settings
    )


def tokens(seed: int, shift: float | None = None):
    """old_logp, logp (a leaf), advantages, mask; ratios on both sides of every bound.

    With a `shift` every log-ratio is that.

    Rows of few tokens would show the 1e-8 that verl adds to their number.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    old_logp = -4 * uniform(ROWS, LENGTH)
    noise = 1.2 * torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64)
    moved = (old_logp + noise).clamp(max=-1e-3) if shift is None else old_logp + shift
    logp = moved.requires_grad_()
    advantages = 2 * (uniform(ROWS, 1) - 0.5).expand(ROWS, LENGTH)
    lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=generator)
    return old_logp, logp, advantages, torch.arange(LENGTH) < lengths


def difference(loss, other, logp) -> dict:
    """The gradient's relative to its largest entry."""
    gradient, other_gradient = (torch.autograd.grad(x, logp)[0] for x in (loss, other))
    largest = other_gradient.abs().max()
    return {
        "gradient": ((gradient - other_gradient).abs().max() / largest).item(),
        "zeros": (other_gradient == 0).sum().item(),
        "loss": (loss - other).abs().item(),
    }


def worst(found: list[dict]) -> dict:
    return {
        name: (min if name == "zeros" else max)(one[name] for one in found) for name in found[0]
    }


def registered(results: dict) -> None:
    """Our losses, as verl calls them, against PolicyLoss, of a part of a global batch."""
    from bandpo.integrations.verl import METHODS

    info = {
        "dp_size": RANKS,
        "batch_num_tokens": TOKENS,
        "global_batch_size": SEQUENCES,
        "loss_scale_factor": NORM,
    }
    totals = bp.BatchTotals(sequences=SEQUENCES, tokens=TOKENS)
    config = actor(global_batch_info=info)
    for name, surrogate in METHODS.items():
        for mode, aggregate in MODES.items():
            found = []
            for seed in range(5):
                old_logp, logp, advantages, mask = tokens(seed)
                loss, metrics = get_policy_loss_fn(name)(
                    old_log_prob=old_logp,
                    log_prob=logp,
                    advantages=advantages,
                    response_mask=mask,
                    loss_agg_mode=mode,
                    config=config,
                    rollout_is_weights=None,
                )
                ours = bp.PolicyLoss(bp.TokenRatio(), surrogate, aggregate)
                output = ours(bp.TokenBatch(logp, old_logp, advantages, mask), totals)
                found.append(difference(loss, output.loss * RANKS, logp))
            results[f"registered/{name}/{mode}"] = {**worst(found), **metrics}


def weighted(results: dict) -> None:
    """rollout_is_weights multiply the objective, as a correction of the loss does."""
    old_logp, logp, advantages, mask = tokens(0)
    rollout_logp = old_logp - 0.5 * torch.rand_like(old_logp)
    weights = (old_logp - rollout_logp).exp().clamp(max=1.2) * mask
    loss, _ = get_policy_loss_fn("band_kl")(
        old_logp, logp, advantages, mask, "token-mean", actor(), weights
    )
    correction = bp.Truncate(bp.TokenMismatch(), 1.2)
    ours = bp.PolicyLoss(bp.TokenRatio(), BAND_KL, bp.TokenMean(), correction=correction)
    batch = bp.TokenBatch(logp, old_logp, advantages, mask, rollout_logp=rollout_logp)
    results["weighted"] = difference(loss, ours(batch).loss, logp)


def peers(results: dict) -> None:
    """verl's own losses against ours."""
    for name, peer in PEERS.items():
        config = actor(**peer.settings, global_batch_info={"loss_scale_factor": NORM})
        for mode in peer.modes:
            found = []
            for seed in range(5):
                old_logp, logp, advantages, mask = tokens(seed, peer.shift)
                given = (old_logp, logp, advantages, mask.double(), mode, config)
                theirs, _ = get_policy_loss_fn(name)(*given)
                ours = bp.PolicyLoss(
                    peer.ratio, peer.surrogate, MODES[mode], max_weight=peer.max_weight
                )
                batch = bp.TokenBatch(logp, old_logp, advantages, mask, number=ROW_NUMBERS)
                output = ours(batch)
                found.append(difference(theirs, output.loss, logp))
            results[f"peers/{name}/{mode}"] = worst(found)


def metrics(results: dict) -> None:
    """A canonical clip through `register` reports the shares that verl's own reports."""
    from bandpo.integrations.verl import register

    register("canonical", bp.DualClip(bp.Clip(REGION), 3.0))
    config = actor(**CLIP)
    old_logp, logp, advantages, mask = tokens(0)
    given = (old_logp, logp, advantages, mask.double(), "token-mean", config)
    (loss, ours), (theirs_loss, theirs) = (
        get_policy_loss_fn(name)(*given) for name in ("canonical", "vanilla")
    )
    results["metrics/ours"], results["metrics/theirs"] = ours, theirs
    results["metrics/loss"] = {"loss": (loss - theirs_loss).abs().item()}


def whole_actor(results: dict, overrides: list[str]) -> None:
    """The documented command's configuration, and verl's loss function of an actor with it."""
    folder = str(Path(verl.__file__).parent / "trainer/config")
    with initialize_config_dir(folder, version_base=None):
        config = compose("ppo_trainer", overrides)
    import_external_libs(config.actor_rollout_ref.model.external_lib)
    assert "band_kl" in POLICY_LOSS_REGISTRY
    settings = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    old_logp, logp, advantages, mask = tokens(0)
    lengths = mask.sum(-1).tolist()

    def nested(rows):
        return torch.nested.nested_tensor(list(rows), layout=torch.jagged)

    def answers(tensor):
        return nested(row[:n] for row, n in zip(tensor, lengths, strict=True))

    data = TensorDict(
        {
            "prompts": nested(torch.zeros(2, dtype=torch.long) for _ in lengths),
            "responses": nested(torch.zeros(n, dtype=torch.long) for n in lengths),
            "response_mask": answers(mask),
            "old_log_probs": answers(old_logp),
            "advantages": answers(advantages),
        },
        batch_size=[ROWS],
    )
    assign_non_tensor(data, dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=ROWS)
    # Of each row two tokens of a prompt, whose last predicts the answer's first.
    outputs = [
        torch.cat([logp.new_zeros(1), row[:n], logp.new_zeros(1)])
        for row, n in zip(logp, lengths, strict=True)
    ]
    loss, _ = ppo_loss(settings, {"log_probs": torch.cat(outputs)}, data)
    ours = bp.PolicyLoss(bp.TokenRatio(), BAND_KL, bp.TokenMean())
    output = ours(bp.TokenBatch(logp, old_logp, advantages, mask))
    results["actor"] = {
        **difference(loss, output.loss, logp),
        "mode": settings.policy_loss.loss_mode,
    }


def refused(results: dict) -> None:
    from bandpo.integrations.verl import register

    for name, delta in (
        ("LinearRadius", bp.LinearRadius(0.1, 0.01, 100)),
        ("EntropyRadius", bp.EntropyRadius(0.01, 0.1)),
    ):
        try:
            register("no", bp.Clip(bp.BandKL(delta)))
            results[f"refused/{name}"] = {"message": ""}
        except UserError as error:
            results[f"refused/{name}"] = {"message": str(error)}
    results["refused/registered"] = {"found": "no" in POLICY_LOSS_REGISTRY}


def documented(results: dict) -> None:
    """The blocks of docs/integrations.md."""
    page = Path(os.environ["BANDPO_PAGE"]).read_text()
    for block in page.split("```python\n")[1:]:
        if "integrations.verl" in (source := block.split("```")[0]):
            before = set(POLICY_LOSS_REGISTRY)
            exec(source, {})
            results["documented"] = {"names": sorted(set(POLICY_LOSS_REGISTRY) - before)}


if __name__ == "__main__":
    results: dict = {}
    assert "band_kl" not in POLICY_LOSS_REGISTRY
    whole_actor(results, sys.argv[2:])  # imports the module, by its name in the configuration
    for cases in (registered, weighted, peers, metrics, refused, documented):
        cases(results)
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1))
