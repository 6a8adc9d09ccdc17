"""Several callers with one idempotency key share one message; cancelling one of them must not fail the others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest
from attrs import Factory, define

from atomic_actors import ActorSystem, Withdrawn
from tests.system.support import PATIENCE_S, Desk, NewSystem, Read, Stage, Watcher, Work, Write, desk, until

pytestmark = pytest.mark.anyio


@define(eq=False)
class Caller:
    """A call in a task of its own, that can be cancelled alone."""

    call: Callable[[], Awaitable[Any]]
    outcome: Any = None
    scope: anyio.CancelScope = Factory(anyio.CancelScope)
    ended: anyio.Event = Factory(anyio.Event)

    async def run(self) -> None:
        with self.scope:
            try:
                self.outcome = await self.call()
            except Withdrawn as error:
                self.outcome = error
        self.ended.set()

    async def cancel(self) -> None:
        self.scope.cancel()
        await self.end()

    async def end(self) -> Any:
        with anyio.fail_after(PATIENCE_S):
            await self.ended.wait()
        return self.outcome


@define(eq=False)
class Scene:
    """The desk is busy with "first", so what is sent waits behind it."""

    system: ActorSystem
    stage: Stage
    task_group: Any

    async def ask(
        self, message: Any = None, *, on_cancel: Literal["withdraw", "detach"] = "withdraw", sent: bool = True
    ) -> Caller:
        """Ask with the key; `sent` waits until the store has answered the append."""
        asked = message or Write("a")
        caller = Caller(lambda: self.system.ask(desk(), asked, key="k", timeout_s=0, on_cancel=on_cancel))
        self.task_group.start_soon(caller.run)
        if sent:
            # Answers come in the order of the calls: after this one the ask's own is there, too.
            await anyio.wait_all_tasks_blocked()
            await self.system.audit()
            await self.system.tell(desk("another"), Write("b"))
        return caller

    async def finish(self) -> list[str]:
        self.stage.release()
        return await self.system.ask(desk(), Read())


@asynccontextmanager
async def new_scene(new_system: NewSystem, stage: Stage) -> AsyncGenerator[Scene]:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system, anyio.create_task_group() as task_group:
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        yield Scene(system, stage, task_group)


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_cancelling_one_leaves_the_others_their_answer(
    new_system: NewSystem, stage: Stage, cancelled: int
) -> None:
    async with new_scene(new_system, stage) as scene:
        callers = [await scene.ask() for _ in range(3)]
        await callers.pop(cancelled).cancel()
        assert await scene.finish() == ["first", "a"]
        assert [await caller.end() for caller in callers] == [2, 2]
        assert (await scene.system.audit()).withdrawn == 0


async def test_cancelling_one_while_another_is_being_sent(new_system: NewSystem, stage: Stage) -> None:
    async with new_scene(new_system, stage) as scene:
        first = await scene.ask()
        # Its append is on its way when the first one is cancelled, so nobody knows yet that they share.
        second = await scene.ask(sent=False)
        await anyio.lowlevel.checkpoint()
        await first.cancel()
        assert await scene.finish() == ["first", "a"]
        assert await second.end() == 2
        assert (await scene.system.audit()).withdrawn == 0


async def test_the_last_one_withdraws(new_system: NewSystem, stage: Stage) -> None:
    async with new_scene(new_system, stage) as scene:
        callers = [await scene.ask() for _ in range(3)]
        for caller in callers:
            assert (await scene.system.audit()).withdrawn == 0
            await caller.cancel()
        assert await scene.finish() == ["first"]
        assert (await scene.system.audit()).withdrawn == 1


async def test_one_who_detached_still_wants_it(new_system: NewSystem, stage: Stage) -> None:
    async with new_scene(new_system, stage) as scene:
        first = await scene.ask()
        detached = await scene.ask(on_cancel="detach")
        await detached.cancel()
        await first.cancel()
        assert await scene.finish() == ["first", "a"]


@pytest.mark.parametrize("told_first", [True, False])
async def test_what_was_told_is_not_withdrawn_by_an_ask(
    new_system: NewSystem, stage: Stage, told_first: bool
) -> None:
    async with new_scene(new_system, stage) as scene:
        if told_first:
            receipt = await scene.system.tell(desk(), Write("a"), key="k")
            caller = await scene.ask()
        else:
            caller = await scene.ask()
            receipt = await scene.system.tell(desk(), Write("a"), key="k")
        await caller.cancel()
        assert await scene.finish() == ["first", "a"]
        assert await scene.system.result(receipt) == 2


async def test_whoever_waits_for_the_result_gets_it(new_system: NewSystem, stage: Stage) -> None:
    async with new_scene(new_system, stage) as scene:
        accepted = Watcher(scene.system, "accepted")
        caller = Caller(lambda: scene.system.ask(desk(), Write("a"), timeout_s=0))
        scene.task_group.start_soon(caller.run)
        (event,) = await accepted.wait()
        waiting = Caller(lambda: scene.system.result(event.message_id, timeout_s=0))
        scene.task_group.start_soon(waiting.run)
        await anyio.wait_all_tasks_blocked()
        await caller.cancel()
        assert await scene.finish() == ["first", "a"]
        assert await waiting.end() == 2


async def test_a_message_that_is_withdrawn_by_name_is_withdrawn_for_all(
    new_system: NewSystem, stage: Stage
) -> None:
    async with new_scene(new_system, stage) as scene:
        accepted = Watcher(scene.system, "accepted")
        callers = [await scene.ask() for _ in range(2)]
        (event,) = [each for each in await accepted.wait() if each.entity == desk()]
        assert await scene.system.withdraw(event.message_id)
        assert [type(await caller.end()) for caller in callers] == [Withdrawn, Withdrawn]
        assert await scene.finish() == ["first"]


async def test_nothing_is_remembered_of_answered_keys(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        for _ in range(2):
            await system.ask(desk(), Write("a"), key="k")
            await system.tell(desk(), Write("a"), key="k")
        # The key is not in the way of a later ask that is cancelled.
        stage.hold("first")
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        with anyio.move_on_after(0.02):
            await system.ask(desk(), Write("b"), key="another")
        stage.release()
        assert await system.ask(desk(), Read()) == ["a", "first"]

        async def is_withdrawn() -> bool:
            return (await system.audit()).withdrawn == 1

        await until(is_withdrawn)
