"""Which commit queue a journal gets."""

from __future__ import annotations

from attrs import frozen

from atomic_actors.journal._protocol import FailsByPartition, Journal
from atomic_actors.journal.commit._commit_queue import CommitLimits, CommitQueue, CrashSink, StoreEvents
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.commit._partitioned_commit import PartitionedCommit
from atomic_actors.journal.commit._store_clock import StoreClock

__all__ = ("CommitQueues",)


@frozen(kw_only=True)
class CommitQueues:
    """Makes the commit queues of a node: of its own service, and of others that it sends to.

    Args:
        limits: of each of them.
        store_clock: told the store's time by all of them.
    """

    limits: CommitLimits
    store_clock: StoreClock

    def around(self, journal: Journal, crashes: CrashSink, events: StoreEvents | None = None) -> CommitQueue:
        """The queue for a journal: with lanes where its partitions can fail one by one.

        Args:
            journal: entered and left with the queue.
            crashes: told of a crash that ends the queue.
            events: notified when the store becomes unavailable and when it is back; without it that is only logged.
        """
        events = events or StoreEvents()
        if isinstance(journal, FailsByPartition):
            return PartitionedCommit(
                inner=journal,
                limits=self.limits,
                store_clock=self.store_clock,
                events=events,
                crashes=crashes,
            )
        return GroupCommit(
            inner=journal, limits=self.limits, store_clock=self.store_clock, watch=events, crashes=crashes
        )
