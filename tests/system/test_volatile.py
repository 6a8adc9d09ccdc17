"""Volatile kinds: one copy and order as ever, no journal."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    AskCycle,
    AskTimeout,
    Command,
    EntityRef,
    HandlerFailed,
    InvalidPayload,
    NotSupported,
    Query,
    QueueDepthExceeded,
    RawMessage,
    UnknownMessageType,
    handler,
)
from tests.system.support import Declined, Desk, NewSystem, Read, Stage, Work, Write, desk, until

pytestmark = pytest.mark.anyio


@define
class Seen:
    words: list[str] = Factory(list)


@frozen
class Hear(Command[int]):
    word: str


@frozen
class Fail(Command[None]):
    refuse: bool = False


@frozen
class Heard(Query[list[str]]):
    pass


@frozen
class Spoil(Query[None]):
    pass


@frozen
class Pass(Command[Any]):
    to: EntityRef


@frozen
class Post(Command[None]):
    pass


@frozen
class Hang(Command[None]):
    """Never ends by itself; `child` hangs beside the handler instead of in it."""

    child: bool = False


@frozen
class Linger(Command[int]):
    """Ends after a while, whatever is done to it."""

    word: str


@frozen
class TimeLeft(Query[float]):
    pass


class Ear(Actor[Seen], kind="ear", durable=False):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def on_activate(self) -> None:
        self.stage.seen["activated"].append(self.context.entity.id)

    async def on_passivate(self) -> None:
        self.stage.seen["passivated"].append(self.context.entity.id)

    @handler
    async def hear(self, message: Hear) -> int:
        await self.stage.visit(message.word)
        self.state.words.append(message.word)
        return len(self.state.words)

    @handler
    async def fail(self, message: Fail) -> None:
        self.state.words.append("of a failed turn")
        self.outbox.add(Ear.ref("other"), Hear("of a failed turn"))
        if message.refuse:
            raise Declined("no")
        raise RuntimeError("ear")

    @handler
    async def heard(self, message: Heard) -> list[str]:
        return list(self.state.words)

    @handler
    async def spoil(self, message: Spoil) -> None:
        self.state.words.append("of a query")

    @handler
    async def pass_on(self, message: Pass) -> Any:
        return await self.context.ask(message.to, Heard() if message.to.kind == "ear" else Read())

    @handler
    async def post(self, message: Post) -> None:
        self.outbox.add(desk(), Write("posted"))
        self.outbox.add(Ear.ref("other"), Hear("posted"))

    @handler
    async def hang(self, message: Hang) -> None:
        self.state.words.append("of a cut turn")
        self.outbox.add(Ear.ref("other"), Hear("of a cut turn"))
        if message.child:
            self.context.start_soon(self.wait, "child")
        else:
            await self.wait("handler")

    async def wait(self, who: str) -> None:
        try:
            await self.stage.visit(f"hanging {who}")
            await anyio.sleep_forever()
        finally:
            # What it does while it is cancelled must be over before anybody is told.
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.stage.seen["cleaned"].append(who)

    @handler
    async def linger(self, message: Linger) -> int:
        self.state.words.append(message.word)
        while anyio.current_time() < self.context.deadline + 0.1:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
        return len(self.state.words)

    @handler
    async def time_left(self, message: TimeLeft) -> float:
        return self.context.deadline - anyio.current_time()


EAR = Ear.ref("e")


async def test_ask_and_tell(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        for number in range(20):
            await system.tell(EAR, Hear(str(number)))
        assert await system.ask(EAR, Heard()) == [str(number) for number in range(20)]
        assert await system.ask(EAR, RawMessage("Hear", {"word": "raw"})) == 21
        assert stage.most_running == 1
        assert stage.seen["activated"] == ["e"]
        # Nothing of this was written.
        assert (await system.audit()).accepted == 0
        assert system.statistics().volatile_activations == 1


async def test_many_tellers_each_in_order(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:

        async def teller(number: int) -> None:
            for place in range(20):
                await system.tell(EAR, Hear(f"{number} {place}"))

        async with anyio.create_task_group() as task_group:
            for number in range(10):
                task_group.start_soon(teller, number)
        words = await system.ask(EAR, Heard())
        for number in range(10):
            mine = [word for word in words if word.startswith(f"{number} ")]
            assert mine == [f"{number} {place}" for place in range(20)]
        assert stage.most_running == 1


async def test_failures_and_refusals(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        await system.ask(EAR, Hear("kept"))
        with pytest.raises(HandlerFailed, match="RuntimeError: ear") as failed:
            await system.ask(EAR, Fail())
        assert failed.value.error_type == "RuntimeError"
        with pytest.raises(Declined):
            await system.ask(EAR, Fail(refuse=True))
        with pytest.raises(HandlerFailed, match="QueryChangedState"):
            await system.ask(EAR, Spoil())
        await system.tell(EAR, Fail())
        assert await system.ask(EAR, Heard()) == ["kept"]
        assert await system.ask(Ear.ref("other"), Heard()) == []
        assert await system.dead_letters.list() == []


async def test_no_keys_results_or_withdrawals(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        receipt = await system.tell(EAR, Hear("a"))
        calls: list[Any] = [
            lambda: system.ask(EAR, Hear("b"), key="k"),
            lambda: system.tell(EAR, Hear("b"), key="k"),
            lambda: system.tell(EAR, Hear("b"), expires_in_s=1),
            lambda: system.result(receipt),
            lambda: system.withdraw(receipt),
            lambda: system.tell_many([(EAR, Hear("b"))]),
        ]
        for call in calls:
            with pytest.raises(NotSupported, match="kind 'ear' is volatile"):
                await call()
        assert await system.ask(EAR, Heard()) == ["a"]


async def test_mistakes(new_system: NewSystem, stage: Stage) -> None:
    wrong: Any = 7
    async with new_system(Ear.using(stage=stage)) as system:
        with pytest.raises(UnknownMessageType, match=r"'ear'.*'Read'"):
            await system.ask(EAR, Read())
        with pytest.raises(InvalidPayload, match=r"Hear.word"):
            await system.ask(EAR, Hear(wrong))
        with pytest.raises((InvalidPayload, HandlerFailed), match="word"):
            await system.ask(EAR, RawMessage("Hear", {}))


async def test_timeouts(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Ear.using(stage=stage)) as system:
        with pytest.raises(AskTimeout):
            await system.ask(EAR, Hear("slow"), timeout_s=0.05)
        with pytest.raises(AskTimeout):
            await system.ask(EAR, Hear("late"), timeout_s=0.05)
        stage.release()
        # What was not begun in its time does not run.
        assert await system.ask(EAR, Heard()) in ([], ["slow"])
        assert stage.log == ["slow"]


@pytest.mark.parametrize("child", [False, True])
async def test_a_turn_has_a_deadline(new_system: NewSystem, stage: Stage, child: bool) -> None:
    async with new_system(Ear.using(stage=stage), turn_timeout_s=0.05) as system:
        await system.ask(EAR, Hear("kept"))
        for _ in range(2):
            with pytest.raises(HandlerFailed, match=r"turn_timeout_s=0\.05") as failed:
                await system.ask(EAR, Hang(child))
            assert failed.value.error_type == "DeadlineExceeded"
        assert stage.seen["cleaned"] == ["child" if child else "handler"] * 2
        # The same activation goes on with what it had before.
        assert await system.ask(EAR, Heard()) == ["kept"]
        assert await system.ask(Ear.ref("other"), Heard()) == []
        assert 0 < await system.ask(EAR, TimeLeft(), timeout_s=0) < 0.06
        assert stage.seen["activated"] == ["e", "other"]


async def test_turns_of_a_tell_are_cut_and_logged(
    new_system: NewSystem, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_system(Ear.using(stage=stage), turn_timeout_s=0.05) as system:
        await system.tell(EAR, Hang())
        await system.tell(EAR, Hear("next"))
        assert await system.ask(EAR, Heard()) == ["next"]
    assert "Ear.hang failed in ear/e: DeadlineExceeded" in caplog.text


async def test_handlers_that_do_not_heed_a_cut_still_answer(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage), turn_timeout_s=0.05) as system:
        assert await system.ask(EAR, Linger("late")) == 1
        # The cancel was for that turn alone.
        await system.tell(EAR, Linger("late again"))
        assert await system.ask(EAR, Hear("next")) == 3
        assert await system.ask(EAR, Heard()) == ["late", "late again", "next"]


async def test_turns_without_a_limit_are_not_cut(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Ear.using(stage=stage)) as system:
        assert await system.ask(EAR, TimeLeft(), timeout_s=0) == float("inf")
        await system.tell(EAR, Hear("slow"))
        await stage.wait_for("slow")
        await anyio.sleep(0.1)
        stage.release()
        assert await system.ask(EAR, Heard()) == ["slow"]


async def test_cut_turns_while_the_system_is_left(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage), turn_timeout_s=0.05, drain_timeout_s=5) as system:
        await system.tell(EAR, Hang())
        await stage.wait_for("hanging handler")
    assert stage.seen["cleaned"] == ["handler"]
    assert stage.seen["passivated"] == ["e"]


async def test_depth(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Ear.using(stage=stage), max_depth=2) as system:
        await system.tell(EAR, Hear("slow"))
        await stage.wait_for("slow")
        for word in "ab":
            await system.tell(EAR, Hear(word))
        with pytest.raises(QueueDepthExceeded, match=r"ear/e.*2"):
            await system.tell(EAR, Hear("c"))
        stage.release()
        await stage.wait_for("b")
        assert await system.ask(EAR, Heard()) == ["slow", "a", "b"]


async def test_passivation_loses_the_state(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage), idle_timeout_s=0.05) as system:
        await system.ask(EAR, Hear("a"))

        async def sleeps() -> bool:
            return bool(stage.seen["passivated"])

        await until(sleeps)
        assert await system.ask(EAR, Heard()) == []
        assert stage.seen["activated"] == ["e", "e"]


async def test_one_copy_while_it_goes_to_sleep(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Ear.using(stage=stage)) as system:
        await system.tell(EAR, Hear("slow"))
        await stage.wait_for("slow")
        await system.tell(EAR, Hear("next"))
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(system.passivate, EAR)
            await anyio.wait_all_tasks_blocked()
            await system.tell(EAR, Hear("third"))
            await anyio.wait_all_tasks_blocked()
            assert stage.log == ["slow"]
            stage.release()
        await system.ask(EAR, Heard())
        assert stage.log == ["slow", "next", "third"]
        assert stage.most_running == 1


async def test_asks_and_outbox(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage), Desk.using(stage=stage)) as system:
        await system.ask(desk(), Work("hello"))
        assert await system.ask(EAR, Pass(desk())) == ["hello"]
        await system.ask(EAR, Post())
        assert await system.ask(Ear.ref("other"), Heard()) == ["posted"]
        assert await system.ask(desk(), Read()) == ["hello", "posted"]


async def test_what_an_outbox_cannot_send_is_logged(
    new_system: NewSystem, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        await system.ask(EAR, Post())  # nobody has the first kind
        assert await system.ask(Ear.ref("other"), Heard()) == ["posted"]
    assert "was not sent" in caplog.text


async def test_a_cycle_is_told_at_once(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        with anyio.fail_after(2), pytest.raises((HandlerFailed, AskCycle), match="ear/e"):
            await system.ask(EAR, Pass(EAR), timeout_s=60)


async def test_counts(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        assert not (await system.where(EAR)).is_active
        await system.ask(EAR, Hear("a"))
        assert (await system.where(EAR)).is_active
        assert (await system.counts("ear")).active == 1
        assert await system.passivate(EAR) is True
        assert await system.passivate(Ear.ref("never")) is False


async def test_leaving_lets_mailboxes_run_empty(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)) as system:
        for number in range(50):
            await system.tell(EAR, Hear(str(number)))
    assert stage.log == [str(number) for number in range(50)]
    assert stage.seen["passivated"] == ["e"]
