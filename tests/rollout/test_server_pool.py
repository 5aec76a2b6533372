"""Which servers of a pool get requests: the fit ones, each again once it is back."""

import asyncio
import logging
import time

import pytest
from anyio.from_thread import start_blocking_portal

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
        await asyncio.sleep(0.1)  # so that requests are under way together
        if self.dead:
            raise ServerLost(f"{path}: connection refused")
        return self.url

    async def is_up(self):
        return self.up


@pytest.fixture
def pool_of():
    with start_blocking_portal() as portal:
        yield lambda *servers: ServerPool(servers, portal)


def ask(pool, times=6, first=None):
    asked = [pool.submit("/g", {}, 1, lambda reply: reply, first) for _ in range(times)]
    return {future.result(timeout=10) for future in asked}


async def fit(server):
    return []


def test_requests_of_a_lost_server_go_to_the_others_until_it_is_readmitted(pool_of):
    first, second = StubServer("a"), StubServer("b")
    pool = pool_of(first, second)
    assert ask(pool) == {first.url, second.url}
    first.dead = True
    assert ask(pool) == {second.url}
    first.dead, asked = False, first.asked
    assert ask(pool) == {second.url} and first.asked == asked
    pool.readmit(fit)
    assert ask(pool) == {first.url, second.url}


def test_servers_that_are_down_unfit_or_hang_stay_out_and_hold_nothing_up(
    pool_of, monkeypatch, caplog
):
    monkeypatch.setattr(servers, "_FITNESS_TIMEOUT_S", 0.2)
    down, unfit, hanging, well = (StubServer(name) for name in ("down", "unfit", "hanging", "well"))

    async def faults_of(server):
        assert server is not down  # only those that are up are looked at
        if server is hanging:
            await asyncio.sleep(60)
        return ["computes in bfloat16: start it with --dtype float32"] if server is unfit else []

    begun = time.perf_counter()
    pool = pool_of(down, unfit, hanging, well)
    for server in pool.servers:
        server.dead = True
    with pytest.raises(UserError, match=r"no vLLM server is left.*\n.*http://down"):
        ask(pool, 4)
    down.up = False
    with caplog.at_level(logging.WARNING):
        pool.readmit(faults_of)
    assert pool.alive == [well]
    assert "start it with --dtype float32" in pool.lost[unfit]
    assert "its engine does not answer" in pool.lost[hanging]
    assert "connection refused" in pool.lost[down]
    assert time.perf_counter() - begun < 5
    assert "in use again: http://well" in caplog.text


def test_the_first_rank_says_which_servers_all_use_and_what_they_hold(pool_of):
    first, second = StubServer("a"), StubServer("b")
    pool = pool_of(first, second)
    pool.lost[first] = "http://a: timed out here"
    pool.use_only({"http://a": 16})  # there it was not lost, and was started with other slots
    assert pool.alive == [first] and first.slots == 16
    assert pool.lost == {second: "http://b: did not take the weights"}


def test_a_server_may_be_asked_for_and_another_answers_when_it_is_lost(pool_of):
    first, second = StubServer("a"), StubServer("b")
    pool = pool_of(first, second)
    for server in (first, second, second):
        assert ask(pool, 1, server) == {server.url}
    second.dead = True
    assert ask(pool, 1, second) == {first.url}


def test_commands_go_to_every_server_and_lose_those_that_fail(pool_of):
    first, second = StubServer("a"), StubServer("b")
    pool = pool_of(first, second)
    assert pool.post_all("/pause", mode="wait") == [first.url, second.url]
    second.dead = True
    assert pool.post_all("/resume") == [first.url] and pool.alive == [first]


def test_ranks_that_do_not_command_say_nothing(pool_of):
    pool = pool_of(server := StubServer("a"))
    pool.commands, pool.lost[server] = False, "lost"
    assert pool.post_all("/pause") == [] and pool.get_all("/weight_info") == {}
    pool.readmit(fit)
    assert server in pool.lost and server.asked == 0
