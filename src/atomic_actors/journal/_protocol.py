"""What a journal is: the steps it takes, what each does atomically, and what it answers.

A journal stores bytes and knows no actors. It executes *steps*: small records, each of which is one
state-checked operation on one partition. A step either happens as a whole or not at all, and each
has a result of its own, so that a bad step does not fail its neighbours.

Rules that every journal keeps (the conformance suite in `testing` checks them):

* Steps of one call that concern one partition happen in the order given.
* Every step may be sent twice and gives the same answer the second time. An owner's steps carry
  `(claim, entity, turn)`; `append` carries the message's unique id.
* A step validates everything before it writes anything.
* Owner's steps (`Take`, `Finish`, `Interrupt`, `Defer`, `Sweep`, `RelayRead`, `RelayAck`, `Release`) answer
  `Stale` unless `claim` is the partition's current claim id.
* Time is the store's, in whole milliseconds, and never below the highest the partition has seen.

The records are msgspec structs and not attrs classes, because a step and a result are made for every
message: a frozen attrs class of this size costs ten times as much to make. They hold no cycles, so the
garbage collector need not look at the thousands that may be waiting (`gc=False`).

Bodies. What is stored of a message is `pack_body(...)`: a few plain lines that a step has to read
(deadline, whether the sender waits, wire name, idempotency key) before the opaque envelope.

Outcomes. What is stored of a finished message is one line with its state word (`completed`,
`refused`, `failed`, `interrupted`, `withdrawn`, `expired`) and then opaque bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from msgspec import Struct

from atomic_actors.journal._answers import (
    MORE,
    NOTHING,
    Appended,
    Audited,
    Claimed,
    DeadLetterPage,
    Deferred,
    Dispatch,
    Dispatched,
    EntityStatus,
    Expired,
    Finished,
    KindCount,
    LeaseHeld,
    LeaseState,
    Offer,
    OutcomeRead,
    Parked,
    Purged,
    Rejected,
    RelayAcked,
    Relayed,
    RelayEntry,
    RelayPage,
    Released,
    Renewed,
    Replayed,
    Result,
    Settled,
    Stale,
    StoredLetter,
    Swept,
    Taken,
    Target,
    Unsettled,
    WithdrawAnswer,
    sort_targets,
)
from atomic_actors.journal._steps import (
    Append,
    Audit,
    ClaimPartition,
    CountKind,
    Defer,
    Expire,
    Finish,
    Inspect,
    Interrupt,
    ListDeadLetters,
    Outgoing,
    Park,
    Purge,
    ReadLease,
    ReadOutcome,
    RelayAck,
    RelayIn,
    RelayRead,
    Release,
    Renew,
    Replay,
    Resume,
    SettleLost,
    Step,
    Sweep,
    Take,
    Verdict,
    Withdraw,
)

__all__ = (
    "MAX_TOMBSTONES_SKIPPED",
    "MORE",
    "NOTHING",
    "PROTOCOL_VERSION",
    "Append",
    "Appended",
    "Audit",
    "Audited",
    "BatchResult",
    "Body",
    "ClaimPartition",
    "Claimed",
    "CountKind",
    "DeadLetterPage",
    "Defer",
    "Deferred",
    "DirectJournal",
    "Dispatch",
    "Dispatched",
    "EntityStatus",
    "Expire",
    "Expired",
    "FailsByPartition",
    "Finish",
    "Finished",
    "Inspect",
    "Interrupt",
    "Journal",
    "JournalSettings",
    "JournalUnavailable",
    "KindCount",
    "LeaseHeld",
    "LeaseState",
    "ListDeadLetters",
    "Offer",
    "OutcomeRead",
    "Outgoing",
    "Park",
    "Parked",
    "Purge",
    "Purged",
    "ReadLease",
    "ReadOutcome",
    "Rejected",
    "RelayAck",
    "RelayAcked",
    "RelayEntry",
    "RelayIn",
    "RelayPage",
    "RelayRead",
    "Relayed",
    "Release",
    "Released",
    "Renew",
    "Renewed",
    "Replay",
    "Replayed",
    "Result",
    "Resume",
    "SettleLost",
    "Settled",
    "Stale",
    "Step",
    "StoredLetter",
    "Sweep",
    "Swept",
    "Take",
    "Taken",
    "Target",
    "Unsettled",
    "Verdict",
    "Withdraw",
    "WithdrawAnswer",
    "pack_body",
    "sort_targets",
    "split_outcome",
    "unpack_body",
)

PROTOCOL_VERSION: Final = 1

#: A take skips at most this many ids of withdrawn messages in one step.
MAX_TOMBSTONES_SKIPPED: Final = 32


#: What has more is not a time, and cannot be computed with.
_DEADLINE_DIGITS_MAX: Final = 300


class JournalUnavailable(Exception):
    """The store gave no usable answer: unreachable, loading, read-only, out of memory, out of disk.

    `sent` is False where it is certain that the store saw none of the steps.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


def pack_body(*, name: str, deadline_ms: int, waited_for: bool, key: str, envelope: bytes) -> bytes:
    """The stored form of a message.

    Args:
        name: the wire name; no line feed.
        deadline_ms: the store's time after which it may no longer begin; 0 means never.
        waited_for: whether an ask waits for it (an expired ask leaves an outcome, an expired tell a
            dead letter).
        key: the idempotency key, or "".
        envelope: everything else; opaque to the journal.
    """
    return b"%d\n%c\n%s\n%s\n%s" % (
        deadline_ms,
        b"a" if waited_for else b"t",
        name.encode(),
        key.encode(),
        envelope,
    )


class Body(Struct, frozen=True, gc=False, kw_only=True):
    """An unpacked `pack_body`."""

    name: str
    deadline_ms: int
    waited_for: bool
    key: str
    envelope: bytes


def unpack_body(body: bytes) -> Body:
    """Read `pack_body`'s form.

    Raises:
        ValueError: the bytes are not of that form.
    """
    parts = body.split(b"\n", 4)
    if len(parts) != 5 or parts[1] not in (b"a", b"t"):
        raise ValueError("not a stored message")
    deadline, waited, name, key, envelope = parts
    if not deadline.isdigit() or len(deadline) > _DEADLINE_DIGITS_MAX:
        raise ValueError("not a stored message: its deadline is not a number")
    return Body(
        name=name.decode(),
        deadline_ms=int(deadline),
        waited_for=waited == b"a",
        key=key.decode(),
        envelope=envelope,
    )


def split_outcome(outcome: bytes) -> tuple[str, bytes]:
    """The state word and the opaque rest of a stored outcome.

    Raises:
        ValueError: the bytes are not of that form.
    """
    word, line_feed, rest = outcome.partition(b"\n")
    if not line_feed:
        raise ValueError("not a stored outcome")
    return word.decode(), rest


class JournalSettings(Struct, frozen=True, gc=False, kw_only=True):
    """The part of the configuration that a journal needs."""

    namespace: str = "default"
    service: str = "default"
    partitions: int = 64
    result_ttl_ms: int = 60_000
    dedupe_ttl_ms: int = 86_400_000
    #: Waiting messages in one partition; 0 means unbounded.
    partition_depth_limit: int = 0
    #: Dead letters in one partition; 0 means unbounded.
    partition_dead_letter_limit: int = 0
    #: 0 means that they never expire.
    dead_letter_ttl_ms: int = 0


class BatchResult(Struct, frozen=True, gc=False):
    """One result a step, in order, and the store's time."""

    results: Sequence[Result]
    now_ms: int


class Journal(Protocol):
    """A place where messages live. Entered with `async with` before the first call."""

    @property
    def settings(self) -> JournalSettings:
        """The settings it was made with."""
        ...

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """Execute steps, in order within each partition.

        Raises:
            JournalUnavailable: no usable answer; the steps may have happened unless `sent` is False.
                Sending the same steps again is always safe.
            StoreIncompatible: the store's library or namespace does not fit this one.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...


@runtime_checkable
class FailsByPartition(Protocol):
    """A journal whose partitions can fail one by one, because they lie on several servers."""

    #: Always True; that it is there is what counts.
    fails_by_partition: bool


@runtime_checkable
class DirectJournal(Journal, Protocol):
    """A journal that can also send without waiting, which saves a lone caller the hand-over to a task."""

    def send(self, steps: Sequence[Step], on_answer: Callable[[BatchResult | Exception], None]) -> bool:
        """Send steps at once; each call behaves like an `execute` that began now.

        Args:
            steps: as of `execute`.
            on_answer: gets what `execute` returns or raises, once, after this has returned; calls are
                answered in the order in which they were sent. Must not raise.

        Returns:
            False if that is not possible now, and nothing was sent: use `execute`.
        """
        ...
