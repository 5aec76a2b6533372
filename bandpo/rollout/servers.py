"""vLLM API servers as one pool: the least loaded is asked, a lost one left out until it is back."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal

from bandpo.errors import UserError

log = logging.getLogger(__name__)

# A server gets up to this many times the samples that it runs at once, so that it never idles
# between two groups, and the rest goes to whichever server is free first.
_QUEUED = 2
_CONNECT_RETRIES = 2
_CONNECT_TIMEOUT_S = 5.0
# Before every weight sync lost servers have this long to say that they are healthy, and those that
# are, to show that they are fit: an engine that hangs must not hold up the others for long. One
# that has just started first asks pip, compilers and driver what its machine is (/server_info).
_HEALTH_TIMEOUT_S = 2.0
_FITNESS_TIMEOUT_S = 60.0
# Below the 5 s after which vLLM closes idle connections: one that is closed while a request is on
# its way would look like a dead server.
_KEEPALIVE_S = 2.0


class ServerLost(Exception):
    """A server that cannot be used as it is, and why."""


class Server:
    """One API server, and how many samples it owes us."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self.url = url
        self.slots = 1  # samples that it generates at once; known after it was checked
        self.open = 0
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            transport=httpx.AsyncHTTPTransport(
                retries=_CONNECT_RETRIES,
                limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_S),
                # Notices a machine that vanished without closing its connections.
                socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
                trust_env=False,  # weights and samples take no detour through a proxy
            ),
        )

    @property
    def load(self) -> float:
        """Open samples for each that it can generate at once."""
        return self.open / self.slots

    def takes(self, samples: int) -> bool:
        """Whether it should get so many samples more now."""
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
        """Whether it calls itself healthy within a moment."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                return (await self.request("GET", "/health")).is_success
        except (ServerLost, TimeoutError):
            return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


class ServerPool:
    """Servers that hold the same weights. All methods run in one event loop."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = tuple(servers)
        self.lost: dict[Server, str] = {}
        self._room = asyncio.Condition()

    @property
    def alive(self) -> list[Server]:
        """The servers in use; raises UserError when none is left."""
        alive = [server for server in self.servers if server not in self.lost]
        if not alive:
            raise UserError.join(
                "rollout.engine.urls: no vLLM server is left; start one again and repeat the "
                "command, a training run goes on from its last checkpoint:",
                list(self.lost.values()),
            )
        return alive

    @property
    def slots(self) -> dict[str, int]:
        """The URLs in use, and how many samples each server generates at once."""
        return {server.url: server.slots for server in self.alive}

    def use_only(self, slots: Mapping[str, int]) -> None:
        """Takes the view of the rank that loaded the weights: these servers have them."""
        self.lost = {
            server: self.lost.get(server, f"{server.url}: did not take the weights")
            for server in self.servers
            if server.url not in slots
        }
        for server in self.alive:
            server.slots = slots[server.url]

    async def readmit(self, faults_of: Callable[[Server], Awaitable[list[str]]]) -> None:
        """Takes lost servers back that are up again and have no faults; they need the weights."""

        async def look_after(server: Server) -> None:
            if not await server.is_up():
                return
            try:
                async with asyncio.timeout(_FITNESS_TIMEOUT_S):
                    faults = await faults_of(server)
            except TimeoutError:
                faults = ["its engine does not answer"]
            if faults:
                self.lost[server] = f"{server.url}: is up again, but {faults[0]}"
                log.warning("vLLM server still left out: %s", self.lost[server])
            else:
                del self.lost[server]
                log.warning("vLLM server in use again: %s", server.url)

        await asyncio.gather(*map(look_after, list(self.lost)))

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        samples: int,
        read: Callable[[Any], Any],
        first: Server | None = None,
    ) -> Any:
        """What `read` makes of the reply to a request for so many samples.

        `read` raises ServerLost for a reply that must not be used. A request whose server is lost
        goes to another one: its seed travels with it, and so its samples are the same. The server
        asked first may be given.
        """
        while True:
            server = await self._reserve(samples, first)
            try:
                return read(await server.post(path, body))
            except ServerLost as loss:
                self._leave_out(server, loss)
            finally:
                server.open -= samples
                async with self._room:
                    self._room.notify_all()

    async def _reserve(self, samples: int, wanted: Server | None) -> Server:
        """The wanted or else the least loaded server, as soon as one takes the samples."""
        async with self._room:
            while not (free := [server for server in self.alive if server.takes(samples)]):
                await self._room.wait()
            server = wanted if wanted in free else min(free, key=lambda s: s.load)
            server.open += samples
            return server

    def _leave_out(self, server: Server, loss: ServerLost) -> None:
        if server not in self.lost:
            self.lost[server] = f"{server.url}: {loss}"
            log.warning("vLLM server left out: %s", self.lost[server])

    async def of_each(self, call: Callable[[Server], Awaitable[Any]]) -> dict[str, Any]:
        """What the call gives for every server in use, by URL, those left out that are lost."""

        async def called(server: Server) -> Any:
            try:
                return await call(server)
            except ServerLost as loss:
                self._leave_out(server, loss)

        servers = self.alive
        replies = await asyncio.gather(*map(called, servers))
        return {s.url: r for s, r in zip(servers, replies, strict=True) if s in self.alive}

    async def close(self) -> None:
        """Closes all connections."""
        for server in self.servers:
            await server.close()


class Fleet:
    """The servers in use, commanded from outside the event loop, by the one rank that `speaks`."""

    def __init__(self, portal: BlockingPortal, pool: ServerPool, speaks: bool) -> None:
        """On ranks that do not speak every method does nothing."""
        self._portal, self._pool, self.speaks = portal, pool, speaks

    def tell(self, path: str, body: Any = None, **query: str) -> list[Any]:
        """Posts the same to every server and returns the replies."""
        return list(self._of_each(lambda server: server.post(path, body, **query)).values())

    def tell_each(self, path: str, bodies: Mapping[str, Any]) -> None:
        """Posts to every server its own, by URL."""
        self._of_each(lambda server: server.post(path, bodies[server.url]))

    def look(self, path: str) -> dict[str, Any]:
        """What every server answers to a GET, by URL."""
        return self._of_each(lambda server: server.get(path))

    def readmit(self, faults_of: Callable[[Server], Awaitable[list[str]]]) -> None:
        """As the pool's."""
        if self.speaks:
            self._portal.call(self._pool.readmit, faults_of)

    def _of_each(self, call: Callable[[Server], Awaitable[Any]]) -> dict[str, Any]:
        return self._portal.call(self._pool.of_each, call) if self.speaks else {}
