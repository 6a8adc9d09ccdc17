"""Publishes messages to channels in the store: each once, in order, and without waiting.

While one connection is open, a message is written to its socket here and now. Otherwise a task takes what waits,
connects and sends it; what it cannot send is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from coredis.connection import BaseConnection
from coredis.exceptions import RedisError

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._oneshot import clock_function
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._direct_connection import DirectConnection
from atomic_actors.journal.redis._link import Link

__all__ = ("UNCOUNTED", "OnSent", "Publisher")

#: How long to wait after a failure before the next message is sent.
RETRY_DELAY_S: Final = 0.05
#: Messages that wait while the store is away; more are dropped.
PENDING_MAX: Final = 10_000

#: Gets how many heard what was published: 0 means surely none, now or later; `UNCOUNTED` that the store has passed
#: it on and does not say to how many; None that nothing is known.
OnSent = Callable[[int | None], None]

UNCOUNTED: Final = -1

Outgoing = tuple[bytes, bytes, OnSent | None]


class Publisher:
    """Publishes over one link. Made inside the event loop; `run` sends what cannot be sent at once.

    Args:
        link: the connection, which is used for nothing else.
        answer_timeout_s: how long the store may leave a message unanswered before the connection is given up.
        counts_all: whether the store counts all that heard a message, and not only those at one server.
    """

    def __init__(self, link: Link, *, answer_timeout_s: float, counts_all: bool) -> None:
        self._link = link
        self._answer_timeout_s = answer_timeout_s
        self._counts_all = counts_all
        self._clock = clock_function()
        self._outgoing_in, self._outgoing_out = anyio.create_memory_object_stream[Outgoing](PENDING_MAX)
        #: The task is at work, or about to be: what comes now goes behind that.
        self._is_busy = False
        #: When each message that was sent at once was sent, oldest first; answers come in that order.
        self._unanswered_s: deque[float] = deque()
        #: Messages that were dropped: too many waited, or the store was away.
        self.dropped = 0

    def close(self) -> None:
        """Send nothing more."""
        self._outgoing_in.close()
        self._outgoing_out.close()

    def send_now(self, channel: bytes, payload: bytes, on_sent: OnSent | None) -> bool:
        """Write it to the socket here and now: no task has to wake up. False if that is not possible."""
        connection = self._link.usable
        if self._is_busy or not isinstance(connection, DirectConnection) or not connection.sends_now:
            return False
        sent_s = self._unanswered_s
        now_s = self._clock()
        if sent_s and now_s - sent_s[0] > self._answer_timeout_s:
            self._link.close("it does not answer")
            return False

        def on_reply(reply: Any) -> None:
            sent_s.popleft()
            if isinstance(reply, Exception):
                self.dropped += 1
                logger.debug("a frame to another node was lost: %s", reply)
            if on_sent is not None:
                on_sent(self._heard_by(reply))

        sent_s.append(now_s)
        connection.send_now(((b"PUBLISH", channel, payload), on_reply))
        return True

    def queue(self, channel: bytes, payload: bytes, on_sent: OnSent | None) -> None:
        """Leave it to the task; drop it where too much is waiting already."""
        try:
            self._outgoing_in.send_nowait((channel, payload, on_sent))
            self._is_busy = True
        except anyio.WouldBlock:
            self.dropped += 1
            if on_sent is not None:
                on_sent(0)

    async def run(self, task_group: TaskGroup) -> None:
        """Connect in `task_group`, and send what waits, until cancelled."""
        async for first in self._outgoing_out:
            batch = [first]
            while len(batch) < PENDING_MAX:
                try:
                    batch.append(self._outgoing_out.receive_nowait())
                except anyio.WouldBlock:
                    break
            heard: int | None = 0
            try:
                connection = await self._link.open(task_group)
                heard = None
                await self._send(connection, batch)
            except (RedisError, JournalUnavailable, StoreIncompatible, TimeoutError) as error:
                self.dropped += len(batch)
                logger.debug("%d frames to other nodes were lost: %s", len(batch), error)
                self._link.close("it failed")
                for _, _, on_sent in batch:
                    if on_sent is not None:
                        on_sent(heard)
                await anyio.sleep(RETRY_DELAY_S)
            # With an empty buffer this task holds nothing that could be overtaken.
            self._is_busy = self._outgoing_out.statistics().current_buffer_used > 0

    async def _send(self, connection: BaseConnection, batch: list[Outgoing]) -> None:
        requests = [
            connection.create_request(b"PUBLISH", channel, payload, decode=False, raise_exceptions=False)
            for channel, payload, _ in batch
        ]
        # Answers come in order: with the last one, all are there.
        with anyio.fail_after(self._answer_timeout_s):
            answer = await requests[-1]
            if isinstance(answer, Exception):
                raise answer
            heard = [
                (on_sent, await request)
                for request, (_, _, on_sent) in zip(requests, batch, strict=True)
                if on_sent is not None
            ]
        for on_sent, count in heard:
            on_sent(self._heard_by(count))

    def _heard_by(self, answer: object) -> int | None:
        if not isinstance(answer, int):
            return None
        return answer if answer or self._counts_all else UNCOUNTED
