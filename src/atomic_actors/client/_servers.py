"""Where the store is, for blocking connections on redis-py: one server, a Sentinel's master, a cluster.

Only these classes know the difference. A *place* names a server that keeps its own connections; a single
server and a Sentinel's master have one place, a cluster has one for each of its nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from atomic_actors.base._store_url import StoreLocation, StoreScheme
from atomic_actors.journal.redis._link import RedisServer

__all__ = ("ClusterServers", "SentinelServers", "Servers", "SingleServer", "servers_at")

#: The driver's pools only make connections here; how many there are is counted elsewhere.
_UNLIMITED: Final = 2**31

#: redis-py says the types of few things.
Connection = Any


class Servers(Protocol):
    """Makes connections to the servers of a store."""

    #: Whether one call may hold the steps of several partitions.
    merges_partitions: bool

    def place_of(self, key: bytes) -> str:
        """The place that has a key.

        Raises:
            redis.RedisError: that cannot be found out now.
        """
        ...

    def make(self, place: str) -> Connection:
        """A connection to a place, not open yet."""
        ...

    def redirected(self, place: str, error: exceptions.AskError) -> str:
        """The place that an answer of `place` points to; keeps it in mind, unless it is for once only."""
        ...

    def unreachable(self, place: str) -> None:
        """A connection to a place could not be opened.

        Raises:
            JournalUnavailable: and nothing can be done about it.
        """
        ...


def _options(location: StoreLocation, connect_timeout_s: float, timeout_s: float) -> dict[str, Any]:
    """What every connection is made with.

    Raises:
        InvalidConfig: the certificates cannot be read.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        # The caller knows whether a command may be repeated; the driver does not.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if location.username is not None:
        options["username"] = location.username
    if location.password is not None:
        options["password"] = location.password
    if location.scheme is not StoreScheme.CLUSTER:
        options["db"] = location.db
    return options


def _tls_options(location: StoreLocation) -> dict[str, Any]:
    given = dict(location.options)
    needed = given.get("ssl_cert_reqs", "required")
    checked = needed == "required" and given.get("ssl_check_hostname", "true") not in ("0", "false")
    given.pop("ssl_check_hostname", None)
    return {**given, "ssl_cert_reqs": needed, "ssl_check_hostname": checked}


class SingleServer:
    """One server, at an address or a socket.

    Args:
        location: where it is.
        connect_timeout_s: how long opening a connection may take.
        timeout_s: how long an answer may take while a connection is opened.
        bring_back: called when it cannot be reached.

    Raises:
        InvalidConfig: the certificates that the location names cannot be read.
    """

    merges_partitions = True

    def __init__(
        self,
        location: StoreLocation,
        connect_timeout_s: float,
        timeout_s: float,
        bring_back: Callable[[], None] | None = None,
    ) -> None:
        # Makes nothing; but it refuses what cannot work, in the words that the actor system has for it.
        RedisServer(location, connect_timeout_s=connect_timeout_s)
        options = _options(location, connect_timeout_s, timeout_s)
        kind: type[Any] = redis.Connection
        if location.scheme is StoreScheme.UNIX:
            kind = redis.UnixDomainSocketConnection
            options["path"] = location.path
        else:
            options |= {"host": location.host, "port": location.port}
        if location.scheme is StoreScheme.REDISS:
            kind = redis.SSLConnection
            options |= _tls_options(location)
        make_pool: Any = redis.ConnectionPool
        self._pool = make_pool(connection_class=kind, max_connections=_UNLIMITED, **options)
        self._bring_back = bring_back

    def place_of(self, key: bytes) -> str:
        """See `Servers.place_of`."""
        return ""

    def make(self, place: str) -> Connection:
        """See `Servers.make`."""
        return self._pool.make_connection()

    def redirected(self, place: str, error: exceptions.AskError) -> str:
        """A single server points nowhere: this one is a node of a cluster."""
        raise error

    def unreachable(self, place: str) -> None:
        """See `Servers.unreachable`."""
        if self._bring_back is not None:
            self._bring_back()


class SentinelServers:
    """The master that the sentinels name; every new connection asks them. TLS where the URL has its options."""

    merges_partitions = True

    def __init__(self, location: StoreLocation, connect_timeout_s: float, timeout_s: float) -> None:
        options = _options(location, connect_timeout_s, timeout_s)
        if location.options:
            options |= {"ssl": True, **_tls_options(location)}
        make_sentinel: Any = Sentinel
        # The user and the password are the store's, not the sentinels'.
        own = {name: value for name, value in options.items() if name not in ("username", "password", "db")}
        self._sentinel = make_sentinel(location.hosts, sentinel_kwargs=own)
        make_pool: Any = SentinelConnectionPool
        self._pool = make_pool(
            location.service_name,
            self._sentinel,
            max_connections=_UNLIMITED,
            check_connection=True,
            **options,
        )

    def place_of(self, key: bytes) -> str:
        """See `Servers.place_of`."""
        return ""

    def make(self, place: str) -> Connection:
        """See `Servers.make`."""
        return self._pool.make_connection()

    def redirected(self, place: str, error: exceptions.AskError) -> str:
        """The master points nowhere: it is a node of a cluster."""
        raise error

    def unreachable(self, place: str) -> None:
        """The next connection asks the sentinels anyway."""


class ClusterServers:
    """The nodes of a cluster; which has which slot is read at first use, and follows what they answer."""

    merges_partitions = False

    def __init__(self, location: StoreLocation, connect_timeout_s: float, timeout_s: float) -> None:
        self._options = _options(location, connect_timeout_s, timeout_s)
        self._kind: type[Any] = redis.Connection
        if location.options:
            self._kind = redis.SSLConnection
            self._options |= _tls_options(location)
        # Both are replaced as a whole, so that no reader needs a lock.
        self._places = tuple(f"{host}:{port}" for host, port in location.hosts)
        self._slots: dict[int, str] = {}

    def place_of(self, key: bytes) -> str:
        """See `Servers.place_of`."""
        slot = key_slot(key)
        place = self._slots.get(slot)
        if place is None:
            self._slots = self._read_slots()
            place = self._slots.get(slot)
        if place is None:
            raise exceptions.ClusterDownError(f"no node of the cluster has slot {slot}")
        return place

    def make(self, place: str) -> Connection:
        """See `Servers.make`."""
        host, _, port = place.rpartition(":")
        return self._kind(host=host, port=int(port), **self._options)

    def redirected(self, place: str, error: exceptions.AskError) -> str:
        """See `Servers.redirected`."""
        # A node that does not know its own name leaves the host out: it is the one that was asked.
        host: str = cast("Any", error).host or place.rpartition(":")[0]
        other = f"{host}:{error.port}"
        if isinstance(error, exceptions.MovedError):
            self._slots = {**self._slots, int(error.slot_id): other}
        return other

    def unreachable(self, place: str) -> None:
        """Look again at the next call who has its slots."""
        self._slots = {}

    def _read_slots(self) -> dict[int, str]:
        failure: redis.RedisError = redis.ConnectionError("the URL names no node of the cluster")
        for place in self._places:
            connection = self.make(place)
            try:
                connection.connect()
                connection.send_command("CLUSTER", "SLOTS")
                ranges: list[Any] = connection.read_response()
            except redis.RedisError as error:
                failure = error
                continue
            finally:
                connection.disconnect()
            asked = place.rpartition(":")[0]
            slots: dict[int, str] = {}
            for first, last, (host, port, *_), *_ in ranges:
                name = f"{host.decode() if host else asked}:{port}"
                slots.update(dict.fromkeys(range(first, last + 1), name))
            # The one that answered comes first, those of the URL are never forgotten.
            self._places = tuple(dict.fromkeys((place, *slots.values(), *self._places)))
            return slots
        raise failure


def servers_at(location: StoreLocation, connect_timeout_s: float, timeout_s: float) -> Servers:
    """What connects to a store that is a server of its own.

    Raises:
        InvalidConfig: its certificates cannot be read.
    """
    if location.scheme is StoreScheme.SENTINEL:
        return SentinelServers(location, connect_timeout_s, timeout_s)
    if location.scheme is StoreScheme.CLUSTER:
        return ClusterServers(location, connect_timeout_s, timeout_s)
    return SingleServer(location, connect_timeout_s, timeout_s)
