"""The kinds of all services, in a Redis or Valkey store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field

from atomic_actors.journal._kind_registry import KindRecord
from atomic_actors.journal._protocol import PROTOCOL_VERSION
from atomic_actors.journal.redis._function_caller import FunctionCaller

__all__ = ("KINDS", "RedisKindRegistry")

#: `FCALL aa1_kinds 4 <keys> register|find|list ...`; see there.
KINDS: Final = b"aa%d_kinds" % PROTOCOL_VERSION


@define(eq=False)
class RedisKindRegistry:
    """The kinds of a namespace in a Redis or Valkey server.

    Args:
        caller: calls the functions of the store's library.
        namespace: whose kinds they are.
    """

    _caller: FunctionCaller
    namespace: str
    _keys: list[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        meta = f"{{{self.namespace}:meta}}".encode()
        self._keys = [meta, meta + b":kinds", meta + b":contracts", meta + b":before"]

    async def register_kinds(
        self, service: str, partitions: int, kinds: Mapping[str, bytes]
    ) -> dict[str, str]:
        """See `KindRegistry`."""
        arguments = [b"register", service.encode(), b"%d" % partitions]
        for name, contract in kinds.items():
            arguments += (name.encode(), contract)
        owners = await self._caller.call(KINDS, self._keys, arguments)
        # Where an owner's name is damaged, it is not this service's.
        return {name: owner.decode("utf-8", "replace") for name, owner in zip(kinds, owners, strict=True)}

    async def find_kinds(self, names: Sequence[str]) -> dict[str, KindRecord]:
        """See `KindRegistry`."""
        rows = await self._caller.call(KINDS, self._keys, [b"find", *(name.encode() for name in names)])
        found: dict[str, KindRecord] = {}
        for name, row in zip(names, rows, strict=True):
            if not row:
                continue
            service, partitions, contract, *before = row
            # Without the number of partitions nothing can be sent: as good as never registered.
            if partitions.isdigit():
                contracts = (contract, *(text for text in before if text is not None))
                found[name] = KindRecord(service.decode("utf-8", "replace"), int(partitions[:9]), contracts)
        return found

    async def list_kinds(self) -> dict[str, str]:
        """See `KindRegistry`."""
        pairs = await self._caller.call(KINDS, self._keys, [b"list"])
        names = [text.decode("utf-8", "replace") for text in pairs]
        return dict(zip(names[::2], names[1::2], strict=True))
