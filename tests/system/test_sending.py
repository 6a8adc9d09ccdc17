"""ask, tell, tell_many, result, withdraw, keys, deadlines: what a sender sees."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from atomic_actors import (
    ActorSystem,
    AskTimeout,
    EntityRef,
    Expired,
    HandlerFailed,
    InvalidConfig,
    InvalidEntityId,
    InvalidKey,
    InvalidMessageId,
    KeyReused,
    NotExecuted,
    OutcomeUnknown,
    RawMessage,
    Receipt,
    ResultExpired,
    SystemNotRunning,
    UnknownMessage,
    Withdrawn,
)
from tests.system.support import (
    PATIENCE_S,
    Break,
    Desk,
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


async def test_the_verbs(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipt = await system.tell(desk(), Write("a"))
        assert receipt == Receipt(receipt.message_id, desk())
        entity, _, uid = receipt.message_id.rpartition("/")
        assert entity == "desk/one"
        assert len(uid) == 32
        assert uid[12] == "7"
        assert await system.ask(desk(), Work("b")) == "b"
        assert await system.ask(desk(), Read()) == ["a", "b"]
        assert await system.result(receipt) == 1
        assert await system.result(receipt.message_id) == 1
        # It ran: it cannot be taken back, and that is an answer, not an error.
        assert await system.withdraw(receipt) is False


async def test_a_handle_has_the_same_verbs(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        handle = system.entity(desk())
        assert handle.ref == desk()
        receipt = await handle.tell(Write("a"), key="k", expires_in_s=60)
        assert await handle.result(receipt) == 1
        receipts = await handle.tell_many([Write("b"), Write("c")])
        assert [await handle.result(each.message_id, 5) for each in receipts] == [2, 3]
        assert await handle.ask(Read(), timeout_s=5, on_cancel="detach") == ["a", "b", "c"]
        assert await handle.withdraw(receipts[0]) is False
        assert (await handle.where()).is_active
        assert await handle.pause()
        assert await handle.resume()
        assert await handle.passivate()


async def test_tell_many_keeps_order_for_each_entity(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        entities = [desk(f"d{number}") for number in range(5)]
        messages = [(entities[number % 5], Write(str(number))) for number in range(500)]
        receipts = await system.tell_many(messages)
        assert [receipt.entity for receipt in receipts] == [entity for entity, _ in messages]
        assert len({receipt.message_id for receipt in receipts}) == 500
        for place, entity in enumerate(entities):
            expected = [str(number) for number in range(500) if number % 5 == place]
            assert await system.ask(entity, Read()) == expected
        assert await system.tell_many([]) == []


async def test_tell_many_checks_all_before_it_sends_one(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises(LookupError):
            await system.tell_many([(desk(), Write("a")), (EntityRef("nobody", "x"), Write("b"))])
        assert await system.ask(desk(), Read()) == []


async def test_tell_many_says_how_far_it_got(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage), max_depth=3) as system:
        first = await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        with pytest.raises(NotExecuted) as refused:
            await system.tell_many([(desk(), Write(str(number))) for number in range(5)])
        assert refused.value.code == "queue_depth_exceeded"
        assert refused.value.__notes__ == ["3 of 5 messages were accepted; this is number 3"]
        stage.release()
        await system.result(first)
        assert await system.ask(desk(), Read()) == ["first", "0", "1", "2"]


# result


async def test_result_waits(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Desk.using(stage=stage)) as system, anyio.create_task_group() as task_group:
        receipt = await system.tell(desk(), Work("slow"))
        await stage.wait_for("slow")
        with pytest.raises(AskTimeout) as late:
            await system.result(receipt, 0.05)
        assert late.value.message_id == receipt.message_id

        async def wait() -> None:
            assert await system.result(receipt, 0) == "slow"

        task_group.start_soon(wait)
        task_group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        stage.release()


async def test_result_of_what_never_was(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipt = await system.tell(desk(), Write("a"))
        uid = receipt.message_id[-32:]
        with pytest.raises(UnknownMessage, match="desk/two"):
            await system.result(f"desk/two/{uid}")
        with pytest.raises(ResultExpired, match="result_ttl_s"):
            await system.result(f"desk/one/{'0' * 12}{uid[12:]}")
        for text in ("", "desk/one", "one", f"desk/one/{'x' * 32}", f"/one/{uid}", f"desk//{uid}"):
            with pytest.raises(InvalidMessageId, match=r"kind/id|kind:|id:"):
                await system.result(text)
        wrong: Any
        for wrong in (None, 7, desk()):
            with pytest.raises(InvalidMessageId, match="Receipt or a message id"):
                await system.result(wrong)


async def test_a_result_is_kept_for_its_time(new_system: NewSystem, stage: Stage) -> None:
    """A reply of yesterday is said to be gone, and not to have never been."""
    settings = {"result_ttl_s": 0.3, "accept_timeout_s": 0.1, "store_timeout_s": 0.1}
    async with new_system(Desk.using(stage=stage), **settings) as system:
        receipt = await system.tell(desk(), Write("a"))
        assert await system.result(receipt) == 1

        async def is_gone() -> bool:
            try:
                return bool(await system.result(receipt) != 1)
            except ResultExpired:
                return True

        await until(is_gone)
        with pytest.raises(ResultExpired, match=receipt.message_id):
            await system.result(receipt)


async def test_failures_are_told_again(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipt = await system.tell(desk(), Break("cup"))
        for _ in range(2):
            with pytest.raises(HandlerFailed, match="RuntimeError: cup") as failed:
                await system.result(receipt)
            assert failed.value.error_type == "RuntimeError"
            assert failed.value.message_id == receipt.message_id


# withdraw


async def test_withdraw(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        first = await system.tell(desk(), Work("first"))
        second = await system.tell(desk(), Write("second"))
        third = await system.tell(desk(), Write("third"), key="k")
        await stage.wait_for("first")
        assert await system.withdraw(first) is False
        assert await system.withdraw(second) is True
        assert await system.withdraw(second.message_id) is True
        assert await system.withdraw(third) is True
        with pytest.raises(Withdrawn) as withdrawn:
            await system.result(second)
        assert isinstance(withdrawn.value, NotExecuted)
        stage.release()
        assert await system.result(first) == "first"
        assert await system.ask(desk(), Read()) == ["first"]
        report = await system.audit()
        assert (report.withdrawn, report.completed, report.problems) == (2, 2, ())


async def test_withdrawing_tells_the_asker(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        await system.tell(desk(), Work("first"))
        second = await system.tell(desk(), Write("second"))
        told = anyio.Event()

        async def wait() -> None:
            with pytest.raises(Withdrawn):
                await system.result(second, 0)
            told.set()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert await system.withdraw(second)
            with anyio.fail_after(5):
                await told.wait()
        stage.release()


async def test_withdrawing_what_never_was(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipt = await system.tell(desk(), Write("a"))
        assert await system.withdraw(f"desk/two/{receipt.message_id[-32:]}") is False


# Keys


async def test_same_key_and_content_is_the_same_message(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        first = await system.tell(desk(), Write("a"), key="k")
        again = await system.tell(desk(), Write("a"), key="k")
        assert again.message_id == first.message_id
        assert await system.ask(desk(), Write("a"), key="k") == 1
        # It has a reply now, and it still is the same message.
        assert await system.ask(desk(), Write("a"), key="k") == 1
        assert (await system.tell(desk(), Write("a"), key="k")).message_id == first.message_id
        # A key belongs to its entity.
        assert await system.ask(desk("two"), Write("a"), key="k") == 1
        assert await system.ask(desk(), Read()) == ["a"]
        assert (await system.audit()).accepted == 3


async def test_a_key_with_other_content(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        assert await system.ask(desk(), Write("a"), key="k") == 1
        for message in (Write("b"), Work("a"), RawMessage("Write", {"word": "b"})):
            with pytest.raises(KeyReused, match=r"desk/one.*other content"):
                await system.ask(desk(), message, key="k")
            with pytest.raises(KeyReused):
                await system.tell(desk(), message, key="k")
        assert await system.ask(desk(), Read()) == ["a"]


async def test_many_at_once_with_one_key(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        replies: list[int] = []

        async def send() -> None:
            replies.append(await system.ask(desk(), Write("a"), key="k"))

        async with anyio.create_task_group() as task_group:
            for _ in range(20):
                task_group.start_soon(send)
        assert replies == [1] * 20
        assert await system.ask(desk(), Read()) == ["a"]


async def test_a_key_is_free_again_after_a_withdrawal(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        await system.tell(desk(), Work("first"))
        receipt = await system.tell(desk(), Write("a"), key="k")
        assert await system.withdraw(receipt)
        again = await system.tell(desk(), Write("a"), key="k")
        assert again.message_id != receipt.message_id
        stage.release()
        assert await system.result(again) == 2
        assert await system.ask(desk(), Read()) == ["first", "a"]


async def test_a_key_is_free_again_after_an_expiry(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        with pytest.raises(AskTimeout) as late:
            await system.ask(desk(), Write("a"), key="k", timeout_s=0.05)
        stage.release()
        with pytest.raises(Expired):
            await system.result(late.value.message_id or "")
        # What expired never ran, so the same key may run now.
        assert await system.ask(desk(), Write("a"), key="k") == 2


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 257, 7])
async def test_bad_keys(new_system: NewSystem, stage: Stage, key: Any) -> None:
    # A refused call leaves nothing behind that leaving would wait for.
    with anyio.fail_after(PATIENCE_S):
        async with new_system(Desk.using(stage=stage), drain_timeout_s=60) as system:
            await send_with_bad_key(system, key)


async def send_with_bad_key(system: ActorSystem, key: Any) -> None:
    with pytest.raises(InvalidKey, match=r"^key: "):
        await system.ask(desk(), Write("a"), key=key)
    with pytest.raises(InvalidKey, match=r"^key: "):
        await system.tell(desk(), Write("a"), key=key)
    assert (await system.audit()).accepted == 0


async def test_odd_keys_work(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        for number, key in enumerate([" ", "a:b/{c}", "ключ", "x" * 256], 1):
            assert await system.ask(desk(), Write("a"), key=key) == number
            assert await system.ask(desk(), Write("a"), key=key) == number


# Deadlines


async def test_an_ask_that_is_late_can_be_picked_up(new_system: NewSystem) -> None:
    """The message's deadline has come, but a handler that ends all the same is heard."""
    entered, leave = anyio.Event(), anyio.Event()

    class Stubborn(Stage):
        async def visit(self, name: str) -> None:
            entered.set()
            with anyio.CancelScope(shield=True):
                await leave.wait()

    async with new_system(Desk.using(stage=Stubborn())) as system:
        with pytest.raises(AskTimeout, match=r"result\(message_id\)") as late:
            await system.ask(desk(), Work("late"), timeout_s=0.05)
        assert isinstance(late.value, TimeoutError)
        assert isinstance(late.value, OutcomeUnknown)
        assert entered.is_set()
        assert late.value.message_id is not None
        leave.set()
        assert await system.result(late.value.message_id) == "late"


async def test_what_nobody_waits_for_any_more_does_not_run(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        first = await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        with pytest.raises(AskTimeout) as late:
            await system.ask(desk(), Work("late"), timeout_s=0.05)
        stage.release()
        await system.result(first)
        with pytest.raises(Expired) as expired:
            await system.result(late.value.message_id or "")
        assert isinstance(expired.value, NotExecuted)
        assert await system.ask(desk(), Read()) == ["first"]
        assert stage.log == ["first"]
        report = await system.audit()
        assert (report.expired, report.dead_letters, report.problems) == (1, 0, ())


async def test_an_expired_tell_is_a_dead_letter(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        dead = Watcher(system, "dead-lettered")
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        second = await system.tell(desk(), Work("second"), expires_in_s=0.02)
        with pytest.raises(AskTimeout):
            await system.result(second, 0.05)
        stage.release()
        with pytest.raises(Expired):
            await system.result(second)
        (letter,) = await system.dead_letters.list()
        assert (letter.message_id, letter.reason, letter.attempts) == (second.message_id, "expired", 0)
        assert letter.message == {"word": "second"}
        assert stage.log == ["first"]
        assert [event.message_id for event in await dead.wait()] == [second.message_id]


async def test_a_tell_that_does_not_expire(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        receipt = await system.tell(desk(), Write("a"), expires_in_s=60)
        assert await system.result(receipt) == 1


@pytest.mark.parametrize("timeout_s", [-1, math.inf, math.nan, "5", True])
async def test_bad_times(new_system: NewSystem, stage: Stage, timeout_s: Any) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises(InvalidConfig, match="timeout"):
            await system.ask(desk(), Write("a"), timeout_s=timeout_s)
        with pytest.raises(InvalidConfig, match=r"timeout|expires_in_s"):
            await system.tell(desk(), Write("a"), expires_in_s=timeout_s)
        assert (await system.audit()).accepted == 0


async def test_a_bad_expiry_is_named(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises(InvalidConfig, match="expires_in_s"):
            await system.tell(desk(), Write("a"), expires_in_s=-1)


async def test_zero_waits_without_end(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Desk.using(stage=stage), ask_timeout_s=0.05) as system:
        replies: list[str] = []

        async def ask() -> None:
            replies.append(await system.ask(desk(), Work("slow"), timeout_s=0))

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ask)
            await stage.wait_for("slow")
            with pytest.raises(AskTimeout):
                await system.ask(desk(), Read())
            assert replies == []
            stage.release()
        assert replies == ["slow"]


# Cancelling


async def test_cancelling_an_ask_withdraws_its_message(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        first = await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        for key in (None, "k"):
            with anyio.move_on_after(0.02) as scope:
                await system.ask(desk(), Work("second"), key=key)
            assert scope.cancelled_caught
        stage.release()
        await system.result(first)
        assert await system.ask(desk(), Read()) == ["first"]
        assert (await system.audit()).withdrawn == 2


async def test_a_detached_ask_goes_on(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        with anyio.move_on_after(0.02):
            await system.ask(desk(), Write("second"), on_cancel="detach")
        stage.release()
        assert await system.ask(desk(), Read()) == ["first", "second"]


async def test_cancelling_an_ask_that_runs_detaches_it(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system, anyio.create_task_group() as task_group:
        scope = anyio.CancelScope()

        async def ask() -> None:
            with scope:
                await system.ask(desk(), Work("first"))

        task_group.start_soon(ask)
        await stage.wait_for("first")
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        stage.release()
        assert await system.ask(desk(), Read()) == ["first"]


async def test_on_cancel_is_checked(new_system: NewSystem, stage: Stage) -> None:
    wrong: Any = "witdraw"
    async with new_system(Desk.using(stage=stage)) as system:
        with pytest.raises((InvalidConfig, ValueError), match=r"on_cancel.*withdraw.*detach"):
            await system.ask(desk(), Write("a"), on_cancel=wrong)


# Not running


async def test_before_and_after(new_system: NewSystem, stage: Stage) -> None:
    system = new_system(Desk.using(stage=stage))
    calls: list[Any] = [
        lambda: system.ask(desk(), Read()),
        lambda: system.tell(desk(), Write("a")),
        lambda: system.tell_many([(desk(), Write("a"))]),
        lambda: system.result(f"desk/one/{'0' * 32}"),
        lambda: system.withdraw(f"desk/one/{'0' * 32}"),
        lambda: system.entity(desk()).ask(Read()),
        system.audit,
        lambda: system.where(desk()),
        lambda: system.counts("desk"),
        lambda: system.passivate(desk()),
        lambda: system.pause(desk()),
        lambda: system.resume(desk()),
    ]
    for _ in range(2):
        for call in calls:
            with pytest.raises(SystemNotRunning, match="async with ActorSystem"):
                await call()
        with pytest.raises(SystemNotRunning):
            system.statistics()
        with pytest.raises(SystemNotRunning):
            _ = system.dead_letters
        if system._entered:
            break
        async with system:
            assert await system.ask(desk(), Read()) == []


async def test_entities_that_are_none(new_system: NewSystem, stage: Stage) -> None:
    wrong: Any
    async with new_system(Desk.using(stage=stage)) as system:
        for wrong in ("desk/one", None, Desk, ("desk", "one")):
            with pytest.raises((InvalidEntityId, LookupError), match=r"EntityRef|not a message"):
                await system.ask(wrong, Read())
        with pytest.raises(InvalidEntityId, match=r"Read names no entity; give it before the message"):
            await system.ask(Read())
