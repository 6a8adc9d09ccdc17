"""What operators get: nodes, partitions, entities, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import field, frozen

from atomic_actors.base._lifecycle import FINAL_STATES, State
from atomic_actors.base._records import EntityRef
from atomic_actors.journal._protocol import Audited, Rejected
from atomic_actors.journal.commit._commit_queue import GroupCommitStatistics

__all__ = (
    "AuditReport",
    "KindCounts",
    "Location",
    "NodeInfo",
    "PartitionInfo",
    "SystemStatistics",
    "make_report",
)


@frozen(kw_only=True)
class NodeInfo:
    """A node of the namespace."""

    node_id: str
    #: The name of its machine.
    host: str
    pid: int
    service: str
    kinds: tuple[str, ...]
    weight: float
    #: The version of the package that it runs.
    release: str
    #: The partitions of this system's service that it owns.
    partitions: int
    #: Whether it has announced itself within a lease.
    is_live: bool
    #: It gives up what it owns, and takes nothing new.
    is_draining: bool
    #: Whether it is this very system.
    is_here: bool


@frozen
class PartitionInfo:
    """Who owns a partition."""

    partition: int
    #: "" while no node does.
    node_id: str
    #: Grows with every change of owner: the fencing token of its turns.
    epoch: int


@frozen(kw_only=True)
class AuditReport:
    """The books of a whole service.

    Every accepted message is in exactly one state: `accepted` is the sum of the states. `problems` names
    what does not add up; empty means that everything does.
    """

    accepted: int
    enqueued: int
    dispatched: int
    completed: int
    #: Part of `completed`.
    refused: int
    failed: int
    interrupted: int
    withdrawn: int
    expired: int
    dead_letters: int
    #: Outbox messages on their way to another partition.
    outbound: int
    problems: tuple[str, ...] = ()

    @property
    def is_balanced(self) -> bool:
        """Whether everything adds up."""
        return not self.problems


@frozen(kw_only=True)
class Location:
    """Where an entity lives, and what waits for it."""

    entity: EntityRef
    partition: int
    #: The id of the node that owns the partition; "" while none does.
    node_id: str
    #: Whether this node owns the partition.
    is_here: bool
    #: Whether the entity is in memory here.
    is_active: bool
    waiting: int
    dispatched: int
    is_parked: bool
    #: How often its state was committed.
    version: int


@frozen(kw_only=True)
class KindCounts:
    """Entities of one kind."""

    kind: str
    #: In memory on this node.
    active: int
    #: With a turn running, anywhere.
    dispatched: int
    #: With work waiting and no turn running, anywhere; parked ones are left out.
    waiting: int
    dead_letters: int


@frozen(kw_only=True)
class SystemStatistics:
    """Counters of this node since it started, and what it holds now."""

    accepted: int
    turns: int
    completed: int
    refused: int
    failed: int
    retried: int
    interrupted: int
    dead_lettered: int
    relayed: int
    #: How often a partition was found to have lost history.
    histories_lost: int
    activations: int
    volatile_activations: int
    owned_partitions: int
    #: Entities that wait here for a handler that this node does not have.
    unhandled: int
    store: GroupCommitStatistics = field(repr=False)


#: What is known of a partition whose books cannot be read.
_NO_BOOKS: Final = Audited(
    counts={"accepted": 0, "refused": 0, **dict.fromkeys(map(str, State), 0)},
    indexed_dispatched=0,
    indexed_ready=0,
    dead_letters=0,
    outbound=0,
    commit=0,
    incarnation=0,
)


def make_report(answers: Sequence[Audited | Rejected]) -> AuditReport:
    """Add up the partitions' books, and check each against itself; what cannot be read is a problem."""
    problems: list[str] = []
    books: list[Audited] = []
    for partition, book in enumerate(answers):
        if isinstance(book, Rejected):
            problems.append(f"partition {partition}: its books cannot be read: {book.text}")
            books.append(_NO_BOOKS)
            continue
        books.append(book)
        counts = book.counts
        waiting = sum(counts[str(state)] for state in (State.ENQUEUED, State.DISPATCHED))
        ended = sum(counts[str(state)] for state in FINAL_STATES)
        if counts["accepted"] != waiting + ended:
            problems.append(
                f"partition {partition}: accepted {counts['accepted']}, but {waiting} wait or run and {ended} ended"
            )
        if counts["dispatched"] != book.indexed_dispatched:
            problems.append(
                f"partition {partition}: {counts['dispatched']} dispatched, but the index has "
                f"{book.indexed_dispatched}"
            )
    total = {name: sum(book.counts[name] for book in books) for name in books[0].counts}
    return AuditReport(
        accepted=total["accepted"],
        enqueued=total["enqueued"],
        dispatched=total["dispatched"],
        completed=total["completed"],
        refused=total["refused"],
        failed=total["failed"],
        interrupted=total["interrupted"],
        withdrawn=total["withdrawn"],
        expired=total["expired"],
        dead_letters=sum(book.dead_letters for book in books),
        outbound=sum(book.outbound for book in books),
        problems=tuple(problems),
    )
