"""Leaving: running turns end, the rest is interrupted, exceptions leave as they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from attrs import define, frozen

from atomic_actors import (
    AcceptanceUnknown,
    Actor,
    ActorSystem,
    Command,
    Interrupted,
    Query,
    StoreUnavailable,
    SystemFailed,
    SystemNotRunning,
    UnknownMessage,
    handler,
)
from atomic_actors.journal._protocol import Journal, JournalUnavailable, Released
from tests.journals import BrokenJournal
from tests.system.support import PATIENCE_S, Desk, NewSystem, Read, Stage, Work, Write, desk, until

pytestmark = pytest.mark.anyio


def is_leaving(system: ActorSystem) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return not system._running.sender.running

    return look


async def test_running_turns_end_first(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with anyio.create_task_group() as outside:
        async with new_system(Desk.using(stage=stage), drain_timeout_s=30) as system:
            receipt = await system.tell(desk(), Work("slow"))
            await system.tell(desk(), Work("next"))
            await stage.wait_for("slow")

            async def release() -> None:
                await until(is_leaving(system))
                stage.release()

            outside.start_soon(release)
    # What had not begun waits for the next one who comes.
    assert stage.log == ["slow"]
    async with new_system(Desk.using(stage=stage)) as system:
        assert await system.result(receipt) == "slow"
        assert await system.ask(desk(), Read()) == ["slow", "next"]
        assert (await system.audit()).dead_letters == 0


async def test_the_rest_is_interrupted(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    answers: list[BaseException] = []
    async with anyio.create_task_group() as outside:
        async with new_system(Desk.using(stage=stage), drain_timeout_s=0.05) as system:

            async def ask() -> None:
                try:
                    await system.ask(desk(), Work("slow"), timeout_s=0)
                except Exception as error:
                    answers.append(error)

            outside.start_soon(ask)
            await stage.wait_for("slow")
            await system.tell(desk(), Write("next"))
    (answer,) = answers
    assert isinstance(answer, (Interrupted, SystemNotRunning))
    async with new_system(Desk.using(stage=stage)) as system:
        (letter,) = await system.dead_letters.list()
        assert (letter.reason, letter.name, letter.interruptions) == ("interrupted", "Work", 1)
        assert await system.ask(desk(), Read()) == ["next"]
        with pytest.raises(Interrupted, match="wholly, partly or not at all"):
            await system.result(letter.message_id)
        assert (await system.audit()).is_balanced


async def test_senders_are_told_while_it_leaves(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with anyio.create_task_group() as outside:
        async with new_system(Desk.using(stage=stage), drain_timeout_s=30) as system:
            await system.tell(desk(), Work("slow"))
            await stage.wait_for("slow")

            async def send_then_release() -> None:
                await until(is_leaving(system))
                for call in (system.ask, system.tell):
                    with pytest.raises(SystemNotRunning):
                        await call(desk(), Write("late"))
                stage.release()

            outside.start_soon(send_then_release)
    async with new_system(Desk.using(stage=stage)) as system:
        assert await system.ask(desk(), Read()) == ["slow"]


@frozen
class Hold(Command[int]):
    pass


@frozen
class Rate(Query[int]):
    pass


class RateSource(Actor[None], kind="rate_source", durable=False):
    @handler
    async def rate(self, message: Rate) -> int:
        return 7


class DurableRateSource(Actor[None], kind="durable_rate_source"):
    @handler
    async def rate(self, message: Rate) -> int:
        return 7


@pytest.mark.parametrize("partitions", [1, 16])
@pytest.mark.parametrize("source", [RateSource, DurableRateSource])
async def test_a_turn_may_ask_while_it_leaves(
    source: type[RateSource | DurableRateSource], partitions: int, new_system: NewSystem
) -> None:
    begun, gate = anyio.Event(), anyio.Event()

    class Asker(Actor[None], kind="asker"):
        @handler
        async def hold(self, message: Hold) -> int:
            begun.set()
            await gate.wait()
            return await self.context.ask(source.ref("one"), Rate())

    answers: list[int] = []
    async with anyio.create_task_group() as outside:
        async with new_system(Asker, source, drain_timeout_s=30, partitions=partitions) as system:

            async def ask() -> None:
                answers.append(await system.ask(Asker.ref("a"), Hold(), timeout_s=0))

            async def release() -> None:
                await until(is_leaving(system))
                gate.set()

            outside.start_soon(ask)
            await begun.wait()
            outside.start_soon(release)
    assert answers == [7]


async def test_an_exception_of_the_body_leaves_as_itself(new_system: NewSystem, stage: Stage) -> None:
    class Mine(Exception):
        pass

    error = Mine("mine")

    async def raise_in_body(raised: BaseException) -> None:
        async with new_system(Desk.using(stage=stage)) as system:
            await system.ask(desk(), Write("a"))
            raise raised

    with pytest.raises(Mine) as left:
        await raise_in_body(error)
    assert left.value is error
    group = ExceptionGroup("two", [Mine(), ValueError()])
    with pytest.raises(ExceptionGroup) as two:
        await raise_in_body(group)
    assert two.value is group
    with pytest.raises(KeyboardInterrupt):
        await raise_in_body(KeyboardInterrupt())
    # Each of them gave its partitions up.
    async with new_system(Desk.using(stage=stage)) as system:
        assert await system.ask(desk(), Read()) == ["a", "a", "a"]


async def test_cancelled_from_outside(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    with anyio.fail_after(PATIENCE_S):
        with anyio.CancelScope() as scope:
            async with new_system(Desk.using(stage=stage), drain_timeout_s=60) as system:
                await system.tell(desk(), Work("slow"))
                await stage.wait_for("slow")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        # It did not wait for the turn, but it settled it.
        async with new_system(Desk.using(stage=stage)) as system:
            (letter,) = await system.dead_letters.list()
            assert letter.reason == "interrupted"


async def test_entered_once(new_system: NewSystem, stage: Stage) -> None:
    system = new_system(Desk.using(stage=stage))
    async with system:
        with pytest.raises(SystemNotRunning, match="can be entered only once; create a new one"):
            async with system:
                raise AssertionError("entered twice")
        assert await system.ask(desk(), Write("a")) == 1
    with pytest.raises(SystemNotRunning, match="can be entered only once; create a new one"):
        async with system:
            raise AssertionError("entered again")


async def test_systems_side_by_side_and_nested(new_system: NewSystem, store_url: str, stage: Stage) -> None:
    other = NewSystem(store_url)
    async with new_system(Desk.using(stage=stage)) as first:
        await first.ask(desk(), Write("a"))
        async with other(Desk.using(stage=stage)) as second:
            # Another namespace: another desk.
            assert await second.ask(desk(), Read()) == []
        assert await first.ask(desk(), Read()) == ["a"]


# A journal that breaks.


@define(eq=False)
class Breaking:
    """A system over a journal that can be broken."""

    new_system: NewSystem
    stage: Stage
    journal: BrokenJournal | None = None

    def _wrap(self, inner: Journal) -> Journal:
        self.journal = BrokenJournal(inner)
        return self.journal

    def __call__(self, **settings: Any) -> ActorSystem:
        if not self.new_system.in_memory:
            pytest.skip("breaks the journal in memory")
        return self.new_system(Desk.using(stage=self.stage), wrap=self._wrap, **settings)

    def break_with(self, error: BaseException | None = None, finish: Any = None) -> None:
        assert self.journal is not None
        self.journal.error, self.journal.finish = error, finish


@pytest.fixture
def breaking(new_system: NewSystem, stage: Stage) -> Breaking:
    return Breaking(new_system, stage)


async def test_a_crash_of_the_journal_is_a_system_failure(breaking: Breaking) -> None:
    cause = RuntimeError("disk on fire")

    async def crash() -> None:
        async with breaking() as system:
            await system.ask(desk(), Write("a"))
            breaking.break_with(cause)
            await system.ask(desk(), Write("b"), timeout_s=0)

    with anyio.fail_after(PATIENCE_S), pytest.raises(SystemFailed, match="disk on fire") as failed:
        await crash()
    assert failed.value.__cause__ is cause


async def test_a_crash_of_an_activation_is_a_system_failure(breaking: Breaking) -> None:
    async def crash() -> None:
        async with breaking() as system:
            breaking.break_with(finish=Released())
            await system.ask(desk(), Write("b"), timeout_s=0)

    with anyio.fail_after(PATIENCE_S), pytest.raises(SystemFailed) as failed:
        await crash()
    assert "Released()" in str(failed.value) + repr(failed.value.__cause__)


async def test_a_body_that_does_not_wait_hears_of_a_crash(breaking: Breaking) -> None:
    """The body may sleep anywhere: it is cancelled."""

    async def sleep_through_a_crash() -> None:
        async with breaking():
            breaking.break_with(RuntimeError("disk on fire"))
            # The next sweep runs into it.
            await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE_S), pytest.raises(SystemFailed):
        await sleep_through_a_crash()


async def test_a_store_that_is_not_there(breaking: Breaking) -> None:
    def away(inner: Journal) -> Journal:
        return BrokenJournal(inner, error=JournalUnavailable("connection refused", sent=False))

    if not breaking.new_system.in_memory:
        pytest.skip("breaks the journal in memory")
    system = breaking.new_system(Desk.using(stage=breaking.stage), wrap=away)
    with anyio.fail_after(PATIENCE_S), pytest.raises(StoreUnavailable, match=r"connection refused|store"):
        async with system:
            raise AssertionError("entered without a store")


async def test_a_store_that_goes_away_and_comes_back(breaking: Breaking) -> None:
    async with breaking() as system:
        await system.ask(desk(), Write("a"))
        breaking.break_with(JournalUnavailable("connection refused", sent=False))
        with anyio.fail_after(PATIENCE_S), pytest.raises(StoreUnavailable, match="nothing was sent"):
            await system.ask(desk(), Write("b"), timeout_s=3)
        with anyio.fail_after(PATIENCE_S), pytest.raises(StoreUnavailable):
            await system.audit()
        breaking.break_with(None)
        with anyio.fail_after(PATIENCE_S):
            while True:
                try:
                    assert await system.ask(desk(), Write("c")) == 2
                    break
                except StoreUnavailable:
                    await anyio.sleep(0.02)
        assert (await system.audit()).is_balanced


async def test_tellers_without_an_answer_are_told_when_it_is_left(breaking: Breaking) -> None:
    errors: list[AcceptanceUnknown] = []
    async with anyio.create_task_group() as outside:
        async with breaking(accept_timeout_s=20, drain_timeout_s=0.05) as system:

            async def tell() -> None:
                with pytest.raises(AcceptanceUnknown) as unknown:
                    await system.tell(desk(), Write("a"))
                errors.append(unknown.value)

            breaking.break_with(JournalUnavailable("the answer was lost", sent=True))
            assert breaking.journal is not None
            calls = breaking.journal.calls
            outside.start_soon(tell)
            # As often as makes the store count as unavailable: then leaving does not wait for it.
            with anyio.fail_after(PATIENCE_S):
                await breaking.journal.wait_calls(calls + 3)
    (error,) = errors
    assert "was shut down before an answer" in str(error)
    assert (error.message_id or "").startswith("desk/one/")
    breaking.break_with(None)
    async with breaking.new_system(Desk.using(stage=breaking.stage)) as system:
        with pytest.raises(UnknownMessage):
            await system.result(error.message_id or "")


async def test_a_commit_outlives_a_store_that_is_away(breaking: Breaking) -> None:
    breaking.stage.hold("slow")
    async with breaking() as system:
        receipt = await system.tell(desk(), Work("slow"))
        await breaking.stage.wait_for("slow")
        breaking.break_with(JournalUnavailable("gone", sent=True))
        breaking.stage.release()
        assert breaking.journal is not None
        calls = breaking.journal.calls
        with anyio.fail_after(PATIENCE_S):
            await breaking.journal.wait_calls(calls + 2)
        breaking.break_with(None)
        with anyio.fail_after(PATIENCE_S):
            while True:
                try:
                    assert await system.result(receipt) == "slow"
                    break
                except StoreUnavailable:
                    await anyio.sleep(0.02)
        assert breaking.stage.log == ["slow"]
