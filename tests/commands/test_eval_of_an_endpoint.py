"""`bandpo eval rollout=openai …`: a model that is only a name, from arguments to files."""

import json
import signal
import threading
import time

import pytest
from interruptible import interruptible
from stand_in_endpoint import KEY, MODEL, answer, failed, stand_in

from bandpo.cli import main
from bandpo.evaluation.samples import read_samples
from bandpo.evaluation.summary import read_summaries

PROBLEMS = 12


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with stand_in() as server:
        yield server


def words(server, out, *overrides, model=f"model={MODEL}"):
    return [
        *(
            "eval",
            "rollout=openai",
            f"rollout.engine.url={server.url}",
            *([model] if model else []),
        ),
        *("benchmarks=[arithmetic]", f"eval.limit={PROBLEMS}", "eval.n=4", "eval.max_tokens=64"),
        *(f"out={out}", *overrides),
    ]


def everything_in(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_name_is_enough_and_the_settings_say_what_is_known(server, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(server, out, "dtype=float32")) == 0
    shown = capsys.readouterr()
    assert "dtype=float32 has no effect" in shown.err
    settings = read_summaries(out)["arithmetic"].settings
    assert settings["model"] == {
        "path": MODEL,
        "url": server.url,
        "served": {"id": MODEL, "owned_by": "maker"},
        "request": {"api": "chat", "limit_field": "max_tokens", "seed_bits": 63},
    }
    assert settings["engine"] == "openai" and settings["n"] == 4
    samples = read_samples(out / "arithmetic.jsonl")
    assert len(samples) == 4 * PROBLEMS and {s.status for s in samples} <= {"correct", "wrong"}
    assert all(s.prompt.endswith("inside \\boxed{}.") and s.tokens for s in samples)
    sent = {body["messages"][0]["content"] for _, body in server.bodies}
    assert sent == {s.prompt for s in samples} and len(sent) == PROBLEMS
    usage = json.loads((out / "usage.json").read_text())
    assert usage["completion_tokens"] == 7 * 48 == sum(s.tokens for s in samples)
    assert "12 requests for 48 samples used 120 prompt tokens and 336 completion" in shown.out
    assert MODEL in (out / "report.html").read_text()
    assert KEY not in shown.out + shown.err and KEY.encode() not in everything_in(out)


def test_the_model_may_be_named_in_the_engine(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = words(server, "null", f"rollout.engine.model={MODEL}", model=None)
    assert main(named) == 0
    assert read_summaries(tmp_path / "outputs" / "eval" / "maker_toy-1")["arithmetic"].n == 4


def test_a_tokenizer_renders_the_prompts_of_completions(server, tmp_path, untrained):
    out = tmp_path / "out"
    given = ["rollout.engine.api=completions", f"rollout.engine.tokenizer={untrained()}"]
    assert main(words(server, out, *given)) == 0
    path, body = server.bodies[0]
    assert path == "/v1/completions" and all(isinstance(token, int) for token in body["prompt"])
    assert read_samples(out / "arithmetic.jsonl")[0].prompt.startswith("<|user|>")
    server.bodies.clear()
    assert main(words(server, tmp_path / "base", given[0], "eval.template=none")) == 0
    assert all(isinstance(body["prompt"], str) for _, body in server.bodies)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.engine.url=null", "rollout.engine.url: name the endpoint"),
        ("eval.top_k=20", "OpenAI's interface has no top_k"),
        ("rollout.engine.tokenizer=embedded", "rollout.engine.api=completions"),
        ("rollout.engine.retries=-1", "rollout.engine.retries must be positive"),
        ("rollout.engine.extra_body={model: x}", "model is a standard field"),
        ("rollout.engine.key_env=sk-123", "the name of an environment variable"),
        ("rollout.engine.temperature=1", "no such key"),
        ("eval.stop=[7]", "eval.stop=[7]: OpenAI's interface has no stop_token_ids"),
        ("eval.min_p=0.1", "no min_p"),
        ("eval.sampling=model", "only a name"),
        ("eval.chat_template=none", "rollout.engine.api=chat leaves it to the endpoint"),
        ("eval.chat_template_kwargs={enable_thinking: false}", "extra_body={chat_template_kwargs"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(override, said, server, tmp_path, capsys):
    assert main(words(server, tmp_path / "out", override)) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown and server.bodies == []


def test_system_prompt_stops_and_penalties_are_standard(server, tmp_path):
    given = ["eval.system_prompt=Be brief.", "eval.stop=['###']", "eval.presence_penalty=0.5"]
    assert main(words(server, tmp_path / "out", *given)) == 0
    body = server.bodies[0][1]
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
    assert (body["stop"], body["presence_penalty"]) == (["###"], 0.5)
    prompt = read_samples(tmp_path / "out" / "arithmetic.jsonl")[0].prompt
    assert prompt.startswith("[system]\nBe brief.\n\n[user]\n")


def test_a_base_model_continues_the_template_alone(server, tmp_path, capsys):
    base = ["rollout.engine.api=completions", "eval.chat_template=none"]
    assert main(words(server, tmp_path / "out", *base, "eval.stop=['\\n']")) == 0
    body = server.bodies[0][1]
    assert body["prompt"].endswith("inside \\boxed{}.") and body["stop"] == ["\n"]
    assert main(words(server, tmp_path / "told", base[0], "eval.system_prompt=Hm.")) == 2
    assert "without turns" in capsys.readouterr().err


def test_several_seeds_are_several_evaluations(server, tmp_path):
    assert main(words(server, tmp_path / "out", "eval.seeds=[1,2]")) == 0
    found = [read_samples(tmp_path / "out" / f"seed{s}" / "arithmetic.jsonl") for s in (1, 2)]
    assert found[0] != found[1] and len(server.bodies) == 2 * PROBLEMS
    assert json.loads((tmp_path / "out" / "usage.json").read_text())["samples"] == 96


def test_top_k_goes_besides(server, tmp_path):
    extra = "rollout.engine.extra_body={top_k: 20, chat_template_kwargs: {enable_thinking: false}}"
    assert main(words(server, tmp_path / "out", extra, "eval.top_k=20")) == 0
    body = server.bodies[0][1]
    assert body["top_k"] == 20 and body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_wrong_key_ends_it_before_anything_is_asked(server, tmp_path, capsys):
    server.model_status, server.models = 401, {"error": {"message": f"bad key {KEY}"}}
    assert main(words(server, tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert "401 bad key (hidden)" in shown and "OPENAI_API_KEY" in shown
    assert KEY not in shown and server.bodies == [] and not (tmp_path / "out").exists()


def test_a_name_that_the_endpoint_does_not_list_is_said(server, tmp_path, capsys):
    server.reply = failed(404, b'{"error": {"message": "no model maker/toy-2"}}')
    assert main(words(server, tmp_path / "out", model="model=maker/toy-2")) == 2
    shown = capsys.readouterr().err
    assert "did you mean maker/toy-1" in shown and "404 no model maker/toy-2" in shown


def test_it_cannot_be_trained_with(server, capsys):
    words = ["train", "rollout=openai", f"rollout.engine.url={server.url}", "model.path=embedded"]
    assert main(words) == 2
    assert "is for evaluation only (bandpo eval)" in capsys.readouterr().err


def test_it_continues_after_a_refusal_and_pays_for_nothing_twice(server, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(words(server, whole)) == 0
    server.bodies.clear()

    def until_money_is_gone(body):
        if len(server.bodies) > 20:
            return failed(402, {"error": "no credit"})(body)
        return answer(body)

    server.reply = until_money_is_gone
    one = ["rollout.engine.samples_per_request=1", "rollout.engine.concurrency=2"]
    assert main(words(server, out, *one)) == 2
    assert "402 no credit" in capsys.readouterr().err
    server.reply = answer
    paid = json.loads((out / "usage.json").read_text())["samples"]
    assert 20 <= paid <= 22
    server.bodies.clear()
    assert main(words(server, out, *one)) == 0
    assert len(server.bodies) == 4 * PROBLEMS - paid
    assert json.loads((out / "usage.json").read_text())["samples"] == 4 * PROBLEMS
    same = [[s.completion for s in read_samples(f / "arithmetic.jsonl")] for f in (whole, out)]
    assert sorted(same[0]) == sorted(same[1])
    assert (
        read_summaries(whole)["arithmetic"].metrics["mean@4"]
        == (read_summaries(out)["arithmetic"].metrics["mean@4"])
    )
    server.bodies.clear()
    assert main(words(server, out, *one, "eval.resume=false")) == 0
    assert len(server.bodies) == 4 * PROBLEMS
    server.bodies.clear()
    assert main(words(server, out, *one, "eval.temperature=0.5")) == 2
    assert "temperature: 1.0 → 0.5" in capsys.readouterr().err and server.bodies == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_it_continues_after_an_interruption(how, tmp_path):
    go = threading.Event()

    def slow(body):
        if len(server.bodies) > 15:
            go.wait(60)
        return answer(body)

    with stand_in(slow) as server:
        one = ["rollout.engine.samples_per_request=1", "rollout.engine.concurrency=3"]
        process = interruptible(*words(server, tmp_path / "out", *one))
        deadline = time.monotonic() + 120
        while len(server.bodies) <= 17 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), errors
        assert "Traceback" not in errors
        kept = len((tmp_path / "out" / "replies.jsonl").read_text().splitlines())
        assert kept == 15
        go.set()
        server.bodies.clear()
        assert main(words(server, tmp_path / "out", *one)) == 0
        assert len(server.bodies) == 4 * PROBLEMS - kept
        samples = read_samples(tmp_path / "out" / "arithmetic.jsonl")
        assert len(samples) == 4 * PROBLEMS and all(s.completion for s in samples)


@pytest.mark.slow
def test_ranks_share_the_problems_and_what_was_paid_for(server, tmp_path, bandpo):
    out = tmp_path / "out"
    first = bandpo(*words(server, out), ranks=2)
    assert "12 requests for 48 samples used 120 prompt tokens" in first.stdout
    assert sorted(path.name for path in out.glob("replies*")) == [
        *("replies.jsonl", "replies.rank1.jsonl"),
    ]
    before = read_summaries(out)
    (out / "arithmetic.jsonl").unlink()
    server.bodies.clear()
    assert main(words(server, out)) == 0  # one process, from the replies of both
    assert server.bodies == [] and read_summaries(out) == before
