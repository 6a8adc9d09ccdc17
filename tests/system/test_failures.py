"""Retries, dead letters, replay, park: what becomes of a handler that raises."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from atomic_actors import (
    ActorSystem,
    DeadLetter,
    HandlerFailed,
    InvalidMessageId,
    KindConfig,
    Receipt,
    UnknownMessage,
)
from atomic_actors.node.execution._supervisor import Supervisor
from tests.system.support import (
    Break,
    BreakWrite,
    Desk,
    Flaky,
    NewSystem,
    Read,
    Stage,
    Watcher,
    Work,
    Write,
    desk,
    until,
)

pytestmark = pytest.mark.anyio


async def test_a_failure_says_what_happened(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises(HandlerFailed, match=r"RuntimeError: cup \(dead letter desk/one/") as failed:
            await system.ask(desk(), Break("cup"))
        assert failed.value.code == "handler_failed"
        assert failed.value.error_type == "RuntimeError"
        assert failed.value.message_id is not None
        # One attempt is the default, and the entity goes on.
        assert await system.ask(desk(), Write("next")) == 1
        assert await system.ask(desk("elsewhere"), Read()) == []


async def test_retries_keep_the_order(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipts: list[Receipt[Any]] = await system.tell_many(
            [(desk(), Flaky(3)), (desk(), Write("a")), (desk(), Flaky(1)), (desk(), Write("b"))]
        )
        assert [await system.result(receipt) for receipt in receipts] == [4, 1, 2, 2]
        first = [f"attempt {number}" for number in (1, 2, 3, 4)]
        assert stage.log == [*first, "a", *first[:2], "b"]
        report = await system.audit()
        assert (report.completed, report.failed, report.dead_letters) == (4, 0, 0)
        assert system.statistics().retried == 4


async def test_attempts_are_counted(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises(HandlerFailed, match="attempt 5"):
            await system.ask(desk(), Flaky(9))
        (letter,) = await system.dead_letters.list()
        assert (letter.attempts, letter.interruptions) == (5, 0)
        assert stage.log == [f"attempt {number}" for number in range(1, 6)]


@pytest.mark.parametrize(("failures", "attempts"), [(1, 2), (2, 2)])
async def test_the_configuration_sets_attempts(
    new_system: NewSystem, stage: Stage, failures: int, attempts: int
) -> None:
    """For a kind; but what a handler says of itself is nearer."""
    async with new_system(
        Desk.using(stage=stage), kinds={"desk": KindConfig(max_attempts=attempts)}
    ) as system:
        with pytest.raises(HandlerFailed):
            await system.ask(desk(), Break())
        (letter,) = await system.dead_letters.list()
        assert letter.attempts == attempts
        assert await system.ask(desk(), Flaky(failures)) == failures + 1


async def test_a_message_waits_for_its_back_off(new_system: NewSystem, stage: Stage) -> None:
    waits = {"backoff": "fixed", "backoff_initial_s": 0.15, "backoff_max_s": 0.15}
    async with new_system(Desk.using(stage=stage), **waits) as system:
        before = anyio.current_time()
        assert await system.ask(desk(), Flaky(2)) == 3
        assert anyio.current_time() - before >= 0.29


async def test_a_waiting_retry_survives_passivation(new_system: NewSystem, stage: Stage) -> None:
    waits = {"backoff_initial_s": 0.3, "backoff_max_s": 0.3}
    async with new_system(Desk.using(stage=stage), **waits) as system:
        failed = Watcher(system, "failed")
        receipt = await system.tell(desk(), Flaky(1))
        await failed.wait()
        assert await system.passivate(desk())
        assert await system.result(receipt) == 2


async def test_the_last_state_comes_back(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        await system.ask(desk(), Write("kept"))
        for message in (Break(), BreakWrite()):
            with pytest.raises(HandlerFailed):
                await system.ask(desk(), message)
            assert await system.ask(desk(), Read()) == ["kept"]
        assert (await system.where(desk())).version == 1


# Dead letters


async def test_a_letter_has_everything(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        watcher = Watcher(system, "dead-lettered")
        before_s = time.time()
        receipt = await system.tell(desk(), Break("cup"))
        await watcher.wait()
        (letter,) = await system.dead_letters.list()
        assert letter == await system.dead_letters.get(receipt.message_id)
        assert letter.message_id == receipt.message_id
        assert letter.entity == desk()
        assert letter.name == "Break"
        assert letter.message == {"text": "cup"}
        assert (letter.reason, letter.attempts, letter.interruptions) == ("failed", 1, 0)
        assert (letter.error, letter.error_type) == ("cup", "RuntimeError")
        assert "in break_it" in letter.traceback
        assert before_s - 60 < letter.accepted_at_s <= letter.died_at_s < time.time() + 60
        assert letter.replayed_as is None
        assert "cup" not in repr(letter).replace("error='cup'", "")


async def break_some(system: ActorSystem, *texts: str, entity: str = "one") -> list[DeadLetter]:
    for text in texts:
        with pytest.raises(HandlerFailed):
            await system.ask(desk(entity), Break(text))
    return [letter for letter in await system.dead_letters.list() if letter.entity == desk(entity)]


async def test_list_sorts_limits_and_filters(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        for number in range(6):
            await break_some(system, str(number), entity=f"d{number}")
        letters = await system.dead_letters.list()
        assert sorted(letter.error for letter in letters) == list("012345")
        died = [letter.died_at_s for letter in letters]
        assert died == sorted(died)
        assert await system.dead_letters.list(limit=2) == letters[:2]
        assert await system.dead_letters.list(kind="desk") == letters
        assert await system.dead_letters.list(kind="des") == []
        assert (await system.counts("desk")).dead_letters == 6


async def test_unknown_letters(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipt = await system.tell(desk(), Write("fine"))
        await system.result(receipt)
        letters = system.dead_letters
        for call in (letters.get, letters.replay):
            with pytest.raises(UnknownMessage, match=receipt.message_id):
                await call(receipt.message_id)
            with pytest.raises(InvalidMessageId, match="kind/id"):
                await call("desk/one")
        assert await letters.purge(receipt.message_id) == 0
        with pytest.raises(InvalidMessageId):
            await letters.purge("what")


async def test_replay(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage), kinds={"desk": KindConfig(max_attempts=1)}) as system:
        (letter,) = await break_some(system, "cup")
        again = await system.dead_letters.replay(letter.message_id)
        assert again.message_id != letter.message_id
        assert again.entity == desk()
        with pytest.raises(HandlerFailed, match="cup"):
            await system.result(again)
        # Asking twice replays once, whatever became of the first replay.
        assert (await system.dead_letters.replay(letter.message_id)).message_id == again.message_id
        marked = await system.dead_letters.get(letter.message_id)
        assert marked.replayed_as == again.message_id
        assert (await system.audit()).accepted == 2
        # The replay died as well: it is a letter of its own, and can be replayed itself.
        third = await system.dead_letters.replay(again.message_id)
        assert third.message_id not in (again.message_id, letter.message_id)


async def test_the_answer_to_a_replay_brings_the_turn(
    new_system: NewSystem, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No doorbell rings at the node that replays, and nothing is taken besides."""
    limits = {"desk": KindConfig(max_attempts=1)}
    async with new_system(Desk.using(stage=stage), kinds=limits, partitions=1) as system:
        (letter,) = await break_some(system, "cup")
        calls: list[object] = []
        for method in ("wake", "take"):
            monkeypatch.setattr(Supervisor, method, lambda *what: calls.append(what))
        again = await system.dead_letters.replay(letter.message_id)
        for _ in range(2):
            with pytest.raises(HandlerFailed, match="cup"):
                await system.result(again)
            again = await system.dead_letters.replay(again.message_id, at="head")
        with pytest.raises(HandlerFailed, match="cup"):
            await system.result(again)
        assert calls == []


async def test_many_replays_at_once(new_system: NewSystem, stage: Stage) -> None:
    """Two people at two screens: the letter is replayed once, and both are told the same id."""
    async with (
        new_system(Desk.using(stage=stage)) as system,
        new_system(Desk.using(stage=stage)) as other,
    ):
        (letter,) = await break_some(system, "cup")
        ids: set[str] = set()

        async def replay(by: ActorSystem) -> None:
            ids.add((await by.dead_letters.replay(letter.message_id)).message_id)

        async with anyio.create_task_group() as task_group:
            for _ in range(10):
                task_group.start_soon(replay, system)
                task_group.start_soon(replay, other)
        (message_id,) = ids
        with pytest.raises(HandlerFailed):
            await system.result(message_id)
        assert len(await system.dead_letters.list()) == 2
        assert (await system.audit()).accepted == 2


@pytest.mark.parametrize("at", ["head", "tail"])
async def test_where_a_replay_goes(new_system: NewSystem, stage: Stage, at: Any) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises(HandlerFailed):
            await system.ask(desk(), Flaky(9))
        (letter,) = await system.dead_letters.list()
        stage.log.clear()
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        await system.tell(desk(), Write("second"))
        again = await system.dead_letters.replay(letter.message_id, at=at)
        stage.release()
        with pytest.raises(HandlerFailed):
            await system.result(again)
        assert await system.ask(desk(), Read()) == ["first", "second"]
        attempts = [f"attempt {number}" for number in range(1, 6)]
        assert stage.log == (
            ["first", *attempts, "second"] if at == "head" else ["first", "second", *attempts]
        )


async def test_a_replay_at_nowhere(new_system: NewSystem, stage: Stage) -> None:
    wrong: Any = "front"
    async with new_system(Desk.using(stage=stage)) as system:
        (letter,) = await break_some(system, "cup")
        with pytest.raises(ValueError, match="'head' or 'tail', got 'front'"):
            await system.dead_letters.replay(letter.message_id, at=wrong)


async def test_purge(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        letters = await break_some(system, "a", "b", "c")
        ids = [letter.message_id for letter in letters]
        assert await system.dead_letters.purge(*ids[:2]) == 2
        assert await system.dead_letters.purge(*ids) == 1
        assert await system.dead_letters.purge() == 0
        assert await system.dead_letters.list() == []
        with pytest.raises(UnknownMessage):
            await system.dead_letters.replay(ids[0])
        report = await system.audit()
        assert (report.failed, report.dead_letters, report.problems) == (3, 0, ())


# on_dead, pause, resume


async def test_a_dead_letter_may_park_its_entity(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage), kinds={"desk": KindConfig(on_dead="park")}) as system:
        receipts: list[Receipt[Any]] = await system.tell_many(
            [(desk(), Write("a")), (desk(), BreakWrite()), (desk(), Write("b"))]
        )
        with pytest.raises(HandlerFailed):
            await system.result(receipts[1])
        where = await system.where(desk())
        assert where.is_parked
        assert where.waiting == 1
        # Others go on, and what is sent to the parked one waits in its place.
        assert await system.ask(desk("two"), Write("x")) == 1
        last = await system.tell(desk(), Write("c"))
        (letter,) = await system.dead_letters.list()
        again = await system.dead_letters.replay(letter.message_id, at="head")
        assert (await system.where(desk())).waiting == 3
        assert await system.resume(desk()) is True
        with pytest.raises(HandlerFailed):
            await system.result(again)
        assert (await system.where(desk())).is_parked
        assert await system.resume(desk()) is True
        assert await system.result(last) == 3
        assert await system.ask(desk(), Read()) == ["a", "b", "c"]


async def test_pause_and_resume(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        await system.ask(desk(), Write("a"))
        assert await system.pause(desk()) is True
        assert await system.pause(desk()) is False
        receipt = await system.tell(desk(), Write("b"))
        assert await system.ask(desk("two"), Write("x")) == 1
        assert (await system.where(desk())).waiting == 1
        assert stage.log == ["a", "x"]
        assert await system.resume(desk()) is True
        assert await system.result(receipt) == 2
        assert await system.resume(desk()) is False


async def test_a_pause_lets_the_turn_end(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        first = await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        second = await system.tell(desk(), Work("second"))
        await system.pause(desk())
        stage.release()
        assert await system.result(first) == "first"
        assert (await system.where(desk())).waiting == 1
        assert stage.log == ["first"]
        await system.resume(desk())
        assert await system.result(second) == "second"


async def test_a_pause_outlives_the_system(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        await system.pause(desk())
        receipt = await system.tell(desk(), Write("a"))
    async with new_system(Desk.using(stage=stage)) as system:
        assert (await system.where(desk())).is_parked
        assert stage.log == []
        await system.resume(desk())
        assert await system.result(receipt) == 1


async def test_full_of_dead_letters(new_system: NewSystem, stage: Stage) -> None:
    """At `max_dead_letters` the next entity that fails parks, and its message is not dropped."""
    async with new_system(Desk.using(stage=stage), max_dead_letters=1, partitions=1) as system:
        await break_some(system, "a")
        receipt = await system.tell(desk("two"), Break("b"))

        async def is_parked() -> bool:
            return (await system.where(desk("two"))).is_parked

        await until(is_parked)
        where = await system.where(desk("two"))
        assert (where.waiting, where.dispatched) == (1, 0)
        (letter,) = await system.dead_letters.list()
        await system.dead_letters.purge(letter.message_id)
        await system.resume(desk("two"))
        with pytest.raises(HandlerFailed, match="b"):
            await system.result(receipt)
        assert (await system.audit()).is_balanced
