"""An entropy bonus through the chunked head, ZeRO and any split; its floor and the checkpoint."""

from pathlib import Path

import pytest
import torch
from gradients import assert_same
from sample_batch import TEMPERATURE, make_samples

from bandpo.learner.logprobs import chunked_logprobs
from bandpo.loss import BandKL
from bandpo.model.logits import LogitTransform

WORKER = Path(__file__).parent / "entropy_worker.py"
COEFFICIENT, WEIGHTS = 0.3, {1: 0.5, 4: 2.0, 6: 0.0}


# --- The head ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(scale=0.5), LogitTransform(2.0, cap=3.0)]
)
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_gradient_is_exact_in_float64(transform, chunk):
    generator = torch.Generator().manual_seed(chunk)
    hidden = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,), generator=generator)
    settings = (targets, 0.7, chunk, transform)

    def plain(hidden, weight):
        logits = transform.scale * (hidden @ weight.T)
        if transform.cap is not None:
            logits = transform.cap * (logits / transform.cap).tanh()
        logp = (logits / 0.7).log_softmax(-1)
        return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    def chunked(hidden, weight):
        return chunked_logprobs(hidden, weight, *settings, entropy_gradient=True)

    for mine, wanted in zip(chunked(hidden, weight), plain(hidden, weight), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(2, 7, generator=generator, dtype=torch.float64)

    def of(function):
        logp, entropy = function(hidden, weight)
        return torch.autograd.grad(logp @ upstream[0] + entropy @ upstream[1], (hidden, weight))

    for mine, wanted in zip(of(chunked), of(plain), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradcheck(chunked, (hidden, weight))


def test_a_bfloat16_head_has_the_gradient_of_the_float32_one():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator).bfloat16()
    weight = torch.randn(97, 16, generator=generator).bfloat16()
    targets = torch.randint(97, (50,), generator=generator)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (hidden, weight)]
        logp, entropy = chunked_logprobs(*leaves, targets=targets, chunk=8, entropy_gradient=True)
        assert logp.dtype == entropy.dtype == torch.float32
        found.append(torch.autograd.grad((logp + 2 * entropy).sum(), leaves))
    for mine, wanted in zip(*found, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), wanted, atol=0.05 * float(wanted.std()), rtol=0.02)


def test_without_it_the_entropy_has_no_gradient_and_the_rest_is_the_same_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 6, generator=generator), torch.randn(33, 6, generator=generator)
    targets = torch.randint(33, (9,), generator=generator)
    hidden.requires_grad_()
    off = chunked_logprobs(hidden, weight, targets, chunk=4)
    on = chunked_logprobs(hidden, weight, targets, chunk=4, entropy_gradient=True)
    assert not off[1].requires_grad and on[1].requires_grad
    assert all(map(torch.equal, off, on))


# --- The learner -------------------------------------------------------------------------------


def plain_loss_and_gradients(folder: Path):
    """Sample by sample, from full logits and the written-out formula."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    samples, total = make_samples(), torch.zeros(())
    for index, sample in enumerate(samples):
        advantage = 0.0 if index in (2, 3) else sample.advantage
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
        table = logits.log_softmax(-1)
        logp = table[range(len(sample.completion_ids)), sample.completion_ids]
        ratio = (logp - sample.old_logp).exp()
        low, high = BandKL(0.05)(sample.old_logp)
        clipped = torch.maximum(torch.minimum(ratio, high.clamp(max=10.0)), low)
        objective = torch.minimum(ratio * advantage, clipped * advantage)
        if advantage < 0:
            objective = objective.clamp(min=10.0 * advantage)
        entropy = -(table.exp() * table).sum(-1)
        value = -(objective + COEFFICIENT * entropy) * WEIGHTS.get(index, 1.0)
        total = total + value.mean() / len(samples)
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, launch, untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("entropy")
    launch(WORKER, request.param, str(untrained()), str(folder / "results.pt"), str(folder))
    return torch.load(folder / "results.pt")


def test_gradients_are_those_of_the_formula_whatever_the_split(results, untrained):
    loss, gradients = plain_loss_and_gradients(untrained())
    assert len(results["bonus"]) == 11
    for split, result in results["bonus"].items():
        assert_same(result, loss, gradients, split)
    # The bonus and the weights are most of it.
    plain = results["without"]["gradients"]
    assert max(float((plain[n] - g).abs().max()) for n, g in gradients.items()) > 1e-4


def test_a_coefficient_of_0_computes_nothing_else(results):
    none, without = results["none"], results["without"]
    assert none["loss"] == without["loss"]
    for name, gradient in without["gradients"].items():
        assert torch.equal(none["gradients"][name], gradient)


def test_below_the_floor_the_coefficient_rises_to_its_limit_on_all_ranks_alike(results):
    for stage, found in results["floor"].items():
        assert [m["entropy/coef"] for m in found["metrics"]] == pytest.approx([0, 0.05, 0.1, 0.12])
        assert all(ranks == found["ranks"][0] for ranks in found["ranks"])
        assert all(m["policy/entropy"] < 6 for m in found["metrics"]), stage


def test_it_is_resumed_from_the_checkpoint(results):
    for kind in ("floor", "low"):
        for stage, found in results[kind].items():
            assert found["resumed"] == found["metrics"][2:], (kind, stage)
            assert found["same"], (kind, stage)


def test_above_the_floor_a_run_is_the_one_without_bit_for_bit(results):
    for stage, expected in results["undisturbed"].items():
        found = results["low"][stage]
        assert torch.equal(found["weights"], expected["weights"])
        assert not torch.equal(results["floor"][stage]["weights"], expected["weights"])
        for mine, wanted in zip(found["metrics"], expected["metrics"], strict=True):
            assert wanted["entropy/coef"] is None and mine["entropy/coef"] == 0
            assert mine["ratio/max"] == wanted["ratio/max"]
