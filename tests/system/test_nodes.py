"""Several nodes over one store: they share the partitions, and give them to each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import define, evolve, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    AskTimeout,
    AtomicActorsError,
    Command,
    DrainTimeout,
    StoreIncompatible,
    UnknownNode,
    handler,
)
from atomic_actors.journal._protocol import ClaimPartition
from atomic_actors.node.ownership._peers import Peers
from tests.system.support import Desk, NewSystem, Read, Stage, Work, desk, until

pytestmark = pytest.mark.anyio

PARTITIONS = 8
ENTITIES = [f"e{number}" for number in range(20)]
#: Nodes look at each other four times a lease; several looks may be needed.
SETTLE_S = 12.0


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.redis)])
def store_url(request: pytest.FixtureRequest) -> str:
    return "memory:" if request.param == "memory" else str(request.getfixturevalue("valkey_server").url)


@asynccontextmanager
async def node(new_system: NewSystem, stage: Stage, **settings: Any) -> AsyncGenerator[ActorSystem]:
    settings = {"partitions": PARTITIONS, **settings}
    async with new_system(Desk.using(stage=stage), **settings) as system:
        yield system


async def owns(system: ActorSystem, count: int) -> None:
    """Return once a node owns so many partitions."""

    async def is_so() -> bool:
        return system.statistics().owned_partitions == count

    await until(is_so, SETTLE_S)


async def ask_all(*systems: ActorSystem) -> None:
    # At once: the nodes of a memory store hear no doorbells, and look for work about once a second.
    async with anyio.create_task_group() as task_group:
        for system in systems:
            for name in ENTITIES:
                task_group.start_soon(system.ask, desk(name), Work(name))


class AskingAlong:
    """Asks all the time, and keeps what was answered."""

    def __init__(self, system: ActorSystem, stage: Stage) -> None:
        self.system = system
        self.answered = 0
        self._stop = False

    async def run(self) -> None:
        while not self._stop:
            await ask_all(self.system)
            self.answered += len(ENTITIES)

    async def some_more(self) -> None:
        wanted = self.answered + 2 * len(ENTITIES)  # the first of them may have been under way

        async def are_there() -> bool:
            return self.answered >= wanted

        await until(are_there, SETTLE_S)

    def stop(self) -> None:
        self._stop = True


async def test_who_joins_gets_its_share_and_gives_it_back(new_system: NewSystem, stage: Stage) -> None:
    async with node(new_system, stage) as first:
        await owns(first, PARTITIONS)
        async with anyio.create_task_group() as task_group:
            asking = AskingAlong(first, stage)
            task_group.start_soon(asking.run)
            async with node(new_system, stage) as second:
                await owns(first, PARTITIONS // 2)
                await owns(second, PARTITIONS // 2)
                await asking.some_more()
                await ask_all(second)
                shown = await first.nodes()
                assert [(info.partitions, info.is_live, info.kinds) for info in shown] == [
                    (PARTITIONS // 2, True, ("desk",))
                ] * 2
                assert sum(info.is_here for info in shown) == 1
                owners = {owner.node_id for owner in await second.partitions()}
                assert owners == {info.node_id for info in shown}
                here = await first.where(desk("e1"))
                there = await second.where(desk("e1"))
                assert here.node_id == there.node_id
                assert here.is_here != there.is_here
            await owns(first, PARTITIONS)
            await asking.some_more()
            asking.stop()
        assert [info.is_here for info in await first.nodes()] == [True]
        assert (await first.audit()).is_balanced
        assert len(stage.log) == (await first.audit()).completed


async def test_weights_set_the_shares(new_system: NewSystem, stage: Stage) -> None:
    async with node(new_system, stage) as light, node(new_system, stage, node_weight=3.0) as heavy:
        await owns(heavy, 6)
        await owns(light, 2)


async def test_a_node_is_drained_and_goes_on_sending(new_system: NewSystem, stage: Stage) -> None:
    async with node(new_system, stage) as first, node(new_system, stage) as second:
        await owns(second, PARTITIONS // 2)
        target = next(info.node_id for info in await first.nodes() if not info.is_here)
        await first.drain(target, timeout_s=SETTLE_S)
        assert second.statistics().owned_partitions == 0
        await owns(first, PARTITIONS)
        assert {info.node_id: info.is_draining for info in await second.nodes()}[target]
        await ask_all(first, second)


async def test_when_all_are_drained_messages_wait_for_the_next(new_system: NewSystem, stage: Stage) -> None:
    async with node(new_system, stage) as first:
        async with node(new_system, stage) as second:
            await owns(second, PARTITIONS // 2)
            await second.drain_all(timeout_s=SETTLE_S)
            assert {owner.node_id for owner in await first.partitions()} == {""}
            receipt = await first.tell(desk(), Work("waits"))
            with pytest.raises(AskTimeout):
                await second.ask(desk(), Read(), timeout_s=0.3)
            async with node(new_system, stage) as third:
                await first.result(receipt, timeout_s=SETTLE_S)
                assert third.statistics().turns == 1
                assert stage.log == ["waits"]


async def test_a_turn_that_does_not_end_holds_up_a_drain(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("long")
    async with node(new_system, stage, drain_timeout_s=30.0) as system:
        receipt = await system.tell(desk(), Work("long"))
        await stage.wait_for("long")
        (info,) = await system.nodes()
        with pytest.raises(DrainTimeout):
            await system.drain(info.node_id, timeout_s=0.2)
        stage.release("long")
        await owns(system, 0)
        await system.result(receipt)


async def test_what_does_not_end_in_time_is_interrupted(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("long")
    async with node(new_system, stage, drain_timeout_s=0.1) as system:
        await system.tell(desk(), Work("long"))
        await stage.wait_for("long")
        await system.drain_all(timeout_s=SETTLE_S)
        (letter,) = await system.dead_letters.list()
        assert letter.reason == "interrupted"


@define
class Count:
    number: int = 0


@frozen
class Bump(Command[int]):
    word: str


class Counter(Actor[Count], kind="counter", durable=False):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler
    async def bump(self, message: Bump) -> int:
        await self.stage.visit(message.word)
        self.state.number += 1
        return self.state.number


async def test_no_volatile_turn_outlives_the_hand_over(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("long")
    async with new_system(Counter.using(stage=stage), drain_timeout_s=0.1) as system:
        async with anyio.create_task_group() as task_group:

            async def ask() -> None:
                with pytest.raises(AtomicActorsError):
                    await system.ask(Counter.ref("c"), Bump("long"))

            task_group.start_soon(ask)
            await stage.wait_for("long")
            await system.drain_all(timeout_s=SETTLE_S)
            assert stage.running == 0
            stage.release("long")
        assert system.statistics().volatile_activations == 0


async def test_volatile_traffic_of_its_own_does_not_hold_up_a_drain(
    new_system: NewSystem, stage: Stage
) -> None:
    if new_system.in_memory:
        pytest.skip("there are no other processes")
    async with new_system(Counter.using(stage=stage), drain_timeout_s=0, partitions=1) as system:
        async with anyio.create_task_group() as task_group:

            async def ask_on() -> None:
                while True:
                    await system.ask(Counter.ref("c"), Bump("word"), timeout_s=0)

            for _ in range(4):
                task_group.start_soon(ask_on)
            await stage.wait_for("word")
            await system.drain_all(timeout_s=SETTLE_S)
            task_group.cancel_scope.cancel()
        assert system.statistics().owned_partitions == 0


async def test_a_drain_of_all_does_not_wait_for_the_dead(new_system: NewSystem, stage: Stage) -> None:
    async with new_system() as sender:
        parts: Any = vars(sender)["_parts"]
        identity = evolve(parts.membership.nodes.record.identity, node_id="dead", boot_id="elsewhere")
        directory, record = parts.store.directory, evolve(parts.membership.nodes.record, identity=identity)
        await directory.announce("dead", record.encode())
        await parts.journal.execute([ClaimPartition(partition=0, claim="claim", node=identity.encode())])
        await sender.drain_all(timeout_s=SETTLE_S)
        assert {owner.node_id for owner in await sender.partitions()} == {"dead", ""}


async def test_a_directory_that_refuses_does_not_keep_partitions(
    new_system: NewSystem, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(nodes: Peers) -> None:
        raise StoreIncompatible("the store's user may not do this")

    async with node(new_system, stage, lease_ttl_s=60.0) as first:
        await owns(first, PARTITIONS)
        monkeypatch.setattr(Peers, "announce", refuse)
        monkeypatch.setattr(Peers, "leave", refuse)
    monkeypatch.undo()
    async with new_system(partitions=PARTITIONS) as sender:
        assert {owner.node_id for owner in await sender.partitions()} == {""}


async def test_there_is_no_such_node(new_system: NewSystem, stage: Stage) -> None:
    async with node(new_system, stage) as system:
        with pytest.raises(UnknownNode, match="nobody"):
            await system.drain("nobody")
        assert system.statistics().owned_partitions == PARTITIONS


async def test_the_commit_itself_tells_askers_on_other_nodes(
    new_system: NewSystem, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    if new_system.in_memory:
        pytest.skip("there are no other processes")
    async with node(new_system, stage) as owner, new_system(partitions=PARTITIONS) as asker:
        await owns(owner, PARTITIONS)
        await ask_all(asker)  # whoever looks answers up has them, too, as long as nobody listens yet
        for name in ("POLL_FIRST_S", "POLL_FIRST_REMOTE_S", "POLL_MAX_S"):
            monkeypatch.setattr(f"atomic_actors.node.routing._router.{name}", 60.0)
        assert owner._parts is not None
        assert owner._parts.store.messenger is not None
        pushed = list[object]()
        monkeypatch.setattr(owner._parts.store.messenger, "push", lambda *what: pushed.append(what))
        await ask_all(asker)
        assert pushed == []
