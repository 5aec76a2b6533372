"""The network's pass asks the device for nothing: a GPU would finish all its work first.

For padded rows transformers itself asks, once per pass, whether they hold several sequences.
"""

import pytest
import torch
from sample_batch import make_samples
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from bandpo.learner.layouts import PackedBatch, SharedPromptBatch
from bandpo.learner.logprobs import PolicyNetwork

WAITS = {
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten._unique2.default,
}


class NothingWaits(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host has to wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
        masks = "index" in func.name() and any(
            isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tensors[1:]
        )
        if func in WAITS or masks:
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.sum().item(),
        lambda t: bool(t.any()),
        lambda t: t.index_put((t > 0,), torch.tensor(0.0)),
    ],
)
def test_what_waits_is_refused(wait):
    with NothingWaits(), pytest.raises(AssertionError, match="waits for the device"):
        wait(torch.ones(3))


@pytest.mark.parametrize(
    ("layout", "attention"),
    [
        (SharedPromptBatch, "sdpa_by_sequence"),
        (PackedBatch, "sdpa_by_sequence"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_forward_and_backward_wait_for_nothing(untrained, monkeypatch, layout, attention, empty):
    lm = AutoModelForCausalLM.from_pretrained(untrained(), attn_implementation=attention)
    network = PolicyNetwork(lm, 1.0, chunk=5)
    samples = make_samples(2 if empty else 9)
    for sample in samples if empty else ():
        sample.completion_ids = ()
        sample.old_logp = sample.ref_logp = sample.entropy = sample.rollout_logp = None
    batch = layout.of(samples)

    def refuse(tensor):
        raise AssertionError("tolist waits for the device")

    with monkeypatch.context() as patch, NothingWaits():
        patch.setattr(torch.Tensor, "tolist", refuse)
        logp, entropy = network(*batch.arguments)
        (logp * batch.mask).sum().backward()
    assert logp.shape == entropy.shape == batch.mask.shape
    assert all(parameter.grad is not None for parameter in network.parameters())
