"""A task group for the work of an object behind the body of its `async with`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

__all__ = ("detached_task_group",)


@asynccontextmanager
async def detached_task_group() -> AsyncGenerator[TaskGroup]:
    """A task group that keeps out of the way of its body's exception, and cancels its tasks at the end.

    `async with anyio.create_task_group()` puts an exception of its body into an `ExceptionGroup`, since it may be one
    of several. What uses this is entered by others (`async with ActorSystem(...)`, `async with journal:`), who neither
    know nor care that a task reads a socket for them: their exception must leave bare, as itself, in no group.
    So the task group is left as after a normal end of its body.

    An exception of a task still cancels the body, and leaves in a group.
    """
    task_group = await anyio.create_task_group().__aenter__()
    try:
        yield task_group
    finally:
        task_group.cancel_scope.cancel()
        await task_group.__aexit__(None, None, None)
