"""The body of `async with ActorSystem(...)`, which ends when a part of the system fails or a signal asks to leave."""

from __future__ import annotations

from types import TracebackType
from typing import cast

import anyio
from attrs import define, field

from atomic_actors.base._telemetry import logger

__all__ = ("Body",)


@define(eq=False)
class Body:
    """The cancel scope around the body, and why it was cancelled.

    It is made before everything else, so that each part can report its own crash.
    """

    #: Why a part of the system failed; the first such error counts.
    crash: BaseException | None = field(default=None, init=False)
    _scope: anyio.CancelScope | None = field(default=None, init=False)

    def enter(self) -> None:
        """The body begins. Not in a task group: an exception of the body leaves as itself, in no group."""
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        if self.crash is not None:
            self._scope.cancel()

    def exit(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """The body has ended; returns whether its exception was the cancellation by `stop`."""
        assert self._scope is not None
        return bool(self._scope.__exit__(exc_type, exc_value, traceback))

    def crashed(self, error: BaseException) -> None:
        """A part of the system failed by its own fault: the system ends, with this as the cause."""
        while isinstance(error, BaseExceptionGroup):
            error = cast("BaseExceptionGroup[BaseException]", error)
            if len({type(each) for each in error.exceptions}) != 1:
                break  # else the first one says what the others do
            error = error.exceptions[0]
        if self.crash is None:
            self.crash = error
            logger.error("the actor system crashed", exc_info=error)
        self.stop()

    def stop(self) -> None:
        """Cancel the body, where it runs."""
        if self._scope is not None:
            self._scope.cancel()
