"""The page and its answers over HTTP: on loopback, for whoever has the key, read-only."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import bandpo
from bandpo.errors import UserError
from bandpo.redaction import redact
from bandpo.watch.api import Api, NotFound, Query

HOST = "127.0.0.1"
PORT = 8642
PORTS_TRIED = 20
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
"""Names that a browser on this machine, or at the end of a tunnel, calls it by."""
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_PAGE: Mapping[str, tuple[str, str]] = {
    "/": ("bandpo.watch", "page/index.html"),
    "/page.css": ("bandpo.evaluation", "page.css"),  # the style of reports
    **{
        f"/{name}": ("bandpo.watch", f"page/{name}")
        for name in (
            "watch.css",
            "icon.svg",
            "main.js",
            "state.js",
            "dom.js",
            "api.js",
            "runs.js",
            "one_run.js",
            "chart.js",
            "curves.js",
            "clipping.js",
            "samples.js",
            "problems.js",
            "settings.js",
            "log.js",
            "vendor/uPlot.iife.min.js",
            "vendor/uPlot.min.css",
        )
    },
}
_HEADERS = {
    # Texts become nodes of text alone: assigning HTML or code from a text raises in the browser.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_WORTH_PACKING = 2000  # bytes


class Server(ThreadingHTTPServer):
    """Answers on loopback alone; `port` 0 takes any that is free.

    Other users of the machine reach loopback too, so that a browser must once show the key of
    `address`; from then on a cookie does. Raises UserError where none of `PORTS_TRIED` ports from
    `port` on is free.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, api: Api, port: int = PORT) -> None:
        self.api, self.key = api, secrets.token_urlsafe(16)
        # Cookies are shared by all ports of a host, and a tunnel may end at any: named by the key.
        self.cookie = f"bandpo-{hashlib.blake2b(self.key.encode(), digest_size=6).hexdigest()}"
        last = min(port + PORTS_TRIED, 65536) if port else 1
        for candidate in range(port, last):
            try:
                super().__init__((HOST, candidate), _Handler)
                return
            except OSError as error:
                refusal = error.strerror
        raise UserError(
            f"--port {port}: {refusal}, nor is one of the next free; --port 0 finds one"
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """The URL, with the key, that a browser opens first."""
        return f"http://{HOST}:{self.port}/?key={self.key}"

    def knows(self, key: str) -> bool:
        """Whether this is its key."""
        return hmac.compare_digest(key.encode(), self.key.encode())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection early is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"bandpo/{bandpo.__version__}"
    sys_version = ""
    timeout = 60  # seconds without a request, after which a connection ends

    def do_GET(self) -> None:
        """Answers a request for the page, one of its parts, or a question."""
        if not self._comes_from_here():
            self._refuse(HTTPStatus.FORBIDDEN, "open this page as http://localhost or 127.0.0.1")
            return
        path, _, query = self.path.partition("?")
        if path == "/" and self.server.knows(parse_qs(query).get("key", [""])[0]):
            self._enter()
        elif not self.server.knows(self._cookie()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the whole address that bandpo watch printed")
        elif path.startswith("/api/"):
            self._answer(path.removeprefix("/api/"), query)
        elif path in _PAGE:
            package, name = _PAGE[path]
            content = files(package).joinpath(name).read_bytes()
            kind = _TYPES[name.rpartition(".")[2]]
            self._send(HTTPStatus.OK, content, kind, _tag(content))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    do_HEAD = do_GET

    def _comes_from_here(self) -> bool:
        """Whether the page was asked for under a name of this machine's own.

        Another name that leads here is a stranger's page that would read the answers (DNS
        rebinding); one that asks across sites gets nothing either. A tunnel may have any port.
        """
        host = self.headers.get("Host", "").rpartition(":")
        name = host[0] if host[0] and host[2].isdecimal() else self.headers.get("Host", "")
        across = self.headers.get("Sec-Fetch-Site", "none") == "cross-site"
        navigates = self.headers.get("Sec-Fetch-Mode") == "navigate"
        return name.lower() in _HOSTS and (not across or navigates)

    def _cookie(self) -> str:
        parts = (part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";"))
        return next((value for name, _, value in parts if name == self.server.cookie), "")

    def _enter(self) -> None:
        """Keeps the key in a cookie, and out of the address that is seen and copied."""
        kept = f"{self.server.cookie}={self.server.key}; Path=/; HttpOnly; SameSite=Lax"
        more = {"Location": "/", "Set-Cookie": kept}
        self._send(HTTPStatus.SEE_OTHER, b"", _TYPES["html"], **more)

    def _answer(self, question: str, text: str) -> None:
        try:
            query = Query(parse_qs(text, keep_blank_values=True, max_num_fields=200))
            version = self.server.api.version(question, query)
            tag = version and _tag(f"{text} {version}".encode())
            if tag and self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, b"", _TYPES["json"], tag)
                return
            content = json.dumps(self.server.api.answer(question, query), allow_nan=False).encode()
            self._send(HTTPStatus.OK, content, _TYPES["json"], tag or _tag(content))
        except NotFound as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except (UserError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        content = json.dumps({"error": redact(reason)}).encode()
        self._send(status, content, _TYPES["json"])

    def _send(
        self, status: HTTPStatus, content: bytes, kind: str, tag: str = "", **more: str
    ) -> None:
        if tag and self.headers.get("If-None-Match") == tag:
            status, content = HTTPStatus.NOT_MODIFIED, b""
        packed = len(content) > _WORTH_PACKING and "gzip" in self.headers.get("Accept-Encoding", "")
        if packed:
            content = gzip.compress(content, compresslevel=3, mtime=0)
        self.send_response(status)
        headers = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}
        headers |= more | ({"ETag": tag} if tag else {})
        headers |= {"Allow": "GET, HEAD"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        headers |= {"Content-Encoding": "gzip"} if packed else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refusals of the library's, such as of another method than GET and HEAD, as JSON."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == 501 else HTTPStatus(code)
        self.close_connection = True
        if not hasattr(self, "headers"):
            self.headers = self.MessageClass()
        self._refuse(status, status.phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not reported."""


def _tag(content: bytes) -> str:
    return f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
