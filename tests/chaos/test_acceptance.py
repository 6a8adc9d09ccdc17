"""A store that goes away after it was sent an append: the teller hears that nobody knows, and can find out."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, frozen

from atomic_actors import (
    AcceptanceUnknown,
    Actor,
    ActorSystem,
    Command,
    Config,
    OutcomeUnknown,
    Query,
    StoreUnavailable,
    UnknownMessage,
    handler,
)
from tests.chaos.proxy import Proxy, run_proxy
from tests.servers import AppendOnly, Server, start_server

pytestmark = pytest.mark.anyio

ACCEPT_TIMEOUT_S = 0.4
PATIENCE_S = 15.0


@frozen
class Add(Command[int]):
    number: int


@frozen
class Sum(Query[int]):
    pass


@define
class Total:
    total: int = 0


class Counting(Actor[Total], kind="counting"):
    def __init__(self, starts: Counter[int]) -> None:
        self.starts = starts

    @handler
    async def add(self, message: Add) -> int:
        self.starts[message.number] += 1
        self.state.total += message.number
        return self.state.total

    @handler
    async def sum(self, message: Sum) -> int:
        return self.state.total


COUNTING = Counting.ref("one")


@pytest.fixture
def starts() -> Counter[int]:
    return Counter()


def new_system(url: str, starts: Counter[int], **settings: Any) -> ActorSystem:
    config = Config(
        url=url,
        actors=[Counting.using(starts=starts)],
        partitions=1,
        accept_timeout_s=ACCEPT_TIMEOUT_S,
        store_timeout_s=0.2,
        # The store may be away for as long as a test holds it: that is no reason to lose the partition.
        lease_ttl_s=20,
        allow_no_persistence=True,
        **settings,
    )
    return ActorSystem(config)


@contextmanager
def new_server(directory: Path, appendonly: AppendOnly) -> Generator[Server]:
    """A server of the test's own, that is stopped even if it is suspended."""
    with start_server("valkey", tmp_path=directory, tcp=True, appendonly=appendonly) as server:
        try:
            yield server
        finally:
            if server.process is not None:
                os.kill(server.pid, signal.SIGCONT)


async def ask_when_it_is_back(system: ActorSystem) -> int:
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                return await system.ask(COUNTING, Sum())
            except (StoreUnavailable, OutcomeUnknown):
                await anyio.sleep(0.05)


async def tell_in_vain(system: ActorSystem, number: int) -> str:
    """Returns the message id that the error names."""
    began_s = anyio.current_time()
    with pytest.raises(AcceptanceUnknown, match=r"result\(message_id\)") as unknown:
        await system.tell(COUNTING, Add(number))
    assert ACCEPT_TIMEOUT_S <= anyio.current_time() - began_s < ACCEPT_TIMEOUT_S + 2
    assert unknown.value.code == "acceptance_unknown"
    assert unknown.value.message_id is not None
    assert unknown.value.message_id.startswith("counting/one/")
    return unknown.value.message_id


async def test_a_store_that_stands_still(tmp_path: Path, starts: Counter[int]) -> None:
    """The append lies in its socket; when it goes on, the message is accepted, once."""
    with new_server(tmp_path, "no") as server:
        async with new_system(server.url, starts) as system:
            await system.ask(COUNTING, Add(1))
            os.kill(server.pid, signal.SIGSTOP)
            message_id = await tell_in_vain(system, 10)
            assert starts[10] == 0
            os.kill(server.pid, signal.SIGCONT)
            assert await ask_when_it_is_back(system) == 11
            assert await system.result(message_id) == 11
            assert starts == {1: 1, 10: 1}


async def test_a_store_that_accepted_and_could_not_say_so(tmp_path: Path, starts: Counter[int]) -> None:
    with new_server(tmp_path, "no") as server:
        proxy = Proxy(server.port, "outage", 0, delay_s=ACCEPT_TIMEOUT_S + 0.4)
        async with run_proxy(proxy), new_system(proxy.url, starts) as system:
            await system.ask(COUNTING, Add(1))
            await anyio.wait_all_tasks_blocked()
            proxy.at = proxy.calls + 1
            message_id = await tell_in_vain(system, 10)
            assert proxy.fired == 1
            assert await ask_when_it_is_back(system) == 11
            assert await system.result(message_id) == 11
            assert starts == {1: 1, 10: 1}


async def test_a_store_that_dies_with_it(tmp_path: Path, starts: Counter[int]) -> None:
    """It is known afterwards whether it was accepted: it ran once, or the store has never heard of it."""
    with new_server(tmp_path, "always") as server:
        async with new_system(server.url, starts) as system:
            await system.ask(COUNTING, Add(1))
            os.kill(server.pid, signal.SIGSTOP)
            message_id = await tell_in_vain(system, 10)
            server.kill9()
            server.restart()
            total = await ask_when_it_is_back(system)
            try:
                assert await system.result(message_id) == 11
            except UnknownMessage:
                assert (total, starts[10]) == (1, 0)
            else:
                assert (total, starts[10]) == (11, 1)
