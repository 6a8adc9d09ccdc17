"""Hands a partition over to the next node: drain, end, release, notify.

Nothing more is taken in the partition, what runs may end within `drain_timeout_s`, the rest is interrupted.
Then its lease is free, and the node that should own it is notified. What is sent meanwhile is accepted as
ever: it waits in the store until the next owner finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

import anyio
from attrs import define

from atomic_actors.base._errors import DrainTimeout, NotSupported, UnknownNode
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._frames import ClaimFrame
from atomic_actors.journal._directory import Directory
from atomic_actors.journal._protocol import JournalUnavailable, LeaseState, ReadLease
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.operations._reports import NodeInfo, PartitionInfo
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.ownership._peers import NodeRecord
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.node.volatile._activations import VolatileKinds

__all__ = ("Handover",)

#: How long an interrupted turn may take to unwind until its partition is left to its lease.
SETTLE_LIMIT_S: Final = 5.0
#: How often a drain checks whether everything is given up.
DRAIN_POLL_S: Final = 0.1


@define(eq=False, kw_only=True)
class Handover:
    """Gives partitions up, one by one or all of them; asks other nodes to.

    Args:
        journal: where leases are.
        membership: which partitions are owned.
        supervisor: what runs in them.
        volatile: what runs in them without a journal.
        messenger: notifies the next owner; None where there can be no other node.
        drain_timeout_s: how long running turns may take to end; 0 means without end.
    """

    journal: CommitQueue
    membership: Membership
    supervisor: Supervisor
    volatile: VolatileKinds
    messenger: NodeMessenger | None
    drain_timeout_s: float

    @property
    def _directory(self) -> Directory:
        directory = self.membership.nodes.directory
        if directory is None:
            raise NotSupported(
                "this store has no directory of nodes; exit the system to release its partitions"
            )
        return directory

    # Giving up.

    async def hand_over(self, partition: int) -> None:
        """Give one partition up in good order; what does not end within `drain_timeout_s` is interrupted."""
        with anyio.CancelScope() as scope:
            if self.drain_timeout_s:
                scope.deadline = anyio.current_time() + self.drain_timeout_s
            await self._drain(partition)
        if scope.cancelled_caught:
            logger.warning(
                "turns in partition %d did not end within drain_timeout_s and are interrupted", partition
            )
        await self._give_up(partition)

    async def hand_over_all(self) -> None:
        """Give every partition up, each as soon as its own turns have ended; waits for them without end."""
        if not any(await self.membership.nodes.placement(self.membership.partitions)):
            # No node takes over: what running turns still ask has to be answered here, until all have ended.
            await self.volatile.drain()
            await self.supervisor.drain()
        async with anyio.create_task_group() as task_group:
            for partition in self.membership.owned():
                task_group.start_soon(self._drain_and_give_up, partition)

    async def _drain_and_give_up(self, partition: int) -> None:
        await self._drain(partition)
        await self._give_up(partition)

    async def _drain(self, partition: int) -> None:
        self.supervisor.stop_taking_in(partition)
        await self.volatile.drain(partition)
        await self.supervisor.drain_partition(partition)

    async def _give_up(self, partition: int) -> None:
        self.volatile.releasing.add(partition)
        try:
            await self._release(partition)
        finally:
            self.volatile.releasing.discard(partition)

    async def _release(self, partition: int) -> None:
        with anyio.move_on_after(SETTLE_LIMIT_S) as limit:
            await self.supervisor.end_partition(partition)
            # The store does not fence it: what runs longer than it may must not run beside the next owner's.
            self.volatile.lost(partition)
            await self.volatile.wait_ended(partition)
            try:
                if not await self.membership.release(partition):
                    self.membership.lose(partition, "it could not be released")
            except JournalUnavailable as error:
                self.membership.lose(partition, f"it could not be released: {error}")
            else:
                self.supervisor.node.deferred.lost(partition)
                self.volatile.lost(partition)
                await self.notify_next(partition)
        if limit.cancelled_caught:
            self.membership.lose(partition, "a turn in it did not end")

    async def notify_next(self, partition: int) -> None:
        """Tell the node that should own a partition that it is free; lost, it costs that node a moment."""
        nodes = self.membership.nodes
        owner = (await nodes.placement(self.membership.partitions))[partition]
        if self.messenger is not None and owner and owner != nodes.node_id:
            self.messenger.push(owner, ClaimFrame(partition))
        elif owner == nodes.node_id:
            self.membership.refresh_soon()  # the table has changed back meanwhile

    # Asking others.

    async def drain(self, node: str, timeout_s: float) -> None:
        """See `ActorSystem.drain`."""
        found = await self._directory.drain([node])
        if not found:
            raise UnknownNode(f"there is no node {node!r}; `nodes()` lists the nodes")
        await self._wait_drained(set(found), timeout_s)

    async def drain_all(self, timeout_s: float) -> None:
        """See `ActorSystem.drain_all`."""
        directory = self._directory
        found = await directory.drain([entry.node_id for entry in await directory.read()])
        await self._wait_drained(set(found), timeout_s)

    async def _wait_drained(self, node_ids: Collection[str], timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s or float("inf")):
            self.notify(node_ids)
            while await self._owned_by(node_ids):  # noqa: ASYNC110 other nodes do not say when they are through
                await anyio.sleep(DRAIN_POLL_S)
            return
        raise DrainTimeout(
            f"{', '.join(sorted(node_ids))}: partitions are still owned after {timeout_s:g} s; the nodes keep "
            "releasing them"
        )

    def notify(self, node_ids: Collection[str]) -> None:
        """Tell nodes that something has changed; lost, it costs them the time until their next refresh."""
        for node_id in node_ids:
            if node_id == self.membership.nodes.node_id:
                self.membership.refresh_soon()
            elif self.messenger is not None:
                self.messenger.push(node_id, ClaimFrame(-1))

    async def _owned_by(self, node_ids: Collection[str]) -> int:
        # What a dead node has, it never gives up; and while all drain, no node takes it over either.
        nodes = self.membership.nodes
        await nodes.announce()  # the last refresh may be long ago
        dead = {peer.node_id for peer in nodes.peers() if not nodes.is_live(peer)}
        waited_for = set(node_ids) - dead
        return sum(partition.node_id in waited_for for partition in await self.partitions())

    # Reports.

    async def partitions(self) -> list[PartitionInfo]:
        """See `ActorSystem.partitions`."""
        numbers = range(self.membership.partitions)
        answer = await self.journal.execute([ReadLease(number) for number in numbers])
        found: list[PartitionInfo] = []
        for number, lease in zip(numbers, answer.results, strict=True):
            if isinstance(lease, LeaseState):
                holder = NodeIdentity.id_in(lease.node) if lease.claim else ""
                found.append(PartitionInfo(number, holder, lease.epoch))
        return found

    async def nodes(self) -> list[NodeInfo]:
        """See `ActorSystem.nodes`."""
        nodes = self.membership.nodes
        entries = await nodes.read()
        owned = Counter(partition.node_id for partition in await self.partitions())
        live = {peer.node_id for peer in nodes.peers() if nodes.is_live(peer)} | {nodes.node_id}
        found: list[NodeInfo] = []
        for entry in entries:
            record = NodeRecord.decode(entry.record)
            if record is not None:
                is_draining = entry.is_draining or record.is_draining
                is_dead = nodes.knows_dead(record.identity)
                found.append(
                    NodeInfo(
                        node_id=entry.node_id,
                        host=record.host,
                        pid=record.identity.pid,
                        service=record.service,
                        kinds=tuple(sorted(record.kinds)),
                        weight=record.weight,
                        release=record.release,
                        partitions=owned[entry.node_id],
                        is_live=entry.node_id in live and not is_dead,
                        is_draining=is_draining,
                        is_here=entry.node_id == nodes.node_id,
                    )
                )
        return sorted(found, key=lambda info: (info.service, info.host, info.pid, info.node_id))
