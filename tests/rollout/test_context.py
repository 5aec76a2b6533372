"""A model's context: what exceeds it is refused before anything loads, what fills it trains."""

import json
import shutil

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from bandpo.model.embedded import build_tokenizer
from bandpo.rollout.context import context_length

QUESTION = "Compute 1+2."
PROMPT = len(build_tokenizer().encode(f"<|user|>{QUESTION}<|end|><|assistant|>"))
SMALL = [
    *("trainer.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=4", "rollout=hf"),
    *("learner.updates_per_rollout=1", "data.train=data.jsonl", "data.template=none"),
    *(
        "policy=embedded",
        "eval.benchmarks=[]",
        "model.path=model",
        "run.dir=run",
        "data.max_prompt_tokens=64",
    ),
]
LONG = "[{name: long, source: long.jsonl}]"


def write(path, question, count):
    rows = [{"id": f"p{i}", "problem": question, "answer": "3"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def trained(command, untrained, tmp_path, monkeypatch):
    """The exit code of a run of a model of so many tokens' context."""

    def run(context, *overrides):
        shutil.copytree(untrained(), tmp_path / "model", dirs_exist_ok=True)
        settings = json.loads((tmp_path / "model/config.json").read_text())
        settings["max_position_embeddings"] = context
        (tmp_path / "model/config.json").write_text(json.dumps(settings))
        write(tmp_path / "data.jsonl", QUESTION, 4)
        write(tmp_path / "long.jsonl", QUESTION * 3, 1)
        monkeypatch.chdir(tmp_path)
        return command("train", *SMALL, *overrides)

    return run


@pytest.mark.parametrize("completion", [1, 5, 80])
def test_what_fills_the_context_trains_to_the_end(completion, trained, tmp_path):
    assert trained(PROMPT + completion, f"rollout.max_tokens={completion}") == 0
    (line,) = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").open()][-1:]
    assert line["step"] == 1 and line["sync/probe_logprob_max"] < 1e-3
    assert line["length/max"] <= completion


@pytest.mark.slow
@pytest.mark.parametrize("completion", [1, 80])
def test_what_fills_the_context_trains_with_vllm(completion, trained, tmp_path):
    pytest.importorskip("vllm")
    engine = ("rollout=vllm_local", "rollout.engine.enforce_eager=true")
    assert trained(PROMPT + completion, f"rollout.max_tokens={completion}", *engine) == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["rollout.max_tokens=9"],
            ["data.train", f"has {PROMPT} tokens", "rollout.max_tokens=9", "rollout.max_tokens=8"],
        ),
        (
            ["rollout.max_tokens=9", "rollout=vllm_local", "rollout.max_tokens=9"],
            ["rollout.max_tokens=8 would fit", "shorter prompts (data.max_prompt_tokens)"],
        ),
        (
            ["rollout.max_tokens=4", "eval.max_tokens=100", f"eval.benchmarks={LONG}"],
            ["benchmark long", "eval.max_tokens=100"],
        ),
        (
            ["rollout.max_tokens=4", "eval.max_tokens=4", f"eval.benchmarks={LONG}"],
            ["benchmark long", "lower eval.max_tokens", "data.max_prompt_tokens"],
        ),
    ],
)
def test_what_exceeds_the_context_is_refused(
    overrides, said, trained, tmp_path, capsys, monkeypatch
):
    def loads(*arguments, **settings):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("bandpo.run.job.DeepSpeedLearner", loads)
    assert trained(PROMPT + 8, *overrides) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and f"takes {PROMPT + 8} tokens" in told
    for fragment in said:
        assert fragment in told
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (Qwen2Config(max_position_embeddings=4096), 4096),
        (GPT2Config(n_positions=77), 77),
        (
            LlamaConfig(
                max_position_embeddings=2048, rope_scaling={"rope_type": "linear", "factor": 4.0}
            ),
            8192,
        ),
        (
            LlamaConfig(
                max_position_embeddings=8192,
                rope_scaling={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 2048,
                },
            ),
            8192,
        ),
    ],
    ids=["qwen2", "gpt2", "linear", "yarn"],
)
def test_the_context_is_what_vllm_takes(config, tokens):
    assert context_length(config) == tokens


def test_a_model_without_positions_has_no_limit():
    from transformers import BloomConfig

    assert context_length(BloomConfig()) is None
