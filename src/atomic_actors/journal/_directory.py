"""The directory of a namespace: the nodes as they announce themselves.

Every node announces itself again and again. A crashed node does not remove itself, and no clock is trusted: a node
counts how often each other one has announced itself, and takes one for dead whose count does not change for a
lease on its own clock, as with leases. What the entries say decides only who *should* own what; who owns it is
settled by claims, so that an old or a missing entry costs time and never safety.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

__all__ = ("Directory", "NodeEntry", "WithDirectory")


class NodeEntry(Struct, frozen=True, gc=False):
    """What the store knows of a node."""

    node_id: str
    #: How often it has announced itself.
    beats: int
    #: What it says of itself; opaque to the store.
    record: bytes
    #: It was asked to release what it owns.
    is_draining: bool


class Directory(Protocol):
    """The nodes of one namespace. Each call is atomic; all of them may be repeated.

    Raises:
        JournalUnavailable: the store gave no usable answer.
        StoreIncompatible: the store's library or its user does not allow it.
    """

    async def announce(self, node_id: str, record: bytes) -> Sequence[NodeEntry]:
        """Show that a node is alive, and what it offers; returns all nodes, itself among them."""
        ...

    async def read(self) -> Sequence[NodeEntry]:
        """All nodes."""
        ...

    async def forget(self, node_id: str, beats: int | None = None) -> bool:
        """Take a node off that has left, or that is dead.

        Args:
            node_id: which one.
            beats: only if it has not announced itself since it had so many.

        Returns:
            Whether it was there and is not any more.
        """
        ...

    async def drain(self, node_ids: Sequence[str]) -> Sequence[str]:
        """Ask nodes to give up what they own; returns those that are there."""
        ...


@runtime_checkable
class WithDirectory(Protocol):
    """A journal that has a directory beside it."""

    @property
    def directory(self) -> Directory:
        """The nodes that use the store."""
        ...
