"""Which primary of a Redis Cluster has which hash slot, as far as is known.

Only data: `ClusterJournal` asks the nodes and fills it in, everything else reads it. It may be out of date
at any time; a node that does not have a slot answers `MOVED`, and that is how it is noticed.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Sequence
from typing import Any, Final, Protocol

import anyio
from attrs import define, field

__all__ = ("SLOTS", "Address", "SlotMap", "SlotWatcher", "parse_redirect", "read_slots", "slot_of")

SLOTS: Final = 16_384

#: Host and port.
Address = tuple[str, int]


def slot_of(key: bytes) -> int:
    """The hash slot of a key: of what stands between its first braces, if anything does."""
    _, brace, rest = key.partition(b"{")
    tag, end, _ = rest.partition(b"}")
    return crc_hqx(tag if brace and end and tag else key, 0) % SLOTS


def parse_redirect(text: str, asked: Address) -> Address:
    """The address in `slot host:port`; a node that does not know its own name leaves the host out."""
    host, _, port = text.rsplit(maxsplit=1)[-1].rpartition(":")
    return host or asked[0], int(port)


def read_slots(answer: Any, asked: Address) -> tuple[list[tuple[int, int, Address]], set[Address]]:
    """Take the answer to `CLUSTER SLOTS` apart.

    Args:
        answer: lists of first slot, last slot, primary and replicas, each of them host, port and more.
        asked: who gave it: a node that does not know its own name leaves it out.

    Returns:
        First slot, last slot and primary of each range; and all nodes, replicas as well.
    """
    ranges: list[tuple[int, int, Address]] = []
    nodes: set[Address] = set()
    for first, last, *members in answer:
        addresses: list[Address] = []
        for host, port, *_ in members:
            name = host.decode() if isinstance(host, bytes) else host
            addresses.append((asked[0] if name in (None, "", "?") else name, int(port)))
        ranges.append((int(first), int(last), addresses[0]))
        nodes.update(addresses)
    return ranges, nodes


class SlotWatcher(Protocol):
    """Acts on changes of the map."""

    def slots_changed(self) -> None:
        """A slot has another primary than before. Must be quick, and must not raise."""
        ...


@define(eq=False)
class SlotMap:
    """The primaries of the slots.

    Args:
        seeds: where the cluster can be asked for the first time, and again when no other node answers.
    """

    seeds: Sequence[Address]
    #: Every primary and replica that was heard of last.
    nodes: set[Address] = field(factory=set[Address], init=False)
    _watchers: list[SlotWatcher] = field(factory=list[SlotWatcher], init=False)
    _owners: list[Address | None] = field(init=False)
    _suspected: anyio.Event | None = field(default=None, init=False)
    _is_suspect: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._owners = [None] * SLOTS

    def owner(self, slot: int) -> Address | None:
        """The primary of a slot; None where no node has it."""
        return self._owners[slot]

    def primaries(self) -> list[Address]:
        """All primaries that have slots, in the order of those."""
        return list(dict.fromkeys(owner for owner in self._owners if owner is not None))

    def replace(self, ranges: Sequence[tuple[int, int, Address]], nodes: set[Address]) -> None:
        """Take over what a node knows."""
        owners: list[Address | None] = [None] * SLOTS
        for first, last, primary in ranges:
            owners[first : last + 1] = [primary] * (last + 1 - first)
        self.nodes = nodes
        if owners != self._owners:
            self._owners = owners
            self._changed()

    def move(self, slot: int, owner: Address) -> None:
        """A node answered that another one has a slot now."""
        if self._owners[slot] != owner:
            self._owners[slot] = owner
            self._changed()
        # Where one slot went, others may have gone.
        self.suspect()

    def add_watcher(self, watcher: SlotWatcher) -> None:
        """Report each change to a watcher, too."""
        self._watchers.append(watcher)

    def remove_watcher(self, watcher: SlotWatcher) -> None:
        """Report nothing more to a watcher."""
        self._watchers.remove(watcher)

    def _changed(self) -> None:
        for watcher in tuple(self._watchers):
            watcher.slots_changed()

    def suspect(self) -> None:
        """Something does not fit: the map should be read again."""
        self._is_suspect = True
        if self._suspected is not None:
            self._suspected.set()

    async def wait_suspected(self) -> None:
        """Return once `suspect` was called since the last return."""
        if not self._is_suspect:
            self._suspected = anyio.Event()
            await self._suspected.wait()
            self._suspected = None
        self._is_suspect = False
