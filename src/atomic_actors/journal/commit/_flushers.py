"""The tasks of a group commit: what they have to send, and how they wait for each other."""

from __future__ import annotations

from collections import deque

import anyio

from atomic_actors.base._oneshot import OneShot, oneshot_factory
from atomic_actors.journal.commit._batches import Batch

__all__ = ("Flushers",)


class Flushers:
    """What a group commit's tasks share. Made inside the event loop."""

    def __init__(self) -> None:
        #: Batches that could not be sent directly, or had no usable answer.
        self.batches = deque[Batch]()
        #: They are to end.
        self.stopped = False
        self._new_oneshot = oneshot_factory()
        self._scopes: list[anyio.CancelScope] = []
        #: Those that sleep because there are no steps.
        self._idle: list[OneShot[None]] = []
        #: Those that wait until theirs is the oldest batch.
        self._turns: list[OneShot[None]] = []
        #: Waiters until nothing is pending or in flight.
        self._drained: list[OneShot[None]] = []

    def begin(self, scope: anyio.CancelScope) -> None:
        """Note a task's scope: `stop` ends it."""
        self._scopes.append(scope)

    def stop(self) -> None:
        """End the tasks."""
        self.stopped = True
        for scope in self._scopes:
            scope.cancel()

    def hand_over(self, batch: Batch) -> None:
        """Leave a batch to a task."""
        self.batches.append(batch)
        self.wake()

    def wake(self) -> None:
        """Have one of them look, if one sleeps."""
        if self._idle:
            self._idle.pop().set(None)

    async def sleep(self) -> None:
        """Return when there may be something to send."""
        await self._wait(self._idle)

    async def wait_turn(self) -> None:
        """Return when the oldest batch may be another one."""
        await self._wait(self._turns)

    async def wait_drained(self) -> None:
        """Return when nothing may be left to send."""
        await self._wait(self._drained)

    async def _wait(self, waiting: list[OneShot[None]]) -> None:
        oneshot: OneShot[None] = self._new_oneshot()
        waiting.append(oneshot)
        await oneshot

    def answered(self, *, drained: bool) -> None:
        """Batches have left the queue; `drained` says that nothing is left."""
        if self._turns:
            self._set_all(self._turns)
        if drained and self._drained:
            self._set_all(self._drained)

    def _set_all(self, waiting: list[OneShot[None]]) -> None:
        oneshots = tuple(waiting)
        waiting.clear()
        for oneshot in oneshots:
            oneshot.set(None)
