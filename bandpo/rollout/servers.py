"""vLLM API servers as one pool: the least loaded is asked, a lost one is not until it is back."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal

from bandpo.errors import UserError

log = logging.getLogger(__name__)

# A server gets up to this many times the samples that it runs at once, so that it does not idle
# between groups; the rest go to whichever server is free first.
_QUEUED = 2
_CONNECT_RETRIES = 2
_CONNECT_TIMEOUT_S = 5.0
# Before every weight sync lost servers have this long to report that they are healthy, and then to
# pass the check: an engine that hangs must not hold up the others for long. One that has just
# started first collects facts from pip, compilers and the driver (/server_info).
_HEALTH_TIMEOUT_S = 2.0
_FITNESS_TIMEOUT_S = 60.0
# Below the 5 s after which vLLM closes idle connections: one that is closed while a request is on
# its way would look like a dead server.
_KEEPALIVE_S = 2.0


class ServerLost(Exception):
    """A server cannot be used; the message is the reason."""


class Server:
    """One API server, and how many samples are requested of it."""

    def __init__(
        self, url: str, api_key: str | None, timeout_s: float, through_proxies: bool = False
    ) -> None:
        """`through_proxies`: those that the environment names, on the way to the internet."""
        self.url = url
        self.slots = 1  # samples that it generates at once; set when the server is checked
        self.open = 0  # samples requested and not yet received
        limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_S)
        # Weights and samples take no detour through a proxy.
        transport = (
            None
            if through_proxies
            else httpx.AsyncHTTPTransport(
                retries=_CONNECT_RETRIES,
                limits=limits,
                # Notices a machine that vanished without closing its connections.
                socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
                trust_env=False,
            )
        )
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            limits=limits,
            transport=transport,
        )

    @property
    def load(self) -> float:
        """Open samples per slot."""
        return self.open / self.slots

    def takes(self, samples: int) -> bool:
        """Whether it should get so many more samples now."""
        return self.open == 0 or self.open + samples <= _QUEUED * self.slots

    async def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """The reply, whatever its status; raises ServerLost where there is none."""
        try:
            return await self._client.request(method, path, **arguments)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerLost(f"{path}: {reason}") from error

    async def post(self, path: str, body: Any = None, **query: str) -> Any:
        """The JSON of a successful reply.

        Raises ServerLost where the server failed (5xx), RuntimeError where it refused (4xx).
        """
        return self._content(path, await self.request("POST", path, json=body, params=query))

    async def get(self, path: str) -> Any:
        """The JSON of a successful reply; raises as `post` does."""
        return self._content(path, await self.request("GET", path))

    def _content(self, path: str, reply: httpx.Response) -> Any:
        if reply.is_server_error:
            raise ServerLost(f"{path}: {reply.status_code} {reply.text[:500]}")
        if reply.is_error:
            raise RuntimeError(f"{self.url}{path}: {reply.status_code} {reply.text[:500]}")
        return reply.json()

    async def is_up(self) -> bool:
        """Whether it reports itself healthy within two seconds."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                return (await self.request("GET", "/health")).is_success
        except (ServerLost, TimeoutError):
            return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


class ServerPool:
    """Servers that hold the same weights: requests are spread over them, commands go to all.

    Its methods are called from outside `portal`, in whose event loop all requests run. With
    several ranks only the one that `commands` pauses servers and replaces their weights: on the
    others the commands, from `readmit` to `post_each`, do nothing.
    """

    def __init__(
        self, servers: Sequence[Server], portal: BlockingPortal, commands: bool = True
    ) -> None:
        self.servers = tuple(servers)
        self.lost: dict[Server, str] = {}
        self.commands = commands
        self._portal = portal
        self._room = asyncio.Condition()

    @property
    def alive(self) -> list[Server]:
        """The servers in use; raises UserError when none is left."""
        alive = [server for server in self.servers if server not in self.lost]
        if not alive:
            raise UserError.join(
                "rollout.engine.urls: no vLLM server is left; start one again and repeat the "
                "command, a training run resumes from its last checkpoint:",
                list(self.lost.values()),
            )
        return alive

    @property
    def slots(self) -> dict[str, int]:
        """Samples that each server in use generates at once, by URL."""
        return {server.url: server.slots for server in self.alive}

    def use_only(self, slots: Mapping[str, int]) -> None:
        """Uses exactly the servers that have the weights, as the rank that sent them reports."""
        self.lost = {
            server: self.lost.get(server, f"{server.url}: did not take the weights")
            for server in self.servers
            if server.url not in slots
        }
        for server in self.alive:
            server.slots = slots[server.url]

    # --- Requests, each to one server ---

    def submit(
        self,
        path: str,
        body: Mapping[str, Any],
        samples: int,
        read: Callable[[Any], Any],
        first: Server | None = None,
    ) -> Future[Any]:
        """The value of `read` for the reply to a request for so many samples.

        `read` raises ServerLost for a reply that must not be used. A request whose server is lost
        goes to another one: its seed travels with it, and so its samples are the same. `first` is
        asked before others where it has room.
        """
        return self._portal.start_task_soon(self._ask, path, body, samples, read, first)

    async def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        samples: int,
        read: Callable[[Any], Any],
        first: Server | None,
    ) -> Any:
        while True:
            server = await self._reserve(samples, first)
            try:
                return read(await server.post(path, body))
            except ServerLost as loss:
                self._lose(server, loss)
            finally:
                server.open -= samples
                async with self._room:
                    self._room.notify_all()

    async def _reserve(self, samples: int, first: Server | None) -> Server:
        """`first` or else the least loaded server, as soon as one takes the samples."""
        async with self._room:
            while not (free := [server for server in self.alive if server.takes(samples)]):
                await self._room.wait()
            server = first if first in free else min(free, key=lambda s: s.load)
            server.open += samples
            return server

    def _lose(self, server: Server, loss: ServerLost) -> None:
        if server not in self.lost:
            self.lost[server] = f"{server.url}: {loss}"
            log.warning("vLLM server lost: %s", self.lost[server])

    # --- Commands, to every server ---

    def readmit(self, faults_of: Callable[[Server], Awaitable[list[str]]]) -> None:
        """Takes lost servers back that are up again and have no faults; they need the weights."""

        async def readmit_one(server: Server) -> None:
            if not await server.is_up():
                return
            try:
                async with asyncio.timeout(_FITNESS_TIMEOUT_S):
                    faults = await faults_of(server)
            except TimeoutError:
                faults = ["its engine does not answer"]
            if faults:
                self.lost[server] = f"{server.url}: is up again, but {faults[0]}"
                log.warning("vLLM server still not used: %s", self.lost[server])
            else:
                del self.lost[server]
                log.warning("vLLM server in use again: %s", server.url)

        async def readmit_all() -> None:
            await asyncio.gather(*map(readmit_one, list(self.lost)))

        if self.commands:
            self._portal.call(readmit_all)

    def get_all(self, path: str) -> dict[str, Any]:
        """Every server's reply to a GET, by URL."""
        return self._of_each(lambda server: server.get(path))

    def post_all(self, path: str, body: Any = None, **query: str) -> list[Any]:
        """Every server's reply to the same POST."""
        return list(self._of_each(lambda server: server.post(path, body, **query)).values())

    def post_each(self, path: str, bodies: Mapping[str, Any]) -> None:
        """A POST to every server with its own body, by URL."""
        self._of_each(lambda server: server.post(path, bodies[server.url]))

    def _of_each(self, call: Callable[[Server], Awaitable[Any]]) -> dict[str, Any]:
        """The call's result for every server in use, by URL, without those that it loses."""

        async def called(server: Server) -> Any:
            try:
                return await call(server)
            except ServerLost as loss:
                self._lose(server, loss)

        async def call_all() -> dict[str, Any]:
            servers = self.alive
            replies = await asyncio.gather(*map(called, servers))
            return {s.url: r for s, r in zip(servers, replies, strict=True) if s in self.alive}

        return self._portal.call(call_all) if self.commands else {}

    def close(self) -> None:
        """Closes all connections."""
        for server in self.servers:
            self._portal.call(server.close)
