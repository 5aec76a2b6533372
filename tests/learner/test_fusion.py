"""The head is compiled for large tensors of a GPU, and does without where it cannot be."""

import logging

import pytest
import torch

from bandpo.learner import fusion, logprobs
from bandpo.model.logits import LogitTransform


class OnGpu:
    """What `fused` asks of a tensor."""

    is_cuda = True

    def __init__(self, size):
        self._size = size

    def numel(self):
        return self._size


LARGE, SMALL = OnGpu(fusion.LARGE), OnGpu(fusion.LARGE - 1)


@pytest.fixture
def compiler(monkeypatch):
    """Whether something was compiled, and what the compiled function does."""
    state = {"compiled": 0, "does": lambda *given: "compiled"}

    def compile(function):
        state["compiled"] += 1
        return lambda *given: state["does"](*given)

    monkeypatch.setattr(torch, "compile", compile)
    return state


def test_large_tensors_of_a_gpu_alone_are_worth_compiling(compiler):
    call = fusion.fused(lambda first, *others: "eager")
    assert call(SMALL) == call(torch.zeros(1 << 23)) == "eager"
    assert compiler["compiled"] == 0
    assert call(LARGE) == call(LARGE) == "compiled"
    assert compiler["compiled"] == 1


def test_without_a_compiler_it_is_called_as_it_is_with_one_warning(compiler, caplog):
    def fails(*given):
        raise RuntimeError("Failed to find C compiler.\nmore")

    compiler["does"] = fails
    call = fusion.fused(lambda first, *others: ("eager", *others))
    with caplog.at_level(logging.WARNING):
        assert call(LARGE, 1) == call(LARGE, 1) == ("eager", 1)
    (record,) = caplog.records
    assert "Failed to find C compiler." in record.getMessage() and "more" not in record.getMessage()


def test_memory_that_does_not_suffice_is_no_fault_of_the_compiler(compiler):
    def full(*given):
        raise torch.OutOfMemoryError

    compiler["does"] = full
    call = fusion.fused(lambda first: "eager")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            call(LARGE)


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.5, cap=3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_computes_the_same(transform, dtype):
    """Traced, with its in-place operations made functional, as the compiler takes it."""
    generator = torch.Generator().manual_seed(0)
    product = (3 * torch.randn(5, 40, generator=generator)).to(dtype)
    targets = torch.randint(40, (5,), generator=generator)
    settings = (0.8, transform)
    forward, backward = logprobs._statistics.__wrapped__, logprobs._product_gradient.__wrapped__

    def both(wrap):
        statistics = wrap(forward)(product.clone(), targets, *settings)
        given = (product.clone(), targets, statistics[2], torch.arange(5.0), *settings)
        return [*statistics, wrap(backward)(*given)]

    traced = both(lambda function: torch.compile(function, backend="aot_eager", fullgraph=True))
    for found, wanted in zip(traced, both(lambda function: function), strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted)
