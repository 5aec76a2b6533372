"""Aggregation, reference KL, correction, and one loss whatever the split."""

import dataclasses
import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import (
    K1,
    K2,
    K3,
    BandKL,
    BatchTotals,
    Capped,
    Clip,
    ConstantNorm,
    Discard,
    DualClip,
    Fixed,
    LossDiagnostics,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMismatch,
    SequenceRatio,
    TokenBatch,
    TokenMean,
    TokenMismatch,
    TokenRatio,
    Truncate,
    TruncatedWeight,
    batch_totals,
)

AGGREGATES = [TokenMean(), SequenceMeanTokenMean(), SequenceMeanTokenSum(), ConstantNorm(50)]
seeds = st.integers(0, 2**31)


def random_batch(seed: int, sequences: int, tokens: int, dtype=torch.float64) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(sequences, tokens, generator=generator, dtype=torch.float64)

    old_logp = -normal().abs() * 2
    lengths = torch.randint(1, tokens + 1, (sequences, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).double()
    batch = TokenBatch(
        logp=old_logp + 0.3 * normal(),
        old_logp=old_logp,
        advantages=normal()[:, :1].expand(-1, tokens),
        mask=mask,
        ref_logp=old_logp + 0.2 * normal(),
        rollout_logp=old_logp + 0.1 * normal(),
    )
    return map_tensors(batch, lambda tensor: tensor.to(dtype))


def map_tensors(batch: TokenBatch, change) -> TokenBatch:
    return dataclasses.replace(
        batch,
        **{
            field.name: change(value)
            for field in dataclasses.fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor)
        },
    )


def loss_and_gradient(loss: PolicyLoss, batch: TokenBatch, totals=None) -> tuple[Tensor, Tensor]:
    logp = batch.logp.detach().requires_grad_()
    value = loss(dataclasses.replace(batch, logp=logp), totals).loss
    return value.detach(), torch.autograd.grad(value, logp)[0]


def full_loss(aggregate, ratio=None) -> PolicyLoss:
    return PolicyLoss(
        ratio or TokenRatio(),
        DualClip(Clip(Capped(BandKL(0.05), 10.0))),
        aggregate,
        ReferenceKL(0.1),
        Truncate(SequenceMismatch(), 2.0),
    )


class TestSplit:
    @pytest.mark.parametrize("ratio", [TokenRatio(), SequenceRatio()], ids=str)
    @pytest.mark.parametrize("aggregate", AGGREGATES, ids=str)
    @given(seed=seeds, cuts=st.sets(st.integers(1, 6)), padding=st.integers(0, 5))
    def test_any_split_and_padding_gives_the_loss_of_the_batch(
        self, aggregate, ratio, seed, cuts, padding
    ):
        batch = random_batch(seed, 7, 6)
        loss, totals = full_loss(aggregate, ratio), batch_totals(batch.mask)
        value, gradient = loss_and_gradient(loss, batch)
        edges = [0, *sorted(cuts), 7]
        parts = [
            map_tensors(
                batch,
                lambda tensor, rows=slice(start, stop): torch.nn.functional.pad(
                    tensor[rows], (0, padding)
                ),
            )
            for start, stop in itertools.pairwise(edges)
        ]
        results = [loss_and_gradient(loss, part, totals) for part in parts]
        torch.testing.assert_close(sum(value for value, _ in results), value)
        torch.testing.assert_close(torch.cat([g[:, :6] for _, g in results]), gradient)

    def test_float32_agrees_to_1e_6(self):
        batch = random_batch(0, 64, 40, torch.float32)
        loss, totals = full_loss(SequenceMeanTokenMean()), batch_totals(batch.mask)
        value, gradient = loss_and_gradient(loss, batch)
        halves = [
            loss_and_gradient(loss, map_tensors(batch, lambda t, k=k: t[k]), totals)
            for k in (slice(0, 13), slice(13, 64))
        ]
        torch.testing.assert_close(halves[0][0] + halves[1][0], value, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            torch.cat([halves[0][1], halves[1][1]]), gradient, rtol=1e-6, atol=1e-9
        )

    def test_a_micro_batch_without_tokens_adds_nothing(self):
        batch = map_tensors(random_batch(0, 2, 3), lambda tensor: tensor)
        empty = dataclasses.replace(batch, mask=torch.zeros_like(batch.mask))
        value, gradient = loss_and_gradient(full_loss(TokenMean()), empty, BatchTotals(4, 9))
        assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("garbage", [1e30, -1e30, 3e38, -3e38, math.inf, -math.inf, math.nan])
def test_masked_values_change_nothing(garbage):
    batch = random_batch(1, 5, 6, torch.float32)
    dirty = map_tensors(batch, lambda tensor: torch.where(batch.mask > 0, tensor, garbage))
    dirty = dataclasses.replace(dirty, mask=batch.mask, entropy=dirty.old_logp)
    loss = full_loss(SequenceMeanTokenMean())
    for actual, expected in zip(
        loss_and_gradient(loss, dirty), loss_and_gradient(loss, batch), strict=True
    ):
        assert torch.equal(actual, expected)
    diagnostics = LossDiagnostics()
    diagnostics.update(loss(dirty))
    assert all(math.isfinite(value) for value in diagnostics.metrics().values())


class TestAggregate:
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])

    @pytest.mark.parametrize(
        ("aggregate", "expected"),
        [
            (TokenMean(), [[1 / 4] * 3, [1 / 4, 0, 0]]),
            (SequenceMeanTokenMean(), [[1 / 6] * 3, [1 / 2, 0, 0]]),
            (SequenceMeanTokenSum(), [[1 / 2] * 3, [1 / 2, 0, 0]]),
            (ConstantNorm(10), [[1 / 20] * 3, [1 / 20, 0, 0]]),
        ],
        ids=str,
    )
    def test_weights(self, aggregate, expected):
        weights = aggregate.weights(self.mask, batch_totals(self.mask))
        torch.testing.assert_close(weights, torch.tensor(expected))

    def test_totals_count_only_sequences_with_tokens(self):
        mask = torch.tensor([[True, True], [False, False]])
        assert batch_totals(mask) == BatchTotals(sequences=1, tokens=2)
        assert batch_totals(mask[1:]) == BatchTotals(sequences=1, tokens=1)  # never divide by 0

    def test_constant_must_be_positive(self):
        with pytest.raises(UserError):
            ConstantNorm(0)


class TestReferenceKL:
    def test_estimators(self):
        logp, ref = torch.tensor([-1.0]), torch.tensor([-1.5])
        assert K1()(logp, ref).item() == pytest.approx(0.5)
        assert K2()(logp, ref).item() == pytest.approx(0.125)
        assert K3()(logp, ref).item() == pytest.approx(math.exp(-0.5) + 0.5 - 1)

    def test_estimators_estimate_the_divergence(self):
        """In expectation over tokens of the policy, k1 and k3 are KL(π ‖ π_ref) exactly."""
        pi, ref = (
            torch.rand(9, dtype=torch.float64, generator=g).softmax(-1).log()
            for g in (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
        )
        exact = (pi.exp() * (pi - ref)).sum()
        for estimator in (K1(), K3()):
            torch.testing.assert_close((pi.exp() * estimator(pi, ref)).sum(), exact)
        torch.testing.assert_close((pi.exp() * K2()(pi, ref)).sum(), exact, rtol=0.2, atol=0)

    def test_the_clamps_of_the_release(self):
        logp = torch.tensor([-30.0, -3.0, -1.0], requires_grad=True)
        ref = torch.tensor([-1.0, -0.1, -1.5])
        x = (ref - logp).clamp(-20, 20)
        expected = (x.exp() - x - 1).clamp(-10, 10)
        torch.testing.assert_close(K3()(logp, ref), expected)
        actual = torch.autograd.grad(K3()(logp, ref).sum(), logp)[0]
        torch.testing.assert_close(actual, torch.autograd.grad(expected.sum(), logp)[0])
        assert actual[0] == 0 and actual[1] == 0 and actual[2] != 0

    def test_enters_the_loss_with_its_coefficient(self):
        batch = random_batch(3, 4, 5)
        plain = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())
        with_kl = dataclasses.replace(plain, reference_kl=ReferenceKL(0.25, K2()))
        kl = (K2()(batch.logp, batch.ref_logp) * batch.mask).sum() / batch.mask.sum()
        torch.testing.assert_close(with_kl(batch).loss, plain(batch).loss + 0.25 * kl)
        output = with_kl(batch)
        torch.testing.assert_close((output.reference_kl * batch.mask).sum() / batch.mask.sum(), kl)

    def test_a_zero_coefficient_needs_no_reference(self):
        batch = dataclasses.replace(random_batch(3, 4, 5), ref_logp=None)
        loss = dataclasses.replace(full_loss(TokenMean()), reference_kl=ReferenceKL(0.0))
        assert not loss.needs_reference and full_loss(TokenMean()).needs_reference
        assert loss(batch).reference_kl is None
        with pytest.raises(ValueError, match="ref_logp"):
            full_loss(TokenMean())(batch)
        with pytest.raises(UserError):
            ReferenceKL(-0.1)


class TestCorrection:
    def batch(self) -> TokenBatch:
        batch = random_batch(5, 6, 4)
        return dataclasses.replace(batch, rollout_logp=batch.old_logp + self.noise(1))

    def noise(self, seed: int) -> Tensor:
        return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double()

    @pytest.mark.parametrize("level", ["token", "sequence"])
    @pytest.mark.parametrize("treatment", ["truncate", "discard"])
    def test_weights_the_objective_and_not_the_kl(self, level, treatment):
        batch = self.batch()
        log_w = (batch.old_logp - batch.rollout_logp) * batch.mask
        mismatch = TokenMismatch()
        if level == "sequence":
            log_w, mismatch = log_w.sum(-1, keepdim=True).expand_as(log_w), SequenceMismatch()
        w = log_w.exp()
        if treatment == "truncate":
            correction, weight = Truncate(mismatch, 1.5), torch.minimum(w, w.new_tensor(1.5))
        else:
            correction, weight = Discard(mismatch, 1.5, 0.4), w * ((w <= 1.5) & (w >= 0.4))
        torch.testing.assert_close(correction(batch), weight)
        plain = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())
        result = plain.surrogate(plain.ratio(batch), batch)
        objective = (result.objective * weight * batch.mask).sum() / batch.mask.sum()
        kl = (K3()(batch.logp, batch.ref_logp) * batch.mask).sum() / batch.mask.sum()
        loss = dataclasses.replace(plain, reference_kl=ReferenceKL(0.1), correction=correction)
        torch.testing.assert_close(loss(batch).loss, -objective + 0.1 * kl)

    @pytest.mark.parametrize("ratio", [TokenRatio(), SequenceRatio()])
    def test_a_largest_weight_truncates_the_ratio_and_not_the_kl(self, ratio):
        batch = self.batch()
        batch = dataclasses.replace(batch, logp=(batch.old_logp + self.noise(4)).detach())
        r = ratio(batch)
        assert (r > 1.3).any() and (r < 1.3).any()

        def gradient(weight):
            """Of −Σ weight·r·A + 0.1·KL over the tokens, the weights being constants."""
            logp = batch.logp.clone().requires_grad_()
            moved = dataclasses.replace(batch, logp=logp)
            value = -weight * ratio(moved) * batch.advantages + 0.1 * K3()(logp, batch.ref_logp)
            ((value * batch.mask).sum() / batch.mask.sum()).backward()
            return logp.grad

        logp = batch.logp.clone().requires_grad_()
        free = Clip(Fixed(1.0, 1e9))
        loss = PolicyLoss(ratio, free, TokenMean(), ReferenceKL(0.1), max_weight=1.3)
        loss(dataclasses.replace(batch, logp=logp)).loss.backward()
        torch.testing.assert_close(logp.grad, gradient(torch.where(r > 1.3, 1.3 / r, 1.0)))
        assert not torch.allclose(logp.grad, gradient(torch.ones_like(r)))
        with pytest.raises(UserError, match="max_weight"):
            dataclasses.replace(loss, max_weight=0.9)

    @pytest.mark.parametrize(
        ("r", "eps_high", "max_weight", "expected"),
        [(20, 4, 2, 2), (3, 4, 2, 2), (20, 4, 7, 5), (20, 0.5, 2, 1.5), (1.5, 4, 2, 1.5)],
    )
    def test_a_weight_that_is_truncated_already_is_not_truncated_by_the_ratio(
        self, r, eps_high, max_weight, expected
    ):
        logp = torch.full((1, 1), math.log(r)).requires_grad_()
        one = torch.ones(1, 1)
        batch = TokenBatch(logp=logp, old_logp=0 * one, advantages=3 * one, mask=one)
        cispo = TruncatedWeight(Fixed(1.0, eps_high))
        PolicyLoss(TokenRatio(), cispo, TokenMean(), max_weight=max_weight)(batch).loss.backward()
        assert logp.grad.item() == pytest.approx(-3 * expected, rel=1e-5)

    def test_needs_the_engine_logprobs(self):
        batch = dataclasses.replace(self.batch(), rollout_logp=None)
        with pytest.raises(ValueError, match="rollout_logp"):
            full_loss(TokenMean())(batch)

    @pytest.mark.parametrize(
        "build",
        [lambda: Truncate(TokenMismatch(), 0.0), lambda: Discard(TokenMismatch(), 0.5)],
    )
    def test_parameters_out_of_range_are_user_errors(self, build):
        with pytest.raises(UserError):
            build()


class TestInterface:
    def test_bfloat16_is_computed_in_float32(self):
        batch = random_batch(2, 3, 4, torch.bfloat16)
        output = full_loss(TokenMean())(batch)
        expected = full_loss(TokenMean())(map_tensors(batch, lambda tensor: tensor.float()))
        assert output.loss.dtype == torch.float32
        assert torch.equal(output.loss, expected.loss)

    def test_a_boolean_mask_will_do(self):
        batch = random_batch(2, 3, 4)
        boolean = dataclasses.replace(batch, mask=batch.mask.bool())
        assert torch.equal(full_loss(TokenMean())(boolean).loss, full_loss(TokenMean())(batch).loss)

    def test_runs_without_reading_a_value(self):
        batch = random_batch(2, 3, 4).to("meta")
        output = full_loss(TokenMean())(batch, BatchTotals(3, 12))
        LossDiagnostics("meta").update(output)
        assert output.loss.shape == ()

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        batch, loss = random_batch(2, 3, 4), full_loss(TokenMean())
        compiled = torch.compile(
            lambda b: loss(b, BatchTotals(3, 12)).loss, backend="eager", fullgraph=True
        )
        torch.testing.assert_close(compiled(batch), loss(batch, BatchTotals(3, 12)).loss)

    def test_importing_the_loss_imports_nothing_heavy(self):
        """`from bandpo.loss import …` is for people with torch alone."""
        code = (
            "import torch, sys, time; before = time.process_time()\n"
            "import bandpo.loss, bandpo.advantage\n"
            "elapsed = time.process_time() - before\n"
            "heavy = {'transformers', 'vllm', 'deepspeed', 'hydra', 'omegaconf', 'pydantic',"
            " 'accelerate', 'datasets', 'matplotlib', 'wandb'}\n"
            "print(sorted(heavy & set(sys.modules)), elapsed < 2, torch.cuda.is_initialized())"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.stdout.strip() == "[] True False", result.stderr
