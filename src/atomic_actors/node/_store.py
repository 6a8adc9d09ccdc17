"""What a node needs of the store it uses: the record that `_open_store` fills."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from attrs import frozen

from atomic_actors.journal._directory import Directory, WithDirectory
from atomic_actors.journal._history import CommitHistory
from atomic_actors.journal._kind_registry import KindRegistry
from atomic_actors.journal._protocol import Journal
from atomic_actors.node.ownership._lease_keeper import Keeper, LeaseClient
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.node.routing._other_services import JournalFactory

__all__ = ("Store", "WithStore", "store_around")


@frozen(eq=False, kw_only=True)
class Store:
    """An open store."""

    journal: Journal
    #: Renews leases from a thread; None where the store lives in this process.
    lease_client: LeaseClient | None = None
    #: None where no other process can share the store.
    messenger: NodeMessenger | None = None
    #: Notices that the store went back in time; None where it cannot.
    history: CommitHistory | None = None
    #: The nodes that use it; None where a node is alone.
    directory: Directory | None = None
    #: Which service each kind belongs to; None where there is one service only, without a record of its kinds.
    kinds: KindRegistry | None = None
    #: None where there are no other services.
    journals: JournalFactory | None = None
    #: Renews leases by itself, in place of the thread with the `lease_client`.
    keeper: Keeper | None = None


@runtime_checkable
class WithStore(Protocol):
    """A journal that brings everything else that a node needs of a store."""

    def make_store(self) -> Store:
        """The store around this journal, for one node."""
        ...


def store_around(journal: Journal) -> Store:
    """The store around a journal of the user's own, with as much as the journal brings."""
    if isinstance(journal, WithStore):
        return journal.make_store()
    return Store(journal=journal, directory=journal.directory if isinstance(journal, WithDirectory) else None)
