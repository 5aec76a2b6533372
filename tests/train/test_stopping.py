"""Runs whose completions end with stops, of a model with more tokens than its tokenizer."""

import json

import pytest
from small_runs import LOW_BYTES, few, metrics_of

pytest.importorskip("deepspeed")

SETTINGS = [
    *("policy=embedded", "trainer.steps=3", "trainer.checkpoint_every=0", "trainer.sample_every=1"),
    *("rollout.prompts_per_step=4", "rollout.group_size=8", "rollout.max_tokens=24"),
    *("learner.updates_per_rollout=2", "learner.lr=0.003", "eval.n=4", few(4), *LOW_BYTES),
]
LETTER = 43  # "G", one of the embedded tokenizer's bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained policy of 300 tokens, 262 of them its tokenizer's; its padding is its end."""
    from bandpo.model import embedded

    folder = tmp_path_factory.mktemp("policy")
    tokenizer = embedded.build_tokenizer()
    tokenizer.pad_token = "<|end|>"
    embedded.build_model(embedded.Recipe(hidden_size=64, heads=2), 300).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    sampling = {"temperature": 0.1, "top_k": 1, "do_sample": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | sampling))
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        ("rollout=hf",),
        ("rollout=hf", "model.dtype=bfloat16"),
        ("rollout=in_a_thread", "rollout.lag=1"),
    ],
    ids=["float32", "bfloat16", "lag 1"],
)
def test_a_run_stops_where_it_is_told_to_and_learns_it(command, model, tmp_path, capfd, more):
    stop = f'rollout.stop=[")", "t", "a", "1", {LETTER}]'
    run = tmp_path / "run"
    assert command("train", *SETTINGS, f"model.path={model}", f"run.dir={run}", stop, *more) == 0
    told = " ".join("".join(capfd.readouterr()).split())
    assert "generation_config.json has temperature=0.1, top_k=1: not used" in told
    found = [line for step in (1, 2, 3) for line in lines(run / f"samples/step_{step:06d}.jsonl")]
    found += [line for path in run.glob("eval/*/few.jsonl") for line in lines(path)]
    texts = [line["completion"] for line in found]
    stopped = [text for text in texts if text and text[-1] in ")ta1G"]
    assert len(stopped) > len(texts) / 10
    assert not any(set(")ta1G") & set(text[:-1]) for text in texts)
    assert not any(line["truncated"] for line in found if line["completion"] in stopped)
    metrics = metrics_of(run)
    assert 0 < metrics[-1]["length/truncated_frac"] < 0.7
    assert all(line["grad/norm"] > 0 for line in metrics[1:])
    # Engine and learner mean the same tokens, the last one too.
    tolerance = 0.02 if "model.dtype=bfloat16" in more else 1e-4
    assert metrics[1]["mismatch/logprob_abs_mean"] < tolerance
    assert all(line["sync/probe_logprob_mean"] < tolerance for line in metrics[1:])
