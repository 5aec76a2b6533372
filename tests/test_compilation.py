"""Kernels of one instruction set never reach a process of another through torch's cache."""

import os
import subprocess
import sys

import pytest
import torch

from bandpo.cpu import separate_compile_caches

TAG = """
import torch
from bandpo.cpu import separate_compile_caches
separate_compile_caches()
separate_compile_caches()
print(torch.compiler.config.cache_key_tag)
"""
FLEX = """
import sys, torch
from bandpo.learner.logprobs import PolicyNetwork
from bandpo.batching import Sample
from bandpo.learner.layouts import PackedBatch
from bandpo.model.loading import load_causal_lm
samples = [Sample(tuple(range(7)), tuple(range(n)), 1.0, None) for n in (5, 3)]
with torch.no_grad():
    lm = load_causal_lm(sys.argv[1], dtype="float32", attention="flex_attention")
    print(PolicyNetwork(lm, 1.0, 64)(*PackedBatch.of(samples).arguments)[0].shape)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_the_tag_names_the_instructions_once_and_keeps_the_users_own():
    mine = run(TAG, TORCH_COMPILE_CACHE_KEY_TAG="mine-").stdout.strip()
    assert mine == f"mine-{torch.backends.cpu.get_cpu_capability()}"
    other = run(TAG, ATEN_CPU_CAPABILITY="default").stdout.strip()
    assert other == "DEFAULT" != mine


def test_what_compiles_asks_for_it(untrained, monkeypatch):
    from bandpo.loss import BandKL, Compiled
    from bandpo.loss.bounds import _compiler
    from bandpo.model.loading import load_causal_lm

    monkeypatch.setattr(torch, "compile", lambda function: function)
    for use in (
        lambda: load_causal_lm(untrained(), dtype="float32", attention="sdpa"),
        lambda: (_compiler.cache_clear(), Compiled(BandKL(0.05))(torch.tensor([-1.0]))),
    ):
        # monkeypatch would delete it afterwards.
        with torch.compiler.config.patch(cache_key_tag=""):
            use()
            assert torch.compiler.config.cache_key_tag == torch.backends.cpu.get_cpu_capability()
    _compiler.cache_clear()
    separate_compile_caches()


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a CPU with AVX-512"
)
def test_a_cache_that_machines_share_crashes_neither(untrained, tmp_path):
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for capability in ("avx512", "avx2", "avx512"):
        done = run(FLEX, str(untrained()), ATEN_CPU_CAPABILITY=capability, **cache)
        assert done.returncode == 0, done.stderr[-2000:]
