"""The order of calls around a weight sync, which silent faults depend on; vLLM itself is faked.

The real engine is tested in tests/learner/test_weight_sync.py; here only what a CPU cannot show.
"""

import pytest
import torch

from bandpo.errors import UserError
from bandpo.rollout import vllm_local
from bandpo.rollout.vllm_local import VLLMLocal


class FakeLLM:
    def __init__(self, resets=True):
        self.calls, self.resets = [], resets

    def collective_rpc(self, method, kwargs):
        self.calls.append((method, [name for name, _ in kwargs["weights_iterator"]]))

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


def test_missing_and_old_versions_are_told(monkeypatch):
    monkeypatch.setattr(vllm_local, "vllm_version", lambda: None)
    with pytest.raises(UserError, match="rollout=hf"):
        vllm_local.require_vllm()
    monkeypatch.setattr(vllm_local, "vllm_version", lambda: "0.9.2")
    with pytest.raises(UserError, match=r"0\.9\.2 is too old, 0\.27\.1"):
        vllm_local.require_vllm()
    monkeypatch.setattr(vllm_local, "vllm_version", lambda: "0.33.0+cu130")
    vllm_local.require_vllm()
