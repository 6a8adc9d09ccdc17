"""The nodes of a namespace, in a Redis or Valkey server: one hash, and the functions `aa1_announce` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from atomic_actors.journal._directory import NodeEntry
from atomic_actors.journal._protocol import PROTOCOL_VERSION
from atomic_actors.journal.redis._function_caller import FunctionCaller

__all__ = ("RedisDirectory", "read_entries")

_ANNOUNCE: Final = b"aa%d_announce" % PROTOCOL_VERSION
_NODES: Final = b"aa%d_nodes" % PROTOCOL_VERSION
_FORGET: Final = b"aa%d_forget" % PROTOCOL_VERSION
_DRAIN: Final = b"aa%d_drain" % PROTOCOL_VERSION


class RedisDirectory:
    """A directory in a store.

    Args:
        caller: calls the functions of the store's library.
        namespace: whose nodes.
    """

    def __init__(self, caller: FunctionCaller, namespace: str) -> None:
        self._caller = caller
        self._key = f"{{{namespace}:meta}}:nodes".encode()

    async def announce(self, node_id: str, record: bytes) -> Sequence[NodeEntry]:
        """See `Directory.announce`."""
        return read_entries(await self._caller.call(_ANNOUNCE, (self._key,), (node_id.encode(), record)))

    async def read(self) -> Sequence[NodeEntry]:
        """See `Directory.read`."""
        return read_entries(await self._caller.call(_NODES, (self._key,), ()))

    async def forget(self, node_id: str, beats: int | None = None) -> bool:
        """See `Directory.forget`."""
        expected = b"" if beats is None else b"%d" % beats
        return bool(await self._caller.call(_FORGET, (self._key,), (node_id.encode(), expected)))

    async def drain(self, node_ids: Sequence[str]) -> Sequence[str]:
        """See `Directory.drain`."""
        found: list[bytes] = await self._caller.call(
            _DRAIN, (self._key,), [node_id.encode() for node_id in node_ids]
        )
        return [node_id.decode() for node_id in found]


def read_entries(answer: list[Any]) -> list[NodeEntry]:
    """The nodes; an entry whose id is not text is not ours."""
    return [
        NodeEntry(node_id.decode(), int(beats), record, bool(draining))
        for node_id, beats, record, draining in answer
        if _is_text(node_id)
    ]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
