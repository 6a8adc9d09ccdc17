"""Depths, activations, sizes: what is refused, and that nothing else is."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from attrs import define, frozen

from atomic_actors import (
    Actor,
    ActorLimitExceeded,
    Command,
    HandlerFailed,
    KindConfig,
    NotExecuted,
    PayloadTooLarge,
    QueueDepthExceeded,
    handler,
)
from atomic_actors.codec._envelope import encode_plain
from tests.system.support import PATIENCE_S, Desk, NewSystem, Read, Stage, Work, Write, desk, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("limit", [{"max_depth": 2}, {"kinds": {"desk": KindConfig(max_depth=2)}}])
async def test_depth_of_an_entity(new_system: NewSystem, stage: Stage, limit: dict[str, Any]) -> None:
    stage.hold("busy")
    async with new_system(Desk.using(stage=stage), **limit) as system:
        await system.tell(desk(), Work("busy"))
        await stage.wait_for("busy")
        # The running one does not wait: two more may.
        receipts = [await system.tell(desk(), Write(word)) for word in "ab"]
        for call in (system.ask, system.tell):
            with pytest.raises(QueueDepthExceeded, match=r"desk/one.*2") as full:
                await call(desk(), Write("c"))
            assert isinstance(full.value, NotExecuted)
        assert await system.ask(desk("two"), Write("x")) == 1
        # A withdrawn one makes room.
        assert await system.withdraw(receipts[1])
        last = await system.tell(desk(), Write("d"))
        stage.release()
        assert await system.result(last) == 3
        assert await system.ask(desk(), Read()) == ["busy", "a", "d"]


async def test_depth_of_all(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("busy")
    async with new_system(Desk.using(stage=stage), max_total_depth=3, partitions=1) as system:
        for name in ("one", "two"):
            await system.tell(desk(name), Work("busy"))
            await system.tell(desk(name), Write("a"))
        last = await system.tell(desk("two"), Write("b"))
        for name in ("one", "two"):
            with pytest.raises(QueueDepthExceeded, match=r"max_total_depth|partition"):
                await system.tell(desk(name), Write("c"))
        stage.release()
        assert await system.result(last) == 3
        assert await system.ask(desk("two"), Read()) == ["busy", "a", "b"]


async def test_the_idle_make_room_least_recently_used_first(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage), max_activations=2) as system:

        async def active() -> set[str]:
            names = ("a", "b", "c")
            return {name for name in names if (await system.where(desk(name))).is_active}

        for name in ("a", "b", "a"):
            await system.ask(desk(name), Write(name))
        await system.ask(desk("c"), Write("c"))
        assert await active() == {"a", "c"}
        # What went to sleep comes back with its state.
        assert await system.ask(desk("b"), Read()) == ["b"]
        assert await active() == {"b", "c"}
        assert system.statistics().activations == 2


async def test_too_many_activations(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("a", "b")
    async with new_system(Desk.using(stage=stage), max_activations=2) as system:
        first = [await system.tell(desk(name), Work(name)) for name in "ab"]
        for name in "ab":
            await stage.wait_for(name)
        for call in (system.ask, system.tell):
            with pytest.raises(ActorLimitExceeded, match=r"desk/c.*2 activations.*max_activations") as full:
                await call(desk("c"), Write("c"))
            assert isinstance(full.value, NotExecuted)
        # An entity that is active may have more.
        more = await system.tell(desk("a"), Write("more"))
        stage.release("a")
        await system.result(first[0])
        assert await system.result(more) == 2
        assert await system.ask(desk("c"), Write("c")) == 1
        stage.release("b")
        report = await system.audit()
        assert report.problems == ()


async def test_tell_many_waits_for_room(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage), max_activations=5) as system:
        entities = [desk(f"d{number}") for number in range(60)]
        receipts = await system.tell_many([(entity, Work(entity.id)) for entity in entities])
        with anyio.fail_after(PATIENCE_S):
            assert [await system.result(receipt) for receipt in receipts] == [
                entity.id for entity in entities
            ]


async def test_outboxes_are_not_bounded_by_activations(new_system: NewSystem, stage: Stage) -> None:
    """What was committed must run, however many entities it wakes."""

    @frozen
    class Spread(Command[None]):
        pass

    class Spreader(Actor, kind="spreader"):
        @handler
        async def spread(self, message: Spread) -> None:
            for number in range(40):
                self.outbox.add(desk(f"d{number}"), Write(str(number)))

    async with new_system(Desk.using(stage=stage), Spreader, max_activations=3) as system:
        await system.ask(Spreader.ref("s"), Spread())

        async def all_ran() -> bool:
            return (await system.audit()).completed == 41

        await until(all_ran)
        assert sorted(stage.log, key=int) == [str(number) for number in range(40)]


# Sizes


@define
class Blob:
    data: bytes = b""


@frozen
class Keep(Command[bytes]):
    data: bytes
    keep: int = 1
    reply: int = 0


class Keeper(Actor[Blob], kind="keeper"):
    @handler
    async def keep(self, message: Keep) -> bytes:
        self.state.data = message.data * message.keep
        return message.data * message.reply


async def test_large_payloads(new_system: NewSystem) -> None:
    keeper = Keeper.ref("k")
    async with new_system(Keeper, max_payload_bytes=1000) as system:
        assert await system.ask(keeper, Keep(b"x" * 900)) == b""
        for call in (system.ask, system.tell):
            with pytest.raises(
                PayloadTooLarge, match=r"Keep for keeper/k: 10\d\d bytes.*max_payload_bytes=1000"
            ):
                await call(keeper, Keep(b"x" * 1000))
        with pytest.raises(HandlerFailed, match=r"PayloadTooLarge.*reply.*max_payload_bytes"):
            await system.ask(keeper, Keep(b"x" * 600, keep=1, reply=2))
        with pytest.raises(HandlerFailed, match=r"PayloadTooLarge.*state.*max_payload_bytes"):
            await system.ask(keeper, Keep(b"x" * 600, keep=2))
        assert (await system.audit()).accepted == 3


async def test_payloads_at_the_limit(new_system: NewSystem) -> None:
    """The last byte that fits fits; one more is refused before anything is sent."""
    keeper, limit = Keeper.ref("k"), 1000
    empty = (
        len(encode_plain({"data": b"", "keep": 0, "reply": 0})) + 1
    )  # the length of a longer one has a byte more
    async with new_system(Keeper, max_payload_bytes=limit) as system:
        assert await system.ask(keeper, Keep(b"x" * (limit - empty), keep=0)) == b""
        with pytest.raises(PayloadTooLarge, match=f"{limit + 1} bytes"):
            await system.ask(keeper, Keep(b"x" * (limit - empty + 1), keep=0))
        # Replies and states are bounded by the same number.
        state = len(encode_plain({"data": b""})) + 1
        assert await system.ask(keeper, Keep(b"y", keep=limit - state)) == b""
        with pytest.raises(HandlerFailed, match=f"the state has {limit + 1} bytes"):
            await system.ask(keeper, Keep(b"z", keep=limit - state + 1))
        reply = len(encode_plain(b"")) + 1
        assert await system.ask(keeper, Keep(b"y", reply=limit - reply)) == b"y" * (limit - reply)
        with pytest.raises(HandlerFailed, match=f"the reply has {limit + 1} bytes"):
            await system.ask(keeper, Keep(b"y", reply=limit - reply + 1))
        assert (await system.audit()).accepted == 5


async def test_sizes_without_bound(new_system: NewSystem) -> None:
    async with new_system(Keeper, max_payload_bytes=0) as system:
        data = bytes(range(256)) * 8192
        assert await system.ask(Keeper.ref("k"), Keep(data, reply=1)) == data
