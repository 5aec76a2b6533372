"""The contracts of DESIGN.md for every trust region, and Band's numbers against 60-digit ones."""

import json
import math
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bandpo.loss as loss
from bandpo.errors import UserError
from bandpo.loss import (
    KL,
    AlphaDivergence,
    Band,
    BandChi2,
    BandKL,
    BandTV,
    Capped,
    ChiSquared,
    Compiled,
    Divergence,
    DynamicAdaptive,
    EntropyRadius,
    Fixed,
    JensenShannon,
    LinearRadius,
    Mixed,
    ReverseKL,
    SquaredHellinger,
    TokenBatch,
    TotalVariation,
    Union,
)

DIVERGENCES = [
    KL(),
    ReverseKL(),
    TotalVariation(),
    ChiSquared(),
    SquaredHellinger(),
    JensenShannon(),
    AlphaDivergence(0.5),
    AlphaDivergence(3.0),
    AlphaDivergence(-1.0),
]
OTHERS = [
    Fixed(0.2, 0.28),
    Fixed(1.0, 4.0),
    DynamicAdaptive(0.16, 0.20),
    Union(BandKL(0.05), Fixed(0.2, 0.28)),
    Capped(BandKL(0.05), 10.0),
    Mixed(low=Fixed(0.2, 0.0), high=BandKL(0.05)),
]
REFERENCE = json.loads(Path(__file__).with_name("reference_bounds.json").read_text())

log_probabilities = st.lists(
    st.floats(math.log(1e-30), 0.0), min_size=1, max_size=16, unique=True
).map(lambda values: torch.tensor(sorted(values), dtype=torch.float64))
radii = st.floats(math.log(1e-4), math.log(5.0)).map(math.exp)
divergences = st.sampled_from(DIVERGENCES)
dtypes = st.sampled_from([torch.float32, torch.float64])


def binary_divergence(divergence: Divergence, log_p: float, ratio: float) -> float:
    """p·f(r) + (1−p)·f((1−r·p)/(1−p)) in 60 digits, where p(1−p) > 0."""
    with mpmath.workdps(60):
        p, r = mpmath.exp(mpmath.mpf(log_p)), mpmath.mpf(ratio)
        c = -mpmath.expm1(mpmath.mpf(log_p))
        f = {
            KL: lambda u: u - 1 - mpmath.log(u),
            ReverseKL: lambda u: u * mpmath.log(u) - u + 1,
            TotalVariation: lambda u: abs(u - 1) / 2,
            ChiSquared: lambda u: (u - 1) ** 2,
            SquaredHellinger: lambda u: (mpmath.sqrt(u) - 1) ** 2,
            JensenShannon: lambda u: (
                u * mpmath.log(2 * u / (1 + u)) / 2 + mpmath.log(2 / (1 + u)) / 2
            ),
            AlphaDivergence: lambda u: (
                (u**divergence.alpha - divergence.alpha * u + divergence.alpha - 1)
                / (divergence.alpha * (divergence.alpha - 1))
            ),
        }[type(divergence)]
        return float(p * f(r) + c * f((1 - r * p) / c))


class TestContracts:
    @given(divergences, radii, log_probabilities, dtypes)
    def test_band_holds_one_and_stays_on_the_simplex(self, divergence, delta, log_p, dtype):
        log_p = log_p.to(dtype)
        low, high = Band(divergence, delta)(log_p)
        tolerance = 4 * torch.finfo(dtype).eps
        assert low.dtype == high.dtype == dtype
        assert (low >= 0).all() and (low <= 1).all() and (high >= 1).all()
        assert (high * log_p.exp() <= 1 + tolerance).all()

    @given(st.sampled_from(OTHERS), log_probabilities, dtypes)
    def test_every_other_rule_holds_one(self, bounds, log_p, dtype):
        low, high = bounds(log_p.to(dtype))
        assert (low >= 0).all() and (low <= 1).all() and (high >= 1).all()

    @pytest.mark.parametrize("bounds", [Fixed(0.2, 0.2), DynamicAdaptive(0.16, 0.2)])
    def test_rules_that_leave_the_simplex(self, bounds):
        # A ratio of 1.2 on a token of probability 0.95 would make it 1.14: for sure tokens these
        # upper bounds never bind, so nothing but the softmax itself limits the update.
        log_p = torch.tensor([0.95]).log()
        assert (bounds(log_p).high * log_p.exp() > 1).all()

    @given(divergences, radii, log_probabilities, dtypes)
    def test_bounds_tighten_as_the_token_gets_likelier(self, divergence, delta, log_p, dtype):
        low, high = Band(divergence, delta)(log_p.to(dtype))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-9
        assert (low[1:] >= low[:-1] * (1 - tolerance)).all()
        assert (high[1:] <= high[:-1] * (1 + tolerance)).all()

    @given(divergences, radii, st.floats(math.log(1e-12), math.log(1 - 1e-9)))
    def test_the_divergence_at_a_bound_is_the_radius(self, divergence, delta, log_p):
        low, high = (
            x.item() for x in Band(divergence, delta)(torch.tensor(log_p, dtype=torch.float64))
        )
        # Beyond these a float64 ratio cannot tell the distance to the simplex's edge.
        if 1e-250 < low < 1 - 1e-6:
            assert binary_divergence(divergence, log_p, low) == pytest.approx(delta, rel=1e-6)
        if high > 1 + 1e-6 and math.exp(log_p) * high < 1 - 1e-6:
            assert binary_divergence(divergence, log_p, high) == pytest.approx(delta, rel=1e-6)

    @given(divergences, radii, st.floats(math.log(1e-12), math.log(1 - 1e-9)))
    def test_a_saturated_bound_lies_within_the_radius(self, divergence, delta, log_p):
        low, high = Band(divergence, delta)(torch.tensor(log_p, dtype=torch.float64))
        p = math.exp(log_p)
        at_zero = p * divergence.at_zero - math.expm1(log_p) * float(
            divergence.f(torch.tensor(-1 / math.expm1(log_p), dtype=torch.float64))
        )
        if low == 0:
            assert at_zero <= delta * (1 + 1e-9)
        else:
            assert at_zero >= delta * (1 - 1e-9) or low < 1e-250
        assert high * p <= 1 + 1e-12

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("delta", [1e-4, 0.05, 5.0])
    @pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
    def test_finite_at_the_extremes(self, divergence, delta, dtype):
        log_p = torch.tensor([0.0, -0.0, -1e-8, -110.0, -1000.0, 1e-7], dtype=dtype)
        low, high = Band(divergence, delta)(log_p)
        assert low.isfinite().all() and high.isfinite().all()
        assert (low <= 1).all() and (high >= 1).all()

    @pytest.mark.parametrize("bounds", OTHERS, ids=str)
    def test_other_rules_are_finite_at_the_extremes(self, bounds):
        low, high = bounds(torch.tensor([0.0, -1e-8, -110.0, -1000.0]))
        assert low.isfinite().all() and high.isfinite().all()

    @pytest.mark.parametrize(
        ("divergence", "low_for_sure", "mass_for_rare"),
        # p → 1: low; p → 0: how much probability a rare token may reach
        [
            (KL(), math.exp(-0.05), 1 - math.exp(-0.05)),
            (TotalVariation(), 0.95, 0.05),
            (ChiSquared(), 1.0, 0.0),
            (ReverseKL(), 1.0, 0.0),
            (SquaredHellinger(), 0.975**2, 1 - 0.975**2),
        ],
        ids=lambda value: str(value),
    )
    def test_limits(self, divergence, low_for_sure, mass_for_rare):
        bounds = Band(divergence, 0.05)
        low, high = bounds(torch.tensor(0.0, dtype=torch.float64))
        assert (low.item(), high.item()) == (pytest.approx(low_for_sure, abs=1e-12), 1.0)
        log_p = torch.tensor(-690.0, dtype=torch.float64)
        low, high = bounds(log_p)
        assert low < 1e-290
        assert (high * log_p.exp()).item() == pytest.approx(mass_for_rare, rel=1e-9, abs=1e-3)


class TestReference:
    """reference_bounds.json is made by make_reference.py with mpmath alone."""

    @pytest.mark.parametrize("name", REFERENCE)
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)]
    )
    def test_bounds(self, name, dtype, tolerance):
        log_p, delta, low, high = torch.tensor(REFERENCE[name], dtype=torch.float64).unbind(-1)
        bounds = Band(getattr(loss, name)(), delta)(log_p.to(dtype))
        assert_close(bounds.high, high, tolerance)
        assert_close(bounds.low, low, tolerance)

    @pytest.mark.parametrize("name", REFERENCE)
    def test_the_general_solver_agrees_with_every_closed_form(self, name):
        class General(getattr(loss, name)):
            log_shrink = Divergence.log_shrink

        log_p, delta, low, high = torch.tensor(REFERENCE[name], dtype=torch.float64).unbind(-1)
        bounds = Band(General(), delta)(log_p)
        assert_close(bounds.high, high, 1e-11)
        assert_close(bounds.low, low, 1e-11)

    def test_one_radius_for_all_tokens_is_the_same(self):
        rows = [row for row in REFERENCE["KL"] if row[1] == 0.05]
        log_p, _, low, high = torch.tensor(rows, dtype=torch.float64).unbind(-1)
        bounds = BandKL(0.05)(log_p.float())
        assert_close(bounds.high, high, 1e-5)
        assert_close(bounds.low, low, 1e-5)

    def test_float32_against_float64_on_a_dense_grid(self):
        # The table has 600 points; this has 200,000, where float64 stands for the truth. Below
        # 1e-20 a float32 exponent can itself not hold 1e-5: half an ulp of ln(low) is 4e-6.
        log_p = -torch.logspace(-8, math.log10(80), 20_000)
        for delta in (1e-4, 3e-4, 1e-3, 0.01, 0.05, 0.2, 0.7, 1.0, 2.0, 5.0):
            low, high = BandKL(delta)(log_p)
            exact = BandKL(delta)(log_p.double())
            assert_close(high, exact.high, 1e-6)
            assert_close(low[exact.low > 1e-20], exact.low[exact.low > 1e-20], 1e-5)
            assert_close(low, exact.low, 2e-5)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative closeness, for what the dtype can hold as a normal number."""
    expected = expected.double()
    smallest = max(math.exp(math.ceil(math.log(torch.finfo(actual.dtype).tiny))), 1e-300)
    held = expected > 1.01 * smallest
    error = (actual.double() / expected.clamp(min=smallest) - 1).abs()[held]
    assert error.numel() == 0 or error.max() <= tolerance
    assert (actual.double()[~held] <= 1.02 * smallest).all()


class TestInterface:
    bounds = (*OTHERS, BandKL(0.05), BandTV(0.05), BandChi2(0.05), Band(ReverseKL(), 0.05))

    @pytest.mark.parametrize("rule", bounds, ids=str)
    def test_any_shape_any_dtype_no_gradient(self, rule):
        for shape in [(), (0,), (3,), (2, 3), (2, 0, 3)]:
            for dtype in (torch.bfloat16, torch.float32, torch.float64):
                old_logp = torch.full(shape, -1.5, dtype=dtype, requires_grad=True)
                low, high = rule(old_logp)
                assert low.shape == high.shape == shape
                assert low.dtype == high.dtype == torch.promote_types(dtype, torch.float32)
                assert not low.requires_grad and not high.requires_grad

    @pytest.mark.parametrize("rule", bounds, ids=str)
    def test_runs_without_reading_a_value(self, rule):
        # The meta device has no values: anything that synchronised with the host would raise.
        low, high = rule(torch.empty(4, 7, device="meta"))
        assert low.shape == high.shape == (4, 7)

    @pytest.mark.parametrize("rule", bounds, ids=str)
    def test_compiles_as_one_graph(self, rule):
        torch.compiler.reset()
        old_logp = -torch.rand(5, 3) * 10
        compiled = torch.compile(rule, backend="eager", fullgraph=True)(old_logp)
        torch.testing.assert_close(tuple(compiled), tuple(rule(old_logp)))

    @pytest.mark.slow
    def test_compiled_bounds_keep_their_digits(self):
        log_p, delta, low, high = torch.tensor(REFERENCE["KL"], dtype=torch.float64).unbind(-1)
        bounds = Compiled(BandKL(delta))(log_p.float())
        assert_close(bounds.high, high, 1e-5)
        assert_close(bounds.low, low, 1e-5)
        rule = Capped(Union(BandKL(0.05), Fixed(0.2, 0.28)), 10.0)
        old_logp = torch.tensor([[0.0, -1e-8, -0.5, -7.0, -80.0, -1000.0]])
        torch.testing.assert_close(
            tuple(Compiled(rule)(old_logp)), tuple(rule(old_logp)), rtol=1e-5, atol=0
        )

    def test_blocks_do_not_show(self):
        old_logp = -torch.rand(3, 20_000) * 20
        whole = BandKL(0.05)(old_logp)
        rows = [BandKL(0.05)(row) for row in old_logp]
        assert torch.equal(whole.low, torch.stack([row.low for row in rows]))
        assert torch.equal(whole.high, torch.stack([row.high for row in rows]))

    def test_a_radius_for_each_token(self):
        old_logp, delta = -torch.rand(4, 5) * 10, torch.rand(4, 5) + 1e-3
        low, high = BandKL(delta)(old_logp)
        for i, j in [(0, 0), (2, 3), (3, 4)]:
            one = BandKL(delta[i, j].item())(old_logp[i, j])
            torch.testing.assert_close((low[i, j], high[i, j]), tuple(one))

    def test_composition(self):
        old_logp = torch.tensor([0.001, 0.05, 0.5, 0.99]).log()
        band, fixed = BandKL(0.05), Fixed(0.2, 0.28)
        union = Union(band, fixed)(old_logp)
        assert torch.equal(union.low, torch.minimum(band(old_logp).low, fixed(old_logp).low))
        assert torch.equal(union.high, torch.maximum(band(old_logp).high, fixed(old_logp).high))
        assert torch.equal(Capped(band, 3.0)(old_logp).high, band(old_logp).high.clamp(max=3.0))
        mixed = Mixed(low=fixed, high=band)(old_logp)
        assert torch.equal(mixed.low, fixed(old_logp).low)
        assert torch.equal(mixed.high, band(old_logp).high)

    def test_dynamic_adaptive_solves_its_own_condition(self):
        # DCPO bounds |r − 1|·r·p (their eq. for the new policy's variance): the roots of
        # r·(r − 1)·p = eps_high and, below 1, r·(1 − r)·p = eps_low.
        p = torch.tensor([0.7, 0.9, 1.0], dtype=torch.float64)
        low, high = DynamicAdaptive(0.16, 0.2)(p.log())
        torch.testing.assert_close(high * (high - 1) * p, torch.full_like(p, 0.2))
        torch.testing.assert_close(low * (1 - low) * p, torch.full_like(p, 0.16))

    @pytest.mark.parametrize(
        "build",
        [
            lambda: BandKL(0.0),
            lambda: BandKL(-0.1),
            lambda: BandKL(math.nan),
            lambda: Fixed(1.5, 0.2),
            lambda: Fixed(0.2, -0.1),
            lambda: Capped(BandKL(0.05), 0.5),
            lambda: DynamicAdaptive(-0.1, 0.2),
            lambda: AlphaDivergence(1.0),
            lambda: LinearRadius(0.0, 0.1, 10),
            lambda: EntropyRadius(0.2, 0.1),
        ],
    )
    def test_parameters_out_of_range_are_user_errors(self, build):
        with pytest.raises(UserError):
            build()


class TestRadius:
    def batch(self, **fields) -> TokenBatch:
        return TokenBatch(
            *(torch.full((1, 3), value) for value in (-1.0, -1.0, 1.0, 1.0)), **fields
        )

    def test_linear(self):
        radius = LinearRadius(0.1, 0.02, steps=10)
        deltas = [radius(self.batch(step=step)) for step in (0, 5, 10, 99)]
        assert deltas == pytest.approx([0.1, 0.06, 0.02, 0.02])

    def test_entropy(self):
        entropy = torch.tensor([[0.0, 0.5, 7.0]])
        delta = EntropyRadius(0.02, 0.1, scale=1.0)(self.batch(entropy=entropy))
        torch.testing.assert_close(delta, torch.tensor([[0.02, 0.06, 0.1]]))

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda band: band,
            lambda band: Capped(band, 10.0),
            lambda band: Union(Fixed(0.0, 0.0), band),
            lambda band: Union(band, Fixed(0.0, 0.0)),
            lambda band: Mixed(low=band, high=band),
        ],
    )
    def test_every_composition_hands_the_batch_to_its_parts(self, wrap):
        batch = self.batch(entropy=torch.tensor([[0.0, 0.5, 7.0]]))
        adaptive = wrap(BandKL(EntropyRadius(0.02, 0.1))).for_batch(batch)(batch.old_logp)
        constant = wrap(BandKL(torch.tensor([[0.02, 0.06, 0.1]])))(batch.old_logp)
        torch.testing.assert_close(tuple(adaptive), tuple(constant))

    def test_compiled_bounds_hand_the_batch_on(self):
        batch = self.batch(entropy=torch.tensor([[0.0, 0.5, 7.0]]))
        resolved = Compiled(BandKL(EntropyRadius(0.02, 0.1))).for_batch(batch)
        torch.testing.assert_close(resolved.inner.delta, torch.tensor([[0.02, 0.06, 0.1]]))

    def test_a_radius_must_be_resolved(self):
        with pytest.raises(ValueError, match="for_batch"):
            BandKL(EntropyRadius(0.02, 0.1))(torch.zeros(3))

    def test_entropy_must_be_in_the_batch(self):
        with pytest.raises(ValueError, match="entropy"):
            BandKL(EntropyRadius(0.02, 0.1)).for_batch(self.batch())


class TestDivergences:
    @pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
    def test_generator(self, divergence):
        """f(1) = 0, the derivative is autograd's, at_zero and growth are the limits they name."""
        u = torch.tensor([1e-3, 0.3, 0.999, 1.5, 40.0], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(divergence.f(u).sum(), u)
        torch.testing.assert_close(divergence.derivative(u).detach(), slope)
        one = torch.ones(1, dtype=torch.float64)
        assert divergence.f(one).item() == pytest.approx(0.0, abs=1e-15)
        assert limit(divergence.f, 1e-200, 1e-100) == pytest.approx(divergence.at_zero, abs=1e-6)
        assert limit(lambda u: divergence.f(u) / u, 1e200, 1e100) == pytest.approx(
            divergence.growth, abs=1e-6
        )


def limit(f, extreme: float, less: float) -> float:
    """f at the extreme, or infinity if it still moves there."""
    far, near = (float(f(torch.tensor(x, dtype=torch.float64))) for x in (extreme, less))
    return far if abs(far - near) < 1e-3 else math.inf
