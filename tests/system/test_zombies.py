"""A handler that does not end with its lease: what it still does is not committed, and everybody hears of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from attrs import Factory, define, field, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, Interrupted, Query, handler
from atomic_actors.base._records import partition_of
from atomic_actors.journal._protocol import Claimed, ClaimPartition, LeaseState, ReadLease
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.redis._journal import RedisJournal
from tests.servers import Server, namespace
from tests.system.support import until

__all__ = ("namespace",)

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

PARTITIONS = 2
LEASE_S = 1.2
PATIENCE_S = 15.0


@frozen
class Block(Command[str]):
    """Blocks the event loop."""


@frozen
class Outlive(Command[str]):
    """Effectful: goes on after it was cancelled."""

    how: str


@frozen
class Note(Command[str]):
    word: str


@frozen
class Read(Query[list[str]]):
    pass


@define
class Words:
    words: list[str] = Factory(list)


@define(eq=False)
class Gate:
    """What holds the handler; threads wait for it, too."""

    begun: threading.Event = field(factory=threading.Event)
    opened: threading.Event = field(factory=threading.Event)
    open: anyio.Event = field(factory=anyio.Event)
    runs: int = 0

    def release(self) -> None:
        self.opened.set()
        self.open.set()


class Zombie(Actor[Words], kind="zombie"):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    @handler
    async def block(self, message: Block) -> str:
        self.gate.runs += 1
        self.gate.begun.set()
        self.gate.opened.wait(PATIENCE_S)
        self.state.words.append("blocked")
        return "blocked"

    @handler
    async def outlive(self, message: Outlive) -> str:
        gate = self.gate
        gate.runs += 1
        gate.begun.set()
        if message.how == "thread":
            await anyio.to_thread.run_sync(gate.opened.wait, PATIENCE_S)
        elif message.how == "shield":
            with anyio.CancelScope(shield=True):
                await gate.open.wait()
        else:
            while not gate.open.is_set():
                try:
                    await gate.open.wait()
                except anyio.get_cancelled_exc_class():
                    await self._look_away()
        self.state.words.append(message.how)
        return message.how

    async def _look_away(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)

    @handler
    async def note(self, message: Note) -> str:
        self.state.words.append(message.word)
        return message.word

    @handler
    async def read(self, message: Read) -> list[str]:
        return self.state.words


ONE = Zombie.ref("one")


def new_config(server: Server, namespace: str, gate: Gate, **settings: Any) -> Config:
    return Config(
        url=server.url,
        namespace=namespace,
        actors=[Zombie.using(gate=gate)],
        partitions=PARTITIONS,
        allow_no_persistence=True,
        lease_ttl_s=LEASE_S,
        lease_margin_s=0.3,
        lease_renew_interval_s=0.15,
        loop_stall_limit_s=0.5,
        store_timeout_s=0.8,
        ask_timeout_s=PATIENCE_S,
        drain_timeout_s=1.0,
        **settings,
    )


# --- the loop itself does not go on ----------------------------------------------------------------------


@asynccontextmanager
async def thread_with_an_owner(config: Config, backend: str, outcomes: list[Any]) -> AsyncGenerator[None]:
    """A system with an event loop of its own, which the test's loop does not share."""

    async def own() -> None:
        async with ActorSystem(config) as system:
            with pytest.raises(Interrupted) as error:
                await system.ask(ONE, Block())
            outcomes.append(error.value)
            outcomes.append(await system.ask(ONE, Read()))

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(own, backend=backend))
        yield


async def test_a_handler_that_blocks_the_loop(
    valkey_server: Server, namespace: str, anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its leases are not renewed, the log says where it is, another node takes over, and it commits nothing."""
    caplog.set_level(logging.ERROR, "atomic_actors")
    gate, outcomes = Gate(), list[Any]()
    config = new_config(valkey_server, namespace, gate)
    async with thread_with_an_owner(config, anyio_backend_name, outcomes):
        try:
            assert await anyio.to_thread.run_sync(gate.begun.wait, PATIENCE_S)
            async with ActorSystem(new_config(valkey_server, namespace, Gate())) as other:
                await until(other.dead_letters.list, PATIENCE_S)
                (letter,) = await other.dead_letters.list()
                assert (letter.reason, letter.name) == ("interrupted", "Block")
                assert await other.ask(ONE, Note("meanwhile")) == "meanwhile"
                gate.release()

                async def is_told() -> bool:
                    return len(outcomes) == 2

                await until(is_told, PATIENCE_S)
                assert (await other.audit()).is_balanced
        finally:
            gate.release()
    assert outcomes[1] == ["meanwhile"]
    assert gate.runs == 1
    stalls = [record.getMessage() for record in caplog.records if "has not run for" in record.getMessage()]
    # On a busy machine the other loop may seem to stall as well.
    (stall,) = [text for text in stalls if "self.gate.opened.wait" in text]
    assert "anyio.to_thread.run_sync" in stall


# --- a handler that does not heed its cancellation -------------------------------------------------------


async def steal(config: Config) -> None:
    """Take the entity's partition away from its owner, as a node would that saw it make no sign of life."""
    partition = partition_of(str(ONE), PARTITIONS)
    async with RedisJournal.from_url(
        config.url, journal_settings(config), allow_no_persistence=True
    ) as journal:
        while True:
            (held,) = (await journal.execute([ReadLease(partition)])).results
            assert isinstance(held, LeaseState)
            step = ClaimPartition(
                partition=partition,
                claim="thief",
                node=b"thief",
                expected_claim=held.claim,
                expected_renewals=held.renewals,
            )
            (answer,) = (await journal.execute([step])).results
            if isinstance(answer, Claimed):
                return


@pytest.mark.parametrize("how", ["swallow", "shield", "thread"])
async def test_a_handler_that_outlives_its_lease(valkey_server: Server, namespace: str, how: str) -> None:
    gate = Gate()
    config = new_config(valkey_server, namespace, gate)
    async with ActorSystem(config) as system, anyio.create_task_group() as task_group:
        told: list[Interrupted] = []

        async def ask() -> None:
            with pytest.raises(Interrupted) as error:
                await system.ask(ONE, Outlive(how))
            told.append(error.value)

        async def is_lost() -> bool:
            return system.statistics().owned_partitions == PARTITIONS - 1

        task_group.start_soon(ask)
        try:
            assert await anyio.to_thread.run_sync(gate.begun.wait, PATIENCE_S)
            await steal(config)
            await until(is_lost, PATIENCE_S)
        finally:
            gate.release()
        assert await system.ask(ONE, Note("after")) == "after"
        assert await system.ask(ONE, Read()) == ["after"]
    assert len(told) == gate.runs == 1
    async with ActorSystem(config) as system:
        (letter,) = await system.dead_letters.list()
        assert (letter.reason, letter.name) == ("interrupted", "Outlive")
        assert (await system.audit()).is_balanced
