"""The engine of an OpenAI-compatible endpoint, against a stand-in with every fault of the field."""

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from stand_in_endpoint import (
    KEY,
    MODEL,
    StandIn,
    answer,
    dripping,
    dropped,
    failed,
    hangs,
    limited,
    refuses_n,
    samples,
    stand_in,
    takes_no_n,
)

from bandpo.errors import UserError
from bandpo.reward.extract import extract
from bandpo.rollout.engine import EngineSpec, Sampling, start_engine
from bandpo.rollout.openai import OpenAICompatible, endpoint
from bandpo.rollout.openai.endpoint import Address, requested_wait, served
from bandpo.rollout.openai.fields import Fields
from bandpo.rollout.openai.replies import choices_of
from bandpo.types import Problem, Prompt, Turn

SAMPLING = Sampling(n=4, temperature=0.7, top_p=0.9, max_tokens=50)
STANDARD = {"model", "messages", "max_tokens", "temperature", "top_p", "n", "seed"}


def prompt(number):
    turns = (Turn("system", "Be brief."), Turn("user", f"What is {number} + {number}?"))
    return Prompt(Problem(f"p{number}", "", str(2 * number)), "", (), 64 * (number + 1), turns)


PROMPTS = [prompt(number) for number in range(5)]


@pytest.fixture
def server():
    with stand_in() as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.02)


@pytest.fixture
def connect():
    made = []

    def connect(server, folder=None, **settings):
        url = server.url if isinstance(server, StandIn) else server
        made.append(OpenAICompatible(EngineSpec(MODEL, folder=folder), url=url, **settings))
        return made[-1]

    yield connect
    for engine in made:
        engine.close()


def texts(engine, prompts=PROMPTS, sampling=SAMPLING):
    found = {group.problem.id: group for group in engine.generate(prompts, sampling)}
    assert set(found) == {prompt.problem.id for prompt in prompts}
    return [[c.text for c in found[prompt.problem.id].completions] for prompt in prompts]


@pytest.fixture(scope="module")
def undisturbed():
    with stand_in() as server, pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        engine = OpenAICompatible(EngineSpec(MODEL), url=server.url)
        found = texts(engine)
        engine.close()
    assert all(len(set(group)) == SAMPLING.n for group in found)
    return found


# --- What is sent


def test_a_request_has_the_conversation_and_standard_fields_alone(server, connect):
    texts(connect(server), PROMPTS[:1])
    ((path, body),) = server.bodies
    assert path == "/v1/chat/completions" and body.keys() == STANDARD
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 0 + 0?"},
    ]
    assert (body["model"], body["max_tokens"], body["n"], body["seed"]) == (MODEL, 50, 4, 64)
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
    assert (
        server.headers[0][
            "authorization" if "authorization" in server.headers[0] else "Authorization"
        ]
        == f"Bearer {KEY}"
    )


def test_fields_are_added_and_omitted_as_the_endpoint_wants_them(server, connect):
    settings = {
        "model": "another",
        "extra_body": {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}},
        "omit": ["seed", "top_p"],
        "limit_field": "max_completion_tokens",
    }
    texts(connect(server, **settings), PROMPTS[:1], Sampling(n=2, temperature=0.5, top_k=20))
    ((_, body),) = server.bodies
    assert body.keys() == (STANDARD - {"seed", "top_p", "max_tokens"}) | {
        *("max_completion_tokens", "top_k", "chat_template_kwargs"),
    }
    assert body["model"] == "another"
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_settings_from_a_configuration_are_plain_values(server):
    target = {"_target_": "bandpo.rollout.openai.OpenAICompatible", "url": server.url}
    target |= {"extra_body": {"stops": ["a"], "nested": {"x": 1}}, "omit": ["seed"]}
    engine = start_engine(target, EngineSpec(MODEL))
    texts(engine, PROMPTS[:1])
    engine.close()
    assert server.bodies[0][1]["stops"] == ["a"] and server.bodies[0][1]["nested"] == {"x": 1}


@pytest.mark.parametrize(
    ("sampling", "settings", "said"),
    [
        (Sampling(top_k=20), {}, r"eval\.top_k=20: OpenAI's interface has no top_k.*extra_body"),
        (Sampling(top_k=20), {"extra_body": {"top_k": 5}}, "no top_k"),
        (
            Sampling(temperature=0.6),
            {"omit": ["temperature"]},
            r"eval\.temperature=0\.6 would have",
        ),
        (Sampling(), {"extra_body": {"n": 3}}, "n is a standard field"),
        (Sampling(), {"omit": ["messages"]}, "messages is none of"),
        (Sampling(), {"api": "responses"}, "neither chat nor completions"),
        (Sampling(), {"limit_field": "limit"}, "none of max_tokens"),
        (Sampling(), {"seed_bits": 64}, "seed_bits=64"),
    ],
)
def test_settings_that_would_not_reach_the_endpoint_are_refused(sampling, settings, said):
    with pytest.raises(UserError, match=said):
        Fields("m", **settings).of_sampling(sampling)


def test_completions_continue_tokens_where_there_are_any_and_text_otherwise(server, connect):
    engine = connect(server, api="completions")
    problem = Problem("p", "", "")
    texts(engine, [Prompt(problem, "Q: 1+1 A:", (5, 6, 7), 64)])
    texts(engine, [Prompt(problem, "Q: 1+1 A:", (), 64)])
    paths, bodies = zip(*server.bodies, strict=True)
    assert set(paths) == {"/v1/completions"}
    assert [body["prompt"] for body in bodies] == [[5, 6, 7], "Q: 1+1 A:"]
    assert all("messages" not in body for body in bodies)


def test_seeds_of_samples_are_those_of_other_engines_whatever_the_requests(connect, undisturbed):
    with stand_in() as server:
        assert texts(connect(server, samples_per_request=1)) == undisturbed
        seeds = {body["seed"] for _, body in server.bodies if "What is 2" in str(body)}
        assert seeds == {192, 193, 194, 195} and all("n" not in body for _, body in server.bodies)
        server.bodies.clear()
        assert texts(connect(server, samples_per_request=3)) == undisturbed
        assert sorted(body.get("n", 1) for _, body in server.bodies) == [1] * 5 + [3] * 5


def test_large_seeds_can_be_cut_to_an_endpoints_range(server, connect):
    large = Prompt(Problem("p", "", ""), "", (), 2**62 + 2**31 + 5, PROMPTS[0].turns)
    texts(connect(server, seed_bits=31), [large])
    assert server.bodies[0][1]["seed"] == 5


@pytest.mark.parametrize("reply", [takes_no_n, refuses_n])
def test_without_n_samples_are_asked_for_one_by_one(reply, connect, undisturbed, caplog):
    with stand_in(reply) as server, caplog.at_level(logging.WARNING):
        engine = connect(server)
        assert texts(engine) == undisturbed
        server.bodies.clear()
        assert texts(engine) == undisturbed
        assert len(server.bodies) == 20 and all("n" not in body for _, body in server.bodies)
    assert [r.getMessage() for r in caplog.records].count(caplog.messages[0]) == 1
    assert "one by one" in caplog.text


# --- Faults that pass


FAULTS = {
    "rate limited": limited(),
    "rate limited, no wait named": limited(None),
    "out of order": failed(500),
    "overloaded": failed(503, b"<html>busy</html>", retry_after="0.05"),
    "timed out upstream": failed(408),
    "no JSON": failed(200, b'{"choices": [{"mess'),
    "no choices": failed(200, {"choices": []}),
    "no message": failed(200, {"choices": [{"index": 0}]}),
    "another thing": failed(200, ["hello"]),
    "an error in a reply of 200": failed(200, {"error": {"code": 502, "message": "bad gateway"}}),
    "a sample that was aborted": failed(
        200, {"choices": [{"message": {"content": "I"}, "finish_reason": "abort"}]}
    ),
    "dropped midway": dropped,
    "hanging": hangs,
    "dripping": dripping,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_for_and_the_samples_are_the_same(
    fault, server, connect, undisturbed
):
    server.faults = [FAULTS[fault]] * 3
    assert texts(connect(server, timeout_s=0.5)) == undisturbed
    assert len(server.bodies) == 5 + 3


def test_all_requests_wait_as_long_as_the_endpoint_asks(server, connect, undisturbed):
    server.faults = [limited("1")]
    assert texts(connect(server, concurrency=1)) == undisturbed
    pause = server.times[1] - server.times[0]
    assert pause >= 0.99, "another request was sent before the time was over"


def test_a_limit_that_lets_others_through_uses_up_no_retries(connect, undisturbed):
    """Every second request is limited: with no retry left a request may still wait its turn."""
    asked = []

    def every_second(body):
        asked.append(body)
        return answer(body) if len(asked) % 2 else limited("0")(body)

    with stand_in(every_second) as server:
        engine = connect(server, samples_per_request=1, retries=2, concurrency=4)
        assert texts(engine) == undisturbed


def test_it_ends_after_all_retries_and_says_how_to_continue(server, connect):
    server.reply = failed(503, b'{"error": {"message": "overloaded"}}')
    with pytest.raises(UserError, match=r"no answer in 3 attempts.*503 overloaded.*repeat"):
        texts(connect(server, retries=2), PROMPTS[:1])
    assert len(server.bodies) == 3


def test_a_long_wait_is_not_waited_for(server, connect):
    server.reply = limited("7200")
    with pytest.raises(UserError, match=r"asks to wait 7200 s.*slow down"):
        texts(connect(server), PROMPTS[:1])


def test_there_are_no_more_requests_at_a_time_than_allowed(connect):
    def slow(body):
        time.sleep(0.05)
        return answer(body)

    with stand_in(slow) as server:
        texts(connect(server, concurrency=3, samples_per_request=1))
        assert server.busiest == 3


def test_how_long_to_wait_is_read_in_every_form():
    at = datetime.now(UTC) + timedelta(seconds=100)
    assert requested_wait({"retry-after": "2.5"}) == 2.5
    assert requested_wait({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 95 < requested_wait({"retry-after": format_datetime(at, usegmt=True)}) <= 100
    assert requested_wait({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    for text in ("soon", "", "nan", "inf"):
        assert requested_wait({"retry-after": text}) is None
    assert requested_wait({}) is None


# --- Faults that stay


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}, "OPENAI_API_KEY must hold"),
        (403, {"message": "not your project"}, "OPENAI_API_KEY"),
        (404, {"message": "The model does not exist"}, "rollout.engine.url"),
        (
            400,
            {"message": "Unsupported: 'max_tokens', use 'max_completion_tokens'"},
            "limit_field=",
        ),
        (400, {"message": "'temperature' must be 1"}, "omit=[temperature]"),
        (400, {"message": "maximum context length is 4096"}, "lower eval.max_tokens"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "quota"),
        (402, "pay first", "402 pay first"),
    ],
)
def test_a_refusal_ends_it_at_once_with_the_endpoints_words(
    status, error, remedy, server, connect, caplog
):
    server.reply = failed(status, {"error": error})
    with pytest.raises(UserError) as ended:
        texts(connect(server), PROMPTS[:1])
    assert remedy in str(ended.value) and str(status) in str(ended.value)
    told = error if isinstance(error, str) else error["message"]
    assert told.replace(KEY, "(hidden)") in str(ended.value)
    assert KEY not in str(ended.value) + caplog.text
    assert len(server.bodies) == (2 if status == 400 else 1)  # it might have been n


def test_a_redirect_is_not_followed_with_the_key(server, connect):
    server.reply = failed(308, b"", location="https://elsewhere.example/v1")
    with pytest.raises(UserError, match=r"moved to https://elsewhere\.example/v1"):
        texts(connect(server), PROMPTS[:1])


def test_a_prompt_that_the_filter_refuses_is_a_sample_without_an_answer(server, connect, tmp_path):
    error = {"error": {"message": "flagged", "code": "content_filter"}}
    server.faults = [failed(400, error)]
    engine = connect(server, tmp_path, concurrency=1)
    found = texts(engine)
    assert sorted(map(tuple, found))[0] == ("",) * 4 and sum(map(any, found)) == 4
    assert any("content_filter 4" in line for line in engine.notes())


def test_weights_and_scores_are_refused(server, connect):
    engine = connect(server)
    for refused in (lambda: engine.load_weights([], 1), lambda: engine.logprobs(PROMPTS[0], [])):
        with pytest.raises(UserError, match="evaluation only"):
            refused()


# --- The key and the address


def test_the_key_may_be_in_another_variable_or_missing(server, connect, monkeypatch):
    monkeypatch.setenv("MY_LLM", "abc")
    texts(connect(server, key_env="MY_LLM"), PROMPTS[:1])
    texts(connect(server, key_env="NO_SUCH_VARIABLE"), PROMPTS[:1])
    sent = [{k.lower(): v for k, v in headers.items()} for headers in server.headers]
    assert sent[0]["authorization"] == "Bearer abc" and "authorization" not in sent[1]
    server.reply = failed(401, {"error": "who are you? not abc"})
    with pytest.raises(UserError) as ended:
        texts(connect(server, key_env="MY_LLM"), PROMPTS[:1])
    assert "abc" not in str(ended.value)


def test_a_key_in_the_wrong_place_is_not_shown(monkeypatch):
    for url, variable in (
        ("http://host/v1", KEY),
        (f"http://user:{KEY}@host/v1", "OPENAI_API_KEY"),
    ):
        with pytest.raises(UserError) as ended:
            Address.of(url, variable)
        assert KEY not in str(ended.value)
    monkeypatch.setenv("OPENAI_API_KEY", "line one\nline two")
    with pytest.raises(UserError, match="characters that no key has") as ended:
        Address.of("http://host/v1", "OPENAI_API_KEY")
    assert "line" not in str(ended.value)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    address = Address.of("http://host/v1", "OPENAI_API_KEY")
    assert address.key == KEY and KEY not in repr(address)


@pytest.mark.parametrize(
    ("given", "url", "query"),
    [
        ("https://api.example", "https://api.example/v1", {}),
        ("https://api.example/", "https://api.example/v1", {}),
        ("https://api.example/v1/", "https://api.example/v1", {}),
        ("https://api.example/v1/chat/completions", "https://api.example/v1", {}),
        (
            "https://h/openai/deployments/d?api-version=2",
            "https://h/openai/deployments/d",
            {"api-version": "2"},
        ),
    ],
)
def test_addresses(given, url, query):
    address = Address.of(given, "NO_KEY")
    assert (address.url, dict(address.query)) == (url, query)


@pytest.mark.parametrize(
    "given", [None, "", "api.example/v1", "ftp://x/v1", "http://", "http://[::1"]
)
def test_no_addresses(given):
    with pytest.raises(UserError, match=r"rollout\.engine\.url"):
        Address.of(given, "NO_KEY")


def test_a_query_goes_with_every_request(server, connect):
    texts(connect(f"{server.url}?api-version=7"), PROMPTS[:1])
    assert server.bodies[0][0] == "/v1/chat/completions?api-version=7"


def test_what_the_endpoint_lists(server):
    address = Address.of(server.url, "OPENAI_API_KEY")
    assert served(address, MODEL).card == {"id": MODEL, "owned_by": "maker"}  # not the time
    assert served(address, "other").names == (MODEL,) and served(address, "other").card is None
    server.models = [{"id": MODEL}]
    assert served(address, MODEL).card == {"id": MODEL}
    server.model_status = 404
    assert served(address, MODEL).names == ()
    server.model_status = 401
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        served(address, MODEL)


def test_a_host_that_does_not_answer_is_an_error_soon():
    begun = time.monotonic()
    with pytest.raises(
        UserError, match=r"http://127\.0\.0\.1:9/v1/models: no answer in 3 attempts"
    ):
        served(Address.of("http://127.0.0.1:9/v1", "NO_KEY"), MODEL)
    assert time.monotonic() - begun < 10


# --- What a reply holds


def reply_of(*choices, **usage):
    return {"choices": [{"index": i, **c} for i, c in enumerate(choices)], "usage": usage or None}


def message(content, finish="stop", **fields):
    return {"message": {"content": content, **fields}, "finish_reason": finish}


def text_of(choice):
    return choices_of(reply_of(choice))[0].text


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_that_was_split_off_is_kept_and_is_no_answer(field):
    thought = r"Perhaps \boxed{3}? No."
    whole = text_of(message(r"It is \boxed{4}.", **{field: thought}))
    assert thought in whole and extract(whole).answer == "4"
    alone = text_of(message(None, **{field: thought}))
    assert extract(alone).answer is None and not extract(alone).truncated
    cut = text_of(message("", "length", **{field: thought}))
    assert thought in cut and extract(cut).truncated
    within = text_of(message("It is", "length", **{field: thought}))
    assert extract(within).answer is None and not extract(within).truncated


def test_thinking_is_not_doubled_where_the_endpoint_also_leaves_it_in():
    text = "<think>\nhm\n</think>\n\n4"
    assert text_of(message(text, reasoning="hm")) == text


def test_content_may_be_in_parts_missing_or_refused():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "4"},
    ]
    assert text_of(message(parts)) == "<think>\nhm\n</think>\n\nIt is 4"
    assert text_of(message(None)) == text_of(message("")) == ""
    assert text_of(message(None, refusal="I will not")) == "I will not"
    assert text_of(message(None, "tool_calls", tool_calls=[{"id": 1}])) == ""


def test_ends():
    found = choices_of(
        reply_of(
            *(message("x", f) for f in ("stop", "length", "content_filter", "tool_calls", None))
        )
    )
    assert [choice.truncated for choice in found] == [False, True, False, False, False]
    assert [choice.odd_end for choice in found] == [
        *(None, None, "content_filter", "tool_calls", "no reason given"),
    ]


def test_tokens_are_the_endpoints_count_shared_by_length():
    found = choices_of(
        reply_of(*(message("x" * size) for size in (9, 19, 0)), completion_tokens=62)
    )
    assert [choice.tokens for choice in found] == [20, 40, 2]
    assert choices_of(reply_of(message("abc")))[0].tokens is None
    known = choices_of(
        reply_of({"text": "a", "token_ids": [5, 6]}, {"text": "b", "token_ids": [7]})
    )
    assert [choice.tokens for choice in known] == [2, 1] and known[0].token_ids == (5, 6)


def test_completions_have_lengths_and_no_log_probabilities(server, connect):
    (group,) = connect(server).generate(PROMPTS[:1], SAMPLING)
    assert sum(c.length for c in group.completions) == 28
    assert all(len(c.token_ids) == len(c.logprobs) == 0 for c in group.completions)


# --- Nothing is paid for twice


def test_replies_are_kept_and_only_what_is_missing_is_asked_for(connect, undisturbed, tmp_path):
    with stand_in() as server:
        engine = connect(server, tmp_path, samples_per_request=1, concurrency=2)
        groups = engine.generate(PROMPTS, SAMPLING)
        next(groups)
        groups.close()  # interrupted in the middle of other groups
        engine.close()
        lines = (tmp_path / "replies.jsonl").read_bytes().splitlines(keepends=True)
        paid = len(lines)
        assert SAMPLING.n <= paid < 20
        server.bodies.clear()
        again = connect(server, tmp_path)
        assert texts(again) == undisturbed
        asked = sum(body.get("n", 1) for _, body in server.bodies)
        assert asked == 20 - paid
        again.close()
        usage = json.loads((tmp_path / "usage.json").read_text())
        assert usage["samples"] == 20 and usage["completion_tokens"] == 7 * 20
        assert usage["models"] == {MODEL: usage["requests"]}
        server.bodies.clear()
        assert texts(connect(server, tmp_path)) == undisturbed and server.bodies == []
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_reply_that_a_kill_has_torn_is_asked_for_again(server, connect, undisturbed, tmp_path):
    engine = connect(server, tmp_path)
    texts(engine)
    engine.close()
    file = tmp_path / "replies.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    server.bodies.clear()
    engine = connect(server, tmp_path)
    assert texts(engine) == undisturbed and len(server.bodies) == 1
    engine.close()
    assert len([json.loads(line) for line in file.open()]) == 5


def test_other_settings_ask_anew(server, connect, tmp_path):
    first, second = connect(server, tmp_path), connect(server, tmp_path, extra_body={"top_k": 5})
    texts(first)
    texts(second)
    assert len(server.bodies) == 10


def test_a_full_disk_ends_it_with_a_message(server, connect, tmp_path, at_most):
    engine = connect(server, tmp_path)
    with at_most(600), pytest.raises(UserError, match=r"replies\.jsonl.*make room"):
        texts(engine)


def test_notes_tell_tokens_models_and_odd_replies(connect, tmp_path):
    def changing(body):
        status, headers, content = answer(body)
        content["model"] = f"toy-{len(server.bodies) % 2}"
        content["usage"] = None if len(server.bodies) == 1 else content["usage"]
        for choice in content["choices"]:
            choice["message"]["content"] = "the same"
        return status, headers, content

    with stand_in(changing) as server:
        engine = connect(server, tmp_path, concurrency=1)
        texts(engine)
        notes = "\n".join(engine.notes())
    assert "5 requests for 20 samples used 40 prompt tokens and 112 completion tokens" in notes
    assert "1 replies report no tokens" in notes and "toy-0, toy-1" in notes
    assert "the samples of each problem are equal" in notes


def test_the_stand_in_answers_by_seed():
    first, second = samples({"messages": ["a"], "n": 2, "seed": 3})
    (alone,) = samples({"messages": ["a"], "seed": 4})
    assert second["message"] == alone["message"] != first["message"]
