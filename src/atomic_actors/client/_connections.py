"""Blocking connections, shared by the threads of a process; and what redis-py's errors mean.

The rules about a store (which library it needs, what is unsafe, what an error says) are written once, as
coroutines over a connection of the asynchronous driver. `run_now` runs them here: over `BlockingAnswers`,
where every answer is there by the time it is awaited, so that no coroutine ever waits.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from threading import TIMEOUT_MAX, BoundedSemaphore, RLock
from typing import Any, Final, TypeVar, cast

import coredis.exceptions as meanings
import redis
from coredis.connection import BaseConnection
from redis import exceptions

from atomic_actors.base._errors import AtomicActorsError
from atomic_actors.client._servers import Connection, Servers
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._link import explain

__all__ = (
    "BlockingAnswers",
    "ConnectionPool",
    "NoConnectionFree",
    "StoreBusy",
    "as_async_error",
    "exchange",
    "meaning_of",
    "run_now",
)

T = TypeVar("T")

#: Answers that are maps in the newer protocol, which the rules expect: of one map, and of a list of maps.
_MAPS: Final = frozenset((b"CONFIG GET",))
_LISTS_OF_MAPS: Final = frozenset((b"FUNCTION LIST",))


class NoConnectionFree(JournalUnavailable):
    """Every connection that may be open is in use; the store is not at fault."""


class StoreBusy(JournalUnavailable):
    """The store answered that it takes no writes for a moment: it loads, fails over, or moves a slot."""


#: What ends by itself, soon.
_MOMENTARY: Final = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)


def as_async_error(error: redis.RedisError) -> Exception:
    """An error of redis-py as the asynchronous driver says it; those of the network stay as they are."""
    text = str(error)
    match error:
        case exceptions.NoPermissionError() | exceptions.AuthorizationError():
            return meanings.AuthorizationError(text)
        case exceptions.AuthenticationError():
            return meanings.AuthenticationError(text)
        case exceptions.ReadOnlyError():
            return meanings.ReadOnlyError(text)
        case exceptions.BusyLoadingError():
            return meanings.BusyLoadingError(text)
        case exceptions.MasterDownError():
            return meanings.ResponseError(f"MASTERDOWN {text}")
        case exceptions.ClusterDownError():
            return meanings.ClusterDownError(text)
        case exceptions.TryAgainError():
            return meanings.TryAgainError(text)
        case exceptions.AskError():
            return meanings.AskError(text)
        case exceptions.OutOfMemoryError():
            return meanings.ResponseError(f"OOM {text}")
        case exceptions.ResponseError():
            # "ERR unknown command ..."; the driver leaves the first word of some answers out.
            if "unknown command" in text.lower():
                return meanings.UnknownCommandError(text)
            return meanings.ResponseError(text)
        case exceptions.TimeoutError():
            return TimeoutError(text)
        case _:
            return error


def meaning_of(error: Exception, *, sent: bool) -> AtomicActorsError | JournalUnavailable:
    """What an error of either driver means: try again, or give up.

    Args:
        error: what was raised.
        sent: whether the store may have seen the steps, where the error does not say.
    """
    translated = as_async_error(error) if isinstance(error, redis.RedisError) else error
    translated.__cause__ = translated.__cause__ or error.__cause__
    meaning = explain(translated, sent=sent)
    if isinstance(error, _MOMENTARY) or isinstance(error.__cause__, _MOMENTARY):
        return StoreBusy(str(meaning), sent=False)
    return meaning


def exchange(connection: Connection, timeout_s: float, *command: Any) -> Any:
    """Send one command and read its answer.

    Raises:
        JournalUnavailable: it could not be sent.
        redis.RedisError: what the store answered, or that no answer came; the store may have seen it.
    """
    try:
        connection.send_command(*command)
    except redis.RedisError as error:
        # Not all of it was handed to the system, so the server cannot have all of it.
        raise meaning_of(error, sent=False) from error
    if not connection.can_read(max(timeout_s, 0.001)):
        raise redis.TimeoutError(f"nothing within {timeout_s:.3g} s")
    return connection.read_response()


def _to_map(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class BlockingAnswers:
    """Stands for a connection of the asynchronous driver: what is awaited is there already."""

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    @property
    def as_connection(self) -> BaseConnection:
        """Itself, for functions that only ask."""
        return cast("BaseConnection", self)

    async def create_request(self, command: bytes, *arguments: Any, decode: bool = False) -> Any:
        """Send one command and wait, blocking, for its answer."""
        try:
            answer = exchange(self._connection, self._timeout_s, *command.split(), *arguments)
        except redis.RedisError as error:
            translated = as_async_error(error)
            if translated is error:
                raise
            raise translated from error
        if command in _MAPS:
            return _to_map(answer)
        if command in _LISTS_OF_MAPS:
            return [_to_map(item) for item in answer]
        return answer


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing but `BlockingAnswers`."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    coroutine.close()
    raise AssertionError(f"{coroutine!r} waited for an event loop")


class ConnectionPool:
    """Open connections by place; each is in the hands of one thread at a time, the latest used first.

    Args:
        servers: makes the connections.
        limit: how many may be open at once.
    """

    def __init__(self, servers: Servers, limit: int) -> None:
        self._servers = servers
        self._limit = limit
        self._free = BoundedSemaphore(limit)
        # Reentrant, like every lock that a signal handler might want while its thread holds it.
        self._lock = RLock()
        self._idle: dict[str, list[Connection]] = {}
        #: Open or about to be, in use or not.
        self._open: set[Connection] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<ConnectionPool {len(self._open)} of at most {self._limit} connections>"

    @contextmanager
    def using(self, place: str, until_s: float) -> Generator[Connection]:
        """Have a connection for a while.

        Args:
            place: where to.
            until_s: when to give up waiting for one, on the monotonic clock.

        Raises:
            NoConnectionFree: all were in use until then.
            JournalUnavailable: the place cannot be reached now.
            StoreIncompatible: it wants another user or password.
        """
        patience_s = min(max(until_s - time.monotonic(), 0.001), TIMEOUT_MAX)
        if not self._free.acquire(timeout=patience_s):
            raise NoConnectionFree(f"all {self._limit} connections were in use (max_connections)", sent=False)
        try:
            connection = self._take(place, until_s)
            try:
                yield connection
            except BaseException as error:
                if _leaves_usable(error):
                    self._give_back(place, connection)
                else:
                    self._drop(connection)
                raise
            self._give_back(place, connection)
        finally:
            self._free.release()

    def _take(self, place: str, until_s: float) -> Connection:
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None:
                return self._connect(place, until_s)
            if _is_fresh(connection):
                return connection
            self._drop(connection)

    def _connect(self, place: str, until_s: float) -> Connection:
        connection = self._servers.make(place)
        left_s = max(until_s - time.monotonic(), 0.001)
        if left_s < (connection.socket_connect_timeout or left_s):
            connection.socket_connect_timeout = left_s
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
        except (redis.RedisError, OSError) as error:
            self._drop(connection)
            meaning = meaning_of(error, sent=False)
            if isinstance(meaning, JournalUnavailable):
                self._servers.unreachable(place)
            raise meaning from error
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _give_back(self, place: str, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.setdefault(place, []).append(connection)
                return
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.disconnect()

    def close(self) -> None:
        """Close every connection that is not in use; the others follow when they are given back."""
        with self._lock:
            self._closed = True
            idle = [connection for some in self._idle.values() for connection in some]
            self._idle.clear()
        for connection in idle:
            self._drop(connection)

    def abandon(self) -> None:
        """In a forked child: close what was copied, without a word to the server, and take no lock."""
        for connection in tuple(self._open):
            close_copy(connection)


def close_copy(connection: Connection) -> None:
    """Close this process's copy of a forked connection; the parent's lives on."""
    sock = getattr(connection, "_sock", None)
    if sock is not None:
        sock.close()


def _leaves_usable(error: BaseException) -> bool:
    """Whether a connection is good for more after an error: else an answer may still be on its way."""
    if isinstance(error, exceptions.ReadOnlyError):
        return False  # no master any more
    return isinstance(error, redis.ResponseError | AtomicActorsError)


def _is_fresh(connection: Connection) -> bool:
    """Whether nothing came on an idle connection: no end, and no answer to a caller that went away."""
    try:
        return not connection.can_read()
    except (redis.RedisError, OSError):
        return False
