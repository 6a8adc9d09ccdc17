"""What operators call: audit, statistics, where, counts, passivate, pause, resume."""

from __future__ import annotations

import anyio
from attrs import define

from atomic_actors.base._errors import InvalidEntityId, StoreUnavailable, SystemFailed, error_from_code
from atomic_actors.base._records import EntityRef
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
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node._sender import Sender
from atomic_actors.node.execution._events import Events
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.operations._handover import Handover
from atomic_actors.node.operations._reports import (
    AuditReport,
    KindCounts,
    Location,
    NodeInfo,
    PartitionInfo,
    SystemStatistics,
    make_report,
)
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.volatile._activations import VolatileKinds

__all__ = ("Operations",)


@define(eq=False, kw_only=True)
class Operations:
    """Implements the operating calls of `ActorSystem`."""

    journal: CommitQueue
    supervisor: Supervisor
    volatile: VolatileKinds
    membership: Membership
    events: Events
    sender: Sender
    handover: Handover

    async def _request(self, step: Step, journal: CommitQueue | None = None) -> Result:
        try:
            result = await (journal or self.journal).request(step)
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error
        if isinstance(result, Rejected) and not isinstance(step, Audit):
            raise error_from_code(result.code, result.text)
        return result

    async def check_store(self) -> None:
        """One step to and fro: proves that the store answers, and reads its time.

        Raises:
            StoreUnavailable: it does not.
        """
        try:
            await self.journal.check()
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error

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
        counts = self.events.counts
        return SystemStatistics(
            accepted=self.sender.router.accepted,
            turns=counts.turns,
            completed=counts.completed,
            refused=counts.refused,
            failed=counts.failed,
            retried=counts.retried,
            interrupted=counts.interrupted,
            dead_lettered=counts.dead_lettered,
            relayed=self.supervisor.relay.moved,
            histories_lost=counts.histories_lost,
            activations=self.supervisor.catalog.count(),
            volatile_activations=self.volatile.count(),
            owned_partitions=len(self.membership.owned()),
            unhandled=self.supervisor.node.deferred.count(),
            store=self.journal.statistics(),
        )

    async def _address(self, ref: object) -> tuple[str, int, CommitQueue, bool]:
        """Entity, partition, journal, and whether it is of this node's service."""
        if not isinstance(ref, EntityRef):
            raise InvalidEntityId(f"entity: expected an EntityRef such as Account.ref('a-42'), got {ref!r}")
        journal, partition, service = await self.sender.call_checker.place_of(ref)
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

    async def drain_all(self, timeout_s: float) -> None:
        """See `ActorSystem.drain_all`."""
        try:
            await self.handover.drain_all(timeout_s)
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
            entity=ref,
            partition=partition,
            node_id=NodeIdentity.id_in(lease.node) if lease.claim else "",
            is_here=is_ours and bool(self.membership.claims[partition]),
            is_active=is_ours
            and (self.supervisor.catalog.find(entity) is not None or self.volatile.find(ref)),
            waiting=status.waiting,
            dispatched=status.dispatched,
            is_parked=status.parked,
            version=status.version,
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
            kind=kind,
            active=self.supervisor.catalog.count(kind) + self.volatile.count(kind),
            dispatched=sum(count.dispatched for count in found),
            waiting=sum(count.ready for count in found),
            dead_letters=sum(count.dead_letters for count in found),
        )

    async def passivate(self, ref: EntityRef) -> bool:
        """See `ActorSystem.passivate`."""
        entity, _, _, _ = await self._address(ref)
        activation = self.supervisor.catalog.find(entity)
        if activation is None:
            await anyio.lowlevel.checkpoint()
            return self.volatile.passivate(ref)
        self.supervisor.catalog.close(activation)
        while self.supervisor.catalog.find(entity) is activation:
            await self.supervisor.catalog.wait_for_room(1.0)
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
