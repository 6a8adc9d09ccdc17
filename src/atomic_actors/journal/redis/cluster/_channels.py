"""Doorbells and pushed replies in a cluster.

A doorbell rings on the sharded channel of its partition, at the primary that has the partition's slot: there
is one listening connection for each primary. When a slot moves, the old primary reports it by ending the
subscription, or the slot map changes, and the partition is listened to at the other place.

Replies go over plain channels, which every node passes on to all others, so that any two nodes will do. A sharded
channel would cost less, but it would tie a node's replies to one primary: while that is away, answers of
partitions that have nothing to do with it would only be found by looking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from attrs import define, field
from coredis.connection import BaseConnection

from atomic_actors.base._store_url import StoreLocation
from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal.redis._channels import RedisChannels
from atomic_actors.journal.redis._link import Link
from atomic_actors.journal.redis.cluster._servers import ClusterServers
from atomic_actors.journal.redis.cluster._slots import Address, SlotMap, slot_of

__all__ = ("ClusterChannels",)


@define(eq=False)
class _Place:
    """What is listened to at one primary."""

    link: Link
    scope: anyio.CancelScope
    channels: dict[bytes, int] = field(factory=dict[bytes, int])


class _AnyNode:
    """Connects to one node of the cluster after the other (`Connector`): for plain channels each will do."""

    def __init__(self, servers: ClusterServers, slots: SlotMap) -> None:
        self._servers = servers
        self._slots = slots
        #: The node that was connected to last: the next connection goes to another one.
        self._turn = 0

    async def connect(self) -> BaseConnection:
        nodes = self._slots.primaries() or list(self._slots.seeds)
        self._turn += 1
        return await self._servers.at(nodes[self._turn % len(nodes)]).connect()


class ClusterChannels(RedisChannels):
    """Doorbells and replies over the nodes of a cluster; used like `RedisChannels`.

    Args:
        location: a `redis+cluster:` location.
        settings: the namespace and service.
        slots: which primary has which slot; `ClusterNodes` keeps it up to date.
        answer_timeout_s: how long a connection may leave a question unanswered before it is given up.
    """

    def __init__(
        self,
        location: StoreLocation,
        settings: JournalSettings,
        slots: SlotMap,
        *,
        connect_timeout_s: float = 3.0,
        answer_timeout_s: float = 1.5,
    ) -> None:
        self._servers = ClusterServers(location, connect_timeout_s=connect_timeout_s)
        super().__init__(
            _AnyNode(self._servers, slots),
            settings,
            connect_timeout_s=connect_timeout_s,
            answer_timeout_s=answer_timeout_s,
            counts_all=False,
        )
        self._slots = slots
        self._places: dict[Address, _Place] = {}
        self._changed = anyio.Event()

    def watch(self, partition: int) -> None:
        """Listen to one doorbell more. Once it is heard, the callback gets `(partition, "")`."""
        self._bells[self.bell_channel(partition)] = partition
        self._changed.set()

    def unwatch(self, partition: int) -> None:
        """Listen to one doorbell less."""
        self._bells.pop(self.bell_channel(partition), None)
        self._changed.set()

    async def listen_doorbells(self, partitions: Iterable[int], callback: Callable[[int, str], None]) -> None:
        """Listen until cancelled; see `RedisChannels.listen_doorbells`."""
        for partition in partitions:
            self._bells[self.bell_channel(partition)] = partition

        self._slots.add_watcher(self)
        try:
            async with anyio.create_task_group() as task_group:
                while True:
                    self._changed = anyio.Event()
                    self._share_out(task_group, callback)
                    await self._changed.wait()
        finally:
            self._slots.remove_watcher(self)
            self._places.clear()

    def slots_changed(self) -> None:
        """See `SlotWatcher`."""
        self._changed.set()

    def _share_out(self, task_group: TaskGroup, callback: Callable[[int, str], None]) -> None:
        """Listen to each wanted channel where its slot is, and to no other."""
        wanted: dict[Address, dict[bytes, int]] = {}
        for channel, number in self._bells.items():
            owner = self._slots.owner(slot_of(channel))
            if owner is not None:
                wanted.setdefault(owner, {})[channel] = number
        for address in [address for address in self._places if address not in wanted]:
            self._places.pop(address).scope.cancel()
        for address, channels in wanted.items():
            place = self._places.get(address)
            if place is None:
                link = Link(self._servers.at(address), connect_timeout_s=self._connect_timeout_s)
                place = self._places[address] = _Place(link, anyio.CancelScope(), channels)
                task_group.start_soon(self._listen_at, place, callback)
                continue
            before, place.channels = place.channels, channels
            connection = place.link.usable
            # Without a connection there is nothing to do: a new one subscribes to all that are wanted.
            if connection is not None:
                for channel in before.keys() - channels.keys():
                    connection.send_command(b"SUNSUBSCRIBE", channel)
                for channel in channels.keys() - before.keys():
                    connection.send_command(b"SSUBSCRIBE", channel)

    async def _listen_at(self, place: _Place, callback: Callable[[int, str], None]) -> None:
        def on_push(kind: bytes, message: list[Any]) -> None:
            number = place.channels.get(message[1])
            if number is None:
                return
            if kind == b"ssubscribe":
                callback(number, "")
            elif kind == b"smessage":
                for entity in message[2].split(b"\n"):
                    callback(number, entity.decode())
            elif kind == b"sunsubscribe":
                # The slot has left. It is asked for here once more, in case it is back before the map has changed.
                del place.channels[message[1]]
                self._changed.set()
                self._slots.suspect()

        with place.scope:
            try:
                await self._listen_forever(
                    place.link, partial(self._subscribe, place), on_push, on_end=self._slots.suspect
                )
            finally:
                place.link.close("nothing listens here any more")

    @staticmethod
    def _subscribe(place: _Place, connection: BaseConnection) -> None:
        # One by one: the channels of one command would have to share a slot.
        for channel in place.channels:
            connection.send_command(b"SSUBSCRIBE", channel)
