"""What group commit gathers, and the plain decisions about it: sizes, batches, whose step is whose."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

from attrs import define, frozen
from msgspec import Struct

from atomic_actors.journal._protocol import (
    Append,
    BatchResult,
    ClaimPartition,
    Finish,
    JournalUnavailable,
    RelayIn,
    Result,
    Step,
    Target,
)

__all__ = (
    "OVERTAKEN_MAX",
    "RETRY_DELAY_FIRST_S",
    "SPLIT_STEPS_MIN",
    "Batch",
    "Entry",
    "GroupCommitStatistics",
    "OnResult",
    "Pace",
    "answers_of",
    "belongs_to_owner",
    "cut_batch",
    "is_only_behind",
)

#: What a step costs on the wire beside its bodies, roughly.
STEP_OVERHEAD_BYTES: Final = 256
#: How many messages of a hot entity may wait while its commits go first, and for how many of those.
OVERTAKEN_MAX: Final = 8
#: Batches are not made smaller than this for the sake of having several on their way.
SPLIT_STEPS_MIN: Final = 16

#: How many times later than the quickest one an answer comes where others use the store, too.
CONTENDED_TIMES: Final = 4.0
#: By how much the quickest answer is forgotten with every small batch.
QUICKEST_FADE: Final = 1.001
#: No answer counts as quicker: a clock may be coarse.
QUICKEST_MIN_S: Final = 0.00005
#: How soon a batch without a usable answer is sent again, at first.
RETRY_DELAY_FIRST_S: Final = 0.02

OnResult = Callable[[Result | JournalUnavailable], None]


@frozen
class GroupCommitStatistics:
    """Counters since the start, and what waits now."""

    batches: int
    steps: int
    retries: int
    pending: int
    available: bool


@define(eq=False)
class Pace:
    """How quickly small batches are answered.

    Where the store is busy with others, a step that waits a little and goes along with more costs less of it
    than one that goes alone, and the whole gets more done.
    """

    #: They are answered far later than they could be: others use the store, or this machine, too.
    contended: bool = False
    #: The quickest answer, in seconds; slowly forgotten, since stores are replaced.
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
    if isinstance(step, Append | ClaimPartition):
        return False
    return step.partition == partition and bool(getattr(step, "claim", ""))


def answers_of(step: Step) -> int:
    """How many senders wait for this step: the commit of a run answers as many as it has messages."""
    return len(step.verdicts) if isinstance(step, Finish) else 1


class Entry(Struct, eq=False, gc=False):
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
    forsaken: bool = False


@define(eq=False, slots=True)
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


def cut_batch(
    pending: deque[Entry], in_flight: Iterable[Batch], *, places: int, steps_max: int, bytes_max: int
) -> Batch | None:
    """Take the steps of the next batch from the front of `pending`; None while none may go.

    Args:
        pending: what waits, oldest first.
        in_flight: the batches on their way.
        places: how many of those there may be.
        steps_max: steps in one batch.
        bytes_max: bytes in one batch, roughly; a single larger step still goes, alone.
    """
    # Batches of equal size keep the store and this process busy at the same time; a large one beside
    # a small one makes them wait for each other.
    steps_out = sum(len(batch.entries) for batch in in_flight)
    share = -(-(len(pending) + steps_out) // places)
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
        # Messages of one entity side by side become one operation of the store. Between entities nobody is
        # promised an order, and the sort keeps that of each.
        entries.sort(key=_entity_of)
    return Batch(entries, appends) if entries else None


def _entity_of(entry: Entry) -> str:
    step = entry.step
    assert isinstance(step, Append)
    return step.entity


def is_only_behind(pending: Iterable[Entry], commit: Entry) -> bool:
    """Whether all that waits beside a commit are messages that could not begin before it anyway."""
    step = commit.step
    return isinstance(step, Finish) and all(
        other is commit or (type(other.step) is Append and other.step.entity == step.entity)
        for other in pending
    )
