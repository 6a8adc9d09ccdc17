"""Messages that no handler of their owner takes: left where they are, reported, never dead-lettered."""

from __future__ import annotations

import logging

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, EntityRef, RawMessage, handler
from atomic_actors.base._records import partition_of
from atomic_actors.node.execution._supervisor import SWEEP_LIMIT
from tests.system.support import NewSystem, Watcher, until

pytestmark = pytest.mark.anyio


@define
class Notes:
    words: list[str] = Factory(list)


@frozen
class Note(Command[int]):
    word: str


@frozen
class Erase(Command[int]):
    """Only the newer release has it."""


class OldPad(Actor[Notes], kind="pad"):
    @handler(transactional=True)
    async def note(self, message: Note) -> int:
        self.state.words.append(message.word)
        return len(self.state.words)


class NewPad(OldPad, kind="pad"):
    @handler(transactional=True)
    async def erase(self, message: Erase) -> int:
        count = len(self.state.words)
        self.state.words.clear()
        return count


class Pencil(Actor, kind="pencil"):
    @handler
    async def note(self, message: Note) -> int:
        return 0


PAD = EntityRef("pad", "one")


async def knows_new_pads(new_system: NewSystem) -> None:
    """A node with the newer release was there, and has gone."""
    async with new_system(NewPad, Pencil):
        pass


async def waiting_of(system: ActorSystem, ref: EntityRef) -> int:
    return (await system.where(ref)).waiting


async def test_a_message_without_a_handler_waits(
    new_system: NewSystem, caplog: pytest.LogCaptureFixture
) -> None:
    await knows_new_pads(new_system)
    async with new_system() as sender:
        async with new_system(OldPad) as old:
            assert await sender.ask(PAD, Note("a")) == 1
            with caplog.at_level(logging.ERROR, "atomic_actors"):
                first = await sender.tell(PAD, Erase())

                async def is_left() -> bool:
                    return old.statistics().unhandled == 1

                await until(is_left)
                second = await sender.tell(PAD, Note("b"))
                await sender.tell(PAD, Erase())
                # What the owner itself sends waits behind it, too.
                third = await old.tell(PAD, Note("c"))
            said = [record.message for record in caplog.records if "'Erase'" in record.message]
            assert len(said) == 1
            assert "'pad'" in said[0]
            assert await old.dead_letters.list() == []
            assert await waiting_of(old, PAD) == 4
            statistics = old.statistics()
            assert (statistics.failed, statistics.dead_lettered, statistics.unhandled) == (0, 0, 1)
            # Other entities do not notice.
            assert await sender.ask(EntityRef("pad", "two"), Note("a")) == 1
        async with new_system(NewPad, Pencil) as new:
            assert await sender.result(first) == 1
            assert await sender.result(second) == 1
            assert await sender.result(third) == 1
            assert (await new.audit()).is_balanced
            assert new.statistics().unhandled == 0


class Scratch(Actor[Notes], kind="pad", durable=False):
    """A release that made the kind volatile."""

    @handler
    async def note(self, message: Note) -> int:
        self.state.words.append(message.word)
        return len(self.state.words)


async def test_a_volatile_kind_runs_nothing_from_the_log(new_system: NewSystem) -> None:
    """There would be two copies of the entity: one with a journal, one without."""
    async with new_system(OldPad) as old:
        await old.ask(PAD, Note("a"))
        await old.pause(PAD)
        receipt = await old.tell(PAD, Note("b"))
    async with new_system(Scratch) as scratch:
        await scratch.resume(PAD)

        async def is_left() -> bool:
            return scratch.statistics().unhandled == 1

        await until(is_left)
        assert await scratch.ask(PAD, Note("of another life")) == 1
        assert scratch.statistics().activations == 0
    async with new_system(OldPad) as old:
        assert await old.result(receipt) == 2


async def test_it_counts_as_no_attempt(new_system: NewSystem) -> None:
    await knows_new_pads(new_system)
    async with new_system() as sender:
        async with new_system(OldPad) as old:
            await sender.tell(PAD, Erase())

            async def is_left() -> bool:
                return old.statistics().unhandled == 1

            await until(is_left)
        async with new_system(NewPad, Pencil) as new:
            watcher = Watcher(new, "dispatched", "completed")
            events = await watcher.wait(2)
            assert [(event.event, event.attempt) for event in events] == [("dispatched", 1), ("completed", 1)]


async def test_it_can_still_be_withdrawn(new_system: NewSystem) -> None:
    await knows_new_pads(new_system)
    async with new_system() as sender, new_system(OldPad) as old:
        receipt = await sender.tell(PAD, Erase())

        async def is_left() -> bool:
            return old.statistics().unhandled == 1

        await until(is_left)
        behind = await sender.tell(PAD, Note("a"))

        async def is_withdrawn() -> bool:
            # What came behind it rang, and for as long as the owner looks again, it counts as running.
            return await sender.withdraw(receipt)

        await until(is_withdrawn)
        # Whatever comes next, or the next look, finds what was behind it.
        assert await sender.ask(PAD, Note("b")) == 2
        assert await sender.result(behind) == 1
        assert old.statistics().unhandled == 0


async def test_it_does_not_spin(new_system: NewSystem) -> None:
    await knows_new_pads(new_system)
    async with new_system() as sender, new_system(OldPad) as old:
        await sender.tell(PAD, Erase())

        async def is_left() -> bool:
            return old.statistics().unhandled == 1

        await until(is_left)
        await anyio.sleep(0.1)
        before = old.statistics().store.steps
        await anyio.sleep(0.5)
        # What is left are the sweeps of four partitions.
        assert old.statistics().store.steps - before <= 15


async def test_a_kind_without_handlers_hides_nothing(new_system: NewSystem) -> None:
    """More of them than a sweep finds at once wait in the very partition of what can run."""
    await knows_new_pads(new_system)
    pads = [EntityRef("pad", f"n-{number}") for number in range(1_000)]
    there = partition_of(str(PAD), 4)
    mates = [pad for pad in pads if partition_of(str(pad), 4) == there][: SWEEP_LIMIT + 30]
    assert len(mates) > SWEEP_LIMIT
    async with new_system() as sender:
        await sender.tell_many([(mate, Note("a")) for mate in mates])
        pencils = [EntityRef("pencil", f"p-{number}") for number in range(50)]
        receipts = await sender.tell_many(
            [(pencil, Note("x")) for pencil in pencils if partition_of(str(pencil), 4) == there]
        )
        async with new_system(Pencil) as system:
            for receipt in receipts:
                assert await sender.result(receipt) == 0
            assert system.statistics().unhandled > SWEEP_LIMIT
            assert await system.dead_letters.list() == []
        async with new_system(NewPad, Pencil):
            assert await sender.ask(mates[-1], RawMessage("Erase", {})) == 1
