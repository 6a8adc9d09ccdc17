"""The store's time, as this process knows it. Message ids and deadlines are made with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

__all__ = ("LeadingClock", "StoreClock")

#: For how long the time of the leading clock is kept without a new answer from it.
TIME_KEPT_S: Final = 10.0


class StoreClock:
    """The time of the store's last answer, and what has passed here since.

    Args:
        clock: this process's clock, in seconds: the one that `anyio.current_time()` reads.
    """

    __slots__ = ("_read_s", "clock", "last_ms")

    def __init__(self, clock: Callable[[], float] = anyio.current_time) -> None:
        self.clock = clock
        #: The store's time at its last answer; 0 before the first one.
        self.last_ms = 0
        self._read_s = 0.0

    def now_ms(self) -> int:
        """The store's time now."""
        return self.last_ms + int((self.clock() - self._read_s) * 1000)

    def note(self, now_ms: int, read_s: float) -> None:
        """Take over the time of an answer that was read at `read_s` of this process's clock."""
        self.last_ms, self._read_s = now_ms, read_s


class LeadingClock(StoreClock):
    """Of several primaries, the time of the one whose clock is ahead.

    Deadlines are made with it, so that none has passed for any primary before it begins. Which clock leads is
    looked at anew after a while without an answer from it, for this process's own clock may run fast.

    Args:
        shared: told that time.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: StoreClock) -> None:
        super().__init__(shared.clock)
        self._shared = shared

    def note(self, now_ms: int, read_s: float) -> None:
        """Take over the time of an answer, if no other primary is further ahead."""
        age_s = read_s - self._read_s
        if not self.last_ms or age_s > TIME_KEPT_S or now_ms >= self.last_ms + int(age_s * 1000):
            super().note(now_ms, read_s)
            self._shared.note(now_ms, read_s)
