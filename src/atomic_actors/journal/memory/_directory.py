"""The nodes that use a store which lives in this process."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.lowlevel
from attrs import define, field

from atomic_actors.journal._directory import NodeEntry

__all__ = ("MemoryDirectory",)


@define(eq=False)
class MemoryDirectory:
    """The directory of a store in memory: the reference model."""

    _nodes: dict[str, NodeEntry] = field(factory=dict[str, NodeEntry], init=False)

    async def announce(self, node_id: str, record: bytes) -> Sequence[NodeEntry]:
        """See `Directory.announce`."""
        before = self._nodes.get(node_id)
        beats, draining = (before.beats, before.is_draining) if before is not None else (0, False)
        self._nodes[node_id] = NodeEntry(node_id, beats + 1, record, draining)
        return await self.read()

    async def read(self) -> Sequence[NodeEntry]:
        """See `Directory.read`."""
        await anyio.lowlevel.checkpoint()
        return tuple(self._nodes.values())

    async def forget(self, node_id: str, beats: int | None = None) -> bool:
        """See `Directory.forget`."""
        await anyio.lowlevel.checkpoint()
        entry = self._nodes.get(node_id)
        if entry is None or (beats is not None and entry.beats != beats):
            return False
        del self._nodes[node_id]
        return True

    async def drain(self, node_ids: Sequence[str]) -> Sequence[str]:
        """See `Directory.drain`."""
        await anyio.lowlevel.checkpoint()
        found = [node_id for node_id in node_ids if node_id in self._nodes]
        for node_id in found:
            entry = self._nodes[node_id]
            self._nodes[node_id] = NodeEntry(node_id, entry.beats, entry.record, True)
        return found
