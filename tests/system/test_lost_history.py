"""The store goes back in time under a running system: it is noticed, reported, and nothing runs behind backs."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, EntityRef, HistoryLost, Interrupted, handler
from atomic_actors.base._records import partition_of
from tests.servers import Server, start_server
from tests.system.support import (
    QUICK,
    Desk,
    Read,
    Send,
    Stage,
    Watcher,
    Words,
    Work,
    Write,
    desk,
    unlike,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

LEASE_S = 1.2
#: A loss is noticed at the next call, and a lease has to pass before work goes on.
RECOVERY_S = 8.0


@frozen
class Note(Command[int]):
    """Transactional, and held by the stage all the same."""

    word: str


class Notebook(Actor[Words], kind="notebook"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler(transactional=True)
    async def note(self, message: Note) -> int:
        await self.stage.visit(message.word)
        self.state.words.append(message.word)
        return len(self.state.words)

    @handler
    async def read(self, message: Read) -> list[str]:
        return self.state.words


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="always") as server:
        yield server


@define(eq=False)
class Backup:
    """A copy of a server's data, and the way back to it."""

    server: Server

    @property
    def _data(self) -> Path:
        return self.server.directory / "appendonlydir"

    @property
    def _copy(self) -> Path:
        return self.server.directory / "copy"

    def take(self) -> None:
        shutil.copytree(self._data, self._copy)

    def put_back(self) -> None:
        """Put the copy in the place of what the server has; the server must be down."""
        shutil.rmtree(self._data)
        shutil.copytree(self._copy, self._data)


@define(eq=False)
class Asks:
    """Asks under way, and what came of them."""

    system: ActorSystem
    task_group: TaskGroup
    outcomes: dict[str, Any] = Factory(dict)
    _done: dict[str, anyio.Event] = Factory(dict)

    def start(self, name: str, entity: EntityRef, message: Command[Any]) -> None:
        self._done[name] = anyio.Event()
        self.task_group.start_soon(self._ask, name, entity, message)

    async def _ask(self, name: str, entity: EntityRef, message: Command[Any]) -> None:
        try:
            self.outcomes[name] = await self.system.ask(entity, message)
        except Interrupted as error:
            self.outcomes[name] = error
        self._done[name].set()

    async def outcome(self, name: str) -> Any:
        with anyio.fail_after(RECOVERY_S):
            await self._done[name].wait()
        return self.outcomes[name]


def losses_of(system: ActorSystem) -> list[HistoryLost]:
    losses: list[HistoryLost] = []
    system.listen("history-lost", losses.append)
    return losses


def new_system(server: Server, stage: Stage, **settings: Any) -> ActorSystem:
    return ActorSystem(
        Config(
            url=server.url,
            actors=[Desk.using(stage=stage), Notebook.using(stage=stage)],
            lease_ttl_s=LEASE_S,
            lease_margin_s=0.3,
            lease_renew_interval_s=0.2,
            loop_stall_limit_s=0.8,
            store_timeout_s=0.8,
            ask_timeout_s=RECOVERY_S,
            **{**QUICK, **settings},
        )
    )


async def begin_and_copy(system: ActorSystem, asks: Asks, stage: Stage, backup: Backup) -> None:
    """Some work, a copy of the store in the midst of it, and more work."""
    notebook = Notebook.ref("one")
    await system.ask(desk(), Write("kept"))
    stage.hold("still", "first", "second", "page", "note", "vanished")
    asks.start("still", desk("still"), Work("still"))
    await stage.wait_for("still")
    asks.start("first", desk(), Work("first"))
    asks.start("page", notebook, Note("page"))
    await stage.wait_for("first")
    await stage.wait_for("page")
    # These are accepted before the copy is made, and begin after it: the store will not know that they did.
    asks.start("second", desk(), Work("second"))
    asks.start("note", notebook, Note("note"))
    await until(lambda: waits(system, desk(), 1))
    await until(lambda: waits(system, notebook, 1))
    asks.start("behind", desk(), Write("behind"))
    await until(lambda: waits(system, desk(), 2))
    backup.take()
    stage.release("first", "page")
    await stage.wait_for("second")
    await stage.wait_for("note")
    assert await asks.outcome("first") == "first"
    assert await asks.outcome("page") == 1
    # The store will know nothing of this one.
    asks.start("vanished", desk("other"), Work("vanished"))
    await stage.wait_for("vanished")


async def waits(system: ActorSystem, entity: EntityRef, count: int) -> bool:
    return (await system.where(entity)).waiting == count


@pytest.mark.parametrize("away_s", [0.0, LEASE_S + 0.3], ids=["back at once", "away for more than a lease"])
async def test_an_older_copy_comes_back(server: Server, away_s: float) -> None:
    stage, backup = Stage(), Backup(server)
    async with new_system(server, stage) as system, anyio.create_task_group() as task_group:
        losses, watcher = losses_of(system), Watcher(system, "interrupted")
        asks = Asks(system, task_group)
        await begin_and_copy(system, asks, stage, backup)
        server.kill9()
        await anyio.sleep(away_s)
        backup.put_back()
        server.start()
        stage.release("note")
        # What may have had an effect does not run again, and its asker hears of it; the rest goes on.
        assert isinstance(await asks.outcome("second"), Interrupted)
        assert isinstance(await asks.outcome("still"), Interrupted)
        vanished = await asks.outcome("vanished")
        assert isinstance(vanished, Interrupted)
        assert "lost history" in str(vanished)
        assert await asks.outcome("behind") == 2
        assert await asks.outcome("note") == 2
        assert await system.ask(desk(), Write("after")) == 3
        assert await system.ask(desk(), Read()) == ["kept", "behind", "after"]
        assert await system.ask(Notebook.ref("one"), Read()) == ["page", "note"]
        assert {word: stage.log.count(word) for word in ("still", "first", "second", "vanished", "page", "note")} == {
            "still": 1, "first": 1, "second": 1, "vanished": 1, "page": 2, "note": 2
        }  # fmt: skip
        assert losses
        assert all(loss.found < loss.acknowledged for loss in losses)
        assert len({loss.partition for loss in losses}) == len(losses) == system.statistics().histories_lost
        letters = await system.dead_letters.list()
        assert {(letter.reason, letter.message["word"]) for letter in letters} == {
            ("interrupted", "still"), ("interrupted", "first"), ("interrupted", "second")
        }  # fmt: skip
        assert {event.message_id for event in watcher.events} == {letter.message_id for letter in letters}
        assert len(watcher.events) == 3
        assert (await system.audit()).is_balanced


async def test_a_restart_with_all_data_is_no_loss(server: Server) -> None:
    stage = Stage()
    async with new_system(server, stage) as system, anyio.create_task_group() as task_group:
        losses, asks = losses_of(system), Asks(system, task_group)
        stage.hold("held")
        asks.start("held", desk(), Work("held"))
        await stage.wait_for("held")
        for number in range(3):
            entities = [desk(str(number)) for number in range(20)]
            await system.tell_many([(entity, Write(f"word {number}")) for entity in entities])
            # Batches are in flight now.
            server.kill9()
            server.start()
            for entity in entities:
                assert len(await system.ask(entity, Read())) == number + 1
        stage.release("held")
        assert await asks.outcome("held") == "held"
        assert losses == []
        assert system.statistics().histories_lost == 0
        assert not await system.dead_letters.list()


async def test_an_emptied_store(server: Server) -> None:
    stage = Stage()
    async with new_system(server, stage) as system, anyio.create_task_group() as task_group:
        losses, asks = losses_of(system), Asks(system, task_group)
        assert await system.ask(desk(), Write("forgotten")) == 1
        tokens = list(system._running.membership.epochs)
        stage.hold("held")
        asks.start("held", desk(), Work("held"))
        await stage.wait_for("held")
        server.call("FLUSHALL")
        assert isinstance(await asks.outcome("held"), Interrupted)
        assert await system.ask(desk(), Write("anew")) == 1
        assert await system.ask(desk(), Read()) == ["anew"]
        (loss,) = losses
        assert (loss.acknowledged, loss.found) == (3, 0)
        assert stage.log.count("held") == 1
        # A fencing token that was given out is never given out again.
        assert system._running.membership.epochs[loss.partition] > tokens[loss.partition]
        assert (await system.audit()).is_balanced


async def test_another_node_does_not_run_it_either(server: Server) -> None:
    stage, backup = Stage(), Backup(server)
    async with (
        new_system(server, stage, node_weight=1_000.0) as owner,
        new_system(server, stage, node_weight=0.001) as other,
        anyio.create_task_group() as task_group,
    ):
        here, there = Asks(owner, task_group), Asks(other, task_group)
        losses = losses_of(owner)
        stage.hold("first", "second")
        here.start("first", desk(), Work("first"))
        await stage.wait_for("first")
        there.start("second", desk(), Work("second"))
        await until(lambda: waits(owner, desk(), 1))
        backup.take()
        stage.release("first")
        await stage.wait_for("second")
        server.kill9()
        backup.put_back()
        server.start()
        assert isinstance(await there.outcome("second"), Interrupted)
        assert await other.ask(desk(), Write("after")) == 1
        assert stage.log.count("second") == 1
        assert losses
        assert (await owner.where(desk())).is_here
        letters = await other.dead_letters.list()
        assert {letter.message["word"] for letter in letters} == {"first", "second"}


async def test_an_outbox_that_was_lost_is_sent_once(server: Server) -> None:
    stage, backup = Stage(), Backup(server)
    source, target = desk("source"), unlike(desk("source"))[0]
    async with new_system(server, stage) as system:
        losses = losses_of(system)
        await system.ask(source, Send(str(target.id), ["kept"]))
        await until(lambda: has_words(system, target, 1))
        backup.take()
        await system.ask(source, Send(str(target.id), ["lost 1", "lost 2"]))
        await until(lambda: has_words(system, target, 3))
        server.kill9()
        backup.put_back()
        server.start()
        for number in range(3):
            await system.ask(source, Send(str(target.id), [f"new {number}"]))
        await until(lambda: has_words(system, target, 4), RECOVERY_S)
        assert await system.ask(target, Read()) == ["kept", "new 0", "new 1", "new 2"]
        assert len(losses) == 2
        audit = await system.audit()
        assert audit.is_balanced
        assert audit.outbound == 0


async def has_words(system: ActorSystem, entity: EntityRef, count: int) -> bool:
    return len(await system.ask(entity, Read())) == count


async def test_a_target_that_alone_lost_history_is_told_of_and_gets_what_comes_later(server: Server) -> None:
    stage = Stage()
    system = ActorSystem(Config(url=server.url, namespace="gap", actors=[Desk.using(stage=stage)], **QUICK))
    losses = losses_of(system)
    other = unlike(desk())[0]
    target = partition_of(str(other), QUICK["partitions"])
    async with system:
        await system.ask(desk(), Send(other.id, ["a", "b", "c"]))

        async def has(*words: str) -> bool:
            return await system.ask(other, Read()) == list(words)

        await until(lambda: has("a", "b", "c"))
        # As a replica that takes over might have it: the messages and the numbers of the stream are gone.
        assert server.call("DEL", f"{{gap:default:{target}}}:i") == 1
        await system.ask(desk(), Send(other.id, ["d"]))
        await until(lambda: has("a", "b", "c", "d"))
        await system.ask(desk(), Send(other.id, ["e"]))
        await until(lambda: has("a", "b", "c", "d", "e"))
        source = partition_of(str(desk()), QUICK["partitions"])
        assert losses == [HistoryLost(partition=target, acknowledged=3, found=0, source=source)]
        report = await system.audit()
        assert report.is_balanced, report.problems
        assert report.outbound == 0
