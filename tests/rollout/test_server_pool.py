"""Which servers of a pool get requests: the fit ones, each again once it is back."""

import asyncio
import logging
import time

import pytest

from bandpo.errors import UserError
from bandpo.rollout import servers
from bandpo.rollout.servers import ServerLost, ServerPool


class StubServer:
    """A server that answers with its name, or is lost."""

    def __init__(self, name, slots=4):
        self.url, self.slots, self.open = f"http://{name}", slots, 0
        self.dead, self.up, self.asked = False, True, 0

    load = servers.Server.load
    takes = servers.Server.takes

    async def post(self, path, body=None, **query):
        self.asked += 1
        await asyncio.sleep(0)
        if self.dead:
            raise ServerLost(f"{path}: connection refused")
        return self.url

    async def is_up(self):
        return self.up


def ask(pool, times=6):
    async def all_of_them():
        return await asyncio.gather(*(pool.ask("/g", {}, 1, lambda r: r) for _ in range(times)))

    return all_of_them()


async def fit(server):
    return []


def test_requests_of_a_lost_server_go_to_the_others_until_it_is_readmitted():
    async def story():
        first, second = StubServer("a"), StubServer("b")
        pool = ServerPool([first, second])
        assert set(await ask(pool)) == {first.url, second.url}
        first.dead = True
        assert set(await ask(pool)) == {second.url}
        first.dead, asked = False, first.asked
        assert set(await ask(pool)) == {second.url} and first.asked == asked
        await pool.readmit(fit)
        assert set(await ask(pool)) == {first.url, second.url}

    asyncio.run(story())


def test_servers_that_are_down_unfit_or_hang_stay_out_and_hold_nothing_up(monkeypatch, caplog):
    monkeypatch.setattr(servers, "_FITNESS_TIMEOUT_S", 0.2)
    down, unfit, hanging, well = (StubServer(name) for name in ("down", "unfit", "hanging", "well"))

    async def faults_of(server):
        assert server is not down  # only those that are up are looked at
        if server is hanging:
            await asyncio.sleep(60)
        return ["computes in bfloat16: start it with --dtype float32"] if server is unfit else []

    async def story():
        pool = ServerPool([down, unfit, hanging, well])
        for server in pool.servers:
            server.dead = True
        with pytest.raises(UserError, match=r"no vLLM server is left.*\n.*http://down"):
            await ask(pool, 4)
        down.up = False
        await pool.readmit(faults_of)
        assert pool.alive == [well]
        assert "start it with --dtype float32" in pool.lost[unfit]
        assert "its engine does not answer" in pool.lost[hanging]
        assert "connection refused" in pool.lost[down]

    begun = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert time.perf_counter() - begun < 5
    assert "in use again: http://well" in caplog.text


def test_the_first_rank_says_which_servers_all_use_and_what_they_hold():
    async def story():
        first, second = StubServer("a"), StubServer("b")
        pool = ServerPool([first, second])
        pool.lost[first] = "http://a: timed out here"
        pool.use_only({"http://a": 16})  # there it was not lost, and was started with other slots
        assert pool.alive == [first] and first.slots == 16
        assert pool.lost == {second: "http://b: did not take the weights"}

    asyncio.run(story())


def test_a_server_may_be_asked_for_and_another_answers_when_it_is_lost():
    async def story():
        first, second = StubServer("a"), StubServer("b")
        pool = ServerPool([first, second])
        for server in (first, second, second):
            assert await pool.ask("/g", {}, 1, lambda r: r, server) == server.url
        second.dead = True
        assert await pool.ask("/g", {}, 1, lambda r: r, second) == first.url

    asyncio.run(story())
