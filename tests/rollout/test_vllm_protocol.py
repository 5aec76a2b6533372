"""The order of calls around a weight sync, which silent faults depend on; vLLM itself is faked.

The real engine is tested in tests/learner/test_weight_sync.py; here only what a CPU cannot show.
"""

import dataclasses
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.model.embedded import build_tokenizer
from bandpo.rollout import vllm_installed, vllm_local
from bandpo.rollout.engine import EngineSpec, start_engine
from bandpo.rollout.vllm_local import VLLMLocal, cache_tokens

FOUR = SimpleNamespace(size=4)  # ranks


class FakeLLM:
    def __init__(self, resets=True):
        self.calls, self.resets = [], resets

    def collective_rpc(self, method, kwargs):
        self.calls.append((method, [name for name, _ in kwargs["weights_iterator"]]))

    def apply_model(self, function):
        return [function(torch.nn.Identity())]  # a model without experts

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")
        return self.resets

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {tags}")


def engine(sleeps: bool, resets=True) -> VLLMLocal:
    made = object.__new__(VLLMLocal)
    made._llm, made._sleeps, made._asleep = FakeLLM(resets), sleeps, False
    made._weight_names, made.weight_version = None, 0
    return made


def weights(*names):
    return ((name, torch.zeros(1)) for name in names)


def test_weights_arrive_between_the_two_wakes_and_the_cache_is_reset_last():
    made = engine(sleeps=True)
    made.sleep()
    made.wake()
    made.load_weights(weights("a", "b"), 5)
    assert made._llm.calls == [
        "sleep 2",
        "wake ['weights']",
        ("reload_weights", ["a", "b"]),
        "wake ['kv_cache']",
        "reset_prefix_cache",
    ]
    assert made.weight_version == 5


def test_an_engine_that_cannot_sleep_is_left_awake():
    made = engine(sleeps=False)
    made.sleep()
    made.wake()
    made.load_weights(weights("a"), 1)
    assert made._llm.calls == [("reload_weights", ["a"]), "reset_prefix_cache"]


def test_a_stream_that_lost_a_name_or_a_cache_that_stays_is_fatal():
    made = engine(sleeps=False)
    made.load_weights(weights("a", "b"), 1)
    with pytest.raises(RuntimeError, match=r"changed its names.*b"):
        made.load_weights(weights("a"), 2)
    with pytest.raises(RuntimeError, match="prefix cache"):
        engine(sleeps=False, resets=False).load_weights(weights("a"), 1)


@pytest.fixture
def on_gpus(monkeypatch):
    """Four ranks on GPUs as far as the engine sees; gives the arguments that vLLM was made with."""
    made = {}

    def llm(**arguments):
        made.update(arguments)
        return SimpleNamespace(get_tokenizer=build_tokenizer, apply_model=lambda _: [True])

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm))
    own_models = SimpleNamespace(base=SimpleNamespace(support_torch_compile=None))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.transformers", own_models)
    monkeypatch.setattr(vllm_installed, "vllm_version", lambda: "0.33.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    made["forked"] = forked = []

    @contextmanager
    def fork_rng(devices):
        forked.append(devices)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    return made


def test_on_gpus_engines_are_parts_of_the_launchers_job_and_keep_their_graphs(on_gpus, untrained):
    config = compose("train", ["rollout.engine.tensor_parallel_size=2"], Config)
    spec = EngineSpec(str(untrained()), dtype="bfloat16", ranks=FOUR)
    start_engine(config.rollout.engine, spec)
    assert on_gpus["distributed_executor_backend"] == "external_launcher"
    assert on_gpus["tensor_parallel_size"] == 2 and on_gpus["enable_sleep_mode"] is True
    assert on_gpus["enforce_eager"] is False and "gpu_memory_utilization" not in on_gpus
    assert on_gpus["logprobs_mode"] == "processed_logprobs"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"  # what external_launcher asks for
    assert on_gpus["forked"][-1] == [3]  # asking the other devices would make contexts there


@pytest.mark.parametrize("precision", [None, "tf32x3"])
def test_on_gpus_products_in_float32_are_not_of_ten_bits(
    on_gpus, untrained, monkeypatch, precision
):
    monkeypatch.setenv("TRITON_F32_DEFAULT", precision or "")
    if precision is None:
        monkeypatch.delenv("TRITON_F32_DEFAULT")
    VLLMLocal(EngineSpec(str(untrained()), ranks=FOUR))
    assert os.environ["TRITON_F32_DEFAULT"] == (precision or "ieee")  # the user's word counts


@pytest.mark.parametrize(("launchers", "own"), [(None, 6), ("2", 9)])
def test_on_gpus_the_learner_keeps_its_threads(on_gpus, untrained, monkeypatch, launchers, own):
    """vLLM leaves torch one thread unless OMP_NUM_THREADS is set."""
    monkeypatch.setenv("OMP_NUM_THREADS", launchers or "")
    if launchers is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    threads = [9]  # torch's own: all cores of the machine, whoever else is there
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    VLLMLocal(EngineSpec(str(untrained()), threads=6, ranks=FOUR))
    assert os.environ["OMP_NUM_THREADS"] == (launchers or "6") and threads[-1] == own


def test_on_a_cpu_the_cache_has_room_for_what_is_asked_at_a_time():
    spec = EngineSpec("a/model", max_model_len=300, samples=64, ranks=FOUR)
    blocks = 3  # of 128 tokens
    assert cache_tokens(spec, 512, parts=1) == (16 * blocks + 1) * 128
    assert cache_tokens(spec, 512, parts=2) == (32 * blocks + 1) * 128
    assert cache_tokens(spec, 8, parts=1) == (8 * blocks + 1) * 128
    anything = dataclasses.replace(spec, samples=None)
    assert cache_tokens(anything, 512, parts=1) == (512 * blocks + 1) * 128


def test_a_log_probability_of_another_token_is_never_taken():
    found = SimpleNamespace(token_ids=[3, 4], logprobs=[-1.0, -2.0])
    assert vllm_local._of_tokens(found, (3, 4)) == [-1.0, -2.0]
    with pytest.raises(RuntimeError, match="other tokens"):
        vllm_local._of_tokens(found, (3, 5))


def test_engines_are_whole(on_gpus):
    with pytest.raises(UserError, match=r"tensor_parallel_size=3 must divide the 4 rank\(s\)"):
        VLLMLocal(EngineSpec("a/model", ranks=FOUR), tensor_parallel_size=3)


def test_missing_and_old_versions_are_told(monkeypatch):
    monkeypatch.setattr(vllm_installed, "vllm_version", lambda: None)
    with pytest.raises(UserError, match="rollout=hf"):
        vllm_installed.require_vllm()
    monkeypatch.setattr(vllm_installed, "vllm_version", lambda: "0.9.2")
    with pytest.raises(UserError, match=r"0\.9\.2 is too old, 0\.27\.1"):
        vllm_installed.require_vllm()
    monkeypatch.setattr(vllm_installed, "vllm_version", lambda: "0.33.0+cu130")
    vllm_installed.require_vllm()
