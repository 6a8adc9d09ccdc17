"""Group commit: wraps a journal and sends waiting steps in batches.

Steps gather while a batch is in flight and go out as the next one. There is no timer: a lone step
leaves at once, and under load batches grow by themselves. It is also the place where an unreachable
store is outlived: a batch without a usable answer is sent again, unchanged and in order, until it
has one, which is safe because every step may be sent twice. What comes in meanwhile is refused.

What leaves when is decided in `_batches`; here is what carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup
from attrs import define, field
from msgspec.structs import replace

from atomic_actors.journal._protocol import (
    Append,
    Audit,
    BatchResult,
    DirectJournal,
    Journal,
    JournalSettings,
    JournalUnavailable,
    Rejected,
    Replay,
    Result,
    Stale,
    Step,
    Target,
)
from atomic_actors.journal.commit._batches import (
    OVERTAKE,
    SEND,
    SPLIT_STEPS_MIN,
    WAIT,
    Batch,
    Entry,
    OnResult,
    Queue,
    belongs_to_owner,
    cut_batch,
    decide,
    learn,
)
from atomic_actors.journal.commit._commit_queue import (
    CommitLimits,
    CrashSink,
    GroupCommitStatistics,
    StoreEvents,
    StoreWatch,
    execute,
    execute_each,
    request,
)
from atomic_actors.journal.commit._flushers import Flushers
from atomic_actors.journal.commit._store_clock import StoreClock

__all__ = ("GroupCommit",)

#: How soon a batch without a usable answer is sent again, at first.
RETRY_DELAY_FIRST_S: Final = 0.02


def _ignore(_: object) -> None:
    """The answer was the question."""


@define(eq=False)
class _Counts:
    batches: int = 0
    steps: int = 0
    retries: int = 0
    #: Calls in a row without a usable answer.
    failures: int = 0


@define(eq=False, kw_only=True)
class GroupCommit:
    """Gathers steps into batches for `inner`. A `CommitQueue`, which says what its methods do.

    Args:
        inner: the journal that executes the batches; entered and left with this one.
        limits: how much it takes at once, and how long it waits.
        store_clock: told the store's time with each answer.
        watch: notified when the store becomes unavailable and when it is back.
        crashes: told if a task ends by an error of ours, or the store turns out to be another one; without it such an
            error leaves through the task group.
        probe_partition: who is asked whether the store is back, while there is nothing else to send.
    """

    inner: Journal
    limits: CommitLimits = field(factory=CommitLimits)
    store_clock: StoreClock = field(factory=StoreClock, kw_only=True)
    watch: StoreWatch = field(factory=StoreEvents, kw_only=True)
    crashes: CrashSink | None = field(default=None, kw_only=True)
    probe_partition: int = field(default=0, kw_only=True)
    #: It is closed: nothing is sent, and no caller is kept waiting.
    is_left: bool = field(default=False, init=False)
    _queue: Queue = field(init=False)
    _flushers: Flushers = field(init=False)
    _counts: _Counts = field(factory=_Counts, init=False)
    #: The inner journal, if it can send without waiting.
    _direct: DirectJournal | None = field(init=False)
    _stack: AsyncExitStack = field(factory=AsyncExitStack, init=False)

    def __attrs_post_init__(self) -> None:
        self._direct = self.inner if isinstance(self.inner, DirectJournal) else None
        self._queue = Queue(places=self.limits.max_batches_in_flight, is_direct=self._direct is not None)

    @property
    def settings(self) -> JournalSettings:
        """The inner journal's."""
        return self.inner.settings

    @property
    def available(self) -> bool:
        """False once `failure_threshold` calls in a row had no usable answer, until one has."""
        return self._counts.failures < self.limits.failure_threshold

    def statistics(self) -> GroupCommitStatistics:
        """See `CommitQueue`."""
        counts, queue = self._counts, self._queue
        return GroupCommitStatistics(
            batches=counts.batches,
            steps=counts.steps,
            retries=counts.retries,
            pending=len(queue.pending) + len(queue.in_flight),
            available=self.available,
        )

    # What comes in.

    def submit(self, step: Step, on_result: OnResult) -> None:
        """See `CommitQueue`.

        Raises:
            JournalUnavailable: too much is waiting already, the store is known to be away, or this was left;
                nothing was sent.
        """
        limits, waiting = self.limits, len(self._queue.pending)
        if self.is_left:
            raise self._closed()
        if waiting >= limits.max_pending_steps:
            raise JournalUnavailable(f"{waiting} steps are already waiting (max_pending_steps)", sent=False)
        if self._counts.failures >= limits.failure_threshold:
            raise JournalUnavailable("the store does not answer", sent=False)
        self._add(Entry(step=step, on_result=on_result, refusable=True))

    def enqueue(self, step: Step, on_result: OnResult, *, overtakes: bool = False) -> None:
        """See `CommitQueue`."""
        if self.is_left:
            on_result(self._closed())
        else:
            self._add(Entry(step=step, on_result=on_result, refusable=False, overtakes=overtakes))

    def _closed(self) -> JournalUnavailable:
        return JournalUnavailable("the connection to the store was closed", sent=False)

    def _add(self, entry: Entry) -> None:
        queue = self._queue
        queue.pending.append(entry)
        decision = decide(queue, entry)
        if decision is WAIT:
            return
        if decision is SEND:
            self._send_ready()
        elif decision is OVERTAKE:
            queue.overtaken += 1
            self._send(Batch(entries=[queue.pending.pop()], appends=set()))
        else:
            self._flushers.wake()

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
        return BatchResult(await execute(self, steps), self.store_clock.last_ms)

    async def execute_each(self, steps: Sequence[Step]) -> list[Result | JournalUnavailable]:
        """See `CommitQueue`."""
        return await execute_each(self, steps, self.limits.answer_limit_s)

    async def check(self) -> None:
        """See `CommitQueue`.

        Raises:
            JournalUnavailable: the store does not answer.
        """
        await self.request(Audit(self.probe_partition))

    def fence_off(self, partition: Target) -> None:
        """See `CommitQueue`."""
        pending, flying = self._queue.pending, self._queue.in_flight
        waiting = [entry for entry in pending if belongs_to_owner(entry.step, partition)]
        in_flight = [entry for batch in flying for entry in batch.entries]
        for entry in (*pending, *in_flight):
            step = entry.step
            if isinstance(step, Append | Replay) and step.partition == partition and step.claim:
                entry.step = replace(step, claim="")
        for entry in in_flight:
            entry.fenced = entry.fenced or belongs_to_owner(entry.step, partition)
        others = [entry for entry in pending if not belongs_to_owner(entry.step, partition)]
        pending.clear()
        pending.extend(others)
        for entry in waiting:
            entry.on_result(Stale("claim"))
        if not pending and not flying:
            self._flushers.answered(drained=True)

    async def wait_drained(self) -> None:
        """Return once nothing is pending or in flight."""
        while self._queue.pending or self._queue.in_flight:
            await self._flushers.wait_drained()

    # What goes out.

    def _send_ready(self) -> None:
        """Send what may go now: directly where that is possible, else by a flusher."""
        queue, limits = self._queue, self.limits
        while queue.pending:
            batch = cut_batch(queue, steps_max=limits.max_batch_steps, bytes_max=limits.max_batch_bytes)
            if batch is None:
                break
            queue.overtaken = 0
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        batch.sent_s = self.store_clock.clock()
        self._queue.in_flight.append(batch)

        def on_answer(answer: BatchResult | Exception) -> None:
            try:
                self._take(batch, answer)
            except Exception as error:
                self._crashed(error)

        direct, flushers = self._direct, self._flushers
        # Nothing overtakes a batch that was to be sent and was not.
        if (
            direct is None
            or flushers.batches
            or not direct.send([entry.step for entry in batch.entries], on_answer)
        ):
            flushers.hand_over(batch)

    def _take(self, batch: Batch, answer: BatchResult | Exception) -> None:
        """Take what a direct call got."""
        if isinstance(answer, BatchResult):
            self._done(batch, answer)
        elif not self._flushers.stopped:
            if isinstance(answer, JournalUnavailable):
                batch.failed = True
                self._failed(batch.entries, answer)
            else:
                batch.error = answer
            self._flushers.hand_over(batch)

    async def _run_flusher(self) -> None:
        if self._flushers.stopped:
            return  # left before this task began: the scope below would never end
        # Shielded: callers that are cancelled around us still have to settle and release. Leaving ends it.
        with anyio.CancelScope(shield=True) as scope:
            self._flushers.begin(scope)
            try:
                await self._flush_forever()
            except Exception as error:
                self._crashed(error)

    def _crashed(self, error: Exception) -> None:
        if self.crashes is None:
            raise error
        self._counts.failures = self.limits.failure_threshold
        self.crashes.crashed(error)

    async def _flush_forever(self) -> None:
        """Send what could not be sent directly, and what has to be sent again.

        `max_batches_in_flight` of these run, so that the store works on one batch while this process works
        on the answers to the one before.
        """
        queue, flushers = self._queue, self._flushers
        while True:
            if not flushers.batches and queue.fills_a_batch():
                self._send_ready()
            if flushers.batches:
                await self._deliver(flushers.batches.popleft())
                continue
            await flushers.sleep()
            if len(queue.pending) < SPLIT_STEPS_MIN:
                await anyio.lowlevel.checkpoint()

    async def _deliver(self, batch: Batch) -> None:
        """Send a batch until it has a usable answer."""
        delay_s = RETRY_DELAY_FIRST_S
        answer: BatchResult | None = None
        if batch.error is not None:
            raise batch.error
        while batch.entries:
            if batch.failed:
                # Only the oldest batch is tried again, and nothing new is sent, until all are through.
                while self._queue.in_flight[0] is not batch:
                    await self._flushers.wait_turn()
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, self.limits.retry_delay_max_s)
            self._drop_fenced(batch.entries)
            if not batch.entries:
                break
            try:
                answer = await self.inner.execute([entry.step for entry in batch.entries])
            except JournalUnavailable as error:
                batch.failed = True
                self._failed(batch.entries, error)
                continue
            break
        self._done(batch, answer)

    def _drop_fenced(self, batch: list[Entry]) -> None:
        for entry in [entry for entry in batch if entry.fenced]:
            batch.remove(entry)
            entry.on_result(Stale("claim"))
        if not batch and not self.available:
            batch.append(self._new_probe())

    def _new_probe(self) -> Entry:
        """A step that finds out whether the store is back."""
        return Entry(step=Audit(self.probe_partition), on_result=_ignore, refusable=False)

    # What comes back.

    def _done(self, batch: Batch, answer: BatchResult | None) -> None:
        """Hand out the answers of this batch, and of later ones that waited for it; send what is next."""
        queue = self._queue
        batch.done, batch.answer = True, answer
        if queue.answering:
            return
        queue.answering = True
        pending, in_flight = queue.pending, queue.in_flight
        try:
            while in_flight and in_flight[0].done:
                oldest = in_flight.popleft()
                if oldest.answer is not None:
                    self._answered(oldest, oldest.answer)
        finally:
            queue.answering = False
        if not in_flight:
            queue.failing = False
        if pending:
            if in_flight or len(pending) >= SPLIT_STEPS_MIN:
                self._send_ready()
            else:
                # Callers that were answered just now are about to add what is worth waiting for.
                self._flushers.wake()
        self._flushers.answered(drained=not pending and not in_flight)

    def _answered(self, batch: Batch, answer: BatchResult) -> None:
        counts, now_s = self._counts, self.store_clock.clock()
        entries, results = batch.entries, answer.results
        counts.batches += 1
        counts.steps += len(entries)
        learn(self._queue, batch, results, now_s)
        self.store_clock.note(answer.now_ms, now_s)
        if counts.failures:
            self._recovered()
        for entry, result in zip(entries, results, strict=True):
            if entry.sent and type(result) is Rejected and result.code == "queue_depth_exceeded":
                # An earlier copy, that was sent and not answered, may still be on its way.
                entry.on_result(
                    JournalUnavailable(
                        "the first sending was not answered, and this one was refused", sent=True
                    )
                )
            else:
                entry.on_result(result)

    def _failed(self, batch: list[Entry], error: JournalUnavailable) -> None:
        """Count the failure; past the threshold, refuse what was certainly not sent."""
        counts = self._counts
        self._queue.failing = True
        counts.failures += 1
        counts.retries += 1
        if error.sent:
            for entry in batch:
                entry.sent = True
        if counts.failures == self.limits.failure_threshold:
            self.watch.lost(str(error))
        if not self.available:
            self._refuse_unsent(batch, error)
            if not batch:
                batch.append(self._new_probe())

    def _refuse_unsent(self, batch: list[Entry], error: JournalUnavailable) -> None:
        refusal = JournalUnavailable(str(error), sent=False)
        for entries in (batch, self._queue.pending):
            for entry in [entry for entry in entries if entry.refusable and not entry.sent]:
                entries.remove(entry)
                entry.on_result(refusal)

    def _recovered(self) -> None:
        was_available = self.available
        self._counts.failures = 0
        if not was_available:
            self.watch.back()

    # Life.

    def begin(self, task_group: TaskGroup) -> None:
        """Start to send, in tasks of `task_group`; the inner journal is entered already."""
        self._flushers = Flushers()
        for _ in range(self.limits.max_batches_in_flight):
            task_group.start_soon(self._run_flusher)

    def stop(self) -> None:
        """Send nothing any more."""
        self._flushers.stop()

    def abandon(self) -> None:
        """Resolve all waiters: no answer will come."""
        queue = self._queue
        self.is_left = True
        closed = JournalUnavailable("the system was shut down before the store answered", sent=True)
        entries = [entry for batch in queue.in_flight for entry in batch.entries]
        entries += queue.pending
        queue.in_flight.clear()
        queue.pending.clear()
        for entry in entries:
            entry.on_result(closed)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.inner)
            task_group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(task_group.cancel_scope.cancel)
            self.begin(task_group)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        try:
            await self._stack.__aexit__(exc_type, exc_value, traceback)
        finally:
            self.abandon()
