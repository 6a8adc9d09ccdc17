"""Which service every kind of a namespace belongs to, and what the service says of the kind: its contract.

A kind's service is fixed when it first registers; its contract is replaced by every release that says
something else. While one release replaces another, nodes of both are there: so the contract before the last
one counts for a while, too. Contracts are opaque here; `_contracts` makes and reads them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from attrs import define, field, frozen

from atomic_actors.journal._protocol import PROTOCOL_VERSION

__all__ = ("KindRecord", "KindRegistry", "MemoryKindRegistry", "RedisKindRegistry")

#: `FCALL aa1_kinds 4 <keys> register|find|list ...`; see there.
KINDS: Final = b"aa%d_kinds" % PROTOCOL_VERSION
#: How long the contract before the last one counts; the same in the library.
DEPLOY_S: Final = 3600.0


@frozen
class KindRecord:
    """What is known of a kind."""

    service: str
    #: How many partitions the service has.
    partitions: int
    #: The newest first; at most two.
    contracts: tuple[bytes, ...]


class KindRegistry(Protocol):
    """The kinds of a namespace."""

    async def register_kinds(
        self, service: str, partitions: int, kinds: Mapping[str, bytes]
    ) -> dict[str, str]:
        """Note that a service has these kinds, with these contracts.

        Args:
            service: the one that offers the kinds.
            partitions: how many it has.
            kinds: a contract for each kind.

        Returns:
            The service that each kind belongs to. Where one of them is another's, nothing was noted.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        ...

    async def find_kinds(self, names: Sequence[str]) -> dict[str, KindRecord]:
        """What is known of these kinds; those that were never registered are left out.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        ...

    async def list_kinds(self) -> dict[str, str]:
        """Every kind, and its service.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        ...


@define(eq=False)
class _Known:
    service: str
    contract: bytes
    before: bytes | None = None
    replaced_s: float = 0.0


@define(eq=False)
class MemoryKindRegistry:
    """The kinds of a namespace that lives in this process."""

    _clock: Callable[[], float] = time.monotonic
    _kinds: dict[str, _Known] = field(factory=dict[str, _Known], init=False)
    _partitions: dict[str, int] = field(factory=dict[str, int], init=False)

    async def register_kinds(
        self, service: str, partitions: int, kinds: Mapping[str, bytes]
    ) -> dict[str, str]:
        """See `KindRegistry`."""
        owners = {name: self._kinds[name].service if name in self._kinds else service for name in kinds}
        if any(owner != service for owner in owners.values()):
            return owners
        self._partitions.setdefault(service, partitions)
        for name, contract in kinds.items():
            known = self._kinds.setdefault(name, _Known(service, contract))
            if known.contract != contract:
                known.before, known.replaced_s = known.contract, self._clock()
                known.contract = contract
        return owners

    async def find_kinds(self, names: Sequence[str]) -> dict[str, KindRecord]:
        """See `KindRegistry`."""
        found: dict[str, KindRecord] = {}
        for name in names:
            known = self._kinds.get(name)
            if known is not None:
                counts = known.before is not None and self._clock() - known.replaced_s <= DEPLOY_S
                before = (known.before,) if counts and known.before is not None else ()
                found[name] = KindRecord(
                    known.service, self._partitions[known.service], (known.contract, *before)
                )
        return found

    async def list_kinds(self) -> dict[str, str]:
        """See `KindRegistry`."""
        return {name: known.service for name, known in self._kinds.items()}


@define(eq=False)
class RedisKindRegistry:
    """The kinds of a namespace in a Redis or Valkey server.

    Args:
        call: calls a function of the library: its name, its keys, its arguments.
        namespace: whose kinds they are.
    """

    _call: Callable[[bytes, Sequence[bytes], Sequence[bytes]], Awaitable[Any]]
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
        owners = await self._call(KINDS, self._keys, arguments)
        # Where an owner's name is damaged, it is not this service's.
        return {name: owner.decode("utf-8", "replace") for name, owner in zip(kinds, owners, strict=True)}

    async def find_kinds(self, names: Sequence[str]) -> dict[str, KindRecord]:
        """See `KindRegistry`."""
        rows = await self._call(KINDS, self._keys, [b"find", *(name.encode() for name in names)])
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
        pairs = await self._call(KINDS, self._keys, [b"list"])
        names = [text.decode("utf-8", "replace") for text in pairs]
        return dict(zip(names[::2], names[1::2], strict=True))
