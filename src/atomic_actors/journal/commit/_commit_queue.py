"""The interface of group commit: the queue that takes steps, its limits, and the protocols of its observers."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import anyio
from attrs import define, frozen

from atomic_actors.base._oneshot import OneShot, oneshot_factory
from atomic_actors.base._telemetry import Listeners, StoreHealth, logger
from atomic_actors.journal._protocol import (
    BatchResult,
    JournalSettings,
    JournalUnavailable,
    Result,
    Step,
    Target,
)
from atomic_actors.journal.commit._batches import OnResult

__all__ = (
    "STORE_BACK",
    "CommitLimits",
    "CommitQueue",
    "CrashSink",
    "GroupCommitStatistics",
    "StoreEvents",
    "StoreWatch",
    "execute",
    "execute_each",
    "request",
    "store_lost",
)

STORE_BACK: Final = "the store answers again"


def store_lost(reason: str) -> str:
    """What the log says of a store that counts as unavailable from now on."""
    return f"the store does not answer: {reason}"


@frozen(kw_only=True)
class CommitLimits:
    """How much a commit queue takes at once, and how long it waits.

    In a cluster they hold for each partition.
    """

    #: Steps in one batch, so that no call holds the store for long.
    max_batch_steps: int = 256
    #: Bytes in one batch, roughly; a single larger step still goes, alone.
    max_batch_bytes: int = 1 << 20
    #: Steps that may wait; more are refused with `JournalUnavailable`.
    max_pending_steps: int = 100_000
    #: Failed calls in a row after which new steps are refused at once.
    failure_threshold: int = 3
    #: How many batches may be on their way to the store.
    max_batches_in_flight: int = 2
    #: How long `request` and `execute` wait; what they sent may still happen.
    answer_limit_s: float = 10.0
    #: How long to wait at the most before the store is tried again.
    retry_delay_max_s: float = 0.5


@frozen(kw_only=True)
class GroupCommitStatistics:
    """Counters since the start, and what waits now."""

    batches: int
    steps: int
    retries: int
    pending: int
    available: bool


class CrashSink(Protocol):
    """Ends what cannot continue."""

    def crashed(self, error: BaseException) -> None:
        """A part failed by its own fault, or the store turned out to be another one."""
        ...


class StoreWatch(Protocol):
    """Is notified of each change of `CommitQueue.available`."""

    def lost(self, reason: str) -> None:
        """The store counts as unavailable from now on; `reason` is the last error."""
        ...

    def back(self) -> None:
        """The store answers again."""
        ...


@define(eq=False)
class StoreEvents:
    """Reports that the store is away, and that it is back: to the log, and to listeners.

    Args:
        listeners: of the system; None where only the log is to tell of it.
    """

    listeners: Listeners | None = None

    def lost(self, reason: str) -> None:
        """See `StoreWatch`."""
        logger.warning(store_lost(reason))
        self.emit("store-lost", reason)

    def back(self) -> None:
        """See `StoreWatch`."""
        logger.warning(STORE_BACK)
        self.emit("store-back")

    def emit(self, event: Literal["store-lost", "store-back"], reason: str = "") -> None:
        """Tell the listeners only."""
        if self.listeners is not None and self.listeners.wants(event):
            self.listeners.emit(StoreHealth(event, reason))


class CommitQueue(Protocol):
    """Sends steps to a journal, together with what else waits, and outlives an unreachable store.

    It is a `Journal` itself. Two doors: `submit` and `enqueue` are for the hot path, they never wait and call back
    with the result; `request` and `execute` wait.
    """

    @property
    def settings(self) -> JournalSettings:
        """The inner journal's."""
        ...

    @property
    def available(self) -> bool:
        """Whether the store answers, as far as is known; while it does not, new steps are refused."""
        ...

    @property
    def is_left(self) -> bool:
        """It is closed: nothing is sent, and no caller is kept waiting."""
        ...

    def statistics(self) -> GroupCommitStatistics:
        """Counters since the start, and what waits now."""
        ...

    def submit(self, step: Step, on_result: OnResult) -> None:
        """Queue a step; `on_result` gets its result and must not raise.

        It is called by the reader of the answer: on asyncio not in any task, where the store's answers come
        directly; on Trio in the reader's task; else in a flusher's.

        Raises:
            JournalUnavailable: too much is waiting already, the store is known to be away, or this was left;
                nothing was sent.
        """
        ...

    def enqueue(self, step: Step, on_result: OnResult, *, overtakes: bool = False) -> None:
        """Queue a step that must not be refused: a commit, a settlement. Bounded by what runs.

        Args:
            step: what is to happen.
            on_result: as of `submit`.
            overtakes: a commit may leave before appends to its own entity: many messages wait there already.
        """
        ...

    async def request(self, step: Step, on_result: OnResult | None = None) -> Result:
        """Queue one step and wait for its result.

        Args:
            step: what is to happen.
            on_result: gets the result, or why there is none, exactly once: also where it is not waited for any more.

        Raises:
            JournalUnavailable: as `submit`; no answer came within `answer_limit_s`; or the queue was left
                before one came.
        """
        ...

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """Queue steps in order and wait for all their results.

        Raises:
            JournalUnavailable: as `request`; where some were queued before, they may still happen.
        """
        ...

    async def execute_each(self, steps: Sequence[Step]) -> list[Result | JournalUnavailable]:
        """Queue steps in order; the result of each, or why it has none."""
        ...

    async def check(self) -> None:
        """One step to and fro: proves that the store answers, and reads its time.

        Raises:
            JournalUnavailable: it does not.
        """
        ...

    def fence_off(self, partition: Target) -> None:
        """Send no step any more that was made by what is known of a partition that has lost history.

        Its owner's steps are answered as stale: those that wait at once, those that are in flight unless they
        get an answer. What senders have asked for stays, and takes nothing with it.
        """
        ...

    async def wait_drained(self) -> None:
        """Return once nothing is pending or in flight, but for what cannot be sent now."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


async def request(queue: CommitQueue, step: Step, limit_s: float, on_result: OnResult | None) -> Result:
    """See `CommitQueue.request`."""
    oneshot: OneShot[Result | JournalUnavailable] = oneshot_factory()()

    def answered(result: Result | JournalUnavailable) -> None:
        if on_result is not None:
            on_result(result)
        oneshot.set(result)

    try:
        queue.submit(step, answered)
    except JournalUnavailable as error:
        if on_result is not None:
            on_result(error)
        raise
    result: Result | JournalUnavailable | None = None
    with anyio.move_on_after(limit_s):
        result = await oneshot
    if result is None:
        raise _late(limit_s)
    if isinstance(result, JournalUnavailable):
        raise result
    return result


async def execute(queue: CommitQueue, steps: Sequence[Step]) -> list[Result]:
    """The results of `CommitQueue.execute`."""
    results = await queue.execute_each(steps)
    answers = [result for result in results if not isinstance(result, JournalUnavailable)]
    if len(answers) < len(results):
        errors = [result for result in results if isinstance(result, JournalUnavailable)]
        raise JournalUnavailable(
            str(errors[0]), sent=bool(answers) or any(error.sent for error in errors)
        ) from errors[0]
    return answers


async def execute_each(
    queue: CommitQueue, steps: Sequence[Step], limit_s: float
) -> list[Result | JournalUnavailable]:
    """See `CommitQueue.execute_each`.

    One that could not be queued keeps none behind it from being so: partitions may fail one by one.
    """
    if not steps:
        await anyio.lowlevel.checkpoint()
        return []
    results: list[Result | JournalUnavailable | None] = [None] * len(steps)
    left = len(steps)
    done: OneShot[None] = oneshot_factory()()

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
            queue.submit(step, on_result)
        except JournalUnavailable as error:
            on_result(error)
    with anyio.move_on_after(limit_s):
        await done
    return [_late(limit_s) if result is None else result for result in results]


def _late(limit_s: float) -> JournalUnavailable:
    return JournalUnavailable(f"no answer within {limit_s:g} s", sent=True)
