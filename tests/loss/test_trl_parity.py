"""Losses and gradients of TRL's own trainers against ours, where a Python that has TRL is named.

BANDPO_TRL_PYTHON=/path/to/python bash scripts/test.sh -m slow tests/loss/test_trl_parity.py
"""

import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from bandpo.loss import (
    K3,
    Clip,
    Fixed,
    FixedLog,
    GammaWeight,
    GeometricMean,
    OffPolicySequenceMask,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceRatio,
    SoftGate,
    TokenBatch,
    TokenMean,
    TokenRatio,
    TrajectoryRatio,
    TruncatedWeight,
)

PYTHON = os.environ.get("BANDPO_TRL_PYTHON")
WORKER = Path(__file__).with_name("trl_gradients.py")
CLIP = Clip(Fixed(0.2, 0.28))
BOUNDS = {"epsilon_low": 0.2, "epsilon_high": 0.28}
MEAN = SequenceMeanTokenMean()
K3_OPEN = K3(math.inf)  # TRL's estimate has no limit
# Rules that leave every token a gradient; φ of VESPO underflows for ratios of a few hundred.
EVERY_TOKEN = {"cispo", "sapo", "unbiased_kl"}
# name: (ours, TRL's trainer, its options)
CASES = {
    "grpo": (PolicyLoss(TokenRatio(), CLIP, MEAN), "grpo", BOUNDS),
    "dapo": (PolicyLoss(TokenRatio(), CLIP, TokenMean()), "grpo", BOUNDS | {"loss_type": "dapo"}),
    "gspo": (
        PolicyLoss(SequenceRatio(), Clip(Fixed(0.03, 0.04)), MEAN),
        "grpo",
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    "cispo": (
        PolicyLoss(TokenRatio(), TruncatedWeight(Fixed(1.0, 0.5)), TokenMean()),
        "grpo",
        {"loss_type": "cispo", "epsilon_high": 1.5},  # the cap itself
    ),
    "sapo": (PolicyLoss(TokenRatio(), SoftGate(), MEAN), "grpo", {"loss_type": "sapo"}),
    "vespo": (
        PolicyLoss(TrajectoryRatio(), GammaWeight(), TokenMean()),
        "grpo",
        {"loss_type": "vespo"},
    ),
    "luspo": (
        PolicyLoss(SequenceRatio(), Clip(Fixed(2e-3, 2.5e-3)), SequenceMeanTokenSum()),
        "grpo",
        {
            "loss_type": "luspo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 2e-3,
            "epsilon_high": 2.5e-3,
        },
    ),
    "off_policy_mask": (
        PolicyLoss(TokenRatio(), OffPolicySequenceMask(CLIP, 0.2), MEAN),
        "grpo",
        BOUNDS | {"off_policy_mask_threshold": 0.2},
    ),
    "unbiased_kl": (
        PolicyLoss(TokenRatio(), CLIP, MEAN, ReferenceKL(0.3, K3_OPEN, TokenRatio())),
        "grpo",
        BOUNDS | {"beta": 0.3, "use_bias_correction_kl": True},
    ),
    "gmpo": (
        PolicyLoss(TokenRatio(), GeometricMean(FixedLog(0.4, 0.3)), MEAN),
        "gmpo",
        {"epsilon_low": 0.4, "epsilon_high": 0.3},
    ),
}


def random_batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(5, 24, 9, generator=generator, dtype=torch.float64)
    old_logp = -2 * draws[0].abs() - 0.05
    lengths = torch.randint(1, 10, (24, 1), generator=generator)
    return TokenBatch(
        logp=old_logp + 0.4 * (draws[1] + draws[4, :, :1]),
        old_logp=old_logp,
        advantages=draws[2, :, :1].expand(-1, 9).contiguous(),
        mask=(torch.arange(9) < lengths).double(),
        ref_logp=old_logp + 0.3 * draws[3],
        rollout_logp=old_logp + 0.05 * draws[3].flip(0),
    )


@pytest.fixture(scope="module")
def theirs() -> dict[str, tuple[float, torch.Tensor]]:
    if not PYTHON:
        pytest.skip("BANDPO_TRL_PYTHON names no Python that has TRL")
    tensors = {k: v.tolist() for k, v in vars(random_batch()).items() if torch.is_tensor(v)}
    cases = [{"trainer": kind, "options": options} for _, kind, options in CASES.values()]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, str(WORKER)],
        input=json.dumps({"batch": tensors, "cases": cases}),
        capture_output=True,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {
        name: (loss, torch.tensor(gradient, dtype=torch.float64))
        for name, (loss, gradient) in zip(CASES, results, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_trl(name, theirs):
    loss, _, _ = CASES[name]
    batch = random_batch()
    logp = batch.logp.requires_grad_()
    value = loss(dataclasses.replace(batch, logp=logp)).loss
    (gradient,) = torch.autograd.grad(value, logp)
    rounding = 1e-6 if name == "sapo" else 1e-8  # TRL's temperature, 1.05, is in float32
    assert value.item() == pytest.approx(theirs[name][0], rel=rounding)
    torch.testing.assert_close(gradient, theirs[name][1], rtol=rounding, atol=1e-10)
    reached = gradient[batch.mask > 0] != 0
    assert reached.any() and bool(reached.all()) == (name in EVERY_TOKEN)


@pytest.mark.slow
def test_the_comparison_can_fail(theirs):
    """Every rule's gradient differs from every other's on these tokens."""
    gradients = [gradient for _, gradient in theirs.values()]
    for i, first in enumerate(gradients):
        for second in gradients[:i]:
            assert not torch.allclose(first, second, rtol=1e-3)
