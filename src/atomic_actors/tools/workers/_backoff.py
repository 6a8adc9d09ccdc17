"""How long to wait before a worker that ended unasked is started again."""

from __future__ import annotations

from typing import Final

from attrs import define, field

__all__ = ("Backoff",)

INITIAL_S: Final = 0.5
MAXIMUM_S: Final = 30.0
HEALTHY_AFTER_S: Final = 30.0


@define(eq=False)
class Backoff:
    """The waits of one worker: none after the first end, then doubling up to a limit.

    Args:
        initial_s: the wait after the second end in a row.
        maximum_s: the longest wait.
        healthy_after_s: a worker that served so long starts the row anew.
    """

    initial_s: float = INITIAL_S
    maximum_s: float = MAXIMUM_S
    healthy_after_s: float = HEALTHY_AFTER_S
    _ends: int = field(default=0, init=False)

    def next_wait_s(self, served_s: float) -> float:
        """The wait after a worker that served `served_s` seconds; 0 for one that was never ready."""
        if served_s >= self.healthy_after_s:
            self._ends = 0
        self._ends += 1
        if self._ends == 1:
            return 0.0
        # The exponent is bounded before the power is, or a worker that ends for days overflows.
        return min(self.initial_s * 2.0 ** min(self._ends - 2, 32), self.maximum_s)
