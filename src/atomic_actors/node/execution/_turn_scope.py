"""What bounds a handler: the cancel scope it runs in, its deadline, and the tasks that it starts beside itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.base._oneshot import Backend, OneShot

__all__ = ("Children", "TurnScope")


@define(eq=False)
class TurnScope:
    """The cancel scope of an activation's turns. It covers turn after turn, and is replaced only after a cut."""

    scope: anyio.CancelScope | None = field(default=None, init=False)
    #: When the handler that runs now is cut off, on the backend's clock; 0 while none runs or nothing limits it.
    deadline_s: float = field(default=0.0, init=False)
    #: The deadline for which `Schedule` looks at it; 0 while it does not.
    watched_until_s: float = field(default=0.0, init=False)
    #: Why the scope was cancelled. Whatever becomes of the turn, nothing more may run in that scope.
    cut_by: Literal["deadline", "child"] | None = field(default=None, init=False)

    def cut(self, why: Literal["deadline", "child"]) -> None:
        """Cancel what runs in the scope."""
        if self.cut_by is None and self.scope is not None:
            self.cut_by = why
            self.deadline_s = 0.0
            self.scope.cancel()

    def cut_if_late(self, now_s: float) -> None:
        """Cut the running handler if its deadline has passed."""
        if 0 < self.deadline_s <= now_s:
            self.cut("deadline")


@define(eq=False)
class Children:
    """The tasks of one activation's running turn; they live in its task group and end before the turn commits.

    Args:
        backend: what it waits with.
        turn_scope: cut as soon as a child raises, while the handler may still run; None where the handler goes on.
    """

    backend: Backend
    turn_scope: TurnScope | None
    #: The activation's; None before it runs.
    task_group: TaskGroup | None = field(default=None, init=False)
    #: Children that have not ended.
    count: int = field(default=0, init=False)
    _scopes: set[anyio.CancelScope] = field(factory=set[anyio.CancelScope], init=False)
    _error: Exception | None = field(default=None, init=False)
    _done: OneShot[None] | None = field(default=None, init=False)

    def start(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Run `function(*args)` beside the handler, which runs now."""
        assert self.task_group is not None
        self.count += 1
        # Made here and not in the task: a child that has not begun yet must be cancelled as well.
        scope = anyio.CancelScope()
        self._scopes.add(scope)
        self.task_group.start_soon(self._run, scope, function, args)

    async def _run(
        self, scope: anyio.CancelScope, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        with scope:
            try:
                await function(*args)
            except Exception as error:
                if self._error is None:
                    self._error = error
                if self.turn_scope is not None:
                    self.turn_scope.cut("child")
            finally:
                self._scopes.discard(scope)
                self.count -= 1
                if not self.count and self._done is not None:
                    self._done.set(None)

    async def wait(self) -> None:
        """Return once every child has ended."""
        while self.count:
            self._done = self.backend.new_oneshot()
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
