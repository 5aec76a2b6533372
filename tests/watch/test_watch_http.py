"""The server answers on loopback, to its own names, to GET and HEAD alone, and writes nothing."""

import gzip
import http.client
import json
import re
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest
from interruptible import interruptible
from watched_runs import HOSTILE, line, unusual_numbers, write_lines, write_run

import bandpo.watch
from bandpo import cli
from bandpo.errors import UserError
from bandpo.watch.api import Api
from bandpo.watch.runs import Library
from bandpo.watch.server import _PAGE, PORTS_TRIED, Server

PAGE = Path(bandpo.watch.__file__).parent / "page"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_run(root / "grpo-0")
    write_run(root / "deep er/ü&?#/band-0", method="band_kl")
    write_run(root / "strange")
    write_lines(root / "strange/metrics.jsonl", unusual_numbers())
    return root


@pytest.fixture(scope="module")
def server(root):
    with Server(Api(Library(root)), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def get(server):
    """(status, headers, body) of a request of a browser that has the key."""

    def get(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {"Cookie": f"{server.cookie}={server.key}"} | headers
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.getheader("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return answer.status, dict(answer.getheaders()), body

    return get


@pytest.fixture
def ask(get):
    """The answer to a question, which must be JSON as browsers read it."""

    def ask(question, **parameters):
        status, headers, body = get(f"/api/{question}?{urlencode(parameters, doseq=True)}")
        assert status == 200 and headers["Content-Type"] == "application/json", body
        return json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return ask


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_question_is_answered_and_no_file_is_touched(root, ask):
    before = contents(root)
    runs = ask("runs")["runs"]
    assert {run["id"] for run in runs} == {"grpo-0", "deep er/ü&?#/band-0", "strange"}
    for id in (run["id"] for run in runs):
        curves = ask("curves", run=id, metric=["reward/mean", "no/such"], x="hours")
        assert set(curves["runs"][id]) == {"reward/mean"}
        assert set(curves["runs"][id]["reward/mean"]) == {"x", "mean", "step", "last"}
        assert len(ask("clipping", run=id, last=3)[id]) == 4
        assert ask("sources", run=id)[0] == {"of": "train", "step": 2}
        assert ask("samples", run=id, step=2)["total"] == len(HOSTILE) + 2
        assert ask("sample", run=id, step=2, line=0)["completion"] == HOSTILE["script"]
        assert ask("problems", run=id)["total"] == 3
        assert ask("log", run=id)["lines"]
    labels = ask("settings", run=["grpo-0", "deep er/ü&?#/band-0"])["labels"]
    assert labels["grpo-0"] == {"method.name": "grpo"}
    assert contents(root) == before


def test_hostile_texts_arrive_whole(ask):
    texts = [s["completion"] for s in ask("samples", run="grpo-0", step=2)["samples"]]
    for name in ("script", "image", "link", "mathml", "quotes", "end of a text field"):
        assert HOSTILE[name] in texts
    assert "NUL ‹U+0000›, bell ‹U+0007›" in " ".join(texts)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\0]", "".join(texts))
    assert any("\ufffd\ufffd UTF-8" in text for text in texts)


@pytest.mark.parametrize("name", sorted(_PAGE))
def test_parts_of_the_page_are_sent_with_headers_that_forbid_all_else(name, get):
    status, headers, body = get(name)
    assert status == 200 and body
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'self'" and policy["trusted-types"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert int(headers["Content-Length"]) == len(body)


def test_every_file_of_the_page_is_sent_and_nothing_is_written_into_it_as_html():
    there = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    sent = {name for package, name in _PAGE.values() if package == "bandpo.watch"}
    assert {f"page/{name}" for name in there} - sent == {"page/vendor/NOTICE"}
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    )
    for path in PAGE.glob("*.js"):
        assert not re.search(dangerous, path.read_text()), path
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"<script>|style=| on\w+=|https?:", index)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../../etc/passwd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/server.py", 404),
        ("/vendor/../../server.py", 404),
        ("/api/log?run=../../etc", 404),
        ("/api/log?run=/etc", 404),
        ("/api/log", 404),
        ("/api/nothing", 404),
        ("/api/samples?run=grpo-0&of=../../grpo-0/metrics&step=2", 404),
        ("/api/samples?run=grpo-0&of=%00&step=2", 404),
        ("/api/samples?run=grpo-0&step=-1", 400),
        ("/api/samples?run=grpo-0&step=999", 404),
        ("/api/samples?run=grpo-0&step=2&least=many", 400),
        ("/api/clipping?run=grpo-0&measure=nonsense", 400),
        ("/api/curves?" + "&".join(f"run=r{i}" for i in range(40)), 400),
        ("/api/problems?run=grpo-0&of=nothing", 404),
    ],
)
def test_what_is_not_there_is_refused_in_words(path, status, get):
    found, _, body = get(path)
    assert found == status and json.loads(body)["error"]
    assert "root:" not in body.decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_get_and_head_are_allowed(method, get):
    status, headers, _ = get("/api/runs", method=method)
    assert status == 405 and headers["Allow"] == "GET, HEAD"


def test_head_has_the_headers_alone(get):
    status, headers, body = get("/", method="HEAD")
    assert status == 200 and body == b"" and int(headers["Content-Length"]) > 500


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "[::1]:8642"])
def test_names_of_this_machine_at_any_end_of_a_tunnel_are_answered(host, get):
    assert get("/api/runs", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8642", "127.0.0.1.x", ""])
def test_other_names_that_lead_here_are_refused(host, get):
    status, _, body = get("/api/runs", Host=host)
    assert status == 403 and b"grpo" not in body


def test_other_sites_get_no_answers(get):
    assert get("/api/runs", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert get("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/runs", "/api/log?run=grpo-0", "/nothing"])
@pytest.mark.parametrize("cookie", ["", "{name}=", "{name}=wrong", "other={key}", "{name}=ü"])
def test_who_has_no_key_gets_nothing(path, cookie, server, get):
    cookie = cookie.format(name=server.cookie, key=server.key)
    for address in (path, f"{path}{'&' if '?' in path else '?'}key=wrong"):
        status, headers, body = get(address, Cookie=cookie)
        assert status == 403 and "printed" in json.loads(body)["error"], address
        assert "Set-Cookie" not in headers and server.key.encode() not in body


def test_the_printed_address_leaves_the_key_in_a_cookie(server, get):
    path = server.address.partition(f":{server.port}")[2]
    status, headers, body = get(path, Cookie="")
    assert (status, headers["Location"], body) == (303, "/", b"")
    kept, *attributes = headers["Set-Cookie"].split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
    # Cookies of other programs on this host, of which not all are as the standard would have them.
    assert get("/api/runs", Cookie=f'a="; {kept}; _xsrf=2|b@{{}}=')[0] == 200


def test_two_pages_in_one_browser_keep_both_keys(root, server):
    with Server(Api(Library(root)), 0) as other:
        assert other.key != server.key and other.cookie != server.cookie


def test_an_answer_that_has_not_changed_is_not_sent_again(root, get):
    path = "/api/curves?run=grpo-0&metric=reward%2Fmean"
    _, headers, body = get(path, Accept_Encoding="gzip")
    assert len(json.loads(body)["runs"]["grpo-0"]["reward/mean"]["x"]) == 5
    status, _, nothing = get(path, If_None_Match=headers["ETag"])
    assert status == 304 and nothing == b""
    metrics = root / "grpo-0/metrics.jsonl"
    before = metrics.read_bytes()
    with metrics.open("a") as file:
        file.write(json.dumps(line(5)) + "\n" + '{"step": 6, "rew')
    status, _, body = get(path, If_None_Match=headers["ETag"])
    assert status == 200 and len(json.loads(body)["runs"]["grpo-0"]["reward/mean"]["x"]) == 6
    metrics.write_bytes(before)


def test_it_listens_on_loopback_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_gives_way_to_the_next_one(root, server, monkeypatch):
    with Server(Api(Library(root)), server.port) as other:
        assert 0 < other.port - server.port < PORTS_TRIED
    monkeypatch.setattr("bandpo.watch.server.PORTS_TRIED", 1)
    with pytest.raises(UserError, match="--port 0"):
        Server(Api(Library(root)), server.port)


def test_a_bad_request_line_ends_the_connection(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"Bad Request" in connection.recv(1000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["no/such"], "no such folder"), (["--port", "70000", "."], "between 0 and 65535")],
)
def test_bad_arguments_are_answered_in_words(arguments, words, capsys):
    assert cli.main(["watch", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_command_names_the_address_and_ends_quietly(root):
    process = interruptible("watch", str(root), "--port", "0")
    lines = []
    while not lines or not lines[-1].startswith("Ctrl-C"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    text = "".join(lines)
    port, key = re.search(r"http://127\.0\.0\.1:(\d+)/\?key=(\S+)\n", text).groups()
    assert text.startswith("3 runs in ") and f"ssh -N -L {port}:127.0.0.1:{port} " in text
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    connection.request("GET", f"/?key={key}")
    entered = connection.getresponse()
    entered.read()
    cookie = entered.getheader("Set-Cookie").partition(";")[0]
    connection.request("GET", "/api/runs", headers={"Cookie": cookie})
    assert len(json.loads(connection.getresponse().read())["runs"]) == 3
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.strip(), err) == (0, "", "")
