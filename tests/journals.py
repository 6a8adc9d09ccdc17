"""Journals around a journal, for tests: they hand steps on, and differ in what they do on the way."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import anyio
from attrs import define, field

from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import BatchResult, Finish, Journal, JournalSettings, Step

__all__ = ("BrokenJournal", "Losses", "WrappedJournal")


class Losses(list[HistoryLoss]):
    """What a history has told its observer."""

    def history_lost(self, loss: HistoryLoss) -> None:
        self.append(loss)


@define(eq=False)
class WrappedJournal:
    """A journal that is another one's; subclasses come between in `execute`."""

    store: Journal

    @property
    def settings(self) -> JournalSettings:
        return self.store.settings

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        return await self.store.execute(steps)

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.store.__aexit__(exc_type, exc_value, traceback)


@define(eq=False)
class BrokenJournal(WrappedJournal):
    """Hands steps on until a test says what to answer instead: it breaks as real ones do not on demand."""

    #: Raised instead of an answer.
    error: BaseException | None = None
    #: Answer every `Finish` with this.
    finish: Any = None
    calls: int = 0
    _called: anyio.Event = field(factory=anyio.Event)

    async def wait_calls(self, count: int) -> None:
        """Return once it was called so often."""
        while self.calls < count:
            await self._called.wait()

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        self.calls += 1
        self._called.set()
        self._called = anyio.Event()
        error = self.error
        if error is not None:
            await anyio.lowlevel.checkpoint()
            raise error
        if self.finish is not None and any(isinstance(step, Finish) for step in steps):
            results = [
                self.finish if isinstance(step, Finish) else (await self.store.execute([step])).results[0]
                for step in steps
            ]
            return BatchResult(results, 0)
        return await self.store.execute(steps)
