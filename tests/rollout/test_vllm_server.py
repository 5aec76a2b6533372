"""The engine against a real vLLM server process; faults come from a proxy in front of it."""

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from serving import KEY, LENGTH, serving
from small_runs import LOW_BYTES, timeless

from bandpo.errors import UserError
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.server_check import GENERATE, Requirements, faults_of
from bandpo.rollout.servers import Server
from bandpo.types import Completion, Problem, Prompt
from bandpo.weight_sync import weight_stream

pytest.importorskip("vllm")

from bandpo.rollout.vllm_server import VLLMServer

SAMPLING = Sampling(n=4, temperature=0.8, max_tokens=12)
PROMPTS = [
    Prompt(Problem(f"p{i}", "", ""), "", (3, *range(20 + i, 30 + i), 1, 4), 4096 * (i + 1))
    for i in range(6)
]


def _unspoiled(path, body, reply):
    return reply


class Front(ThreadingHTTPServer):
    """Forwards to a server; `spoil` may change or refuse (None: hang up) a reply."""

    daemon_threads = True

    def __init__(self, url: str, spoil=_unspoiled):
        super().__init__(("127.0.0.1", 0), _Forward)
        self.spoil, self.paths = spoil, []
        self.server = httpx.Client(base_url=url, timeout=60, trust_env=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Nothing: a client that hung up is part of the tests."""


class _Forward(BaseHTTPRequestHandler):
    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = ("Authorization", "Content-Type")
        headers = {name: self.headers[name] for name in kept if name in self.headers}
        reply = self.server.server.request(self.command, self.path, content=body, headers=headers)
        self.server.paths.append(self.path)
        spoiled = self.server.spoil(self.path, body, (reply.status_code, reply.content))
        if spoiled is None:
            self.close_connection = True
            return
        self.send_response(spoiled[0])
        self.send_header("Content-Length", str(len(spoiled[1])))
        self.end_headers()
        self.wfile.write(spoiled[1])

    do_GET = do_POST = _forward

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def model(untrained):
    return untrained()


@pytest.fixture(scope="module", autouse=True)
def _key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with serving(model, tmp_path_factory.mktemp("server") / "log") as (url, _):
        yield url


@pytest.fixture
def connect(model):
    """Engines on given servers, closed after the test."""
    made = []

    def connect(*urls, **arguments):
        spec = EngineSpec(str(model), max_model_len=arguments.pop("max_model_len", LENGTH))
        made.append(VLLMServer(spec, urls=list(urls), **arguments))
        return made[-1]

    yield connect
    for engine in made:
        engine.close()


@pytest.fixture
def lm(model, url, connect):
    """The model in transformers; the server has its first weights and label again afterwards."""
    from transformers import AutoModelForCausalLM

    first = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    yield AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    connect(url).load_weights(weight_stream(first), 0)
    label(url, "default")


def label(url: str, version: str) -> None:
    body = {"new_version": version}
    httpx.post(f"{url}/update_weight_version", json=body, trust_env=False).raise_for_status()


def groups(engine, prompts=PROMPTS, sampling=SAMPLING):
    found = {group.problem.id: group for group in engine.generate(prompts, sampling)}
    assert set(found) == {prompt.problem.id for prompt in prompts}
    return [found[prompt.problem.id] for prompt in prompts]


def tokens(found):
    return [[tuple(c.token_ids) for c in group.completions] for group in found]


def forced(lm, group, temperature):
    """Log-probabilities of the group's tokens by transformers, flat."""
    start, values = len(group.prompt.token_ids), []
    for completion in group.completions:
        ids = torch.tensor([[*group.prompt.token_ids, *completion.token_ids]])
        with torch.no_grad():
            logp = (lm(ids).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
        values.append(logp.gather(-1, ids[0, start:, None]).squeeze(-1))
    return torch.cat(values)


def flat(rows):
    return torch.tensor([value for row in rows for value in row])


def test_the_samples_are_those_of_the_engine_in_process(host, url, model, connect):
    """With `host`: what of this process joined no job before vLLM's engine could not afterwards."""
    from bandpo.rollout.vllm_local import VLLMLocal

    spec = EngineSpec(str(model), max_model_len=LENGTH)
    local = VLLMLocal(spec, max_num_seqs=32, enforce_eager=True)
    try:
        engine = connect(url)
        ours, theirs = groups(engine), groups(local)
        assert tokens(ours) == tokens(theirs)
        assert len({tuple(c.token_ids) for c in ours[0].completions}) == SAMPLING.n
        for a, b in zip(ours, theirs, strict=True):
            for x, y in zip(a.completions, b.completions, strict=True):
                assert (x.text, x.finish_reason) == (y.text, y.finish_reason)
            rows = [[c.logprobs for c in g.completions] for g in (a, b)]
            assert torch.allclose(flat(rows[0]), flat(rows[1]), atol=1e-5)
    finally:
        local.close()


def test_logprobs_are_the_models_at_both_temperatures(url, connect, lm):
    engine = connect(url)
    for group in groups(engine)[:2]:
        sampled = flat(c.logprobs for c in group.completions)
        assert torch.allclose(sampled, forced(lm, group, SAMPLING.temperature), atol=1e-4)
        scored = flat(engine.logprobs(group.prompt, group.completions))
        assert torch.allclose(scored, forced(lm, group, 1.0), atol=1e-4)


def test_weights_arrive_tied_head_and_all_and_cached_prefixes_go(url, connect, lm):
    engine = connect(url)
    before = groups(engine)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.3)
    engine.load_weights(weight_stream(lm), 7)
    after = groups(engine)
    assert tokens(after) != tokens(before)
    assert {c.weight_version for group in after for c in group.completions} == {7}
    for group in after[:2]:
        sampled = flat(c.logprobs for c in group.completions)
        assert torch.allclose(sampled, forced(lm, group, SAMPLING.temperature), atol=1e-4)
        scored = flat(engine.logprobs(group.prompt, group.completions))
        assert torch.allclose(scored, forced(lm, group, 1.0), atol=1e-4)
    assert not list(Path("/dev/shm").glob("bandpo-weights-*"))


def test_an_incomplete_stream_reaches_no_server(url, connect, lm):
    engine = connect(url)
    first = groups(engine)
    lacking = [item for item in weight_stream(lm) if "layers.1" not in item[0]]
    with pytest.raises(RuntimeError, match=r"the weight stream lacks .*layers\.1"):
        engine.load_weights(lacking, 1)
    assert tokens(groups(engine)) == tokens(first)


def test_samples_of_other_weights_are_refused(url, connect, lm):
    engine = connect(url)
    engine.load_weights(weight_stream(lm), 1)
    label(url, "elsewhere/1/1")
    with pytest.raises(UserError, match=r"no vLLM server is left.*\n.*elsewhere/1/1.*another run"):
        groups(engine)


def hang_up(path, body, reply):
    return None if path == GENERATE and body != b"{}" else reply


def engine_died(path, body, reply):
    return (500, b"EngineDeadError") if path == GENERATE and body != b"{}" else reply


def other_weights(path, body, reply):
    return reply[0], reply[1].replace(b'"version":"default"', b'"version":"other"')


def aborted(path, body, reply):
    return reply[0], reply[1].replace(b'"finish_reason":"length"', b'"finish_reason":"abort"')


@pytest.mark.parametrize("fault", [hang_up, engine_died, other_weights, aborted])
def test_prompts_of_a_lost_server_go_to_another(fault, url, connect, caplog):
    expected = tokens(groups(connect(url)))
    bad = Front(url, fault)
    engine = connect(bad.url, url)
    with caplog.at_level(logging.WARNING):
        assert tokens(groups(engine)) == expected
        asked = bad.paths.count(GENERATE)
        assert tokens(groups(engine)) == expected
    assert asked > 1 and bad.paths.count(GENERATE) == asked  # not asked again
    assert [r.getMessage() for r in caplog.records if bad.url in r.getMessage()]
    assert KEY not in caplog.text
    alone = connect(bad.url)
    with pytest.raises(UserError, match=f"no vLLM server is left.*\n.*{bad.url}"):
        groups(alone)


def test_a_lost_server_gets_prompts_again_once_it_took_new_weights(url, connect, lm, caplog):
    front = Front(url, hang_up)
    engine = connect(front.url, url)
    asked = lambda: front.paths.count(GENERATE)  # noqa: E731
    groups(engine)
    front.spoil = _unspoiled
    before = asked()
    groups(engine)
    assert asked() == before  # it is well again, but may have missed weights
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.3)
    with caplog.at_level(logging.WARNING):
        engine.load_weights(weight_stream(lm), 1)
    assert f"in use again: {front.url}" in caplog.text
    told = [path for path in front.paths if path.startswith(("/pause", "/collective_rpc", "/res"))]
    assert [p.split("?")[0] for p in told[-4:]] == [
        *("/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"),
    ]
    before = asked()
    found = groups(engine)
    assert asked() > before
    for group in found[:2]:
        sampled = flat(c.logprobs for c in group.completions)
        assert torch.allclose(sampled, forced(lm, group, SAMPLING.temperature), atol=1e-4)


def test_a_server_that_came_back_unfit_or_not_at_all_stays_out(url, connect, lm, caplog):
    def other_settings(path, body, reply):
        return reply[0], reply[1].replace(b'"processed_logprobs"', b'"raw_logprobs"')

    back, gone = Front(url, hang_up), Front(url, hang_up)
    engine = connect(back.url, gone.url, url)
    many = [Prompt(Problem(f"q{i}", "", ""), "", PROMPTS[0].token_ids, 4096 * i) for i in range(8)]
    groups(engine, many)
    assert engine.replicas == 1
    back.spoil = other_settings
    gone.spoil = lambda path, body, reply: (503, b"") if path == "/health" else reply
    with caplog.at_level(logging.WARNING):
        engine.load_weights(weight_stream(lm), 1)
    assert "still not used" in caplog.text and "--logprobs-mode processed_logprobs" in caplog.text
    assert engine.replicas == 1 and not any(p.startswith("/pause") for p in gone.paths)


def test_a_probe_reaches_every_server_however_many(url, connect, monkeypatch):
    """Two ranks with one completion more than fits: between them each of three servers is asked."""
    fronts = [Front(url) for _ in range(3)]
    answer = Completion("", (30, 31, 32), (0.0,) * 3, "stop")
    for rank in range(2):
        engine = connect(*[front.url for front in fronts])
        monkeypatch.setattr(engine, "_ranks", SimpleNamespace(rank=rank, size=2))
        engine.logprobs(PROMPTS[0], [answer] * 2)  # ceil(3 servers / 2 ranks)
    asked = [front.paths.count(GENERATE) - 2 for front in fronts]  # both checked it once
    assert sorted(asked) == [1, 1, 2]


def test_prompts_are_spread_and_wait_for_room(url, connect):
    fronts = [Front(url), Front(url)]
    engine = connect(*[front.url for front in fronts])
    many = [Prompt(Problem(f"q{i}", "", ""), "", PROMPTS[0].token_ids, 4096 * i) for i in range(12)]
    sampling = Sampling(n=16, max_tokens=4)  # 32 run at once, 64 may be open
    most = [0]
    for front in fronts:
        server = next(s for s in engine._pool.servers if s.url == front.url)
        front.spoil = lambda p, b, r, s=server: most.append(s.open) or r
    groups(engine, many, sampling)
    counts = [front.paths.count(GENERATE) - 1 for front in fronts]
    assert sum(counts) == 12 and min(counts) >= 4
    assert max(most) == 64


def test_a_consumer_that_gives_up_leaves_nothing_open(url, connect):
    engine = connect(url)
    iterator = engine.generate(PROMPTS, SAMPLING)
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 10
    while any(server.open for server in engine._pool.servers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(groups(engine)) == len(PROMPTS)


def _faults(url, required):
    """The faults of one server."""

    async def found():
        server = Server(url, KEY, 60)
        try:
            return await faults_of(server, required)
        finally:
            await server.close()

    return asyncio.run(found())


def test_what_a_server_lacks_is_told_with_the_flag_to_add(url, model, connect, monkeypatch):
    def wrong(path, body, reply):
        status, content = reply
        if path.startswith("/server_info"):
            info = json.loads(content)
            info["vllm_config"]["model_config"] |= {
                "logprobs_mode": "raw_logprobs",
                "dtype": "torch.bfloat16",
                "skip_tokenizer_init": True,
            }
            info["vllm_config"]["scheduler_config"]["enable_chunked_prefill"] = True
            content = json.dumps(info).encode()
        if path == "/is_paused":
            content = b'{"is_paused": true}'
        return (403, b"{}") if path == GENERATE else (status, content)

    def no_dev_mode(path, body, reply):
        return (404, b"{}") if path in ("/weight_info", "/is_paused") else reply

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        urls = [Front(url, wrong).url, Front(url, no_dev_mode).url, nobody]
        with pytest.raises(UserError) as raised:
            connect(*urls, max_model_len=4096, model="other/model")
    message = str(raised.value)
    for part in (
        "--logprobs-mode processed_logprobs",
        "--dtype float32",
        "without --skip-tokenizer-init",
        "--no-enable-chunked-prefill",
        "--enable-scale-out",
        "--max-model-len 4096",
        "--model other/model",
        "is paused",
        f"{urls[1]}: was started without VLLM_SERVER_DEV_MODE=1",
        f"{nobody}: does not answer",
    ):
        assert part in message
    required = Requirements(str(model), "float32", LENGTH, transfer="ipc")
    faults = _faults(url, required)
    assert [fault for fault in faults if "--weight-transfer-config" in fault]
    assert [fault for fault in faults if "VLLM_ALLOW_INSECURE_SERIALIZATION=1" in fault]
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    with pytest.raises(UserError, match="wants an API key: set VLLM_API_KEY"):
        connect(url)


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        ([], "give a list"),
        (["127.0.0.1:8000"], "is not like http://127.0.0.1:8000"),
        (["http://[1"], "rollout.engine.urls"),
        (["http://127.0.0.1:1", "http://127.0.0.1:1/"], "listed twice"),
    ],
)
def test_bad_urls(urls, reason, connect):
    with pytest.raises(UserError, match=reason):
        connect(*urls)


def test_public_addresses_are_warned_of(caplog):
    from bandpo.rollout.server_check import normalised

    with caplog.at_level(logging.WARNING):
        normalised(["http://10.0.0.7:8000", "http://localhost:8000"])
        assert caplog.text == ""
        normalised(["http://8.8.8.8:8000/"])
    assert "http://8.8.8.8:8000 is not a private address" in caplog.text


def test_a_group_larger_than_the_servers_batch_and_a_missing_folder(url, connect):
    with pytest.raises(UserError, match=r"33 samples per prompt.*--max-num-seqs"):
        groups(connect(url), sampling=Sampling(n=33))
    with pytest.raises(UserError, match=r"rollout\.engine\.exchange=/not/there"):
        connect(url, exchange="/not/there")


@pytest.mark.parametrize("named", [True, False])
def test_a_server_of_another_user_may_read_what_is_in_a_named_folder(tmp_path, monkeypatch, named):
    from bandpo.rollout import weight_exchange

    found = []

    def post_all(path, body=None, **query):
        if path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            found.extend(p.stat().st_mode & 0o777 for p in (folder, *folder.iterdir()))

    monkeypatch.setattr(weight_exchange, "SHARED_MEMORY", tmp_path)
    exchange = weight_exchange.FolderExchange(str(tmp_path), str(tmp_path) if named else None)
    pool = SimpleNamespace(commands=True, post_all=post_all)
    exchange.send(iter([("w", torch.zeros(2))]), pool, "run/1")
    assert found == [0o755, 0o644] if named else found[0] == 0o700


def test_streams_are_written_in_buckets(tmp_path):
    from safetensors.torch import load_file

    from bandpo.rollout.weight_exchange import write_weights

    stream = [(f"w{i}", torch.full((10,), float(i))) for i in range(7)]
    stream.append(("tied", stream[0][1]))
    assert write_weights(stream, tmp_path, bucket_bytes=100) == {name for name, _ in stream}
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    read = {k: v for path in files for k, v in load_file(path).items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in stream)


def training(model, folder, *overrides):
    """The arguments of a small training run."""
    return [
        "train",
        "policy=embedded",
        f"model.path={model}",
        f"run.dir={folder}",
        "method=grpo",
        "rollout.prompts_per_step=4",
        "rollout.group_size=8",
        "rollout.max_tokens=8",
        "data.max_prompt_tokens=64",
        "learner.updates_per_rollout=1",
        "eval.benchmarks=[]",
        *LOW_BYTES,
        *overrides,
    ]


def test_bandpo_eval_on_a_running_server(url, model, tmp_path, bandpo):
    bandpo(
        "eval",
        "rollout=vllm_server",
        f"rollout.engine.urls=[{url}]",
        f"model={model}",
        "benchmarks=[arithmetic]",
        "eval.template=none",
        "eval.max_tokens=8",
        "eval.n=2",
        "eval.limit=4",
        f"out={tmp_path}",
    )
    lines = (tmp_path / "arithmetic.jsonl").read_text().splitlines()
    assert len(lines) == 8
    settings = json.loads((tmp_path / "arithmetic.settings.json").read_text())
    assert settings["engine"] == "vllm_server"
    assert KEY not in "".join(p.read_text() for p in tmp_path.iterdir() if p.is_file())


@pytest.mark.slow
def test_five_steps_are_the_same_wherever_engine_and_learner_run(tmp_path, capsys, bandpo):
    """One rank, two ranks with ZeRO-3, and these with a server: the embedded policy, float32."""
    from bandpo.model.source import find_model

    policy = Path(find_model("embedded", 0).path)
    settings = [
        "train",
        "reward.timeout=60",  # the machine may be busy
        "trainer.steps=5",
        "rollout.prompts_per_step=8",
        "rollout.group_size=8",
        "data.max_prompt_tokens=64",
        "learner.updates_per_rollout=1",
        "learner.epochs_per_rollout=2",  # the second pass is off policy
        "eval.benchmarks=[]",
    ]
    in_process = ("rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=32")

    def run(name, *overrides, ranks=1):
        bandpo(*settings, *overrides, f"run.dir={tmp_path / name}", ranks=ranks)
        return timeless(tmp_path / name)[1:]

    one = run("one", *in_process)
    two = run("two", *in_process, "learner.zero_stage=3", ranks=2)
    with serving(policy, tmp_path / "log") as (server, _):
        apart = ("rollout=vllm_server", f"rollout.engine.urls=[{server}]", "learner.zero_stage=3")
        three = run("three", *apart, ranks=2)

    assert [line["step"] for line in one] == [1, 2, 3, 4, 5]
    names = ("reward/mean", "loss/policy", "grad/norm", "policy/entropy", "length/mean")
    gaps = {
        name: max(
            abs(other[name] - line[name])
            for others in (two, three)
            for line, other in zip(one, others, strict=True)
        )
        for name in names
    }
    with capsys.disabled():
        print(f"\nlargest difference of a step between placements: {gaps}")
    assert max(gaps.values()) < 1e-4
    # Something was learned from, and what was compared is not zero.
    assert all(line["grad/norm"] > 0 and abs(line["loss/policy"]) > 1e-4 for line in one)
    assert len({line["reward/mean"] for line in one}) > 1


@pytest.mark.slow
def test_a_server_killed_in_a_rollout_costs_nothing(url, model, connect, tmp_path):
    prompts = [
        Prompt(Problem(f"q{i}", "", ""), "", PROMPTS[0].token_ids, 4096 * i) for i in range(24)
    ]
    sampling = Sampling(n=16, max_tokens=96)
    expected = tokens(groups(connect(url), prompts, sampling))
    with serving(model, tmp_path / "log") as (second, process):
        engine = connect(second, url)
        found = {}
        for group in engine.generate(prompts, sampling):
            found[group.problem.id] = group
            if len(found) == 2:
                os.killpg(process.pid, signal.SIGKILL)
        assert second in [server.url for server in engine._pool.lost]
    assert tokens([found[prompt.problem.id] for prompt in prompts]) == expected


@pytest.mark.slow
def test_a_run_outlives_one_of_two_servers_and_resumes_after_its_only_one(
    url, model, bandpo, tmp_path
):
    """Servers are killed in the middle of the second step's rollout."""
    settings = ("rollout=vllm_server", "trainer.steps=3", "trainer.checkpoint_every=1")

    def run(folder, *urls, code=0):
        urls = f"rollout.engine.urls=[{','.join(urls)}]"
        done = bandpo(*training(model, folder, *settings, urls), code=code)
        return done.stdout + done.stderr

    def steps_of(folder):
        return timeless(folder) if (folder / "metrics.jsonl").exists() else []

    def front_of(folder, server, process):
        """Kills its server at the second request for samples after the first step."""
        asked = []

        def kill(path, body, reply):
            if path == GENERATE and len(steps_of(folder)) == 2:
                asked.append(path)
                if len(asked) == 2:
                    os.killpg(process.pid, signal.SIGKILL)
                    return None
            return reply

        return Front(server, kill)

    run(tmp_path / "whole", url)
    whole = timeless(tmp_path / "whole")
    assert [line["step"] for line in whole] == [0, 1, 2, 3]

    with serving(model, tmp_path / "first") as (server, process):
        front = front_of(tmp_path / "two", server, process)
        said = run(tmp_path / "two", front.url, url)
        assert process.poll() is not None and f"server lost: {front.url}" in said
    assert timeless(tmp_path / "two") == whole

    with serving(model, tmp_path / "second") as (server, process):
        front = front_of(tmp_path / "only", server, process)
        said = run(tmp_path / "only", front.url, code=2)
        assert process.poll() is not None
    assert "no vLLM server is left; start one again and repeat the command" in said
    assert front.url in said and "Traceback" not in said
    assert timeless(tmp_path / "only") == whole[:2]
    with serving(model, tmp_path / "again") as (server, _):
        front.server, front.spoil = httpx.Client(base_url=server, timeout=60), _unspoiled
        run(tmp_path / "only", front.url)
    assert timeless(tmp_path / "only") == whole


def test_the_probe_takes_reference_answers(url, connect, lm):
    prompt = PROMPTS[0]
    answer = Completion("", (30, 31, 32), (0.0,) * 3, "stop")
    scored = connect(url).logprobs(prompt, [answer] * 4)
    assert len(scored) == 4 and all(row == pytest.approx(scored[0], abs=1e-5) for row in scored)
