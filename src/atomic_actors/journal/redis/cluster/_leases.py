"""The lease keeper's own client for a cluster: blocking, on redis-py, used by one thread only.

Each lease is renewed by a call of its own, because partitions have different slots; the calls to one primary go
out together. First everything is sent to the primaries that are connected, then their answers are read, and only
then is it tried to connect to others: one that is away, or hangs, costs the leases of its own partitions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, RedisError, ResponseError
from redis.retry import Retry

from atomic_actors.base._store_url import StoreLocation
from atomic_actors.journal.redis._lease_client import LeaseKeys
from atomic_actors.journal.redis._link import node_location, redis_url
from atomic_actors.journal.redis.cluster._slots import Address, SlotMap, parse_redirect, read_slots, slot_of

__all__ = ("ClusterLeaseClient",)

#: Of the time that a round may take: what is waited for answers; and for each connection, and each word with it.
#: A round ends late only where several primaries fail in several ways at once.
ANSWER_SHARE: Final = 1 / 3
SOCKET_SHARE: Final = 1 / 4

#: Partition and claim.
Lease = tuple[int, str]


class ClusterLeaseClient:
    """Renews leases in a Redis or Valkey Cluster.

    Args:
        location: a `redis+cluster:` location.
        keys: the keys of the leases.
        timeout_s: how long a round of renewals may take; a later answer does not count.
    """

    def __init__(self, location: StoreLocation, keys: LeaseKeys, *, timeout_s: float) -> None:
        self._location = location
        self._keys = keys
        self._timeout_s = timeout_s
        #: Of this thread alone.
        self._slots = SlotMap(location.hosts)
        self._connections: dict[Address, Any] = {}
        #: Which node is asked for the slots next, where none is connected.
        self._turn = 0
        self._error: RedisError = redis.ConnectionError("no node of the cluster was reached")

    def open(self) -> None:
        """Find the primaries and connect to them, ahead of the first renewal.

        Raises:
            redis.RedisError: no node can be reached.
        """
        for _ in self._slots.seeds:
            self._refresh()
            if self._slots.nodes:
                break
        if not self._slots.nodes:
            raise self._error
        for address in self._slots.primaries():
            self._connect(address)

    def renew(self, partitions: Sequence[int], claims: Sequence[str]) -> Sequence[bool | None]:
        """Renew; False for each claim that is not the current one, None where its primary did not say.

        Raises:
            redis.RedisError: no primary gave a usable answer.
        """
        give_up_s = time.monotonic() + self._timeout_s * ANSWER_SHARE
        answers: dict[int, bool] = {}
        if not self._slots.nodes:
            self._refresh()
        leases = list(zip(partitions, claims, strict=True))
        moved = self._renew_at(self._by_owner(leases), answers, give_up_s)
        if moved:
            self._renew_at(moved, answers, give_up_s)
        if len(answers) < len(leases):
            # The next round will know better.
            self._refresh()
            if not answers:
                raise self._error
        return [answers.get(partition) for partition in partitions]

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.disconnect()
        self._connections.clear()

    def _by_owner(self, leases: Sequence[Lease]) -> dict[tuple[Address, bool], list[Lease]]:
        groups: dict[tuple[Address, bool], list[Lease]] = {}
        for lease in leases:
            owner = self._slots.owner(slot_of(self._keys.lease_key(lease[0])))
            if owner is not None:
                groups.setdefault((owner, False), []).append(lease)
        return groups

    def _renew_at(
        self, groups: Mapping[tuple[Address, bool], list[Lease]], answers: dict[int, bool], give_up_s: float
    ) -> dict[tuple[Address, bool], list[Lease]]:
        """Renew each group at its node, the connected ones first; what has to be asked elsewhere.

        A group is marked if its slots are on their way to its node (`ASK`).
        """
        elsewhere: dict[tuple[Address, bool], list[Lease]] = {}
        known = [place for place in groups if place[0] in self._connections]
        sent = [place for place in known if self._send(*place, groups[place])]
        for place in sent:
            self._read(*place, groups[place], answers, elsewhere, give_up_s)
        for place in groups:
            if place in known or (answers and time.monotonic() >= give_up_s):
                continue
            if self._connect(place[0]) and self._send(*place, groups[place]):
                self._read(*place, groups[place], answers, elsewhere, give_up_s)
        return elsewhere

    def _send(self, address: Address, is_asked: bool, leases: Sequence[Lease]) -> bool:
        connection = self._connections[address]
        commands: list[tuple[Any, ...]] = []
        for partition, claim in leases:
            if is_asked:
                commands.append(("ASKING",))
            commands.append(("FCALL", "aa1_renew", 1, self._keys.lease_key(partition), claim))
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except RedisError as error:
            self._drop(address, error)
            return False
        return True

    def _read(
        self,
        address: Address,
        is_asked: bool,
        leases: Sequence[Lease],
        answers: dict[int, bool],
        elsewhere: dict[tuple[Address, bool], list[Lease]],
        give_up_s: float,
    ) -> None:
        connection = self._connections[address]
        for lease in leases:
            try:
                if not connection.can_read(max(give_up_s - time.monotonic(), 0)):
                    raise redis.TimeoutError(f"{address[0]}:{address[1]} did not answer in time")
                if is_asked:
                    connection.read_response()
                (renewals,) = connection.read_response()
                answers[lease[0]] = int(renewals) >= 0
            except (AskError, MovedError) as error:
                place = parse_redirect(str(error), address)
                is_moving = not isinstance(error, MovedError)
                if not is_moving:
                    self._slots.move(error.slot_id, place)
                elsewhere.setdefault((place, is_moving), []).append(lease)
            except ResponseError as error:
                self._error = error
            except RedisError as error:
                # What may still come must not be taken for the answer to something later.
                self._drop(address, error)
                return

    def _connect(self, address: Address) -> bool:
        if address in self._connections:
            return True
        timeout_s = self._timeout_s * SOCKET_SHARE
        # No retries: the keeper's next round is the retry.
        pool: Any = redis.ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType] untyped keywords
            redis_url(node_location(self._location, address)),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        connection = pool.make_connection()
        try:
            connection.connect()
        except RedisError as error:
            self._error = error
            connection.disconnect()
            return False
        self._connections[address] = connection
        return True

    def _drop(self, address: Address, error: RedisError) -> None:
        self._error = error
        self._connections.pop(address).disconnect()

    def _refresh(self) -> None:
        """Ask one node for the slots: one that is connected, else the next one that is known of."""
        candidates = list(self._connections)
        if not candidates:
            candidates = list(dict.fromkeys([*sorted(self._slots.nodes), *self._slots.seeds]))
        self._turn += 1
        address = candidates[self._turn % len(candidates)]
        if not self._connect(address):
            return
        connection = self._connections[address]
        try:
            connection.send_packed_command(connection.pack_command("CLUSTER", "SLOTS"))
            ranges, nodes = read_slots(connection.read_response(), address)
            if ranges:
                self._slots.replace(ranges, nodes)
        except ResponseError as error:
            self._error = error
        except RedisError as error:
            self._drop(address, error)
