"""Watches whether the store answers while no other calls are made.

A connection whose other end is gone without a word looks like any other until something is sent on it. Under load
that happens by itself. A quiet node asks a question now and then, so that it knows about an outage before its
next message does, and has a new connection by then. A failing store is asked by `CommitQueue` already, which
sends again what had no answer.
"""

from __future__ import annotations

import anyio
from attrs import define, field

from atomic_actors.journal._protocol import Audit
from atomic_actors.journal.commit._commit_queue import CommitQueue

__all__ = ("HealthWatch",)


@define(eq=False)
class HealthWatch:
    """Asks the store after each silence.

    Args:
        journal: what counts the answers, and the questions without one.
        interval_s: how often to look; a journal that had no answer since the last look is asked.
    """

    journal: CommitQueue
    interval_s: float
    _answered: int = field(default=-1, init=False)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._check()
            await anyio.sleep(self.interval_s)

    def _check(self) -> None:
        now = self.journal.statistics()
        if now.batches == self._answered and not now.pending and now.available:
            # One that may not be refused: sent again until it has its answer, it finds out when the store is back.
            self.journal.enqueue(Audit(0), lambda _: None)
        self._answered = now.batches
