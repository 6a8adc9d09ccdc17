"""Group commit for a store whose parts fail independently: one lane per partition.

In a cluster a call concerns one partition anyway, and the calls to one primary are pipelined on its
connection. So nothing is gained by gathering the steps of several partitions into one batch, and much would be
lost: a batch has one answer and one fate, and a primary that is away would hold up what the others could
do. With a `GroupCommit` for each partition, order, resending, refusing and finding out that the store is back are
each partition's own, and partitions may move between primaries; nothing here depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import (
    BatchResult,
    CountKind,
    Journal,
    JournalSettings,
    JournalUnavailable,
    Result,
    Step,
    Target,
)
from atomic_actors.journal.commit._batches import OnResult
from atomic_actors.journal.commit._commit_queue import (
    STORE_BACK,
    CommitLimits,
    CrashSink,
    GroupCommitStatistics,
    StoreEvents,
    execute,
    execute_each,
    request,
    store_lost,
)
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.commit._store_clock import LeadingClock, StoreClock

__all__ = ("PartitionedCommit",)

#: How often it is looked whether a lane that is waited for has turned out to be cut off.
DRAIN_LOOK_S: Final = 0.05
#: How long the same warning is not repeated.
SAME_WARNING_S: Final = 2.0


@define(eq=False)
class _Lanes:
    """The lanes there are, and whether any of them can be used. Watches each of them (`StoreWatch`)."""

    events: StoreEvents
    store_clock: StoreClock
    by_partition: dict[int, GroupCommit] = field(factory=dict[int, GroupCommit], init=False)
    #: What was logged lately, and when.
    _warned: dict[str, float] = field(factory=dict[str, float], init=False)
    _was_available: bool = field(default=True, init=False)

    def __iter__(self) -> Iterator[GroupCommit]:
        return iter(tuple(self.by_partition.values()))

    @property
    def available(self) -> bool:
        lanes = self.by_partition
        return not lanes or any(lane.available for lane in lanes.values())

    def lost(self, reason: str) -> None:
        self._warn_once(store_lost(reason))
        self._compare(reason)

    def back(self) -> None:
        self._warn_once(STORE_BACK)
        self._compare("")

    def _warn_once(self, text: str) -> None:
        # Of a primary that is away or back, each of its partitions says the same.
        now_s = self.store_clock.clock()
        self._warned = {text: at_s for text, at_s in self._warned.items() if at_s > now_s - SAME_WARNING_S}
        if text not in self._warned:
            self._warned[text] = now_s
            logger.warning(text)

    def _compare(self, reason: str) -> None:
        available = self.available
        if available != self._was_available:
            self._was_available = available
            self.events.emit("store-back" if available else "store-lost", reason)


@define(eq=False, kw_only=True)
class PartitionedCommit:
    """Gathers the steps of each partition into batches of their own for `inner`. A `CommitQueue`.

    Args: as of `GroupCommit`. The limits hold for each partition. `available` is about the store as a whole, and
    False only while no partition that is used can be reached. `store_clock` gets the time of the primary whose
    clock is ahead.
    """

    inner: Journal
    limits: CommitLimits = field(factory=CommitLimits)
    store_clock: StoreClock = field(factory=StoreClock, kw_only=True)
    events: StoreEvents = field(factory=StoreEvents, kw_only=True)
    crashes: CrashSink | None = field(default=None, kw_only=True)
    #: It is closed: nothing is sent, and no caller is kept waiting.
    is_left: bool = field(default=False, init=False)
    _leading_clock: LeadingClock = field(init=False)
    _lanes: _Lanes = field(init=False)
    #: None before it is entered, and again as soon as it is being left.
    _task_group: TaskGroup | None = field(default=None, init=False)
    _stack: AsyncExitStack = field(factory=AsyncExitStack, init=False)

    def __attrs_post_init__(self) -> None:
        self._leading_clock = LeadingClock(self.store_clock)
        self._lanes = _Lanes(self.events, self.store_clock)

    @property
    def settings(self) -> JournalSettings:
        """The inner journal's."""
        return self.inner.settings

    @property
    def available(self) -> bool:
        """Whether any of the partitions that are used can be reached, as far as is known."""
        return self._lanes.available

    def is_available(self, partition: int) -> bool:
        """Whether the store answers for a partition, as far as is known."""
        lane = self._lanes.by_partition.get(partition)
        return lane is None or lane.available

    def statistics(self) -> GroupCommitStatistics:
        """The sums over all lanes."""
        each = [lane.statistics() for lane in self._lanes]
        return GroupCommitStatistics(
            batches=sum(lane.batches for lane in each),
            steps=sum(lane.steps for lane in each),
            retries=sum(lane.retries for lane in each),
            pending=sum(lane.pending for lane in each),
            available=self.available,
        )

    def submit(self, step: Step, on_result: OnResult) -> None:
        """See `CommitQueue`.

        Raises:
            JournalUnavailable: too much waits for the partition already, or its primary is known to be away.
        """
        self._lane(step.partition).submit(step, on_result)

    def enqueue(self, step: Step, on_result: OnResult, *, overtakes: bool = False) -> None:
        """See `CommitQueue`."""
        try:
            lane = self._lane(step.partition)
        except JournalUnavailable as error:
            on_result(error)  # too late: it is being left
        else:
            lane.enqueue(step, on_result, overtakes=overtakes)

    def _lane(self, partition: int) -> GroupCommit:
        lane = self._lanes.by_partition.get(partition)
        if lane is None:
            if self._task_group is None:
                raise JournalUnavailable("the group commit is not running", sent=False)
            lane = self._lanes.by_partition[partition] = GroupCommit(
                inner=self.inner,
                limits=self.limits,
                store_clock=self._leading_clock,
                watch=self._lanes,
                crashes=self.crashes,
                probe_partition=partition,
            )
            lane.begin(self._task_group)
        return lane

    async def request(self, step: Step, on_result: OnResult | None = None) -> Result:
        """See `CommitQueue`.

        Raises:
            JournalUnavailable: as `submit`; no answer came in time; or the queue was left before one came.
        """
        return await request(self, step, self.limits.answer_limit_s, on_result)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """See `CommitQueue`.

        Raises:
            JournalUnavailable: as `request`; where some were queued before, they may still happen.
        """
        return BatchResult(await execute(self, steps), self._leading_clock.last_ms)

    async def execute_each(self, steps: Sequence[Step]) -> list[Result | JournalUnavailable]:
        """See `CommitQueue`."""
        return await execute_each(self, steps, self.limits.answer_limit_s)

    async def check(self) -> None:
        """See `CommitQueue`. One partition that answers is enough.

        Raises:
            JournalUnavailable: the store answers for none of them.
        """
        partitions = range(self.settings.partitions)
        results = await self.execute_each([CountKind(partition, "") for partition in partitions])
        failures = [result for result in results if isinstance(result, JournalUnavailable)]
        if len(failures) == len(results):
            raise failures[0]

    def fence_off(self, partition: Target) -> None:
        """See `CommitQueue`; what a partition relays waits in the lanes of others."""
        for lane in self._lanes:
            lane.fence_off(partition)

    async def wait_drained(self) -> None:
        """Return once nothing is pending or in flight, but for what cannot be sent now."""
        while (lane := next(self._busy(), None)) is not None:
            with anyio.move_on_after(DRAIN_LOOK_S):
                await lane.wait_drained()

    def _busy(self) -> Iterator[GroupCommit]:
        return (lane for lane in self._lanes if lane.available and lane.statistics().pending)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.inner)
            self._task_group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._task_group.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._task_group = None
        for lane in self._lanes:
            lane.stop()
        try:
            await self._stack.__aexit__(exc_type, exc_value, traceback)
        finally:
            self.is_left = True  # before waiters are woken: they read this one, not the lane's
            for lane in self._lanes:
                lane.abandon()
