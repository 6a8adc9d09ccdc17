"""Group commit for a store whose parts fail one by one: a lane for each partition.

In a cluster a call concerns one partition anyway, and the calls to one primary are pipelined on its
connection. So nothing is gained by gathering the steps of several partitions into one batch, and much would be
lost: a batch has one answer and one fate, and a primary that is away would hold up what the others could
do. With a `GroupCommit` for each partition, order, resending, refusing and finding out that the store is back are
each partition's own, and partitions may move between primaries without anybody here having to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.base._oneshot import clock_function
from atomic_actors.journal._protocol import Journal, JournalUnavailable, Step, Target
from atomic_actors.journal.commit._batches import OnResult
from atomic_actors.journal.commit._group_commit import GroupCommit, GroupCommitStatistics
from atomic_actors.journal.redis.cluster._journal import ClusterJournal

__all__ = ("LanedCommit", "commit_class")

#: How often it is looked whether a lane that is waited for has turned out to be cut off.
DRAIN_LOOK_S: Final = 0.05
#: How long the time of the primary that is ahead is gone by.
TIME_KEPT_S: Final = 10.0
#: How long the same warning is not repeated.
SAME_WARNING_S: Final = 2.0


@define(eq=False)
class LanedCommit(GroupCommit):
    """Gathers the steps of each partition into batches of their own for `inner`.

    Args: as of `GroupCommit`. The limits hold for each partition. Whoever has a `GroupCommit` can have this
    one instead: `available` is then about the store as a whole, and False only while no partition that
    is used can be reached. `on_answer` is called with the time of the primary whose clock is ahead.
    """

    _lanes: dict[int, GroupCommit] = field(factory=dict[int, GroupCommit], init=False)
    #: What was said lately, and when.
    _warned: dict[str, float] = field(factory=dict[str, float], init=False)
    _was_available: bool = field(default=True, init=False)
    _clock: Callable[[], float] = field(init=False)
    #: When `now_ms` was read, in seconds of the clock.
    _read_s: float = field(default=0.0, init=False)

    @property
    def available(self) -> bool:
        """Whether any of the partitions that are used can be reached, as far as is known."""
        return not self._lanes or any(lane.available for lane in self._lanes.values())

    def is_available(self, partition: int) -> bool:
        """Whether the store answers for a partition, as far as is known."""
        lane = self._lanes.get(partition)
        return lane is None or lane.available

    def statistics(self) -> GroupCommitStatistics:
        """The sums over all lanes."""
        each = [lane.statistics() for lane in self._lanes.values()]
        return GroupCommitStatistics(
            sum(lane.batches for lane in each),
            sum(lane.steps for lane in each),
            sum(lane.retries for lane in each),
            sum(lane.pending for lane in each),
            self.available,
        )

    def submit(self, step: Step, on_result: OnResult) -> None:
        """See `GroupCommit.submit`.

        Raises:
            JournalUnavailable: too much waits for the partition already, or its primary is known to be away.
        """
        self._lane(step.partition).submit(step, on_result)

    def enqueue(self, step: Step, on_result: OnResult, *, overtakes: bool = False) -> None:
        """See `GroupCommit.enqueue`."""
        try:
            lane = self._lane(step.partition)
        except JournalUnavailable as error:
            on_result(error)  # too late: it is being left
        else:
            lane.enqueue(step, on_result, overtakes=overtakes)

    def forsake(self, partition: Target) -> None:
        """See `GroupCommit.forsake`; what a partition relays waits in the lanes of others."""
        for lane in tuple(self._lanes.values()):
            lane.forsake(partition)

    async def wait_drained(self) -> None:
        """Return once nothing is pending or in flight, but for what cannot be sent now."""
        while (lane := next(self._busy(), None)) is not None:
            with anyio.move_on_after(DRAIN_LOOK_S):
                await lane.wait_drained()

    def _busy(self) -> Iterator[GroupCommit]:
        return (lane for lane in self._lanes.values() if lane.available and lane.statistics().pending)

    def _lane(self, partition: int) -> GroupCommit:
        lane = self._lanes.get(partition)
        if lane is None:
            if self._task_group is None or self._closing:
                raise JournalUnavailable("the group commit is not entered", sent=False)
            lane = self._lanes[partition] = GroupCommit(
                self.inner,
                self.max_batch_steps,
                self.max_batch_bytes,
                self.max_pending_steps,
                self.failure_threshold,
                self.max_batches_in_flight,
                self.answer_limit_s,
                self.retry_delay_max_s,
                partition,
                self._warn_once,
            )
            lane.on_answer = self._answered_at
            lane.on_availability = self._lane_changed
            lane.on_crash = self._lane_crashed
            lane.begin(self._task_group)
        return lane

    def _warn_once(self, text: str) -> None:
        # Of a primary that is away or back, each of its partitions says the same.
        now_s = self._clock()
        self._warned = {text: at_s for text, at_s in self._warned.items() if at_s > now_s - SAME_WARNING_S}
        if text not in self._warned:
            self._warned[text] = now_s
            self.warn(text)

    def _answered_at(self, now_ms: int) -> None:
        # The primaries' clocks differ a little. Deadlines are made with this time: it is the one that is ahead, so
        # that none has passed before it begins. Looked at anew from time to time, for this clock may run fast.
        now_s = self._clock()
        age_s = now_s - self._read_s
        if not self.now_ms or age_s > TIME_KEPT_S or now_ms >= self.now_ms + int(age_s * 1000):
            self.now_ms, self._read_s = now_ms, now_s
            if self.on_answer is not None:
                self.on_answer(now_ms)

    def _lane_changed(self, _: bool, reason: str) -> None:
        available = self.available
        if available != self._was_available:
            self._was_available = available
            if self.on_availability is not None:
                self.on_availability(available, reason)

    def _lane_crashed(self, error: BaseException) -> None:
        if self.on_crash is None:
            raise error
        self.on_crash(error)

    def begin(self, task_group: TaskGroup) -> None:
        """See `GroupCommit.begin`; each lane begins with its first step."""
        self._clock = clock_function()

    def stop(self) -> None:
        """See `GroupCommit.stop`."""
        super().stop()
        for lane in self._lanes.values():
            lane.stop()

    def abandon(self) -> None:
        """See `GroupCommit.abandon`."""
        super().abandon()  # before those who wait are told: they look at this one, not at the lane
        for lane in self._lanes.values():
            lane.abandon()


def commit_class(journal: Journal) -> type[GroupCommit]:
    """What gathers the steps for a journal: lanes where its partitions can fail one by one."""
    return LanedCommit if isinstance(journal, ClusterJournal) else GroupCommit
