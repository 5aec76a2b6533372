"""The policy that a run leaves: tried at the start, proved at the end, never at the run's cost."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bandpo.artifacts.checkpoint import Checkpoint, find_checkpoint
from bandpo.config.sections.model import ModelConfig
from bandpo.learner import export
from bandpo.model.architecture import shape_of
from bandpo.model.source import find_model
from bandpo.model.tying import as_its_files_are, repeated_names, shares_head

SMALL = [
    *("trainer.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "rollout=hf"),
    *("learner.updates_per_rollout=1", "eval.benchmarks=[]", "rollout.max_tokens=4"),
    *("policy=embedded", "model.path=model", "run.dir=run", "trainer.checkpoint_every=0"),
]
INVALID = {"temperature": 0.9, "do_sample": False}  # for transformers, which refuses to save it
IDS = torch.tensor([[3, 20, 21, 22, 1, 4, 60, 61]])


@pytest.fixture
def folder(untrained, tmp_path, monkeypatch):
    """A model's folder in the current one."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(untrained(), tmp_path / "model")


@pytest.fixture
def trained(folder, command):
    """Exit code of a run of the model."""
    return lambda *overrides: command("train", *SMALL, *overrides)


def give_a_head(folder, distance):
    """Puts a head into the model's file that differs so much from its embedding."""
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    weights["lm_head.weight"] = embedding + distance * noise
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def logp_of(folder, **settings):
    lm = AutoModelForCausalLM.from_pretrained(folder, **settings)
    return lm(IDS).logits.log_softmax(-1)


# --- Whether the head is the embedding --------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "tied", "apart"),
    [(None, True, False), (0.0, True, False), (0.1, True, True), (0.1, False, False)],
    ids=["no head", "a copy", "another", "another, as the config says"],
)
def test_the_files_decide_whether_the_head_is_the_embedding(distance, tied, apart, folder):
    if distance is not None:
        give_a_head(folder, distance)
    settings = json.loads((folder / "config.json").read_text())
    settings["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(settings))
    config = find_model(str(folder)).config()
    correction = as_its_files_are(folder, config)
    assert correction == ({"tie_word_embeddings": False} if apart else {})
    lm = AutoModelForCausalLM.from_pretrained(folder, **correction)
    assert shares_head(lm) == (tied and not apart)
    assert repeated_names(lm) == ({"lm_head.weight"} if tied and not apart else set())
    found = shape_of(ModelConfig(path=str(folder)))
    assert found.parameters == sum(p.numel() for p in lm.parameters())


def test_a_file_with_the_head_alone_is_tied_to_it(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert as_its_files_are(folder, find_model(str(folder)).config()) == {}


STAGES = [
    *([f"learner.zero_stage={stage}"] for stage in range(4)),
    *(["learner.lora.rank=2", f"learner.zero_stage={stage}"] for stage in (0, 3)),
]


@pytest.mark.parametrize("settings", STAGES, ids=" ".join)
def test_a_head_of_its_own_is_trained_and_exported(settings, trained, untrained, folder, tmp_path):
    give_a_head(folder, 0.1)
    assert trained("learner.lr=1e-9", *settings) == 0
    hf = tmp_path / "run/checkpoints/latest/hf"
    expected = logp_of(folder, tie_word_embeddings=False)
    assert (logp_of(hf) - expected).abs().max() < 1e-4
    assert (logp_of(untrained()) - expected).abs().max() > 0.01  # with the embedding for a head
    assert not json.loads((hf / "config.json").read_text())["tie_word_embeddings"]
    assert "| output head | of its own |" in (hf / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_vllm_takes_a_head_of_its_own(trained, folder, tmp_path):
    pytest.importorskip("vllm")
    give_a_head(folder, 0.1)
    engine = ("rollout=vllm_local", "rollout.engine.enforce_eager=true")
    assert trained(*engine) == 0
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["mismatch/logprob_abs_max"] < 1e-3


# --- What was written is what was trained -----------------------------------------------------


def complete(folder):
    """Whether a run's last checkpoint is sound, and whether hf/ is a part of it."""
    checkpoint, notes = find_checkpoint(folder, "auto", _Alone())
    assert not notes
    manifest = json.loads((checkpoint.folder / "manifest.json").read_text())
    return checkpoint, "hf/model.safetensors" in manifest


class _Alone:
    rank, size, is_first = 0, 1, True

    def gather(self, value):
        return [value]

    def share(self, items):
        return list(items)


@pytest.mark.parametrize("fault", ["another model", "no tokenizer", "a full disk"])
def test_an_export_that_fails_costs_nothing_and_is_made_up_for(
    fault, trained, tmp_path, monkeypatch, capsys
):
    def forgets_a_layer(lm):
        return repeated_names(lm) | {"model.layers.0.mlp.down_proj.weight"}

    def refuses(*arguments, **settings):
        raise OSError(28, "No space left on device")

    def breaks(*arguments):
        raise TypeError("not JSON serializable")

    with monkeypatch.context() as patch:
        if fault == "another model":
            patch.setattr(export, "repeated_names", forgets_a_layer)
        elif fault == "a full disk":
            patch.setattr("huggingface_hub.save_torch_state_dict", refuses)
        else:
            patch.setattr(export, "write_settings", breaks)
        assert trained() == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told
    assert "start the run again, which writes hf/ from the checkpoint" in told
    said = {
        "another model": "another model than the learner's",
        "no tokenizer": "TypeError: not JSON serializable",
        "a full disk": "No space left on device",
    }
    assert said[fault] in told
    checkpoint, has_policy = complete(tmp_path / "run")
    assert checkpoint.step == 1 and not has_policy and not (checkpoint.folder / "hf").exists()

    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert trained() == 0
    assert complete(tmp_path / "run") == (Checkpoint(checkpoint.folder), True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines
    assert logp_of(checkpoint.folder / "hf").isfinite().all()


def test_an_export_that_fails_on_the_way_does_not_end_the_run(
    trained, tmp_path, monkeypatch, capsys
):
    proved = []

    def fails_first(*arguments):
        proved.append(arguments)
        if len(proved) == 1:
            raise OSError("no luck")

    monkeypatch.setattr("bandpo.artifacts.saver.prove_export", fails_first)
    assert trained("trainer.steps=2", "trainer.checkpoint_every=1") == 0
    assert "no luck; the run continues" in " ".join(capsys.readouterr().out.split())
    steps = tmp_path / "run/checkpoints"
    assert [(steps / f"step_00000{n}/hf").exists() for n in (1, 2)] == [False, True]


# --- What the end needs is tried at the start --------------------------------------------------


def test_a_generation_config_that_transformers_would_not_save_is_kept(
    trained, folder, tmp_path, capsys
):
    (folder / "generation_config.json").write_text(json.dumps(INVALID))
    assert trained() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "generation_config.json invalid" in told and "do_sample" in told
    hf = tmp_path / "run/checkpoints/latest/hf"
    written = json.loads((hf / "generation_config.json").read_text())
    assert INVALID.items() <= written.items()
    assert logp_of(hf).isfinite().all()


def refuses_to_save(*arguments, **settings):
    raise ValueError("cannot be saved")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("transformers.PreTrainedTokenizerBase.save_pretrained", "tokenizer cannot be written"),
        ("transformers.PretrainedConfig.save_pretrained", "configuration"),
        ("bandpo.run.preflight.model_card", "model card"),
        ("bandpo.run.preflight.plot_timeline", "figures"),
        ("transformers.GenerationConfig.from_pretrained", "generation_config.json"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_the_start(
    place, said, trained, tmp_path, monkeypatch, capsys
):
    def loads(*arguments, **settings):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("bandpo.run.job.DeepSpeedLearner", loads)
    monkeypatch.setattr(place, refuses_to_save)
    assert trained() == 2
    told = capsys.readouterr().err
    assert said in told and "cannot be saved" in told
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock"]


def test_a_folder_that_cannot_be_written_is_found_at_the_start(trained, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.preflight").write_text("a file in the way")
    assert trained() == 2
    assert "run.dir=run cannot be written" in capsys.readouterr().err


def test_figures_that_fail_at_the_end_do_not_undo_the_run(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bandpo.train.plot_timeline", refuses_to_save)
    assert trained() == 0
    assert "no figures: cannot be saved" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "run/checkpoints/latest/hf/model.safetensors").exists()
