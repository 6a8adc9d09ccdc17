"""The servers of a cluster, by their addresses."""

from __future__ import annotations

from atomic_actors.base._store_url import StoreLocation
from atomic_actors.journal.redis._link import RedisServer, node_location
from atomic_actors.journal.redis.cluster._slots import Address

__all__ = ("ClusterServers",)


class ClusterServers:
    """Makes connections to each node of a cluster; remembers what all connections to one share.

    Args:
        location: a `redis+cluster:` location: how to sign in at each of them.
        connect_timeout_s: how long connecting to one may take.
    """

    def __init__(self, location: StoreLocation, *, connect_timeout_s: float) -> None:
        self._location = location
        self._connect_timeout_s = connect_timeout_s
        self._servers: dict[Address, RedisServer] = {}

    def at(self, address: Address) -> RedisServer:
        """The server at an address.

        Raises:
            InvalidConfig: the certificates that the location names cannot be read.
        """
        found = self._servers.get(address)
        if found is None:
            found = self._servers[address] = RedisServer(
                node_location(self._location, address), connect_timeout_s=self._connect_timeout_s
            )
        return found
