"""The task group that keeps out of the way of its body's exception."""

from __future__ import annotations

import anyio
import pytest

from atomic_actors.journal.redis._task_groups import detached_task_group

pytestmark = pytest.mark.anyio


async def test_the_exception_of_the_body_leaves_bare() -> None:
    error = LookupError("mine")

    async def enter() -> None:
        async with detached_task_group() as task_group:
            task_group.start_soon(anyio.sleep_forever)
            raise error

    with pytest.raises(LookupError) as caught:
        await enter()
    assert caught.value is error


async def test_tasks_end_with_the_body() -> None:
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.fail_after(5):
        async with detached_task_group() as task_group:
            task_group.start_soon(work)
            await anyio.wait_all_tasks_blocked()
    assert ended.is_set()


async def test_a_crash_of_a_task_cancels_the_body() -> None:
    async def crash() -> None:
        raise LookupError("of a task")

    async def enter() -> None:
        async with detached_task_group() as task_group:
            task_group.start_soon(crash)
            await anyio.sleep_forever()

    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await enter()
    assert [str(error) for error in caught.value.exceptions] == ["of a task"]


async def test_a_cancelled_body_is_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with detached_task_group() as task_group:
            task_group.start_soon(anyio.sleep_forever)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
