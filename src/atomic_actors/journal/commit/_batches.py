"""Batches of steps, and the pure decisions about them: when to send, how much, and which steps belong to an owner.

Nothing here sends anything or reads a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from math import inf
from typing import Final

from attrs import define, field
from msgspec import Struct

from atomic_actors.journal._protocol import (
    Append,
    Appended,
    BatchResult,
    ClaimPartition,
    Finish,
    Finished,
    JournalUnavailable,
    RelayIn,
    Replay,
    Replayed,
    Result,
    Step,
    Target,
)

__all__ = (
    "GATHER",
    "OVERTAKE",
    "OVERTAKEN_MAX",
    "SEND",
    "SPLIT_STEPS_MIN",
    "STEP_OVERHEAD_BYTES",
    "WAIT",
    "Batch",
    "Decision",
    "Entry",
    "OnResult",
    "Pace",
    "Queue",
    "belongs_to_owner",
    "cut_batch",
    "decide",
    "learn",
)

#: What a step costs on the wire beside its bodies, roughly.
STEP_OVERHEAD_BYTES: Final = 256
#: How many messages of a hot entity may wait while its commits go first, and for how many of those.
OVERTAKEN_MAX: Final = 8
#: Batches are not made smaller than this for the sake of having several on their way.
SPLIT_STEPS_MIN: Final = 16

#: The store counts as contended when an answer takes this many times as long as the quickest one.
CONTENDED_TIMES: Final = 4.0
#: By how much the quickest answer fades with every small batch.
QUICKEST_FADE: Final = 1.001
#: No answer counts as quicker: a clock may be coarse.
QUICKEST_MIN_S: Final = 0.00005
#: The answers that may begin a turn.
_OFFERING: Final = (Appended, Finished, Replayed)

OnResult = Callable[[Result | JournalUnavailable], None]


@define(eq=False)
class Pace:
    """How quickly small batches are answered.

    Where the store is busy with others, a step that waits a little and goes along with more costs less of it
    than one that goes alone, and the whole gets more done.
    """

    #: They are answered far later than they could be: others use the store, or this machine, too.
    contended: bool = False
    #: The quickest answer, in seconds; it fades slowly, since stores are replaced.
    quickest_s: float = inf

    def note(self, took_s: float) -> None:
        """Take the time of one small batch into account."""
        self.quickest_s = min(took_s, self.quickest_s * QUICKEST_FADE)
        self.contended = took_s > max(self.quickest_s, QUICKEST_MIN_S) * CONTENDED_TIMES


def size_of(step: Step) -> int:
    """Roughly what a step adds to a batch; only messages and states can be large."""
    if isinstance(step, Append):
        return STEP_OVERHEAD_BYTES + len(step.body)
    if isinstance(step, Finish):
        return (
            STEP_OVERHEAD_BYTES * len(step.verdicts)
            + (len(step.state) if step.state is not None else 0)
            + sum(len(message.body) for message in step.outbox)
            + sum(len(verdict.reply) + len(verdict.error) for verdict in step.verdicts)
            + sum(len(payload) for _, payload in step.pushes)
        )
    if isinstance(step, RelayIn):
        return STEP_OVERHEAD_BYTES + sum(len(entry.body) for entry in step.entries)
    return STEP_OVERHEAD_BYTES


def belongs_to_owner(step: Step, partition: Target) -> bool:
    """Whether only the owner of a partition sends this step, by what it knows of the partition.

    Of a partition of another service, those are what it relays.
    """
    if isinstance(step, RelayIn):
        return step.source == partition
    if isinstance(step, Append | ClaimPartition | Replay):
        return False
    return step.partition == partition and bool(getattr(step, "claim", ""))


class Entry(Struct, eq=False, gc=False, kw_only=True):
    """A step that waits, or is on its way."""

    step: Step
    on_result: OnResult
    #: Whether it may be refused while it was certainly not sent.
    refusable: bool
    #: It may leave before appends to its entity.
    overtakes: bool = False
    #: True once a batch with it may have reached the store: from then on it is sent until answered.
    sent: bool = False
    #: It must not be sent again: its partition has lost history.
    fenced: bool = False


@define(eq=False, slots=True, kw_only=True)
class Batch:
    """Steps that are sent in one call."""

    entries: list[Entry]
    #: The entities that it appends to.
    appends: set[str]
    #: When it was sent first, on the backend's clock.
    sent_s: float = 0.0
    #: It had no usable answer so far.
    failed: bool = False
    #: What ends the flusher that gets it: the store is the wrong one, or we are at fault.
    error: Exception | None = None
    #: It needs nothing more from the store; `answer` is None where all its entries were refused.
    done: bool = False
    answer: BatchResult | None = None


@define(eq=False, kw_only=True)
class Queue:
    """What waits, what is on its way, and what else it depends on when the next batch leaves."""

    #: How many batches may be on their way.
    places: int
    #: A batch can be sent at once, without a task that wakes up for it.
    is_direct: bool = False
    #: Oldest first.
    pending: deque[Entry] = field(factory=deque[Entry])
    #: The batches that are on their way or wait for their turn to be answered, oldest first. Those that have
    #: their answer are handed out in this order.
    in_flight: deque[Batch] = field(factory=deque[Batch])
    #: A batch in flight had no usable answer; True until all of those have one.
    failing: bool = False
    #: Answers are being handed out: what they cause is sent behind them.
    answering: bool = False
    #: How many were answered last: whether there is load.
    last_size: int = 0
    #: The last answer began the only turn there is, as far as one can tell: its commit comes soon.
    commit_due: bool = False
    #: How many commits in a row have left before what waits.
    overtaken: int = 0
    pace: Pace = field(factory=Pace)

    def fills_a_batch(self) -> bool:
        """Whether what waits may leave: a few steps beside a batch on its way leave with its answer."""
        return not self.in_flight or len(self.pending) >= SPLIT_STEPS_MIN


class Decision(Enum):
    """What to do about a step that was queued just now."""

    #: Nothing: what is on its way sends it along with its answer.
    WAIT = "wait"
    #: Have a task send what waits, once all that runs now has added its steps.
    GATHER = "gather"
    #: Send what waits, now.
    SEND = "send"
    #: Send this step alone, before what waits.
    OVERTAKE = "overtake"


#: Reading a name of the module is cheaper than reading a member of the class.
WAIT: Final = Decision.WAIT
GATHER: Final = Decision.GATHER
SEND: Final = Decision.SEND
OVERTAKE: Final = Decision.OVERTAKE


def decide(queue: Queue, entry: Entry) -> Decision:
    """When `entry`, the last one in the queue, leaves."""
    in_flight = len(queue.in_flight)
    if queue.answering or in_flight >= queue.places:
        return WAIT
    if queue.is_direct:
        step = entry.step
        if type(step) is not Finish:
            # Nothing else seems about to be sent: no task needs to wake up.
            leaves_now = queue.last_size <= 1 and not in_flight and not queue.commit_due
        elif len(step.verdicts) >= SPLIT_STEPS_MIN:
            # A run's commit is a batch by itself. The store works on it while its askers send what is next.
            leaves_now = True
        elif queue.last_size <= 2:
            # A hot entity waits for its commits, and takes along the next message of the caller just answered.
            leaves_now = not (in_flight and queue.pace.contended)
        else:
            leaves_now = entry.overtakes and not in_flight
        if leaves_now:
            return OVERTAKE if entry.overtakes and _can_overtake(queue, entry) else SEND
    # Under load every task that runs in this tick can add a step to the batch.
    return GATHER if queue.fills_a_batch() else WAIT


def learn(queue: Queue, batch: Batch, results: Sequence[Result], now_s: float) -> None:
    """Take an answer into account: how much load there is, and what comes next."""
    size = len(batch.entries)
    commit_due = False
    if size <= 2:
        queue.pace.note(now_s - batch.sent_s)
        for entry in batch.entries:
            if type(entry.step) is Finish:
                # The commit of a run answers as many senders as it has messages.
                size += len(entry.step.verdicts) - 1
        if size <= 2:
            for result in results:
                if isinstance(result, _OFFERING) and result.offer.dispatch is not None:
                    commit_due = True
    queue.last_size, queue.commit_due = size, commit_due


def _can_overtake(queue: Queue, commit: Entry) -> bool:
    """Whether all that waits before a commit are a few messages that could not begin before it anyway.

    What they cost the store together, some turns later, is little more than one of them costs alone.
    """
    step = commit.step
    return (
        isinstance(step, Finish)
        and not queue.in_flight
        and not queue.failing
        and queue.overtaken < OVERTAKEN_MAX
        and 1 < len(queue.pending) <= OVERTAKEN_MAX
        and all(
            other is commit or (type(other.step) is Append and other.step.entity == step.entity)
            for other in queue.pending
        )
    )


def cut_batch(queue: Queue, *, steps_max: int, bytes_max: int) -> Batch | None:
    """Take the steps of the next batch from the front of what waits; None while none may go.

    Args:
        queue: what waits, and what is on its way.
        steps_max: steps in one batch.
        bytes_max: bytes in one batch, roughly; a single larger step still goes, alone.
    """
    pending, in_flight = queue.pending, queue.in_flight
    if not pending or queue.failing or len(in_flight) >= queue.places:
        return None
    if len(pending) == 1 and not in_flight:
        step = pending[0].step
        return Batch(entries=[pending.popleft()], appends={step.entity} if type(step) is Append else set())
    # Batches of equal size keep the store and this process busy at the same time; a large one beside
    # a small one makes them wait for each other.
    steps_out = sum(len(batch.entries) for batch in in_flight) if in_flight else 0
    share = -(-(len(pending) + steps_out) // queue.places)
    limit = min(steps_max, max(share, SPLIT_STEPS_MIN))
    entries: list[Entry] = []
    appends: set[str] = set()
    size_bytes = 0
    while pending and len(entries) < steps_max:
        step = pending[0].step
        if len(entries) >= limit and not (type(step) is Append and step.entity in appends):
            break
        size_bytes += size_of(step)
        if entries and size_bytes > bytes_max:
            break
        if type(step) is Append:
            # A batch that is refused as a whole is sent again behind one that was sent after it. So
            # that this cannot change the order of one entity's messages, no two batches on their way
            # append to the same entity; every other step is fenced by its turn.
            if any(step.entity in batch.appends for batch in in_flight):
                break
            appends.add(step.entity)
        entries.append(pending.popleft())
    if len(entries) > 2 and all(type(entry.step) is Append for entry in entries):
        # Messages of one entity side by side become one operation of the store. No order is promised between
        # entities, and the sort keeps that of each.
        entries.sort(key=_entity_of)
    return Batch(entries=entries, appends=appends) if entries else None


def _entity_of(entry: Entry) -> str:
    step = entry.step
    assert isinstance(step, Append)
    return step.entity
