"""The kinds of a store that lives in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from attrs import define, field

from atomic_actors.journal._kind_registry import DEPLOY_S, KindRecord

__all__ = ("MemoryKindRegistry",)


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
