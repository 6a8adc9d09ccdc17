"""The ticker: the one task of a node that watches the clock.

A cancel scope and a timer for each message would cost four fifths of the speed. Instead everything that
may become due sits in buckets of the part that knows it, and this task turns them over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import anyio
from attrs import define

from atomic_actors.base._oneshot import Backend

__all__ = ("Ticker", "Ticking")


class Ticking(Protocol):
    """A part in which something may become due."""

    def tick(self, now_s: float) -> None:
        """Do what is due. Must be quick, and must not raise."""
        ...


@define(eq=False)
class Ticker:
    """Tells parts the time, again and again.

    Args:
        interval_s: how long to sleep in between: the granularity of every deadline.
    """

    backend: Backend
    interval_s: float
    parts: Sequence[Ticking]

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            now_s = self.backend.clock()
            for part in self.parts:
                part.tick(now_s)
            await anyio.sleep(self.interval_s)
