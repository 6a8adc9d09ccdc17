"""What people on call ask and do: audit, statistics, where, counts, passivate, pause, resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio
from attrs import define, field, frozen

from atomic_actors._errors import InvalidEntityId, StoreUnavailable, SystemFailed, error_from_code
from atomic_actors._handover import Handover, NodeInfo, PartitionInfo
from atomic_actors._lease_keeper import NodeIdentity
from atomic_actors._membership import Membership
from atomic_actors._node import Node
from atomic_actors._records import EntityRef
from atomic_actors._sender import Sender
from atomic_actors._supervisor import Supervisor
from atomic_actors._volatile import VolatileKinds
from atomic_actors._wal import FINAL_STATES, State
from atomic_actors.journal._group_commit import GroupCommit, GroupCommitStatistics
from atomic_actors.journal._laned_commit import LanedCommit
from atomic_actors.journal._protocol import (
    Audit,
    Audited,
    CountKind,
    EntityStatus,
    Inspect,
    JournalUnavailable,
    KindCount,
    LeaseState,
    Park,
    Parked,
    ReadLease,
    Rejected,
    Result,
    Resume,
    Step,
)

__all__ = ("AuditReport", "KindCounts", "Location", "Operations", "SystemStatistics")


@frozen
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


@frozen
class Location:
    """Where an entity lives, and what waits for it."""

    entity: EntityRef
    partition: int
    #: The id of the node that owns the partition; "" while nobody does.
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


@frozen
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


@frozen
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


@define(eq=False)
class Operations:
    """Implements the operating calls of `ActorSystem`."""

    journal: GroupCommit
    supervisor: Supervisor
    volatile: VolatileKinds
    membership: Membership
    node: Node
    sender: Sender
    handover: Handover

    async def _request(self, step: Step, journal: GroupCommit | None = None) -> Result:
        try:
            result = await (journal or self.journal).request(step)
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error
        if isinstance(result, Rejected) and not isinstance(step, Audit):
            raise error_from_code(result.code, result.text)
        return result

    async def check_store(self) -> None:
        """One step to and fro: proves that the store answers, and reads its time.

        Of a cluster, a part that answers is enough.

        Raises:
            StoreUnavailable: it does not.
        """
        if not isinstance(self.journal, LanedCommit):
            await self._request(Audit(0))
            return
        steps = [CountKind(partition, "") for partition in range(self.membership.partitions)]
        results = await self.journal.execute_each(steps)
        failures = [result for result in results if isinstance(result, JournalUnavailable)]
        if len(failures) == len(results):
            raise StoreUnavailable(f"the store gave no answer: {failures[0]}") from failures[0]

    async def audit(self) -> AuditReport:
        """See `ActorSystem.audit`."""
        partitions = range(self.membership.partitions)
        try:
            answer = await self.journal.execute([Audit(partition) for partition in partitions])
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error
        books = [result for result in answer.results if isinstance(result, Audited | Rejected)]
        if len(books) != len(partitions):
            raise SystemFailed(f"the journal answered an audit with {answer.results!r}")
        return make_report(books)

    def statistics(self) -> SystemStatistics:
        """See `ActorSystem.statistics`."""
        counts = self.node.counts
        return SystemStatistics(
            accepted=self.sender.accepted,
            turns=counts.turns,
            completed=counts.completed,
            refused=counts.refused,
            failed=counts.failed,
            retried=counts.retried,
            interrupted=counts.interrupted,
            dead_lettered=counts.dead_lettered,
            relayed=self.supervisor.relay.moved,
            histories_lost=counts.histories_lost,
            activations=self.supervisor.count(),
            volatile_activations=self.volatile.count(),
            owned_partitions=len(self.membership.owned()),
            unhandled=self.supervisor.unhandled.count(),
            store=self.journal.statistics(),
        )

    async def _address(self, ref: object) -> tuple[str, int, GroupCommit, bool]:
        """Entity, partition, journal, and whether it is of this node's service."""
        if not isinstance(ref, EntityRef):
            raise InvalidEntityId(f"entity: expected an EntityRef such as Account.ref('a-42'), got {ref!r}")
        journal, partition, service = await self.sender.calls.place_of(ref)
        return str(ref), partition, journal, not service

    async def nodes(self) -> list[NodeInfo]:
        """See `ActorSystem.nodes`."""
        try:
            return await self.handover.nodes()
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error

    async def owners(self) -> list[PartitionInfo]:
        """See `ActorSystem.partitions`."""
        try:
            return await self.handover.partitions()
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error

    async def drain(self, node: str, timeout_s: float) -> None:
        """See `ActorSystem.drain`."""
        try:
            await self.handover.drain(node, timeout_s)
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error

    async def where(self, ref: EntityRef) -> Location:
        """See `ActorSystem.where`."""
        entity, partition, journal, is_ours = await self._address(ref)
        status, lease = (
            await self._request(Inspect(partition, entity), journal),
            await self._request(ReadLease(partition), journal),
        )
        if not isinstance(status, EntityStatus) or not isinstance(lease, LeaseState):
            raise SystemFailed(f"the journal answered an inspection with {status!r} and {lease!r}")
        return Location(
            ref,
            partition,
            NodeIdentity.id_in(lease.node) if lease.claim else "",
            is_ours and bool(self.membership.claims[partition]),
            is_ours and (self.supervisor.find(entity) is not None or self.volatile.find(ref)),
            status.waiting,
            status.dispatched,
            status.parked,
            status.version,
        )

    async def counts(self, kind: str) -> KindCounts:
        """See `ActorSystem.counts`."""
        # Any entity of the kind shows where it is.
        _, _, journal, _ = await self._address(EntityRef(kind, "any"))
        try:
            answer = await journal.execute(
                [CountKind(partition, kind) for partition in range(journal.settings.partitions)]
            )
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error
        found = [result for result in answer.results if isinstance(result, KindCount)]
        return KindCounts(
            kind,
            self.supervisor.count(kind) + self.volatile.count(kind),
            sum(count.dispatched for count in found),
            sum(count.ready for count in found),
            sum(count.dead_letters for count in found),
        )

    async def passivate(self, ref: EntityRef) -> bool:
        """See `ActorSystem.passivate`."""
        entity, _, _, _ = await self._address(ref)
        activation = self.supervisor.find(entity)
        if activation is None:
            await anyio.lowlevel.checkpoint()
            return self.volatile.passivate(ref)
        self.supervisor.close(activation)
        while self.supervisor.find(entity) is activation:
            await self.supervisor.wait_for_room(1.0)
        return True

    async def pause(self, ref: EntityRef) -> bool:
        """See `ActorSystem.pause`."""
        entity, partition, journal, _ = await self._address(ref)
        answer = await self._request(Park(partition, entity), journal)
        return isinstance(answer, Parked) and not answer.was_parked

    async def resume(self, ref: EntityRef) -> bool:
        """See `ActorSystem.resume`."""
        entity, partition, journal, is_ours = await self._address(ref)
        answer = await self._request(Resume(partition, entity), journal)
        if is_ours:
            self.supervisor.wake(partition, entity)
        return isinstance(answer, Parked) and answer.was_parked


#: What is known of a partition whose books cannot be read.
_NO_BOOKS: Final = Audited(
    {"accepted": 0, "refused": 0, **dict.fromkeys(map(str, State), 0)}, 0, 0, 0, 0, 0, 0
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
