"""Gives up a connection on which the answer to a call does not come in time.

What is awaited has a timeout of its own; this is for calls whose answers are passed on by whoever reads the socket. One
task watches over all of them, since they are answered in order.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import anyio

from atomic_actors.base._oneshot import Cell, cell_factory, clock_function
from atomic_actors.journal.redis._direct_connection import OnReply
from atomic_actors.journal.redis._link import Link

__all__ = ("AnswerWatch",)

#: An answer that is late may have come while the loop was busy: the reader gets a last turn.
GRACE_S: Final = 0.05


class AnswerWatch:
    """Watches over the calls that go out on a link; `run` has to be running.

    Args:
        link: whose connection is given up.
        timeout_s: how long an answer may take.
    """

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._clock = clock_function()
        #: For answers that are awaited all the same.
        self.new_cell = cell_factory()
        #: When each call went out, oldest first; their answers come in that order.
        self._sent_s: deque[float] = deque()
        #: The task waits here while nothing is on its way.
        self._resting: Cell[None] | None = None
        self._scope = anyio.CancelScope(shield=True)

    def __len__(self) -> int:
        return len(self._sent_s)

    def expect(self, on_reply: OnReply) -> OnReply:
        """Note that a call goes out now; returns who has to get its answer instead."""

        def answer_to(reply: Any) -> None:
            self._sent_s.popleft()
            on_reply(reply)

        self._sent_s.append(self._clock())
        if self._resting is not None:
            self._resting.set(None)
        return answer_to

    async def run(self) -> None:
        """Give up the connection on which an answer does not come in time; until `stop`, whoever is cancelled."""
        with self._scope:
            while True:
                if not self._sent_s:
                    self._resting = self.new_cell()
                    await self._resting
                    self._resting = None
                oldest_s = self._sent_s[0] if self._sent_s else self._clock()
                await anyio.sleep(max(0.0, oldest_s + self._timeout_s - self._clock()))
                if not self._sent_s or self._clock() < self._sent_s[0] + self._timeout_s:
                    continue
                late_s = self._sent_s[0]
                await anyio.sleep(GRACE_S)
                if self._sent_s and self._sent_s[0] == late_s:
                    self._link.close(f"no answer within {self._timeout_s:g} s")

    def stop(self) -> None:
        """Watch no longer."""
        self._scope.cancel()
