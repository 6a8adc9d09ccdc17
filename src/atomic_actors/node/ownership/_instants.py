"""Points in time for leases: on the clock that stops during sleep and on the one that does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

__all__ = ("NEVER", "Instant", "elapsed_s", "instant_now", "instants_from")

#: CLOCK_MONOTONIC and CLOCK_BOOTTIME, in seconds: only the second one runs while a machine sleeps.
Instant = tuple[float, float]


NEVER: Final[Instant] = (float("-inf"), float("-inf"))


_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def _machine_instant() -> Instant:
    monotonic_s = time.monotonic()
    return monotonic_s, monotonic_s if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


_read_instant: Callable[[], Instant] = _machine_instant


@contextmanager
def instants_from(read: Callable[[], Instant]) -> Generator[None]:
    """Let every lease of this process be measured by another clock, for simulations."""
    global _read_instant
    before, _read_instant = _read_instant, read
    try:
        yield
    finally:
        _read_instant = before


def instant_now() -> Instant:
    """Now, on both clocks that never go back."""
    return _read_instant()


def elapsed_s(since: Instant) -> float:
    """Seconds since an instant: the larger of what the two clocks say."""
    monotonic_s, boottime_s = _read_instant()
    return max(monotonic_s - since[0], boottime_s - since[1])
