"""What needs neither TRL nor verl: parts refused, settings checked, methods as configured."""

import dataclasses
import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from asking_parts import QuantileMask
from hydra.utils import instantiate

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.integrations.fit import require_fit
from bandpo.integrations.trl_inputs import (
    REPLACED,
    batch_of,
    problems_of,
    require_version,
    totals_of,
)
from bandpo.loss import (
    BandKL,
    Bounds,
    Clip,
    EntropyBonus,
    Fixed,
    Interval,
    LinearRadius,
    PolicyLoss,
    ReferenceKL,
    TokenMean,
    TokenRatio,
)


@dataclasses.dataclass
class Settings:
    """The fields of a GRPOConfig that are looked at."""

    beta: float = 0.0
    use_vllm: bool = False
    vllm_importance_sampling_correction: bool = True


SETTINGS = dataclasses.make_dataclass(
    "GRPOConfig", [(name, object, None) for name in REPLACED], bases=(Settings,)
)


def one_token(**changed):
    return {
        "completion_ids": torch.ones(1, 2, dtype=torch.long),
        "completion_mask": torch.tensor([[1, 1]]),
        "advantages": torch.tensor([2.0]),
        "num_items_in_batch": torch.tensor(30),
        **changed,
    }


LOSS = PolicyLoss(TokenRatio(), Clip(BandKL(0.05)), TokenMean())


@pytest.mark.parametrize(
    ("changed", "loss", "told"),
    [
        ({"loss_type": "grpo"}, LOSS, "loss_type=grpo has no effect on a PolicyLoss: leave it at"),
        ({"delta": 2.0}, LOSS, "delta=2.0 has no effect"),
        ({"beta": 0.1}, LOSS, "beta=0.1: it must be reference_kl's coefficient, 0.0"),
        ({}, dataclasses.replace(LOSS, reference_kl=ReferenceKL(0.1)), "beta=0.0: it must be"),
        ({"use_vllm": True}, LOSS, "vllm_importance_sampling_correction=True has no effect"),
        ({}, dataclasses.replace(LOSS, entropy=EntropyBonus(0.1, 0.2, 1e-4, 1.0)), "entropy.floor"),
    ],
)
def test_settings_of_trl_that_do_not_fit_a_loss(changed, loss, told):
    assert problems_of(SETTINGS(), LOSS) == []
    (problem,) = problems_of(SETTINGS(**changed), loss)
    assert problem.startswith(told)


def test_settings_that_agree_with_the_loss():
    corrected = {"use_vllm": True, "vllm_importance_sampling_correction": False, "beta": 0.1}
    loss = dataclasses.replace(LOSS, reference_kl=ReferenceKL(0.1))
    assert problems_of(SETTINGS(**corrected), loss) == []


def test_tools_tokens_and_per_token_advantages_reach_the_batch():
    logp = torch.full((1, 2), -1.0)
    inputs = one_token(tool_mask=torch.tensor([[1, 0]]), advantages=torch.tensor([[2.0, 3.0]]))
    batch = batch_of(inputs, logp, logp, step=7)
    assert batch.mask.tolist() == [[1, 0]] and batch.advantages.tolist() == [[2.0, 3.0]]
    assert batch.step == 7 and batch.rollout_logp is None
    assert batch_of(one_token(), logp, logp, step=0).advantages.tolist() == [[2.0, 2.0]]


def test_tokens_that_the_engine_could_not_score_count_as_the_old_policys():
    logp = torch.full((1, 2), -1.0)
    inputs = one_token(sampling_per_token_logps=torch.tensor([[float("nan"), -2.0]]))
    assert batch_of(inputs, logp, logp, step=0).rollout_logp.tolist() == [[-1.0, -2.0]]


def test_totals_are_of_an_optimizer_step_of_all_ranks():
    totals = totals_of(one_token(), micro_batches=4, of_generation=12, ranks=3)
    assert (totals.sequences, totals.tokens) == (12, 10.0)


def test_an_older_trl_is_refused():
    with pytest.raises(UserError, match=r"needs TRL 1\.16 or later, this is 0\.29\.1"):
        require_version("0.29.1")
    require_version("1.16.0")
    require_version("2.0.0.dev0")


def test_a_part_that_asks_for_a_statistic_is_refused():
    part = QuantileMask(Clip(Fixed(0.2, 0.2)))
    with pytest.raises(UserError, match="QuantileMask: a statistic of the whole optimizer batch"):
        require_fit("TRL", part, lambda batch: part(batch.old_logp.exp(), batch).objective)


def test_bounds_that_break_their_contract_are_refused():
    class Inverted(Bounds):
        def __call__(self, old_logp):
            return Interval(old_logp * 0 + 2, old_logp * 0 + 1)

    with pytest.raises(UserError, match="Inverted"):
        require_fit("TRL", Inverted(), lambda batch: batch.logp)


def test_a_radius_that_follows_the_step_needs_one():
    bounds = BandKL(LinearRadius(0.1, 0.01, 100))

    def high(batch):
        return bounds.for_batch(batch)(batch.old_logp).high

    require_fit("TRL", bounds, high)
    with pytest.raises(UserError, match="follows the training step, which verl does not report"):
        require_fit("verl", bounds, high, has_step=False)


@pytest.fixture
def registry(monkeypatch):
    """verl's registry without verl: the module registers at its import."""
    registered = {}
    core = ModuleType("verl.trainer.ppo.core_algos")
    core.agg_loss = lambda loss_mat, loss_mask, loss_agg_mode: (loss_mat * loss_mask).sum()
    core.register_policy_loss = lambda name: lambda function: registered.setdefault(name, function)
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, core.__name__, core)
    monkeypatch.delitem(sys.modules, "bandpo.integrations.verl", raising=False)
    yield importlib.import_module("bandpo.integrations.verl"), registered
    sys.modules.pop("bandpo.integrations.verl")


def test_methods_for_verl_are_those_of_the_configs(registry):
    module, registered = registry
    assert registered.keys() == module.METHODS.keys()
    for name, surrogate in module.METHODS.items():
        configured = instantiate(compose("train", [f"method={name}"], Config).method.loss)
        assert configured.surrogate == surrogate, name
        assert configured.ratio == module.TOKEN_RATIO


def test_verl_gets_bfloat16_and_a_bool_mask(registry):
    _, registered = registry
    old_logp = torch.tensor([[-1.0, -2.0, -3.0]])
    logp = old_logp.bfloat16().requires_grad_()
    mask = torch.tensor([[True, True, False]])
    config = SimpleNamespace(global_batch_info={})
    loss, metrics = registered["band_kl"](
        old_logp, logp, torch.ones(1, 3), mask, "token-mean", config
    )
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(-2.0)
    assert logp.grad.tolist() == [[-1.0, -1.0, 0.0]]
    assert set(metrics) == {"actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower"}
