"""Every file of configs/method builds the method its paper describes and takes an update; classes
from outside the package take part through `_target_` alone."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from bandpo.advantage import (
    centered_advantages,
    dual_variables,
    group_advantages,
    maximum_likelihood_advantages,
    query_dual,
    query_kl_advantages,
)
from bandpo.loss import (
    K3,
    BandKL,
    BandTV,
    BehaviourRatio,
    BySign,
    Clip,
    ConstantNorm,
    EntropyBonus,
    Fixed,
    FixedLog,
    GammaWeight,
    GeometricMean,
    GradientPreservingClip,
    KLPlusChiSquared,
    LossDiagnostics,
    Mask,
    OfBehaviour,
    OffPolicySequenceMask,
    PolicyLoss,
    QueryKL,
    ReferenceKL,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceRatio,
    SoftGate,
    SquaredLogRatio,
    TokenBatch,
    TokenMean,
    TokenRatio,
    TrajectoryRatio,
    TruncatedWeight,
)

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("[!_]*.yaml"))

# The interval at old probability 0.05, from the papers' formulas in 60-digit arithmetic.
INTERVAL = {
    "grpo": (0.8, 1.2),
    "clip_higher": (0.8, 1.28),
    "band_kl": (0.1620234, 2.981205),
    "band_tv": (0.0, 2.0),
    "band_chi2": (1 - 0.95**0.5, 1 + 0.95**0.5),
    "band_kl_relaxed": (0.1620234, 2.981205),
    "band_hellinger": (4.136e-05, 3.777463),
    "band_kl_entropy": None,
    "band_kl_upper": (0.8, 2.981205),
    "dcpo": (0.5, 0.5 + 0.5 * 17**0.5),
    "dapo": (0.8, 1.28),
    "dr_grpo": (0.8, 1.2),
    "gspo": (1 - 3e-4, 1 + 4e-4),
    "cispo": (0.0, 5.0),
    "dppo_tv": (0.0, 4.0),
    "dppo_kl": (0.1620234, 2.981205),
    "cfpo": (0.8, 1.2),
    "sapo": (0.0, 4.8516520e8),  # none: up to the largest ratio, e^20
    "vespo": (0.0, 4.8516520e8),
    "gmpo": (0.6703200, 1.4918247),
    "gmpo_band_kl": (0.1620234, 2.981205),
    "ce_gppo": (0.8, 1.2),
    "topr": (1.0, 1.0),  # where A > 0
    "luspo": (1 - 2e-3, 1 + 2.5e-3),
    "maxrl": (0.8, 1.2),
    "off_policy_mask": (0.8, 1.2),
    "unbiased_kl": (0.8, 1.2),
    "deepseek_v32": (0.8, 1.2),
    "kl_chi2": (0.8, 1.2),
    "prime_rl": (0.0, 5.0),
    "m2po": (math.exp(-20), math.exp(20)),  # nothing is dropped where nothing has moved
    "clip_cov": (0.8, 1.2),
    "kl_cov": (0.0, math.exp(20)),
    "bapo": (0.6, 1.2),
    "elastic": None,
    "query_kl": None,
}
WITHOUT_KL = {
    *("dapo", "dr_grpo", "cispo", "dppo_tv", "dppo_kl", "sapo", "vespo", "gmpo", "gmpo_band_kl"),
    *("ce_gppo", "topr", "luspo", "maxrl", "prime_rl"),
    *("m2po", "clip_cov", "kl_cov", "bapo", "query_kl"),
}
RATIOS = {
    "gspo": SequenceRatio(),
    "luspo": SequenceRatio(),
    "topr": TrajectoryRatio(),
    "vespo": TrajectoryRatio(),
    "prime_rl": BehaviourRatio(),
}
TOKEN_MEAN = (
    *("dapo", "cispo", "ce_gppo", "vespo", "prime_rl"),
    *("m2po", "clip_cov", "kl_cov", "bapo"),
)
AGGREGATES = {
    **dict.fromkeys(TOKEN_MEAN, TokenMean()),
    **dict.fromkeys(("topr", "luspo"), SequenceMeanTokenSum()),
    "dr_grpo": ConstantNorm(100),
}
ADVANTAGES = {
    "dr_grpo": centered_advantages,
    "prime_rl": centered_advantages,
    "maxrl": maximum_likelihood_advantages,
    "query_kl": query_kl_advantages,
}


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    """The method group under the keys that it refers to or sets."""
    (tmp_path / "root.yaml").write_text(
        "defaults: [_self_, method: grpo]\n"
        f"hydra: {{searchpath: ['file://{CONFIGS}']}}\n"
        "rollout: {max_tokens: 100, filter_groups: false, max_refills: 1}\n"
        "learner: {weight_decay: 0.0, warmup_rollouts: 0}\n"
        "reward: {overlong: null}\n"
    )
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        return compose("root", overrides=list(overrides))


def build(tmp_path: Path, *overrides: str) -> PolicyLoss:
    loss = instantiate(composed(tmp_path, *overrides).method.loss)
    assert isinstance(loss, PolicyLoss)
    return loss


def batch_from(logits: torch.Tensor, old_logits: torch.Tensor) -> TokenBatch:
    """Four sequences of three tokens; token k of state t with advantage ±1 by sequence."""
    tokens = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 3]])[..., None]

    def logp(table: torch.Tensor) -> torch.Tensor:
        return table.log_softmax(-1).expand(4, -1, -1).gather(-1, tokens).squeeze(-1)

    old_logp = logp(old_logits).detach()
    return TokenBatch(
        logp=logp(logits),
        old_logp=old_logp,
        advantages=torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None].expand(4, 3),
        mask=torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]),
        ref_logp=old_logp - 0.1,
        rollout_logp=old_logp,
        entropy=torch.full_like(old_logp, 0.5),
        pass_rate=torch.full_like(old_logp, 0.5),
        dual=torch.full_like(old_logp, 2.0),
        number=torch.arange(4.0)[:, None].expand(4, 3),
    )


def likelihood(batch: TokenBatch) -> float:
    """Σ A·log π: what every method means to raise."""
    return float((batch.advantages * batch.logp * batch.mask).sum().detach())


def test_the_table_of_methods_is_complete():
    assert set(METHODS) == set(INTERVAL)


@pytest.mark.parametrize("name", METHODS)
def test_method_builds_and_takes_an_update(name, tmp_path):
    config = composed(tmp_path, f"method={name}").method
    loss, advantage = instantiate(config.loss), instantiate(config.advantage)
    assert config.name == name
    assert loss.needs_reference == (name not in WITHOUT_KL)
    expected = ADVANTAGES.get(name, group_advantages)
    assert torch.equal(advantage(torch.eye(2)), expected(torch.eye(2)))

    torch.manual_seed(0)
    old_logits = torch.randn(3, 5)
    logits = (old_logits + 0.01 * torch.randn(3, 5)).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.1)
    before = loss(batch_from(logits, old_logits))
    before.loss.backward()
    assert logits.grad.isfinite().all() and (logits.grad != 0).any()
    optimizer.step()
    with torch.no_grad():
        after = loss(batch_from(logits, old_logits))
    assert likelihood(after.batch) > likelihood(before.batch)
    diagnostics = LossDiagnostics()
    diagnostics.update(after)
    assert diagnostics.metrics()["clip/bin_0.1_0.5/count"] > 0


@pytest.mark.parametrize("name", [name for name in METHODS if INTERVAL[name]])
def test_parameters_are_those_of_the_papers(name, tmp_path):
    loss = build(tmp_path, f"method={name}")
    p = torch.full((1, 1), 0.05, dtype=torch.float64)
    one = torch.ones_like(p)
    batch = TokenBatch(p.log(), p.log(), one, one, ref_logp=p.log(), number=one)
    low, high = loss(batch).interval
    assert (low.item(), high.item()) == pytest.approx(INTERVAL[name], rel=1e-4)
    assert loss.ratio == RATIOS.get(name, TokenRatio())
    assert loss.aggregate == AGGREGATES.get(name, SequenceMeanTokenMean())


@pytest.mark.parametrize(
    "name",
    [
        *("sapo", "gmpo", "gmpo_band_kl", "ce_gppo", "vespo", "topr", "luspo", "maxrl"),
        *("off_policy_mask", "unbiased_kl", "deepseek_v32", "kl_chi2", "prime_rl"),
    ],
)
def test_a_rule_of_the_field_takes_at_most_ten_lines(name):
    text = (CONFIGS / "method" / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10


def test_the_constants_of_the_fields_rules(tmp_path):
    def surrogate(name):
        return build(tmp_path, f"method={name}").surrogate

    assert surrogate("sapo") == SoftGate(1.0, 1.05)
    assert surrogate("gmpo") == GeometricMean(FixedLog(0.4, 0.4))
    assert surrogate("ce_gppo") == GradientPreservingClip(Fixed(0.2, 0.2), 0.75, 1.0)
    assert surrogate("vespo") == GammaWeight((2.0, 3.0), (3.0, 2.0))
    weights = TruncatedWeight(BySign(positive=Fixed(0.0, 0.0), negative=Fixed(1.0, 0.0)))
    assert surrogate("topr") == weights
    masked = OffPolicySequenceMask(Clip(Fixed(0.2, 0.2)), 0.5)
    assert surrogate("off_policy_mask") == surrogate("deepseek_v32") == masked
    assert surrogate("prime_rl") == SquaredLogRatio(Mask(OfBehaviour(BandTV(0.2))), 1e-3)
    for name in ("unbiased_kl", "deepseek_v32"):
        kl = build(tmp_path, f"method={name}").reference_kl
        assert kl == ReferenceKL(0.001, K3(), TokenRatio())
    assert build(tmp_path, "method=kl_chi2").reference_kl == ReferenceKL(0.001, KLPlusChiSquared())
    overrides = ("method=vespo", "method.positive=[1,2]")
    assert build(tmp_path, *overrides).surrogate.positive == (1.0, 2.0)


def test_the_entropy_method_widens_where_the_policy_is_unsure(tmp_path):
    loss = build(tmp_path, "method=band_kl_entropy", "method.delta_max=0.2")
    p = torch.full((1, 3), 0.3)
    batch = TokenBatch(p.log(), p.log(), p, p * 0 + 1, entropy=torch.tensor([[0.0, 0.5, 9.0]]))
    high = loss.surrogate(p / p, batch).interval.high[0]
    bounds = loss.surrogate.surrogate.bounds
    for k, delta in enumerate((0.02, 0.11, 0.2)):
        fixed = dataclasses.replace(bounds.inner, delta=delta)
        assert high[k].item() == pytest.approx(fixed(p.log()).high[0, 0].item())


def test_the_elastic_method_widens_with_advantage_and_pass_rate(tmp_path):
    loss = build(tmp_path, "method=elastic", "method.delta=0.03", "method.by_pass_rate=1.0")
    p = torch.full((1, 3), 0.3)
    advantages, rates = torch.tensor([[0.0, 2.0, -9.0]]), torch.tensor([[1.0, 0.5, 0.5]])
    batch = TokenBatch(p.log(), p.log(), advantages, p * 0 + 1, ref_logp=p, pass_rate=rates)
    high = loss(batch).interval.high[0]
    for k, delta in enumerate((0.03, 0.03 * 1.5 * 2, 0.03 * 1.5 * 2)):
        assert high[k].item() == pytest.approx(BandKL(delta)(p.log()).high[0, 0].item())


def test_the_query_method_has_one_radius_for_all_it_needs(tmp_path):
    config = composed(tmp_path, "method=query_kl", "method.delta=0.3").method
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    found = instantiate(config.advantage)
    assert torch.equal(found(rewards), query_kl_advantages(rewards, delta=0.3))
    assert dual_variables(found, rewards) == query_dual(rewards, delta=0.3)
    assert instantiate(config.loss).surrogate == QueryKL()


def test_the_parameters_of_a_method_are_short_keys(tmp_path):
    loss = build(
        tmp_path,
        *("method=band_kl", "method.delta=0.03", "method.max_ratio=4", "method.dual_clip=3"),
        "method.kl_coef=0",
    )
    assert loss.surrogate.c == 3
    assert loss.surrogate.surrogate.bounds.max_ratio == 4
    assert loss.surrogate.surrogate.bounds.inner.delta == 0.03
    assert not loss.needs_reference


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_an_entropy_bonus_and_a_floor(name, tmp_path):
    loss = build(tmp_path, f"method={name}")
    assert loss.entropy == EntropyBonus() and not loss.needs_entropy_gradient
    overrides = ("method.entropy_coef=0.001", "method.entropy_floor=0.2")
    loss = build(tmp_path, f"method={name}", *overrides)
    assert loss.entropy == EntropyBonus(0.001, 0.2, increment=1e-4, maximum=5e-3)
    assert not loss.vanishes_at_zero_advantage


def test_a_correction_or_an_aggregate_is_an_override(tmp_path):
    loss = build(
        tmp_path,
        "method.loss.aggregate._target_=bandpo.loss.TokenMean",
        "+method.loss.correction={_target_: bandpo.loss.Truncate, cap: 2.0, "
        "mismatch: {_target_: bandpo.loss.TokenMismatch}}",
    )
    assert loss.aggregate == TokenMean() and loss.correction.cap == 2.0


def test_dapo_also_sets_what_lies_outside_the_loss(tmp_path):
    config = composed(tmp_path, "method=dapo", "method.overlong_buffer=20")
    assert config.learner == {"weight_decay": 0.1, "warmup_rollouts": 10}
    assert config.rollout.filter_groups and config.rollout.max_refills == 100
    assert config.reward.overlong == {"buffer": 20, "penalty": 1.0}
    assert composed(tmp_path, "method=dapo", "learner.weight_decay=0").learner.weight_decay == 0


# --- Methods from outside the package -----------------------------------------------------------

DIVERGENCE = """\
from bandpo.loss import Divergence

class Neyman(Divergence):  # f(u) = (u - 1)^2 / u
    at_zero, growth = float("inf"), 1.0
    def f(self, u):
        return (u - 1) ** 2 / u
    def derivative(self, u):
        return 1 - u**-2
"""

RULE = '''\
from dataclasses import dataclass
from torch import Tensor
from bandpo.loss import Bounds, Interval

@dataclass(frozen=True)
class Power(Bounds):
    """[p^-a clipped to 1, p^-a]: room that grows as the token gets rarer."""
    exponent: float
    def __call__(self, old_logp: Tensor) -> Interval:
        high = (-self.exponent * old_logp.detach().float()).exp()
        return Interval(1 / high, high)
'''


def lines_of_code(source: str) -> int:
    """Without imports and blank lines."""
    lines = (line for line in source.splitlines() if line.strip())
    return sum(not line.startswith(("from ", "import ")) for line in lines)


def test_a_new_divergence_in_under_ten_lines(tmp_path, monkeypatch):
    assert lines_of_code(DIVERGENCE) < 10
    (tmp_path / "my_divergence.py").write_text(DIVERGENCE)
    monkeypatch.syspath_prepend(tmp_path)
    loss = build(
        tmp_path,
        *("method=band_hellinger", "method.delta=0.1"),
        "method.loss.surrogate.surrogate.bounds.inner.divergence._target_=my_divergence.Neyman",
    )
    p = torch.tensor([1e-6, 0.01, 0.3, 0.9], dtype=torch.float64)
    low, high = loss.surrogate.surrogate.bounds.inner(p.log())
    # Neyman's χ² has a closed form to check against: (q − p)² / (q·(1 − q)) = delta.
    for ratio in (low, high):
        q = ratio * p
        torch.testing.assert_close((q - p) ** 2 / (q * (1 - q)), torch.full_like(p, 0.1))
    assert (low < 1).all() and (high > 1).all()


METHOD = """\
defaults: [_band]
name: power
exponent: 0.1
loss:
  surrogate:
    surrogate:
      bounds:
        inner:
          _target_: my_rule.Power
          exponent: ${method.exponent}
"""


def test_a_new_clipping_rule_in_under_twenty_lines(tmp_path, monkeypatch):
    assert lines_of_code(RULE) < 20
    (tmp_path / "my_rule.py").write_text(RULE)
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "power.yaml").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    loss = build(tmp_path, "method=power", "method.exponent=0.2")
    batch = batch_from(torch.randn(3, 5).requires_grad_(), torch.randn(3, 5))
    output = loss(batch)
    output.loss.backward()
    expected = (batch.old_logp.exp() ** -0.2).clamp(max=10)
    torch.testing.assert_close(output.interval.high, torch.where(batch.mask > 0, expected, 1.0))
