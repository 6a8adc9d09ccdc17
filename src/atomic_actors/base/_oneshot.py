"""One-shots: the cheapest way to hand one value to one waiting task.

An anyio Event costs a few microseconds to make and to wait on, on either backend, and every durable
ask needs two such hand-overs. A one-shot is what the backend itself waits with: a bare future on asyncio, a
rescheduled task on Trio. It knows one waiter and one value, and nothing else.

One-shots are made and set in the thread of the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, Self, TypeVar

import sniffio
from attrs import frozen

__all__ = ("Backend", "OneShot", "clock_function", "oneshot_factory")

T = TypeVar("T")


class OneShot(Protocol[T]):
    """A place for one value that one task waits for."""

    def set(self, value: T) -> None:
        """Store the value and wake the waiter. A second value, or one after a cancel, is dropped."""
        ...

    def is_set(self) -> bool:
        """Whether a value was stored, or the waiter was cancelled."""
        ...

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the value. Cancelling the wait spends the one-shot."""
        ...


class _AsyncioOneShot(Generic[T]):
    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def set(self, value: T) -> None:
        if not self._future.done():
            self._future.set_result(value)

    def is_set(self) -> bool:
        return self._future.done()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._future.__await__()


def oneshot_factory() -> Callable[[], OneShot[Any]]:
    """The one-shot class of the backend that runs now. Call it once and keep the answer."""
    if sniffio.current_async_library() == "trio":
        # Trio takes as long to import as a third of this package: only where it runs already.
        from atomic_actors.base._oneshot_trio import TrioOneShot  # noqa: PLC0415

        return TrioOneShot
    return _AsyncioOneShot


def clock_function() -> Callable[[], float]:
    """The backend's clock, the one that `anyio.current_time()` reads, without the detour."""
    if sniffio.current_async_library() == "trio":
        from trio import current_time  # noqa: PLC0415

        return current_time
    return asyncio.get_running_loop().time


@frozen
class Backend:
    """What the backend that runs now waits with, and its clock: found out once, then used for every message."""

    new_oneshot: Callable[[], OneShot[Any]]
    #: Seconds; the same clock as `anyio.current_time()`.
    clock: Callable[[], float]

    @classmethod
    def current(cls) -> Self:
        """The backend that runs now."""
        return cls(oneshot_factory(), clock_function())
