"""The one-shot of Trio: see `_oneshot`, which imports this where Trio runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import outcome
import trio

__all__ = ("TrioOneShot",)

T = TypeVar("T")


class TrioOneShot(Generic[T]):
    """A task that is rescheduled with the value."""

    __slots__ = ("_outcome", "_spent", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._outcome: outcome.Value[T] | None = None
        # Invariant: once True, `_task` is None and stays None.
        self._spent = False

    def set(self, value: T) -> None:
        if self._spent:
            return
        self._spent = True
        self._outcome = outcome.Value(value)
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task, self._outcome)

    def is_set(self) -> bool:
        return self._spent

    def _abort(self, _raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
        self._spent = True
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _wait(self) -> T:
        if self._outcome is not None:
            await trio.lowlevel.checkpoint()
            return self._outcome.value
        self._task = trio.lowlevel.current_task()
        value: T = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return value

    def __await__(self) -> Generator[Any, Any, T]:
        return self._wait().__await__()
