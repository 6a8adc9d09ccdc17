"""Which service every kind of a namespace belongs to, and its contract.

A kind's service is fixed when it first registers; its contract is replaced by every release that says
something else. While one release replaces another, nodes of both are there: so the contract before the last
one counts for a while, too. Contracts are opaque here; `_contracts` makes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from attrs import frozen

__all__ = ("KindRecord", "KindRegistry")

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
