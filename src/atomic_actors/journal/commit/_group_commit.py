"""Group commit: a Journal around a Journal that sends together what waits together.

Steps gather while a batch is in flight and go out as the next one. There is no timer: a lone step
leaves at once, and under load batches grow by themselves. It is also the place where an unreachable
store is outlived: a batch without a usable answer is sent again, unchanged and in order, until it
has one, which is safe because every step may be sent twice. What comes in meanwhile is refused.

Two doors. `submit` is for the hot path: it never waits and calls back with the result. `execute` is
the Journal's own, for everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup
from attrs import define, field
from msgspec.structs import replace

from atomic_actors.base._oneshot import Cell, cell_factory, clock_function
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audit,
    BatchResult,
    DirectJournal,
    Finish,
    Finished,
    Journal,
    JournalSettings,
    JournalUnavailable,
    Rejected,
    Result,
    Stale,
    Step,
    Target,
)
from atomic_actors.journal.commit._batches import (
    OVERTAKEN_MAX,
    RETRY_DELAY_FIRST_S,
    SPLIT_STEPS_MIN,
    Batch,
    Entry,
    GroupCommitStatistics,
    OnResult,
    Pace,
    answers_of,
    belongs_to_owner,
    cut_batch,
    is_only_behind,
)

__all__ = ("GroupCommit", "GroupCommitStatistics")


def _ignore(_: object) -> None:
    """The answer was the question."""


@define(eq=False)
class GroupCommit:
    """Gathers steps into batches for `inner`.

    Args:
        inner: the journal that executes the batches; entered and left with this one.
        max_batch_steps: steps in one batch, so that no call holds the store for long.
        max_batch_bytes: bytes in one batch, roughly; a single larger step still goes, alone.
        max_pending_steps: steps that may wait; more are refused with `JournalUnavailable`.
        failure_threshold: failed calls in a row after which new steps are refused at once.
        max_batches_in_flight: how many batches may be on their way to the store.
        retry_delay_max_s: how long to wait at the most before the store is tried again.
        answer_limit_s: how long `request` and `execute` wait; what they sent may still happen.
    """

    inner: Journal
    max_batch_steps: int = 256
    max_batch_bytes: int = 1 << 20
    max_pending_steps: int = 100_000
    failure_threshold: int = 3
    max_batches_in_flight: int = 2
    answer_limit_s: float = 10.0
    retry_delay_max_s: float = 0.5
    #: Who is asked whether the store is back, while there is nothing else to send.
    probe_partition: int = 0
    #: Tells people that the store is away, and that it is back.
    warn: Callable[[str], None] = logger.warning

    #: The store's time at the last answer.
    now_ms: int = field(default=0, init=False)
    _pending: deque[Entry] = field(factory=deque[Entry], init=False)
    #: The batches that are on their way or wait for their turn to be answered, oldest first. Those that have
    #: their answer are handed out in this order.
    _in_flight: deque[Batch] = field(factory=deque[Batch], init=False)
    #: Batches that could not be sent directly, or had no usable answer.
    _for_flushers: deque[Batch] = field(factory=deque[Batch], init=False)
    #: A batch in flight had no usable answer; True until all of those have one.
    _failing: bool = field(default=False, init=False)
    #: How many were answered last: whether there is load.
    _last_size: int = field(default=0, init=False)
    _pace: Pace = field(factory=Pace, init=False)
    #: The last answer began the only turn there is, as far as one can tell: its commit comes soon.
    _commit_due: bool = field(default=False, init=False)
    #: How many commits in a row have left before what waits.
    _overtaken: int = field(default=0, init=False)
    #: Answers are being handed out: what they cause is sent behind them.
    _answering: bool = field(default=False, init=False)
    #: Being left: answers come no more.
    _closing: bool = field(default=False, init=False)
    #: It was left: nothing is sent, and nobody is kept waiting.
    is_left: bool = field(default=False, init=False)
    #: Flushers that wait until theirs is the oldest batch.
    _turns: list[Cell[None]] = field(factory=list[Cell[None]], init=False)
    _scopes: list[anyio.CancelScope] = field(factory=list[anyio.CancelScope], init=False)
    _new_cell: Callable[[], Cell[None]] = field(init=False)
    _clock: Callable[[], float] = field(init=False)
    #: The inner journal, if it can send without waiting.
    _direct: DirectJournal | None = field(init=False)
    #: Flushers that sleep for want of steps.
    _idle: list[Cell[None]] = field(factory=list[Cell[None]], init=False)
    #: Those who wait until nothing is pending or in flight.
    _drained: list[Cell[None]] = field(factory=list[Cell[None]], init=False)
    _failures: int = field(default=0, init=False)
    _batches: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _retries: int = field(default=0, init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    _stack: AsyncExitStack = field(factory=AsyncExitStack, init=False)
    #: Called with each answer's time; and on each change of `available`, with the reason where it is False now.
    on_answer: Callable[[int], None] | None = field(default=None, init=False)
    on_availability: Callable[[bool, str], None] | None = field(default=None, init=False)
    #: Called if a flusher ends by an error of ours, or the store turns out to be another one; without
    #: it such an error leaves through the task group.
    on_crash: Callable[[BaseException], None] | None = field(default=None, init=False)

    @property
    def settings(self) -> JournalSettings:
        """The inner journal's."""
        return self.inner.settings

    @property
    def available(self) -> bool:
        """False once `failure_threshold` calls in a row had no usable answer, until one has."""
        return self._failures < self.failure_threshold

    def statistics(self) -> GroupCommitStatistics:
        """Counters since the start, and what waits now."""
        return GroupCommitStatistics(
            self._batches,
            self._steps,
            self._retries,
            len(self._pending) + len(self._in_flight),
            self.available,
        )

    def submit(self, step: Step, on_result: OnResult) -> None:
        """Queue a step; `on_result` gets its result and must not raise.

        It is called by whoever reads the answer: on asyncio not in any task, where the store's answers come
        directly; on Trio in the reader's task; else in a flusher's.

        Raises:
            JournalUnavailable: too much waits already, the store is known to be away, or this was left;
                nothing was sent.
        """
        pending = self._pending
        if self.is_left:
            raise self._closed()
        if len(pending) >= self.max_pending_steps:
            raise JournalUnavailable(f"{len(pending)} steps wait already (max_pending_steps)", sent=False)
        if self._failures >= self.failure_threshold:
            raise JournalUnavailable("the store does not answer", sent=False)
        self._add(Entry(step, on_result, True))

    def enqueue(self, step: Step, on_result: OnResult, *, overtakes: bool = False) -> None:
        """Queue a step that must not be refused: a commit, a settlement. Bounded by what runs.

        Args:
            step: what is to happen.
            on_result: as of `submit`.
            overtakes: a commit may leave before appends to its own entity: many messages wait there already.
        """
        if self.is_left:
            on_result(self._closed())
        else:
            self._add(Entry(step, on_result, False, overtakes))

    def _closed(self) -> JournalUnavailable:
        return JournalUnavailable("the way to the store was closed", sent=False)

    def _add(self, entry: Entry) -> None:
        pending, in_flight = self._pending, len(self._in_flight)
        pending.append(entry)
        if self._answering or in_flight >= self.max_batches_in_flight:
            return
        if type(entry.step) is Finish:
            # A hot entity waits for its commits, and takes along the message of whoever was just answered. A
            # run's is a batch by itself, and the store can work on it while its askers send what is next.
            sends = (
                (self._last_size <= 2 and not (in_flight and self._pace.contended))
                or len(entry.step.verdicts) >= SPLIT_STEPS_MIN
                or (entry.overtakes and not in_flight)
            )
        else:
            sends = self._last_size <= 1 and not in_flight and not self._commit_due
        if sends and self._direct is not None:
            # Nobody else is about to send anything, as far as one can tell: no task needs to wake up.
            if entry.overtakes and self._can_overtake(entry):
                self._overtaken += 1
                batch = Batch([pending.pop()], set(), self._clock())
                self._in_flight.append(batch)
                self._send_batch(batch)
            else:
                self._send_ready()
        elif self._fills_a_batch():
            # Under load everyone who runs in this tick gets to add a step to the batch.
            self._wake_flusher()

    def _fills_a_batch(self) -> bool:
        """Whether what waits may leave: a few steps beside a batch on its way leave with its answer."""
        return not self._in_flight or len(self._pending) >= SPLIT_STEPS_MIN

    def _can_overtake(self, entry: Entry) -> bool:
        """Whether all that waits before it are a few messages that could not begin before it anyway.

        What they cost the store together, some turns later, is little more than one of them costs alone.
        """
        return (
            not self._in_flight
            and not self._failing
            and self._overtaken < OVERTAKEN_MAX
            and 1 < len(self._pending) <= OVERTAKEN_MAX
            and is_only_behind(self._pending, entry)
        )

    async def request(self, step: Step) -> Result:
        """Queue one step and wait for its result.

        Raises:
            JournalUnavailable: as `submit`; no answer came within `answer_limit_s`; or the group commit was
                closed before one came.
        """
        cell: Cell[Result | JournalUnavailable] = cell_factory()()
        self.submit(step, cell.set)
        result: Result | JournalUnavailable | None = None
        with anyio.move_on_after(self.answer_limit_s):
            result = await cell
        if result is None:
            raise JournalUnavailable(f"no answer within {self.answer_limit_s:g} s", sent=True)
        if isinstance(result, JournalUnavailable):
            raise result
        return result

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """Queue steps in order and wait for all their results.

        Raises:
            JournalUnavailable: as `request`; where some were queued before, they may still happen.
        """
        results = await self.execute_each(steps)
        answers = [result for result in results if not isinstance(result, JournalUnavailable)]
        if len(answers) < len(results):
            errors = [result for result in results if isinstance(result, JournalUnavailable)]
            raise JournalUnavailable(
                str(errors[0]), sent=bool(answers) or any(error.sent for error in errors)
            ) from errors[0]
        return BatchResult(answers, self.now_ms)

    async def execute_each(self, steps: Sequence[Step]) -> list[Result | JournalUnavailable]:
        """Queue steps in order; the result of each, or why it has none.

        One that could not be queued keeps none behind it from being so: partitions may fail one by one.
        """
        if not steps:
            await anyio.lowlevel.checkpoint()
            return []
        results: list[Result | JournalUnavailable | None] = [None] * len(steps)
        left = len(steps)
        done: Cell[None] = cell_factory()()

        def collect(position: int) -> OnResult:
            def on_result(result: Result | JournalUnavailable) -> None:
                nonlocal left
                results[position] = result
                left -= 1
                if not left:
                    done.set(None)

            return on_result

        for position, step in enumerate(steps):
            on_result = collect(position)
            try:
                self.submit(step, on_result)
            except JournalUnavailable as error:
                on_result(error)
        with anyio.move_on_after(self.answer_limit_s):
            await done
        late = JournalUnavailable(f"no answer within {self.answer_limit_s:g} s", sent=True)
        return [late if result is None else result for result in results]

    def forsake(self, partition: Target) -> None:
        """Send no step any more that was made by what is known of a partition that has lost history.

        Its owner's steps are answered as stale: those that wait at once, those that are in flight unless they
        get an answer. What senders have asked for stays, and takes nothing with it.
        """
        waiting = [entry for entry in self._pending if belongs_to_owner(entry.step, partition)]
        in_flight = [entry for batch in self._in_flight for entry in batch.entries]
        for entry in (*self._pending, *in_flight):
            step = entry.step
            if isinstance(step, Append) and step.partition == partition and step.claim:
                entry.step = replace(step, claim="")
        for entry in in_flight:
            entry.forsaken = entry.forsaken or belongs_to_owner(entry.step, partition)
        others = [entry for entry in self._pending if not belongs_to_owner(entry.step, partition)]
        self._pending.clear()
        self._pending.extend(others)
        for entry in waiting:
            entry.on_result(Stale("claim"))
        if not self._pending and not self._in_flight:
            self._tell_drained()

    def _new_probe(self) -> Entry:
        """Somebody has to find out that the store is back."""
        return Entry(Audit(self.probe_partition), _ignore, False)

    def _drop_forsaken(self, batch: list[Entry]) -> None:
        for entry in [entry for entry in batch if entry.forsaken]:
            batch.remove(entry)
            entry.on_result(Stale("claim"))
        if not batch and not self.available:
            batch.append(self._new_probe())

    async def wait_drained(self) -> None:
        """Return once nothing is pending or in flight."""
        while self._pending or self._in_flight:
            cell: Cell[None] = self._new_cell()
            self._drained.append(cell)
            await cell

    def _next_batch(self) -> Batch | None:
        """The next steps to send; None while there are none that may go now."""
        pending, in_flight = self._pending, self._in_flight
        if not pending or self._failing or len(in_flight) >= self.max_batches_in_flight:
            return None
        batch = cut_batch(
            pending,
            in_flight,
            places=self.max_batches_in_flight,
            steps_max=self.max_batch_steps,
            bytes_max=self.max_batch_bytes,
        )
        if batch is not None:
            batch.sent_s = self._clock()
            in_flight.append(batch)
        return batch

    def _send_ready(self) -> None:
        """Send what may go now: directly where that is possible, else by a flusher."""
        while (batch := self._next_batch()) is not None:
            self._overtaken = 0
            self._send_batch(batch)

    def _send_batch(self, batch: Batch) -> None:
        # Nothing overtakes a batch that was to be sent and was not.
        if self._direct is None or self._for_flushers or not self._send_directly(self._direct, batch):
            self._for_flushers.append(batch)
            self._wake_flusher()

    def _send_directly(self, direct: DirectJournal, batch: Batch) -> bool:
        def on_answer(answer: BatchResult | Exception) -> None:
            try:
                take(answer)
            except Exception as error:
                self._crashed(error)

        def take(answer: BatchResult | Exception) -> None:
            if isinstance(answer, BatchResult):
                self._done(batch, answer)
            elif not self._closing:
                if isinstance(answer, JournalUnavailable):
                    batch.failed = True
                    self._failed(batch.entries, answer)
                else:
                    batch.error = answer
                self._for_flushers.append(batch)
                self._wake_flusher()

        return direct.send([entry.step for entry in batch.entries], on_answer)

    async def _run_flusher(self) -> None:
        if self._closing:
            return  # left before this task began: nobody would end the scope below
        # Shielded: whoever is cancelled around us still has to settle and release. Leaving ends it.
        with anyio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                await self._flush_forever()
            except Exception as error:
                if self.on_crash is None:
                    raise
                self._crashed(error)

    def _crashed(self, error: Exception) -> None:
        if self.on_crash is None:
            raise error
        self._failures = self.failure_threshold
        self.on_crash(error)

    async def _flush_forever(self) -> None:
        """Send what could not be sent directly, and what has to be sent again.

        `max_batches_in_flight` of these run, so that the store works on one batch while this process works
        on the answers to the one before.
        """
        while True:
            if not self._for_flushers and self._fills_a_batch():
                self._send_ready()
            if self._for_flushers:
                await self._send(self._for_flushers.popleft())
                continue
            idle: Cell[None] = self._new_cell()
            self._idle.append(idle)
            await idle
            if len(self._pending) < SPLIT_STEPS_MIN:
                await anyio.lowlevel.checkpoint()

    def _wake_flusher(self) -> None:
        if self._idle:
            self._idle.pop().set(None)

    async def _send(self, batch: Batch) -> None:
        delay_s = RETRY_DELAY_FIRST_S
        answer: BatchResult | None = None
        if batch.error is not None:
            raise batch.error
        while batch.entries:
            if batch.failed:
                # Only the oldest batch is tried again, and nothing new is sent, until all are through.
                while self._in_flight[0] is not batch:
                    turn: Cell[None] = self._new_cell()
                    self._turns.append(turn)
                    await turn
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, self.retry_delay_max_s)
            self._drop_forsaken(batch.entries)
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

    def _done(self, batch: Batch, answer: BatchResult | None) -> None:
        """Hand out the answers of this batch, and of later ones that waited for it; send what is next."""
        batch.done, batch.answer = True, answer
        if self._answering:
            return
        self._answering = True
        in_flight = self._in_flight
        try:
            while in_flight and in_flight[0].done:
                oldest = in_flight.popleft()
                if oldest.answer is not None:
                    self._answered(oldest, oldest.answer)
        finally:
            self._answering = False
        if not in_flight:
            self._failing = False
        turns, self._turns = self._turns, []
        for turn in turns:
            turn.set(None)
        if self._pending:
            if in_flight or len(self._pending) >= SPLIT_STEPS_MIN:
                self._send_ready()
            else:
                # Whoever was answered just now is about to add what is worth waiting for.
                self._wake_flusher()
        if not self._pending and not in_flight:
            self._tell_drained()

    def _answered(self, batch: Batch, answer: BatchResult) -> None:
        self._batches += 1
        self._steps += len(batch.entries)
        self._last_size = len(batch.entries)
        if self._last_size <= 2:
            self._pace.note(self._clock() - batch.sent_s)
            self._last_size = sum(answers_of(entry.step) for entry in batch.entries)
        self.now_ms = answer.now_ms
        if self._failures:
            self._recovered()
        if self.on_answer is not None:
            self.on_answer(answer.now_ms)
        self._commit_due = self._last_size <= 2 and any(
            isinstance(result, Appended | Finished) and result.offer.dispatch is not None
            for result in answer.results
        )
        for entry, result in zip(batch.entries, answer.results, strict=True):
            if entry.sent and type(result) is Rejected and result.code == "queue_depth_exceeded":
                # An earlier copy, that was sent and not answered, may still be on its way.
                entry.on_result(JournalUnavailable("sent before, and refused now", sent=True))
            else:
                entry.on_result(result)

    def _failed(self, batch: list[Entry], error: JournalUnavailable) -> None:
        """Count the failure; past the threshold, refuse what was certainly not sent."""
        self._failing = True
        self._failures += 1
        self._retries += 1
        if error.sent:
            for entry in batch:
                entry.sent = True
        if self._failures == self.failure_threshold:
            self.warn(f"the store does not answer: {error}")
            if self.on_availability is not None:
                self.on_availability(False, str(error))
        if self._failures >= self.failure_threshold:
            self._refuse_unsent(batch, error)
            if not batch:
                batch.append(self._new_probe())

    def _refuse_unsent(self, batch: list[Entry], error: JournalUnavailable) -> None:
        refusal = JournalUnavailable(str(error), sent=False)
        for entries in (batch, self._pending):
            for entry in [entry for entry in entries if entry.refusable and not entry.sent]:
                entries.remove(entry)
                entry.on_result(refusal)

    def _recovered(self) -> None:
        was_available = self.available
        self._failures = 0
        if not was_available:
            self.warn("the store answers again")
            if self.on_availability is not None:
                self.on_availability(True, "")

    def _tell_drained(self) -> None:
        waiting, self._drained = self._drained, []
        for cell in waiting:
            cell.set(None)

    def begin(self, task_group: TaskGroup) -> None:
        """Start to send, in tasks of `task_group`; the inner journal is entered already."""
        self._new_cell, self._clock = cell_factory(), clock_function()
        self._direct = self.inner if isinstance(self.inner, DirectJournal) else None
        for _ in range(self.max_batches_in_flight):
            task_group.start_soon(self._run_flusher)

    def stop(self) -> None:
        """Send nothing any more."""
        self._closing = True
        for scope in self._scopes:
            scope.cancel()

    def abandon(self) -> None:
        """Tell everybody who still waits that no answer will come."""
        self.is_left = True
        closed = JournalUnavailable("the system was left before the store answered", sent=True)
        entries = [entry for batch in self._in_flight for entry in batch.entries]
        entries += self._pending
        self._in_flight.clear()
        self._pending.clear()
        for entry in entries:
            entry.on_result(closed)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.inner)
            self._task_group = await stack.enter_async_context(anyio.create_task_group())
            self.begin(self._task_group)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task_group is not None
        self.stop()
        self._task_group.cancel_scope.cancel()
        try:
            await self._stack.__aexit__(exc_type, exc_value, traceback)
        finally:
            self.abandon()
