"""Connections that send a call in the caller's own loop pass and call back with its reply.

A request through coredis passes four tasks: the caller queues it, a writer task packs and sends it, a
reader task parses the reply and sets an Event, and the caller wakes up. With a store that answers in
50 microseconds those hand-overs are what a lone client waits for. Here coredis still connects, signs in,
parses and ends the connection; but a call is written to the socket by its caller, and its reply is
handed to a function by the reader: the loop's own callback on asyncio, the reader task on Trio. Both
ways may be used side by side.

On asyncio the bytes come from a transport of asyncio's own, because anyio's streams stop and start reading
around every receive, and because its Unix stream waits with `loop.add_reader(socket, future.set_result, None)`: if that
wait is cancelled in the loop pass in which data arrives, the callback meets a cancelled future and the loop
reports an `InvalidStateError`, which is what happens whenever a server dies.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import anyio
import sniffio
import trio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.memory import MemoryObjectSendStream
from coredis.connection import BaseConnection, TCPConnection, UnixDomainSocketConnection
from coredis.connection._request import BaseRequest

from atomic_actors.base._oneshot import OneShot, oneshot_factory
from atomic_actors.base._telemetry import logger

__all__ = (
    "DirectConnection",
    "DirectTCPConnection",
    "DirectUnixConnection",
    "connect_stream",
    "pack_command",
)

#: Gets the reply as it was parsed, or the error by which the call or the connection ended. Must not raise.
OnReply = Callable[[Any], None]
Command = tuple[bytes, ...]
#: Gets the parts of a message that the store pushed. Must not raise.
OnPush = Callable[[list[Any]], None]

#: Chunks that may wait for a reader before the peer is made to wait.
UNREAD_CHUNKS_MAX: Final = 16

#: What stands before an argument of each length, and ends the one before it.
_HEADS: Final = [b"\r\n$%d\r\n" % size for size in range(1024)]


def ignore_reply(_: object) -> None:
    """For a command that is sent for its place in the order only, or that is refused only where its call was."""


def pack_command(command: tuple[bytes, ...]) -> bytes:
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


class _Receiver(Protocol):
    """Gets what arrives on a stream."""

    def take_bytes(self, data: bytes) -> None:
        """Take in some bytes. Must not raise."""
        ...


class _DirectStream(ByteStream):
    """A byte stream that can also be written to without waiting."""

    #: Cheaper to ask for than the class, which is abstract.
    writes_now: Final = True
    _receiver: _Receiver | None = None

    @property
    def is_delivering(self) -> bool:
        """Whether a receiver gets what arrives."""
        return self._receiver is not None

    def deliver_to(self, receiver: _Receiver) -> None:
        """Give what arrives to a receiver, at once; `receive` only sees the end from now on."""
        self._receiver = receiver

    @property
    def is_drained(self) -> bool:
        """Whether all that arrived was received."""
        return True

    @abstractmethod
    def write_nowait(self, data: bytes) -> bool:
        """Write all of `data` in its turn; False if a part waits for the next `send`.

        Raises:
            OSError: the connection is broken.
        """


class _AsyncioStream(_DirectStream, asyncio.Protocol):
    """The bytes of one asyncio transport."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._unread: deque[bytes] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._full = False
        self._reader: OneShot[None] | None = None
        self._writer: OneShot[None] | None = None
        self._new_oneshot = oneshot_factory()

    @property
    def is_drained(self) -> bool:
        return not self._unread

    # The protocol's side: the loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.take_bytes(data)
            return
        self._unread.append(data)
        if len(self._unread) == UNREAD_CHUNKS_MAX:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error, self._full = True, exc, False
        self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def _wake(self) -> None:
        for oneshot in (self._reader, self._writer):
            if oneshot is not None:
                oneshot.set(None)

    # The stream's side.

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self._unread:
            if self._error is not None:
                raise anyio.BrokenResourceError from self._error
            if self._ended:
                raise anyio.EndOfStream
            self._reader = self._new_oneshot()
            await self._reader
        if len(self._unread) == UNREAD_CHUNKS_MAX:
            self._transport.resume_reading()
        data = self._unread.popleft()
        if len(data) > max_bytes:
            self._unread.appendleft(data[max_bytes:])
        return data[:max_bytes]

    def write_nowait(self, data: bytes) -> bool:
        # The transport keeps what the socket does not take, and sends it by itself.
        self._transport.write(data)
        return True

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self._ended:
            raise anyio.BrokenResourceError from self._error
        self._transport.write(item)
        while self._full:
            self._writer = self._new_oneshot()
            await self._writer

    async def send_eof(self) -> None:
        self._transport.write_eof()

    async def aclose(self) -> None:
        self._transport.close()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        # TLS would wait for the other side's goodbye, with the socket still open after the exit.
        self._transport.abort()


class _TrioStream(_DirectStream):
    def __init__(self, inner: ByteStream) -> None:
        self._inner = inner
        self._socket: socket.socket = inner.extra(SocketAttribute.raw_socket)
        #: What must go out before anything else.
        self._rest = b""
        #: While True, bytes that came earlier are still being sent.
        self._sending = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            # Trio's own receive tries first and waits then. Nearly always there is nothing yet.
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            if self._receiver is None:
                return data
            self._receiver.take_bytes(data)

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
        if self._complete:
            return  # its function raised: the connection, that ends now, still has it
        self._complete = True
        self._on_reply(response)

    def fail(self, error: BaseException) -> None:
        self.consume(error)


class _Ear:
    """Stands where the driver puts its pushed messages, and hands them to a function instead."""

    def __init__(self, on_push: OnPush, buffer: MemoryObjectSendStream[Any]) -> None:
        self._on_push = on_push
        self._buffer = buffer

    def send_nowait(self, message: list[Any]) -> None:
        self._on_push(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)


class DirectConnection(BaseConnection):
    """What is common to both kinds of sockets."""

    #: The driver's buffer for pushed messages, once they go to a function.
    _unused_buffer: MemoryObjectSendStream[Any]

    def hear_pushes(self, on_push: OnPush) -> None:
        """Hand every pushed message to a function, as soon as it was read; once for each connection.

        Args:
            on_push: gets its parts; on asyncio it is not called in a task. Must not raise.
        """
        self._unused_buffer = self._push_message_buffer_in
        self._push_message_buffer_in = cast("Any", _Ear(on_push, self._unused_buffer))
        self._read_at_once()

    def _read_at_once(self) -> None:
        stream = self.stream
        if isinstance(stream, _DirectStream) and not stream.is_delivering and stream.is_drained:
            stream.deliver_to(self)

    @property
    def sends_now(self) -> bool:
        """Whether `send_now` may be called."""
        if not self.usable or not getattr(self.stream, "writes_now", False):
            return False
        # Bytes of others may still wait for the writer; replies come in the order of the bytes.
        requests = self._requests
        return not requests or all(type(request) is _DirectRequest for request in requests)

    def send_now(self, *commands: tuple[Command, OnReply]) -> None:
        """Send commands at once. Call it only while `sends_now`; otherwise use `create_request`.

        Args:
            *commands: each one's name and arguments, and who gets its reply, or its error; on asyncio that is not
                called in a task.
        """
        stream, requests = cast("_DirectStream", self.stream), self._requests
        self._read_at_once()
        data = b""
        for command, on_reply in commands:
            data += pack_command(command)
            requests.append(_DirectRequest(on_reply))
        try:
            if not stream.write_nowait(data):
                # Nothing to send but what the stream kept.
                self._write_buffer_in.send_nowait([])
        except OSError as error:
            # Whether a part of it arrived is unknown: its reply is that the connection is lost.
            self.invalidate(str(error))

    def take_bytes(self, data: bytes) -> None:
        """Parse what arrived, as the driver's reader does (`_Receiver`)."""
        if self._terminated:
            return  # answers and calls may not fit each other any more
        self.statistics.data_received(len(data))
        try:
            self._data_received(data)
        except Exception as error:
            logger.exception("the store's answer could not be read")
            self.invalidate(str(error))


def _name_loop() -> None:
    # asyncio calls a protocol outside of any task, where anyio finds out the loop by this variable alone; `anyio.run`
    # sets it, `asyncio.run` does not. The callbacks run in the context in which the transport is made.
    sniffio.current_async_library_cvar.set("asyncio")


async def connect_stream(host: str, port: int, tls: ssl.SSLContext | None) -> ByteStream:
    """A stream to a server, that the caller closes; leaves nothing open where it is cancelled.

    Raises:
        OSError: the address does not answer, or the certificates do not match.
    """
    if sniffio.current_async_library() != "asyncio":
        if tls is None:
            return await anyio.connect_tcp(host, port)
        return await anyio.connect_tcp(host, port, ssl_context=tls, tls_standard_compatible=False)
    _name_loop()
    # anyio's own forgets a stream if it is cancelled right after that was connected.
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(_AsyncioStream, host, port, ssl=tls)
    return stream


class DirectTCPConnection(TCPConnection, DirectConnection):
    """A TCP connection. With TLS on Trio, calls go through the writer task."""

    async def _connect(self) -> ByteStream:
        if sniffio.current_async_library() != "asyncio":
            stream = await super()._connect()
            return stream if self._ssl_context else _TrioStream(stream)
        _name_loop()
        loop = asyncio.get_running_loop()
        # uvloop tries one address after another, and knows no delay.
        more: dict[str, Any] = (
            {"happy_eyeballs_delay": 0.25} if isinstance(loop, asyncio.BaseEventLoop) else {}
        )
        with anyio.fail_after(self._connect_timeout):
            _, stream = await loop.create_connection(
                _AsyncioStream, self.location.host, self.location.port, ssl=self._ssl_context, **more
            )
            return stream


class DirectUnixConnection(UnixDomainSocketConnection, DirectConnection):
    """A connection over a Unix socket."""

    async def _connect(self) -> ByteStream:
        if sniffio.current_async_library() != "asyncio":
            return _TrioStream(await super()._connect())
        _name_loop()
        with anyio.fail_after(self._connect_timeout):
            _, stream = await asyncio.get_running_loop().create_unix_connection(
                _AsyncioStream, self.location.path
            )
            return stream
