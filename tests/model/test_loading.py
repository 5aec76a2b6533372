"""Weights come from the files, all of them: what is missing, foreign or quantised is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from bandpo.errors import UserError
from bandpo.model.files import refuse_quantised
from bandpo.model.loading import load_causal_lm
from bandpo.model.source import find_model
from bandpo.rollout.engine import EngineSpec
from bandpo.rollout.hf import HFGenerate

LAYER = "model.layers.1.mlp.up_proj"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 988097824\n"
)


@pytest.fixture
def folder(untrained, tmp_path):
    """A copy of an untied model, to be spoiled."""
    return shutil.copytree(untrained(tied=False), tmp_path / "model")


def change(folder, change):
    """Applies a function to the weights on the disk."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def load(folder):
    return load_causal_lm(folder, dtype="float32", attention="sdpa")


def refusal(folder, loading=load):
    with pytest.raises(UserError) as caught:
        loading(folder)
    return str(caught.value)


@pytest.mark.parametrize("missing", [f"{LAYER}.weight", "model.norm.weight", "lm_head.weight"])
def test_a_tensor_that_is_missing_is_named_by_learner_and_engine(folder, missing):
    change(folder, lambda weights: weights.pop(missing))
    assert missing in refusal(folder)
    assert missing in refusal(folder, lambda path: HFGenerate(EngineSpec(str(path))))
    hinted = "tie_word_embeddings to true" in refusal(folder)
    assert hinted == (missing == "lm_head.weight")


def test_a_tied_head_needs_no_tensor_and_computed_buffers_have_no_place(untrained, tmp_path):
    folder = shutil.copytree(untrained(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    change(folder, lambda w: w.update({"model.rotary_emb.inv_freq": torch.ones(16)}))
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(
        folder,
        lambda w: w.update(
            {old: torch.ones(16), "v_head.summary.weight": w[LAYER + ".weight"].clone()}
        ),
    )
    plain = AutoModelForCausalLM.from_pretrained(untrained())
    ids = torch.arange(9)[None]
    assert torch.equal(load(folder)(ids).logits, plain(ids).logits)


def test_another_shape_is_told_with_both(folder):
    configure(folder, intermediate_size=200)
    message = refusal(folder)
    assert "model.layers.0.mlp.down_proj.weight is (64, 256) in the file, (64, 200)" in message


def test_a_tensor_that_the_model_has_no_place_for_is_named(folder):
    change(folder, lambda w: w.update({f"{LAYER}.bias": torch.ones(256)}))
    assert f"{LAYER}.bias" in refusal(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w.update({f"{LAYER}.weight": torch.zeros(256, 64, dtype=torch.int8)}),
        lambda w: w.update({f"{LAYER}.weight": torch.zeros(256, 64).to(torch.float8_e4m3fn)}),
        lambda w: w.update({f"{LAYER}.qweight": torch.zeros(8, 64, dtype=torch.int32)}),
    ],
    ids=["int8", "float8", "packed"],
)
def test_quantised_weights_are_refused_before_they_are_read(folder, spoil):
    change(folder, spoil)
    config = AutoConfig.from_pretrained(folder)
    with pytest.raises(UserError, match=rf"{LAYER}\.q?weight in model\.safetensors is of type"):
        refuse_quantised(folder, config)


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes"])
def test_a_quantised_checkpoint_is_refused_by_its_method(folder, method):
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    configure(folder, quantization_config=settings)
    config = AutoConfig.from_pretrained(folder)
    with pytest.raises(UserError, match=rf"quantization_config in config\.json \({method}\)"):
        refuse_quantised(folder, config)
    with pytest.raises(UserError, match=method):
        HFGenerate(EngineSpec(str(folder)))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_in_place_of_a_file_is_told(folder, name):
    (folder / name).write_text(POINTER)
    message = refusal(folder, lambda path: find_model(str(path)))
    assert name in message and "git lfs pull" in message


def test_a_pointer_in_place_of_a_pickle_is_told(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(POINTER)
    message = refusal(folder, lambda path: find_model(str(path), allow_pickle=True))
    assert "pytorch_model.bin is a git-lfs pointer" in message


def test_a_file_that_is_cut_short_is_told(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is truncated" in refusal(folder, lambda path: find_model(str(path)))


@pytest.fixture
def sharded(folder):
    model = load(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_shards_that_are_all_there_are_taken_and_a_missing_one_is_named(sharded):
    assert find_model(str(sharded)).path == str(sharded)
    load(sharded)
    shard = sorted(sharded.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_text(POINTER)
    assert f"{shard.name} is a git-lfs pointer" in refusal(sharded, lambda p: find_model(str(p)))
    shard.unlink()
    assert shard.name in refusal(sharded, lambda path: find_model(str(path)))
    shard.write_bytes(content)
    (sharded / "model.safetensors.index.json").write_text("{}")
    assert "is no index" in refusal(sharded, lambda path: find_model(str(path)))
