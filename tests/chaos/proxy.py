"""A proxy between a node and its store that spoils one call: cuts, delays or doubles it.

It reads the protocol (RESP2 and RESP3) only as far as it must: where a request or a reply ends, and which
requests are calls of the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

import anyio
from anyio.abc import SocketAttribute, SocketStream
from attrs import define, field

__all__ = ("Fault", "Frames", "Proxy", "frame_end", "run_proxy")

#: What happens to the call: it never arrives; its answer never arrives; it arrives twice and the second
#: answer is the one that counts; its answer comes late; its answer never comes and nobody gets through.
Fault = Literal["request lost", "reply lost", "doubled", "late", "outage"]

Fate = Fault | Literal["pass", "swallow"]

COMMIT = b"aa1_commit"
_LINES = b"+-:_#,("
_STRINGS = b"$=!"
_AGGREGATES = {b"*": 1, b"%": 2, b"~": 1, b">": 1, b"|": 2}


def frame_end(data: bytes | bytearray, start: int = 0) -> int:
    """Where the frame at `start` ends; -1 where the rest has not come yet."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return -1
    sort, position = bytes(data[start : start + 1]), line_end + 2
    if sort in _LINES:
        return position
    count = int(data[start + 1 : line_end])
    if sort in _STRINGS:
        if count < 0:
            return position
        return position + count + 2 if len(data) >= position + count + 2 else -1
    # An attribute comes before the frame that it belongs to.
    parts = max(count, 0) * _AGGREGATES[sort] + (sort == b"|")
    for _ in range(parts):
        position = frame_end(data, position)
        if position < 0:
            return -1
    return position


@define(eq=False)
class _Connection:
    client: SocketStream
    server: SocketStream
    #: What is to become of each reply that is still to come, in order.
    replies: deque[Fate] = field(factory=deque)
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)


@define(eq=False)
class Proxy:
    """Listens on a free port, passes to the port `upstream`, and spoils the call number `at` (from 1).

    TCP, because on asyncio a cancelled read of a Unix socket may leave an error in the event loop.
    """

    upstream: int
    fault: Fault
    at: int
    #: How late, or how long the outage.
    delay_s: float = 0.0
    #: All calls instead of one.
    every: bool = False
    port: int = field(default=0, init=False)
    calls: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)
    _away_until_s: float = field(default=0.0, init=False)
    _connections: set[_Connection] = field(factory=set, init=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, client: SocketStream) -> None:
        async with client:
            if anyio.current_time() < self._away_until_s:
                return
            async with await anyio.connect_tcp("127.0.0.1", self.upstream) as server:
                connection = _Connection(client, server)
                self._connections.add(connection)
                try:
                    with connection.scope:
                        async with anyio.create_task_group() as group:
                            group.start_soon(self._requests, connection)
                            group.start_soon(self._replies, connection)
                finally:
                    self._connections.discard(connection)

    async def _requests(self, connection: _Connection) -> None:
        frames = Frames(connection.client)
        try:
            while (frame := await frames.receive()) is not None:
                fate = self._fate(frame)
                if fate == "request lost":
                    break
                if fate == "outage":
                    self._cut_others(connection)
                if fate == "doubled":
                    connection.replies.append("swallow")
                    await connection.server.send(frame)
                    fate = "pass"
                connection.replies.append(fate)
                await connection.server.send(frame)
        except anyio.BrokenResourceError:
            pass
        connection.scope.cancel()

    def _fate(self, frame: bytes) -> Fate:
        if b"FCALL" not in frame[:20] or COMMIT not in frame[:60]:
            return "pass"
        self.calls += 1
        if self.calls != self.at and not self.every:
            return "pass"
        self.fired += 1
        return self.fault

    def _cut_others(self, connection: _Connection) -> None:
        """Before the call goes on its way, so that no hint about it gets through either."""
        self._away_until_s = anyio.current_time() + self.delay_s
        for other in self._connections - {connection}:
            other.scope.cancel()

    async def _replies(self, connection: _Connection) -> None:
        frames = Frames(connection.server)
        try:
            while (frame := await frames.receive()) is not None:
                # A push answers nobody.
                fate = "pass" if frame.startswith(b">") else connection.replies.popleft()
                if fate in ("reply lost", "outage"):
                    break
                if fate == "late":
                    await anyio.sleep(self.delay_s)
                if fate != "swallow":
                    await connection.client.send(frame)
        except anyio.BrokenResourceError:
            pass
        connection.scope.cancel()


@define(eq=False)
class Frames:
    """The frames that come out of a stream."""

    stream: SocketStream
    _data: bytearray = field(factory=bytearray, init=False)

    async def receive(self) -> bytes | None:
        """The next whole frame; None once the other end has closed."""
        while (end := frame_end(self._data)) < 0:
            try:
                self._data += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return None
        frame = bytes(self._data[:end])
        del self._data[:end]
        return frame


@asynccontextmanager
async def run_proxy(proxy: Proxy) -> AsyncGenerator[Proxy]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy.port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, proxy.serve)
        try:
            yield proxy
        finally:
            group.cancel_scope.cancel()
