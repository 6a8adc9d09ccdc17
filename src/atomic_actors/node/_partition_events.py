"""What follows when a partition comes to this node, leaves it, or has lost history."""

from __future__ import annotations

from attrs import define

from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import Swept
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node._registration import KindRegistration
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.operations._handover import Handover
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.node.routing._other_services import ServiceJournals
from atomic_actors.node.volatile._activations import VolatileKinds

__all__ = ("PartitionEvents",)


@define(eq=False, kw_only=True)
class PartitionEvents:
    """Has each part of the node do its share (`PartitionHost` of the membership).

    Args:
        journal: sends no steps any more that were made from a history that is lost.
        messenger: hears the doorbells of the partitions; None where there can be no other node.
    """

    journal: CommitQueue
    messenger: NodeMessenger | None
    service_journals: ServiceJournals
    supervisor: Supervisor
    volatile: VolatileKinds
    handover: Handover
    registration: KindRegistration

    def claimed(self, partition: int) -> None:
        """See `PartitionHost.claimed`."""
        if self.messenger is not None:
            self.messenger.watch(partition)
        self.supervisor.claimed(partition)

    def lost(self, partition: int, why: str) -> None:
        """See `PartitionHost.lost`."""
        self.supervisor.lost(partition, why)
        self.volatile.lost(partition)

    def settle_swept(self, partition: int, swept: Swept) -> None:
        """See `PartitionHost.settle_swept`."""
        self.supervisor.settle_swept(partition, swept)

    async def settle_lost(self, partition: int, claim: str) -> bool:
        """See `PartitionHost.settle_lost`."""
        return await self.supervisor.node.settlements.settle_lost(partition, claim)

    async def hand_over(self, partition: int) -> None:
        """See `PartitionHost.hand_over`."""
        await self.handover.hand_over(partition)

    def history_lost(self, loss: HistoryLoss) -> None:
        """The store went back in time: nothing of what is known of the partition counts any more."""
        self.supervisor.node.events.history_lost(loss)
        # First, so that what was under way is remembered before the steps that belong to it are answered.
        self.supervisor.membership.lose_history(loss.partition, "the store has lost history")
        self.journal.fence_off(loss.partition)
        self.service_journals.fence_off(loss.partition)
        self.registration.lost()
