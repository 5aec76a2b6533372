"""Runs of models that are not like Qwen2: computed as they are meant, or refused in words."""

import json
import shutil

import pytest
from small_runs import LOW_BYTES, metrics_of
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

SMALL = [
    *("rollout=hf", "trainer.steps=1", "eval.benchmarks=[]", "rollout.prompts_per_step=2"),
    *("rollout.group_size=4", "rollout.max_tokens=24", "learner.updates_per_rollout=2"),
    *("data.max_prompt_tokens=200", "run.dir=run", "method=grpo"),
    # Updates that change no bit of a float32: every ratio is of the policy with itself.
    "learner.lr=1e-12",
    *LOW_BYTES,
]


@pytest.fixture
def run(command, tmp_path, monkeypatch, capsys):
    """Trains in this process; returns the exit code, what was said, and the last step's metrics."""
    monkeypatch.chdir(tmp_path)

    def start(folder, *overrides):
        code = command("train", *SMALL, "policy=embedded", f"model.path={folder}", *overrides)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        lines = metrics_of(tmp_path / "run") if code == 0 else [{}]
        return code, " ".join((told.out + told.err).split()), lines[-1]

    return start


@pytest.mark.parametrize(
    ("kind", "settings", "overrides"),
    [
        ("gpt2", {}, []),
        ("gpt2", {}, ["model.gradient_checkpointing=true", "learner.packing=false"]),
        ("gpt2", {}, ["model.attention=eager", "learner.zero_stage=3", "learner.packing=false"]),
        ("gpt2", {}, ["learner.lora.rank=2"]),
        ("opt", {"dropout": 0.3, "layerdrop": 0.5, "ffn_dim": 64}, []),
        ("phimoe", {"router_jitter_noise": 0.3, "num_local_experts": 2}, []),
    ],
    ids=["gpt2", "recomputed", "sharded", "lora", "functional", "jitter"],
)
def test_dropout_is_off_in_updates_and_ratios_are_of_policies(
    untrained_as, run, kind, settings, overrides
):
    if "learner.lora.rank=2" in overrides:
        pytest.importorskip("peft")
    folder = untrained_as(kind, **settings)
    code, told, last = run(folder, *overrides)
    assert code == 0, told
    assert last["learn/updates"] == 2 and last["grad/norm"] > 0
    assert last["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert last["mismatch/logprob_abs_max"] < 1e-4
    assert told.count("dropout stays off in updates") == 1
    named = {"gpt2": "resid_pdrop=0.1", "opt": "layerdrop=0.5", "phimoe": "router_jitter_noise=0.3"}
    assert named[kind] in told


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.1}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None}),
        ("qwen2", {"attention_dropout": 0.0}),
    ],
)
def test_learner_and_engine_agree_on_models_that_change_their_logits(
    untrained_as, run, kind, settings
):
    code, told, last = run(untrained_as(kind, **settings))
    assert code == 0, told
    assert last["mismatch/logprob_abs_max"] < 1e-4 and last["sync/probe_logprob_max"] < 1e-4
    assert last["grad/norm"] > 0 and "dropout" not in told


@pytest.mark.parametrize(
    ("overrides", "instead"),
    [
        ([], "model.attention=eager"),
        (["learner.packing=false"], "model.attention=eager"),
        (["model.attention=eager", "learner.packing=false"], "rollout=vllm_local"),
    ],
)
def test_capped_attention_is_refused_where_it_would_be_left_out(
    untrained_as, run, overrides, instead
):
    code, told, _ = run(untrained_as("gemma2"), *overrides)
    assert code == 2
    assert "attn_logit_softcapping=50.0" in told and instead in told


def test_a_head_with_a_bias_and_unknown_attention_are_refused(untrained_as, run):
    code, told, _ = run(untrained_as("phi"))
    assert code == 2 and "head has a bias" in told
    code, told, _ = run(untrained_as("gpt_oss", num_local_experts=4))
    assert code == 2 and "model.attention=eager" in told


def test_tokens_that_the_model_has_not_do_no_harm_until_a_prompt_holds_one(
    untrained, run, tmp_path
):
    folder = shutil.copytree(untrained(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    code, told, _ = run(folder)
    assert code == 0 and "'<|extra|>'; none is used" in told
    template = folder / "chat_template.jinja"
    template.write_text("<|extra|>" + template.read_text())
    code, told, _ = run(folder, "run.dir=other")
    assert code == 2 and "<|extra|>" in told and "262" in told


def test_a_model_without_an_end_is_refused_and_completions_cut_off_are_told(
    untrained, run, tmp_path
):
    folder = shutil.copytree(untrained(), tmp_path / "model")
    code, told, last = run(folder, "rollout.max_tokens=1")
    assert code == 0 and last["length/truncated_frac"] == 1
    assert told.count("nearly all completions were cut off at rollout.max_tokens") == 1
    code, told, _ = run(untrained(), "rollout.max_tokens=400", "run.dir=other")
    assert "cut off at rollout.max_tokens" not in told
    config = AutoConfig.from_pretrained(folder)
    config.eos_token_id = None
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=None).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    code, told, _ = run(folder, "run.dir=third")
    assert code == 2 and "no token ends a completion" in told and "eos_token_id" in told


def test_an_evaluation_of_a_model_without_an_end_is_refused_too(
    untrained, tmp_path, command, capsys
):
    folder = shutil.copytree(untrained(), tmp_path / "model")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings |= {"eos_token_id": None, "eos_token": None}
        (folder / name).write_text(json.dumps(settings))
    few = ("benchmarks=[arithmetic]", "eval.max_tokens=16", "eval.n=2", "eval.limit=2")
    assert command("eval", f"model={folder}", "rollout=hf", *few, f"out={tmp_path / 'out'}") == 2
    assert "no token ends a completion" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "overrides"),
    [
        ("granite", {"logits_scaling": 8.0}, []),
        ("cohere", {"logit_scale": 0.0625}, []),
        (
            "gemma2",
            {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
            ["model.attention=eager", "learner.packing=false"],
        ),
    ],
    ids=["granite", "cohere", "gemma2"],
)
def test_vllm_and_the_learner_agree_on_them_too(
    untrained_as, bandpo, tmp_path, kind, settings, overrides
):
    pytest.importorskip("vllm")
    folder = untrained_as(kind, hidden_size=128, head_dim=64, **settings)
    engine = ["rollout=vllm_local", "rollout.engine.max_num_seqs=16"]
    engine += ["rollout.engine.enforce_eager=true"]
    bandpo(
        "train",
        "policy=embedded",
        f"model.path={folder}",
        *engine,
        *SMALL[1:],
        *overrides,
        cwd=tmp_path,
    )
    last = metrics_of(tmp_path / "run")[-1]
    assert last["mismatch/logprob_abs_max"] < 1e-3 and last["sync/probe_logprob_max"] < 1e-3
