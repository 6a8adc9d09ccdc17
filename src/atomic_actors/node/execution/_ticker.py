"""The sweeper: the one task of a node that watches the clock.

A cancel scope and a timer for each message would cost four fifths of the speed. Instead everything that
may become due sits in buckets of the part that knows it, and this task turns them over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
from attrs import define

__all__ = ("Sweeper",)


@define(eq=False)
class Sweeper:
    """Calls each of `ticks` with the time, again and again.

    Args:
        clock: the backend's clock.
        interval_s: how long to sleep in between: the granularity of every deadline.
        ticks: what to call; each must be quick and must not raise.
    """

    clock: Callable[[], float]
    interval_s: float
    ticks: Sequence[Callable[[float], None]]

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            now_s = self.clock()
            for tick in self.ticks:
                tick(now_s)
            await anyio.sleep(self.interval_s)
