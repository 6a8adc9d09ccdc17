"""Unix sockets on asyncio, over asyncio's own streams.

anyio's Unix stream waits with `loop.add_reader(socket, future.set_result, None)`. If the wait is
cancelled in the loop pass in which data arrives, the callback meets a cancelled future, and the loop
reports an `InvalidStateError`: that is what happens whenever a server dies. It also registers the socket
anew for every read. asyncio's transports do neither. Trio's stream needs no replacement.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import sniffio
from anyio.abc import ByteStream
from coredis.connection import UnixDomainSocketConnection

__all__ = ("QuietUnixConnection",)


class _AsyncioUnixStream(ByteStream):
    """A byte stream over a pair of asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._reader.read(max_bytes)
        except (ConnectionError, OSError) as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        if self._writer.is_closing():
            raise anyio.ClosedResourceError
        try:
            self._writer.write(item)
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.close()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0), suppress(OSError):
            await self._writer.wait_closed()


class QuietUnixConnection(UnixDomainSocketConnection):
    """coredis' connection over a Unix socket, with a stream that can be cancelled at any time."""

    async def _connect(self) -> ByteStream:
        if sniffio.current_async_library() != "asyncio":
            return await super()._connect()
        with anyio.fail_after(self._connect_timeout):
            return _AsyncioUnixStream(*await asyncio.open_unix_connection(self.location.path))
