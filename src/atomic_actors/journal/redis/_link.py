"""One connection to a Redis or Valkey server, and what its errors mean to a journal.

coredis writes requests in the order in which they were made and gives the answers back in the same order,
also where a caller was cancelled meanwhile; so a connection is never closed for a cancellation,
only when an answer does not come in time.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol
from urllib.parse import quote

import anyio
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import evolve
from coredis.connection import (
    BaseConnection,
    BaseConnectionParams,
    TCPLocation,
    UnixDomainSocketLocation,
)
from coredis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
    UnknownCommandError,
)

from atomic_actors.base._errors import InvalidConfig, StoreIncompatible
from atomic_actors.base._store_url import StoreLocation, StoreScheme
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._direct_connection import DirectTCPConnection, DirectUnixConnection

__all__ = (
    "ACL_RULES",
    "CLUSTER_ACL_RULES",
    "Connector",
    "Greeter",
    "Link",
    "RedisServer",
    "ask",
    "explain",
    "node_location",
    "redis_url",
    "request_all",
    "tls_context",
)

#: What a user of the store must be allowed, as words of `ACL SETUSER`; in this order, since later ones undo earlier ones.
ACL_RULES: Final = (
    "~{<namespace>:* &{<namespace>:* &<namespace>:reply:* +@read +@write +@pubsub -@dangerous -@scripting "
    "+fcall +function|load +function|list +time +info +hello +ping +select"
)
#: What it needs besides in a cluster.
CLUSTER_ACL_RULES: Final = "+cluster|slots +asking"
#: How an answer says that a function ran into a missing right: Redis 7.0, and all others.
_DENIED_IN_FUNCTION: Final = ("The user executing the script can't", "ACL failure in script")
#: Begins answers by which the store refused a whole call, for now: nothing of it happened.
_REFUSALS: Final = ("OOM ", "MISCONF ", "BUSY ", "NOREPLICAS ", "MASTERDOWN ", "UNKILLABLE ")
_CERTIFICATES: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_STREAMS: Final[tuple[type[Any], ...]] = (MemoryObjectSendStream, MemoryObjectReceiveStream)

Argument = bytes | str | int

#: Set in the tasks of our connections.
_is_ours: ContextVar[bool] = ContextVar("_is_ours", default=False)


def _is_others(_: logging.LogRecord) -> bool:
    return not _is_ours.get()


# The driver writes a traceback for each connection that does not come about: in an outage, one with every try.
# Our own log says once what is wrong.
logging.getLogger("coredis").addFilter(_is_others)


class Connector(Protocol):
    """Makes connections."""

    async def connect(self) -> BaseConnection:
        """A connection that is not open yet. Asynchronous, because a Sentinel has to be asked where it leads."""
        ...


class Greeter(Protocol):
    """Looks at each new connection before anything else is sent over it."""

    async def greet(self, connection: BaseConnection) -> None:
        """Raise to reject the connection."""
        ...


def tls_context(location: StoreLocation) -> ssl.SSLContext:
    """What the options of a location say about certificates.

    Raises:
        InvalidConfig: an option is wrong, or a certificate cannot be read.
    """
    options = dict(location.options)
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise InvalidConfig(f"url: the certificates of {location} cannot be read: {error}") from error
    needed = options.get("ssl_cert_reqs", "required")
    if needed not in _CERTIFICATES:
        raise InvalidConfig(f"url: ssl_cert_reqs={needed!r}; expected none, optional or required")
    context.check_hostname = needed == "required" and options.get("ssl_check_hostname", "true") not in (
        "0",
        "false",
    )
    context.verify_mode = _CERTIFICATES[needed]
    return context


class RedisServer:
    """Makes connections to a single server (`redis:`, `rediss:` or `unix:`): a `Connector`.

    Args:
        location: where it is.
        connect_timeout_s: how long connecting may take.

    Raises:
        InvalidConfig: the location is of another sort, or its certificates cannot be read.
    """

    def __init__(self, location: StoreLocation, *, connect_timeout_s: float) -> None:
        if location.scheme not in (StoreScheme.REDIS, StoreScheme.REDISS, StoreScheme.UNIX):
            raise InvalidConfig(f"url: {location} is not a single Redis or Valkey server")
        self._location = location
        self._parameters: BaseConnectionParams = {
            "connect_timeout": connect_timeout_s,
            "username": location.username,
            "password": location.password,
            "db": location.db,
        }
        if location.scheme is StoreScheme.REDISS:
            self._parameters["ssl_context"] = tls_context(location)

    def url(self) -> str:
        """Its URL with the password, for the blocking client; never log it."""
        return redis_url(self._location)

    async def connect(self) -> BaseConnection:
        """A connection that is not open yet."""
        location = self._location
        if location.scheme is StoreScheme.UNIX:
            return DirectUnixConnection(UnixDomainSocketLocation(location.path), **self._parameters)
        return DirectTCPConnection(TCPLocation(location.host, location.port), **self._parameters)


def node_location(location: StoreLocation, address: tuple[str, int]) -> StoreLocation:
    """Where one node of a cluster is; over TLS if the cluster's URL says anything of certificates."""
    is_safe = any(name.startswith("ssl_") for name, _ in location.options)
    scheme = StoreScheme.REDISS if is_safe else StoreScheme.REDIS
    return evolve(location, scheme=scheme, hosts=(address,))


def redis_url(location: StoreLocation) -> str:
    """The location as a URL with its password, for the blocking client; never log it."""
    user = ""
    if location.username or location.password:
        user = f"{quote(location.username or '', safe='')}:{quote(location.password or '', safe='')}@"
    options = "&".join(f"{name}={quote(value, safe='')}" for name, value in location.options)
    if location.scheme is StoreScheme.UNIX:
        return f"unix://{user}{quote(location.path)}?db={location.db}"
    host = f"[{location.host}]" if ":" in location.host else location.host
    return f"{location.scheme}://{user}{host}:{location.port}/{location.db}" + (
        f"?{options}" if options else ""
    )


def _cause(error: BaseException) -> str:
    """The innermost reason: the outer ones say only that there is no connection."""
    seen = [error]
    # Causes may go round in a circle: Python lets an exception be raised from itself.
    while (inner := seen[-1].__cause__) is not None and inner not in seen:
        seen.append(inner)
    innermost = seen[-1]
    return f"{type(innermost).__name__}: {innermost}" if str(innermost) else type(innermost).__name__


def explain(error: Exception, *, sent: bool) -> JournalUnavailable | StoreIncompatible:
    """What an error of the driver means: try again, or give up.

    Args:
        error: what the driver raised, or the store answered.
        sent: whether the store may have seen the steps, where the error does not say.
    """
    if isinstance(error, JournalUnavailable | StoreIncompatible):
        return error
    if isinstance(error, AuthenticationError):
        return StoreIncompatible(
            f"the store rejected the user or the password: {error}; set username and password in Config, "
            "or in the url: redis://user:password@host"
        )
    if isinstance(error, AuthorizationError) or str(error).startswith(_DENIED_IN_FUNCTION):
        return StoreIncompatible(f"the store's user lacks a permission: {error}; it needs {ACL_RULES}")
    if isinstance(error, ReadOnlyError | BusyLoadingError | ClusterDownError | TryAgainError):
        return JournalUnavailable(f"the store does not accept writes now: {error}", sent=False)
    if isinstance(error, AskError):
        return StoreIncompatible("the store is a node of a cluster; use redis+cluster:// in the url")
    if isinstance(error, UnknownCommandError):
        return StoreIncompatible(
            f"the store lacks a command: {error}; Redis 7.0 or newer, or Valkey, is required"
        )
    if isinstance(error, ResponseError):
        if "wrong kind of value" in str(error):
            # A key of ours was overwritten; that may be put right.
            return JournalUnavailable(f"a key in the store has the wrong type: {error}", sent=True)
        if str(error).startswith(_REFUSALS):
            return JournalUnavailable(f"the store does not accept writes now: {error}", sent=False)
        return StoreIncompatible(f"the store answered: {error}")
    if isinstance(error, TimeoutError):
        return JournalUnavailable(f"the store did not answer in time: {error}", sent=sent)
    return JournalUnavailable(f"no connection to the store ({_cause(error)})", sent=sent)


async def ask(connection: BaseConnection, command: bytes, *arguments: Argument) -> Any:
    """Send one command and wait for its answer.

    Raises:
        RedisError: what the store answered, or that the connection is lost.
    """
    return await connection.create_request(command, *arguments, decode=False)


def _close_buffers(connection: BaseConnection) -> None:
    # One that never got through leaves its memory streams open, and anyio warns of each of them.
    for part in vars(connection).values():
        if isinstance(part, _STREAMS):
            part.close()


class Link:
    """Keeps one connection: opens it where there is none, and closes it with the task group.

    Args:
        connector: makes the connections.
        connect_timeout_s: how long it may take to connect, sign in and greet.
        greeter: looks at each new connection; None where there is nothing to check.
        shielded: a connection ends only when it is closed, not when what runs around it is cancelled.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        connect_timeout_s: float,
        greeter: Greeter | None = None,
        shielded: bool = False,
    ) -> None:
        self._connector = connector
        self._shielded = shielded
        self._connect_timeout_s = connect_timeout_s
        self._greeter = greeter
        self._connection: BaseConnection | None = None
        self._scopes: dict[BaseConnection, anyio.CancelScope] = {}

    @property
    def usable(self) -> BaseConnection | None:
        """The connection, if it is open."""
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def open(self, task_group: TaskGroup) -> BaseConnection:
        """The open connection; a new one, that runs in `task_group`, where the last is lost.

        Raises:
            JournalUnavailable: the store cannot be reached now.
            StoreIncompatible: it can, and it is the wrong one, or the user or password is.
        """
        usable = self.usable
        if usable is not None:
            return usable
        self.close("replaced")
        connection: BaseConnection | None = None
        try:
            with anyio.fail_after(self._connect_timeout_s):
                connection = await self._connector.connect()
                await task_group.start(self._run, connection)
                if self._greeter is not None:
                    await self._greeter.greet(connection)
        except (RedisError, OSError) as error:
            if connection is not None:
                connection.invalidate("it was rejected")
            raise explain(error, sent=False) from error
        except BaseException:
            if connection is not None:
                connection.invalidate("it was rejected")
            raise
        self._connection = connection
        return connection

    async def _run(
        self, connection: BaseConnection, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        started = False
        _is_ours.set(True)
        scope, shielded = anyio.CancelScope(), self._shielded
        self._scopes[connection] = scope

        class Status(TaskStatus[None]):
            def started(self, value: None = None) -> None:
                nonlocal started
                started = True
                scope.shield = shielded
                task_status.started(value)

        try:
            with scope:
                await connection.run(task_status=Status())
        except RedisError as error:
            if not started:
                raise
            # The connection itself fails the calls that wait for answers.
            logger.debug("a connection to the store ended: %s", error)
        finally:
            self._scopes.pop(connection, None)
            _close_buffers(connection)

    def close(self, reason: str) -> None:
        """Close the connection; calls that wait for an answer on it get an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate(reason)

    def close_all(self) -> None:
        """Close every connection, for good."""
        self.close("the journal is closed")
        for scope in tuple(self._scopes.values()):
            scope.cancel()


def request_all(
    connection: BaseConnection, commands: Sequence[Sequence[Argument]], timeout_s: float
) -> list[Awaitable[Any]]:
    """Queue commands in order without waiting; each answer is then awaited on its own.

    An answer that is an error is given back, not raised; one that takes longer than `timeout_s` is a
    `TimeoutError`.

    Raises:
        StoreConnectionError: the connection is lost; nothing was sent.
    """
    return [
        connection.create_request(b"FCALL", *command, decode=False, raise_exceptions=False, timeout=timeout_s)
        for command in commands
    ]
