"""What a handler sees and may do: state, outbox, context, children."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    Command,
    EntityRef,
    HandlerFailed,
    InvalidState,
    NotSupported,
    Query,
    RawMessage,
    handler,
)
from tests.system.support import (
    PATIENCE_S,
    Decline,
    Declined,
    Desk,
    NewSystem,
    Read,
    Send,
    Stage,
    Watcher,
    Work,
    Write,
    desk,
    unlike,
)

pytestmark = pytest.mark.anyio


# A kind that does whatever the test says.


@define
class Numbers:
    numbers: list[int] = Factory(list)


@frozen
class Do(Command[Any]):
    """Effectful: calls the function of this name."""

    what: str


@frozen
class DoTransactional(Command[Any]):
    what: str


@frozen
class Look(Query[Any]):
    what: str


@frozen
class Get(Query[list[int]]):
    pass


class Worker(Actor[Numbers], kind="worker"):
    def __init__(self, **does: Any) -> None:
        self.does = does

    @handler
    async def do(self, message: Do) -> Any:
        return await self.does[message.what](self)

    @handler(transactional=True)
    async def do_transactional(self, message: DoTransactional) -> Any:
        return await self.does[message.what](self)

    @handler
    async def look(self, message: Look) -> Any:
        return await self.does[message.what](self)

    @handler
    async def get(self, message: Get) -> list[int]:
        return self.state.numbers


WORKER = Worker.ref("w")


# State


async def test_assigning_a_new_state(new_system: NewSystem) -> None:
    async def assign(worker: Worker) -> bool:
        worker.state = Numbers([1])
        worker.state.numbers.append(2)
        return worker.context.state is worker.state

    async def assign_and_fail(worker: Worker) -> None:
        worker.state = Numbers([9])
        raise RuntimeError

    async with new_system(Worker.using(assign=assign, fail=assign_and_fail)) as system:
        # The class says: the same object as `self.state`.
        assert await system.ask(WORKER, Do("assign")) is True
        assert await system.ask(WORKER, Get()) == [1, 2]
        for message in (Do("fail"), DoTransactional("fail")):
            with pytest.raises(HandlerFailed):
                await system.ask(WORKER, message)
            assert await system.ask(WORKER, Get()) == [1, 2]
    async with new_system(Worker) as system:
        assert await system.ask(WORKER, Get()) == [1, 2]


async def test_a_state_that_does_not_fit(new_system: NewSystem) -> None:
    async def spoil(worker: Worker) -> None:
        worker.state.numbers.append("three")  # type: ignore[arg-type]
        worker.outbox.add(Worker.ref("other"), Do("keep"))

    async def replace(worker: Worker) -> None:
        worker.state = None  # type: ignore[assignment]

    async def keep(worker: Worker) -> None:
        worker.state.numbers.append(1)

    async with new_system(Worker.using(spoil=spoil, replace=replace, keep=keep)) as system:
        await system.ask(WORKER, Do("keep"))
        with pytest.raises(HandlerFailed, match=r"InvalidState.*Worker\.do.*numbers\[1\]"):
            await system.ask(WORKER, Do("spoil"))
        with pytest.raises(HandlerFailed, match="InvalidState") as failed:
            await system.ask(WORKER, Do("replace"))
        assert failed.value.error_type == InvalidState.__name__
        assert await system.ask(WORKER, Get()) == [1]
        assert await system.ask(Worker.ref("other"), Get()) == []


async def test_a_refusal_changes_nothing(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        await system.ask(desk(), Write("a"))
        with pytest.raises(Declined) as declined:
            await system.ask(desk(), Decline("no"))
        assert (declined.value.reason, declined.value.wrote) == ("no", 2)
        assert declined.value.code == "refused"
        assert await system.ask(desk(), Read()) == ["a"]
        assert await system.ask(desk("elsewhere"), Read()) == []
        report = await system.audit()
        assert (report.refused, report.failed, report.dead_letters) == (1, 0, 0)
        assert system.statistics().refused == 1


async def test_refusals_without_a_class(new_system: NewSystem) -> None:
    from atomic_actors import Refused

    async def plain(worker: Worker) -> None:
        raise Refused("not today")

    async with new_system(Worker.using(plain=plain)) as system:
        with pytest.raises(Refused, match=r"^not today$") as refused:
            await system.ask(WORKER, Do("plain"))
        assert type(refused.value) is Refused


@pytest.mark.parametrize("what", ["change", "assign", "send"])
async def test_a_query_changes_nothing(new_system: NewSystem, what: str) -> None:
    async def change(worker: Worker) -> None:
        worker.state.numbers.append(1)

    async def assign(worker: Worker) -> None:
        worker.state = Numbers([1])

    async def send(worker: Worker) -> None:
        worker.outbox.add(Worker.ref("other"), Do("change"))

    async with new_system(Worker.using(change=change, assign=assign, send=send)) as system:
        with pytest.raises(HandlerFailed, match=r"QueryChangedState.*Worker\.look.*Command"):
            await system.ask(WORKER, Look(what))
        assert await system.ask(WORKER, Get()) == []
        assert await system.ask(Worker.ref("other"), Get()) == []


async def test_a_query_may_assign_an_equal_state(new_system: NewSystem) -> None:
    async def assign(worker: Worker) -> int:
        worker.state = Numbers()
        return 1

    async with new_system(Worker.using(assign=assign)) as system:
        assert await system.ask(WORKER, Look("assign")) == 1


# Outbox


async def arrived_words(new_system: NewSystem, stage: Stage, to: EntityRef) -> list[str]:
    words = [str(number) for number in range(25)]
    async with new_system(Desk.using(stage=stage)) as system:
        watcher = Watcher(system, "completed")
        await system.tell_many([(desk(), Send(to.id, words[start : start + 5])) for start in range(0, 25, 5)])
        await watcher.wait(30)
        read: list[str] = await system.ask(to, Read())
        assert (await system.audit()).is_balanced
        assert read == words
        return read


async def test_outbox_to_another_entity_of_the_partition(new_system: NewSystem, stage: Stage) -> None:
    from tests.system.support import partition_mates

    await arrived_words(new_system, stage, partition_mates(desk())[0])


async def test_outbox_to_every_other_partition(new_system: NewSystem, stage: Stage) -> None:
    for to in unlike(desk()):
        await arrived_words(new_system, stage, to)


async def test_outbox_to_itself(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        watcher = Watcher(system, "completed")
        await system.tell(desk(), Send("one", ["a", "b"]))
        await watcher.wait(3)
        assert await system.ask(desk(), Read()) == ["a", "b"]


@pytest.mark.parametrize("bad", ["kind", "message", "payload"])
async def test_a_bad_outbox_message_fails_the_whole_turn(new_system: NewSystem, bad: str) -> None:
    """What was added before the bad one does not go out either."""

    async def send(worker: Worker) -> None:
        worker.state.numbers.append(1)
        worker.outbox.add(Worker.ref("other"), Do("note"))
        if bad == "kind":
            worker.outbox.add(EntityRef("nobody", "x"), RawMessage("x"))
        elif bad == "message":
            worker.outbox.add(Worker.ref("other"), RawMessage("Nothing"))
        else:
            worker.outbox.add(Worker.ref("other"), Do(7))  # type: ignore[arg-type]

    async def note(worker: Worker) -> None:
        worker.state.numbers.append(2)

    async with new_system(Worker.using(send=send, note=note)) as system:
        for message in (Do("send"), DoTransactional("send")):
            with pytest.raises(HandlerFailed, match=r"UnknownKind|UnknownMessageType|InvalidPayload"):
                await system.ask(WORKER, message)
        assert await system.ask(WORKER, Get()) == []
        assert await system.ask(Worker.ref("other"), Get()) == []
        assert (await system.audit()).outbound == 0


async def test_outbox_refuses_at_add(new_system: NewSystem) -> None:
    caught: list[BaseException] = []

    async def send(worker: Worker) -> int:
        for entity, message in (("worker/w", Get()), (WORKER, "hello"), (WORKER, Get)):
            try:
                worker.outbox.add(entity, message)  # type: ignore[arg-type]
            except Exception as error:
                caught.append(error)
        return len(worker.outbox)

    async with new_system(Worker.using(send=send)) as system:
        assert await system.ask(WORKER, Do("send")) == 0
        assert [type(error).__name__ for error in caught] == ["InvalidEntityId", *["UnknownMessageType"] * 2]


async def test_the_outbox_is_bounded(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage), max_outbox_messages=3) as system:
        await system.ask(desk(), Send("two", ["a", "b", "c"]))
        with pytest.raises(HandlerFailed, match=r"OutboxLimitExceeded.*3 messages.*max_outbox_messages"):
            await system.ask(desk(), Send("two", ["d", "e", "f", "g"]))
        assert await system.ask(desk(), Send("two", ["h"])) is None


async def test_the_outbox_is_not_bounded_by_depth(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("busy")
    async with new_system(Desk.using(stage=stage), max_depth=2) as system:
        await system.tell(desk("two"), Work("busy"))
        await stage.wait_for("busy")
        await system.ask(desk(), Send("two", list("abcdef")))
        watcher = Watcher(system, "completed")
        stage.release()
        await watcher.wait(7)
        assert await system.ask(desk("two"), Read()) == ["busy", *"abcdef"]


# Context


async def test_what_a_context_says(new_system: NewSystem) -> None:
    seen: list[dict[str, Any]] = []

    async def look(worker: Worker) -> None:
        context = worker.context
        assert context.outbox is worker.outbox
        assert context.state is worker.state
        seen.append(
            {
                name: getattr(context, name)
                for name in (
                    "entity",
                    "message_id",
                    "attempt",
                    "deadline",
                    "fencing_token",
                    "idempotency_key",
                )
            }
        )
        if len(seen) == 1:
            raise RuntimeError

    kinds = {"max_attempts": 2}
    async with new_system(Worker.using(look=look), **kinds) as system:
        now = anyio.current_time()
        await system.ask(WORKER, Do("look"), timeout_s=60)
        receipt = await system.tell(WORKER, Do("look"))
        await system.result(receipt)
    async with new_system(Worker.using(look=look), **kinds) as system:
        await system.ask(WORKER, Do("look"), timeout_s=0)
    first, second, told, later = seen
    assert first["entity"] == WORKER
    assert first["message_id"].startswith("worker/w/")
    assert (first["attempt"], second["attempt"], told["attempt"]) == (1, 2, 1)
    assert first["message_id"] == second["message_id"] != told["message_id"] == receipt.message_id
    assert first["idempotency_key"] == second["idempotency_key"] != told["idempotency_key"]
    assert 55 < first["deadline"] - now < 65
    assert told["deadline"] == later["deadline"] == float("inf")
    assert first["fencing_token"] == told["fencing_token"] >= 1
    # Another owner: a higher token.
    assert later["fencing_token"] > told["fencing_token"]


async def test_a_turn_has_a_deadline(new_system: NewSystem) -> None:
    cleaned: list[str] = []

    async def hang(worker: Worker) -> None:
        worker.state.numbers.append(1)
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("handler")

    async def deadline(worker: Worker) -> float:
        return worker.context.deadline - anyio.current_time()

    async with new_system(Worker.using(hang=hang, deadline=deadline), turn_timeout_s=0.05) as system:
        with pytest.raises(HandlerFailed, match="DeadlineExceeded"):
            await system.ask(WORKER, Do("hang"))
        assert cleaned == ["handler"]
        (letter,) = await system.dead_letters.list()
        assert (letter.reason, letter.error_type) == ("failed", "DeadlineExceeded")
        assert await system.ask(WORKER, Get()) == []
        assert 0 < await system.ask(WORKER, Do("deadline")) < 0.06


async def test_turns_at_the_deadline_of_an_ask_fail(new_system: NewSystem, stage: Stage) -> None:
    from atomic_actors import AskTimeout

    stage.hold("slow")
    async with new_system(Desk.using(stage=stage)) as system:
        failed = Watcher(system, "failed")
        # The ask and its turn end together: the asker hears that its time is up, or already how it ended.
        with pytest.raises((AskTimeout, HandlerFailed)) as late:
            await system.ask(desk(), Work("slow"), timeout_s=0.05)
        await failed.wait()
        with pytest.raises(HandlerFailed, match="DeadlineExceeded"):
            await system.result(late.value.message_id or "")
        assert await system.ask(desk(), Read()) == []


# Children


async def test_children_end_before_the_commit(new_system: NewSystem) -> None:
    release = anyio.Event()
    started = anyio.Event()

    async def child(worker: Worker, number: int) -> None:
        started.set()
        await release.wait()
        worker.state.numbers.append(number)
        worker.outbox.add(Worker.ref("other"), Do("note"))

    async def start(worker: Worker) -> str:
        for number in range(3):
            worker.context.start_soon(child, worker, number)
        return "started"

    async def note(worker: Worker) -> None:
        worker.state.numbers.append(7)

    async with new_system(Worker.using(start=start, note=note)) as system:
        completed = Watcher(system, "completed")
        receipt = await system.tell(WORKER, Do("start"))
        with anyio.fail_after(PATIENCE_S):
            await started.wait()
        await anyio.wait_all_tasks_blocked()
        assert completed.events == []
        release.set()
        assert await system.result(receipt) == "started"
        assert sorted(await system.ask(WORKER, Get())) == [0, 1, 2]
        await completed.wait(5)
        assert await system.ask(Worker.ref("other"), Get()) == [7, 7, 7]


async def test_a_child_that_fails_fails_the_turn(new_system: NewSystem) -> None:
    ended: list[str] = []

    async def sleep(name: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(name)

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("child")

    async def start(worker: Worker) -> None:
        worker.state.numbers.append(1)
        worker.context.start_soon(sleep, "sibling")
        worker.context.start_soon(fail)
        await sleep("handler")

    async def start_and_return(worker: Worker) -> None:
        worker.state.numbers.append(1)
        worker.context.start_soon(sleep, "sibling")
        worker.context.start_soon(fail)

    async with new_system(Worker.using(start=start, quick=start_and_return)) as system:
        for what, names in (("start", ["handler", "sibling"]), ("quick", ["sibling"])):
            with pytest.raises(HandlerFailed, match="ValueError: child") as failed:
                await system.ask(WORKER, Do(what))
            assert failed.value.error_type == "ValueError"
            assert sorted(ended) == names
            ended.clear()
        assert await system.ask(WORKER, Get()) == []


async def test_a_failing_handler_ends_its_children(new_system: NewSystem) -> None:
    ended = anyio.Event()

    async def sleep() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async def start(worker: Worker) -> None:
        worker.context.start_soon(sleep)
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("parent")

    async with new_system(Worker.using(start=start)) as system:
        with pytest.raises(HandlerFailed, match="parent"):
            await system.ask(WORKER, Do("start"))
        assert ended.is_set()


async def test_children_of_nobody(new_system: NewSystem) -> None:
    kept: list[Worker] = []

    async def keep(worker: Worker) -> None:
        kept.append(worker)

    async with new_system(Worker.using(keep=keep)) as system:
        await system.ask(WORKER, Do("keep"))
        with pytest.raises(NotSupported, match="start_soon"):
            kept[0].context.start_soon(anyio.sleep, 0)
