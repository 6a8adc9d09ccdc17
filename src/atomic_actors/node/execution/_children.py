"""Tasks that a handler starts beside itself: they end before its turn commits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.base._oneshot import Cell

__all__ = ("Children",)


@define(eq=False)
class Children:
    """The children of one activation's running turn; they live in the activation's task group.

    Args:
        new_cell: the backend's one-shot cell.
        on_error: called when a child raises, while the handler may still run.
    """

    new_cell: Callable[[], Cell[Any]]
    on_error: Callable[[], None]
    #: Children that have not ended.
    count: int = field(default=0, init=False)
    _scopes: set[anyio.CancelScope] = field(factory=set[anyio.CancelScope], init=False)
    _error: Exception | None = field(default=None, init=False)
    _done: Cell[None] | None = field(default=None, init=False)

    def start(
        self, task_group: TaskGroup, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        """Run `function(*args)` beside the handler."""
        self.count += 1
        # Made here and not in the task: a child that has not begun yet must be cancelled as well.
        scope = anyio.CancelScope()
        self._scopes.add(scope)
        task_group.start_soon(self._run, scope, function, args)

    async def _run(
        self, scope: anyio.CancelScope, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        with scope:
            try:
                await function(*args)
            except Exception as error:
                if self._error is None:
                    self._error = error
                self.on_error()
            finally:
                self._scopes.discard(scope)
                self.count -= 1
                if not self.count and self._done is not None:
                    self._done.set(None)

    async def wait(self) -> None:
        """Return once every child has ended."""
        while self.count:
            self._done = self.new_cell()
            await self._done

    async def end(self) -> None:
        """Cancel every child and return once they have ended."""
        for scope in tuple(self._scopes):
            scope.cancel()
        await self.wait()

    def take_error(self) -> Exception | None:
        """What the first failing child raised, once."""
        error, self._error = self._error, None
        return error
