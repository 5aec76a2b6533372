"""Layers that carry a state cannot share a row, in any precision."""

import pytest
from transformers import AutoConfig

from bandpo.errors import UserError
from bandpo.model.features import refuse_state, stateful_layers

STATEFUL = {
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "falcon_h1": {},
    "mamba2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}
STATELESS = {
    "qwen2": {},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"]},
    "llama": {},
    "gpt2": {},
    "granitemoehybrid": {"layer_types": ["attention", "attention"]},
    "phi3": {},
}


def config(kind, settings):
    return AutoConfig.for_model(kind, num_hidden_layers=2, **settings)


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_state_along_the_row_is_refused(kind):
    found = config(kind, STATEFUL[kind])
    with pytest.raises(UserError, match=r"carry a state .*; set learner\.packing=false"):
        refuse_state(found, "sdpa")
    refuse_state(found, "flash_attention_2")  # knows where sequences end, and is proved


@pytest.mark.parametrize("kind", STATELESS)
def test_attention_alone_has_none(kind):
    assert stateful_layers(config(kind, STATELESS[kind])) == ""
    refuse_state(config(kind, STATELESS[kind]), "sdpa")
