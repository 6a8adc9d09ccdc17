"""Connections that send a call in the caller's own loop pass and call back with its reply.

A request through coredis passes four tasks: the caller queues it, a writer task packs and sends it, a
reader task parses the reply and sets an Event, and the caller wakes up. With a store that answers in
50 microseconds those hand-overs are what a lone client waits for. Here coredis still connects, signs in,
packs, parses and ends the connection; but a call is written to the socket by whoever makes it, and its
reply is handed to a function by the reader task. Both ways may be used side by side.

On asyncio the bytes travel over asyncio's own streams, because anyio's stop and start reading around every
receive, and because its Unix stream waits with `loop.add_reader(socket, future.set_result, None)`: if that
wait is cancelled in the loop pass in which data arrives, the callback meets a cancelled future and the loop
reports an `InvalidStateError`, which is what happens whenever a server dies.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import sniffio
from anyio.abc import ByteStream, SocketAttribute
from coredis.connection import BaseConnection, TCPConnection, UnixDomainSocketConnection
from coredis.connection._request import BaseRequest

__all__ = ("DirectConnection", "DirectTCPConnection", "DirectUnixConnection")

#: Gets the reply as it was parsed, or the error by which the call or the connection ended. Must not raise.
OnReply = Callable[[Any], None]


#: What stands before an argument of each length, and ends the one before it.
_HEADS: Final = [b"\r\n$%d\r\n" % size for size in range(1024)]


def _pack(command: tuple[bytes, ...]) -> bytes:
    """The command in the Redis serialization protocol.

    A batch has a thousand small arguments: this takes a third of the time of the driver's packer.
    """
    heads, known = _HEADS, len(_HEADS)
    parts: list[bytes] = [b"*%d" % len(command)]
    for argument in command:
        size = len(argument)
        parts += (heads[size] if size < known else b"\r\n$%d\r\n" % size, argument)
    parts.append(b"\r\n")
    return b"".join(parts)


class _DirectStream(ByteStream):
    """A byte stream that can also be written to without waiting."""

    @abstractmethod
    def write_nowait(self, data: bytes) -> bool:
        """Write all of `data` in its turn; False if a part waits for the next `send`.

        Raises:
            OSError: the connection is broken.
        """


class _AsyncioStream(_DirectStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._reader.read(max_bytes)
        except OSError as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    def write_nowait(self, data: bytes) -> bool:
        # The transport keeps what the socket does not take, and sends it by itself.
        self._writer.write(data)
        return True

    async def send(self, item: bytes) -> None:
        if self._writer.is_closing():
            raise anyio.ClosedResourceError
        try:
            self._writer.write(item)
            await self._writer.drain()
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.close()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0), suppress(OSError):
            await self._writer.wait_closed()


class _TrioStream(_DirectStream):
    def __init__(self, inner: ByteStream) -> None:
        self._inner = inner
        self._socket: socket.socket = inner.extra(SocketAttribute.raw_socket)
        #: What must go out before anything else.
        self._rest = b""
        #: While True, bytes that came earlier are still being sent.
        self._sending = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._inner.receive(max_bytes)

    def write_nowait(self, data: bytes) -> bool:
        if self._sending or self._rest:
            self._rest += data
            return False
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        self._rest = data[sent:]
        return not self._rest

    async def send(self, item: bytes) -> None:
        self._rest += item
        self._sending = True
        try:
            while self._rest:
                data, self._rest = self._rest, b""
                await self._inner.send(data)
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _DirectRequest(BaseRequest):
    """A call whose reply goes to a function. The base class is a dataclass; this is made once a call."""

    __slots__ = ("_complete", "_on_reply")

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply
        self._complete = False

    @property
    def complete(self) -> bool:
        return self._complete

    @property
    def current_decode(self) -> bool:
        return False

    @property
    def current_encoding(self) -> str | None:
        return None

    def consume(self, response: Any) -> None:
        self._complete = True
        self._on_reply(response)

    def fail(self, error: BaseException) -> None:
        self.consume(error)


class DirectConnection(BaseConnection):
    """What is common to both kinds of sockets."""

    def send_nowait(self, command: tuple[bytes, ...], on_reply: OnReply) -> bool:
        """Send a command at once, if nothing that was queued for the writer task could be overtaken.

        Args:
            command: its name and arguments.
            on_reply: gets its reply, or its error, in the reader's task.

        Returns:
            False if it was not sent: use `create_request`.
        """
        stream, requests = self.stream, self._requests
        if not self.usable or not isinstance(stream, _DirectStream):
            return False
        for request in requests:
            if type(request) is not _DirectRequest:
                # Its bytes may still wait for the writer; replies come in the order of the bytes.
                return False
        data = _pack(command)
        requests.append(_DirectRequest(on_reply))
        try:
            if not stream.write_nowait(data):
                # Nothing to send but what the stream kept.
                self._write_buffer_in.send_nowait([])
        except OSError as error:
            # Whether a part of it arrived, nobody knows: its reply is that the connection is lost.
            self.invalidate(str(error))
        return True


class DirectTCPConnection(TCPConnection, DirectConnection):
    """A TCP connection. With TLS on Trio, calls go through the writer task."""

    async def _connect(self) -> ByteStream:
        if sniffio.current_async_library() != "asyncio":
            stream = await super()._connect()
            return stream if self._ssl_context else _TrioStream(stream)
        with anyio.fail_after(self._connect_timeout):
            return _AsyncioStream(
                *await asyncio.open_connection(
                    self.location.host,
                    self.location.port,
                    ssl=self._ssl_context,
                    happy_eyeballs_delay=0.25,
                )
            )


class DirectUnixConnection(UnixDomainSocketConnection, DirectConnection):
    """A connection over a Unix socket."""

    async def _connect(self) -> ByteStream:
        if sniffio.current_async_library() != "asyncio":
            return _TrioStream(await super()._connect())
        with anyio.fail_after(self._connect_timeout):
            return _AsyncioStream(*await asyncio.open_unix_connection(self.location.path))
