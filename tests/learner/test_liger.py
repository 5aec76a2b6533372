"""Liger's kernels are put in only where they can run, without its losses."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bandpo.errors import UserError
from bandpo.learner.liger import use_liger


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(UserError, match=r"bandpo\[liger\]"):
        use_liger(object())


def test_it_needs_a_gpu_and_leaves_the_losses_out(monkeypatch):
    calls = []
    fake = SimpleNamespace(_apply_liger_kernel_to_instance=lambda **given: calls.append(given))
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(transformers=fake))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="NVIDIA GPU"):
        use_liger(object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = object()
    use_liger(model)
    assert calls == [{"model": model, "cross_entropy": False, "fused_linear_cross_entropy": False}]
