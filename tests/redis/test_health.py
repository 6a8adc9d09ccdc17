"""A store that falls silent is noticed by a node with nothing to do, told once, and outlived."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, Query, StoreHealth, StoreUnavailable, handler
from tests.chaos.network import Network, run_network
from tests.servers import Server, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

PING_S = 0.1
TIMEOUT_S = 0.5
LEASE_TTL_S = 2.0
#: A busy machine.
GRACE_S = 1.0


@frozen
class Add(Command[int]):
    amount: int


@frozen
class Wonder(Command[int]):
    """Is answered after it was asked something that is not answered."""


@frozen
class Read(Query[int]):
    pass


@define
class Sum:
    total: int = 0


@define(eq=False)
class Ends:
    """When handlers were cut off."""

    wondering: anyio.Event = field(factory=anyio.Event)
    go: anyio.Event = field(factory=anyio.Event)
    cut_off_s: list[float] = field(factory=list)


class Adder(Actor[Sum], kind="adder"):
    def __init__(self, ends: Ends) -> None:
        self.ends = ends

    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.state.total += message.amount
        return self.state.total

    @handler
    async def wonder(self, message: Wonder) -> int:
        self.ends.wondering.set()
        await self.ends.go.wait()
        try:
            return await self.context.ask(Adder.ref("other"), Read())
        finally:
            self.ends.cut_off_s.append(anyio.current_time())

    @handler
    async def read(self, message: Read) -> int:
        return self.state.total


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    directory: Path = tmp_path_factory.mktemp("health")
    with start_server("redis", tmp_path=directory, tcp=True, appendonly="no") as server:
        yield server


@pytest.fixture
def network(server: Server) -> Generator[Network]:
    with run_network(server.port) as network:
        yield network


def new_system(network: Network, namespace: str, *actors: Any) -> ActorSystem:
    return ActorSystem(
        Config(
            url=network.url,
            namespace=namespace,
            actors=actors,
            partitions=4,
            allow_no_persistence=True,
            store_ping_interval_s=PING_S,
            store_timeout_s=TIMEOUT_S,
            lease_ttl_s=LEASE_TTL_S,
        )
    )


@define(eq=False)
class Health:
    """What a system says about its store."""

    events: list[StoreHealth] = field(factory=list)
    lost: anyio.Event = field(factory=anyio.Event)
    back: anyio.Event = field(factory=anyio.Event)

    def listen(self, system: ActorSystem) -> None:
        system.listen("store-lost", self._heard)
        system.listen("store-back", self._heard)

    def _heard(self, health: StoreHealth) -> None:
        self.events.append(health)
        (self.lost if health.event == "store-lost" else self.back).set()


@pytest.mark.parametrize("weather", ["cut", "silent"])
@pytest.mark.parametrize("owns", [True, False], ids=["owner", "sender"])
async def test_an_outage_is_noticed_by_an_idle_node(
    weather: Any, owns: bool, network: Network, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "atomic_actors")
    health, actors = Health(), [Adder.using(ends=Ends())] if owns else []
    async with new_system(network, namespace, *actors) as system:
        health.listen(system)
        if owns:
            assert await system.ask(Adder.ref("one"), Add(1)) == 1
        # Nothing has to be sent for it.
        network.change(weather)
        with anyio.fail_after(15):
            await health.lost.wait()
        assert not system.statistics().store.available
        felt, began_s = network.felt["lost"], anyio.current_time()
        with pytest.raises(StoreUnavailable):
            await system.tell(Adder.ref("one"), Add(2))
        assert anyio.current_time() - began_s < TIMEOUT_S
        assert network.felt["lost"] == felt or weather == "silent"  # others may have asked meanwhile
        with anyio.fail_after(LEASE_TTL_S):
            while system.statistics().owned_partitions:  # noqa: ASYNC110 - gives no event
                await anyio.sleep(0.01)
        network.change("fair")
        with anyio.fail_after(15):
            await health.back.wait()
        assert system.statistics().store.available
        if owns:
            assert await system.ask(Adder.ref("one"), Add(2), timeout_s=15) == 3
    assert [event.event for event in health.events] == ["store-lost", "store-back"]
    assert health.events[0].reason
    warnings = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("the store does not answer: ") for text in warnings) == 1
    assert warnings.count("the store answers again") == 1
    # And one each of the leases and of the thread that renews them.
    assert len(warnings) <= 2 + 2 * owns, warnings


async def test_a_connection_that_is_gone_is_replaced_before_it_is_needed(
    network: Network, namespace: str
) -> None:
    health = Health()
    async with new_system(network, namespace, Adder.using(ends=Ends())) as owner:
        async with new_system(network, namespace) as system:
            health.listen(system)
            assert await system.ask(Adder.ref("one"), Add(1)) == 1
            network.forget_connections()
            await anyio.sleep(2 * PING_S + TIMEOUT_S + GRACE_S)
            # Its own; the one that hears replies is asked more rarely, and the store has them, too.
            began_s = anyio.current_time()
            await system.tell(Adder.ref("one"), Add(1))
            assert anyio.current_time() - began_s < TIMEOUT_S
            assert await owner.ask(Adder.ref("one"), Add(1), timeout_s=15) == 3
    assert not health.events


async def test_a_turn_that_asks_ends_before_its_lease(network: Network, namespace: str) -> None:
    """Its ask is to be withdrawn, and the store does not answer; that must not keep the turn."""
    ends = Ends()
    async with new_system(network, namespace, Adder.using(ends=ends)) as system:
        await system.tell(Adder.ref("one"), Wonder())
        await ends.wondering.wait()
        network.change("silent")
        # Any renewal was sent before.
        silent_s = anyio.current_time()
        ends.go.set()
        with anyio.fail_after(15):
            while system.statistics().owned_partitions or not ends.cut_off_s:  # noqa: ASYNC110 - gives no event
                await anyio.sleep(0.01)
        assert max(ends.cut_off_s) - silent_s < LEASE_TTL_S - 0.2
        network.change("fair")
