"""On a GPU the host queues a micro-batch's copies, forward and backward pass without waiting."""

import pytest
import torch
from sample_batch import LOSS, make_samples
from transformers import AutoModelForCausalLM

from bandpo.batching import totals_of
from bandpo.learner.layouts import PackedBatch, SharedPromptBatch
from bandpo.learner.logprobs import PolicyNetwork

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.mark.parametrize(
    ("layout", "attention"),
    [
        (SharedPromptBatch, "sdpa_by_sequence"),
        (PackedBatch, "sdpa_by_sequence"),
    ],
)
def test_nothing_waits_for_the_device(untrained, layout, attention):
    lm = AutoModelForCausalLM.from_pretrained(untrained(), attn_implementation=attention)
    network = PolicyNetwork(lm.cuda(), 1.0, chunk=5)
    samples = make_samples()
    laid = layout.of(samples).pinned()

    def work() -> torch.Tensor:
        batch = laid.to("cuda")
        output = LOSS(batch.token_batch(*network(*batch.arguments), 1), totals_of(samples))
        output.loss.backward()
        return output.loss.detach()

    usual_loss = work()  # constants and workspaces are made once
    torch.cuda.synchronize()
    usual = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        queued_loss = work()
    finally:
        torch.cuda.set_sync_debug_mode(usual)
    torch.testing.assert_close(queued_loss, usual_loss)
