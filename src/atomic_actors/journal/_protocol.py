"""What a journal is: the steps it takes, what each does atomically, and what it answers.

A journal stores bytes and knows no actors. It executes *steps*: small records, each of which is one
state-checked operation on one partition. A step either happens as a whole or not at all, and each
has a result of its own, so that a bad step does not fail its neighbours.

Rules that every journal keeps (the conformance suite in `testing` checks them):

* Steps of one call that concern one partition happen in the order given.
* Every step may be sent twice and gives the same answer the second time. An owner's steps carry
  `(claim, entity, turn)`; `append` carries the message's unique id.
* A step validates everything before it writes anything.
* Owner's steps (`Take`, `Finish`, `Interrupt`, `Sweep`, `RelayRead`, `RelayAck`, `Release`) answer
  `Stale` unless `claim` is the partition's current claim id.
* Time is the store's, in whole milliseconds, and never below the highest the partition has seen.

The records are msgspec structs and not attrs classes, because a step and a result are made for every
message: a frozen attrs class of this size costs ten times as much to make.

Bodies. What is stored of a message is `pack_body(...)`: a few plain lines that a step has to read
(deadline, whether somebody waits, wire name, idempotency key) before the opaque envelope.

Outcomes. What is stored of a finished message is one line with its state word (`completed`,
`refused`, `failed`, `interrupted`, `withdrawn`, `expired`) and then opaque bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from msgspec import Struct


__all__ = (
    "Append",
    "Appended",
    "Audit",
    "Audited",
    "BatchResult",
    "ClaimPartition",
    "Claimed",
    "CountKind",
    "DeadLetterPage",
    "Dispatch",
    "Dispatched",
    "EntityStatus",
    "Expire",
    "Expired",
    "Finish",
    "Finished",
    "Inspect",
    "Interrupt",
    "Journal",
    "JournalUnavailable",
    "KindCount",
    "LeaseHeld",
    "ListDeadLetters",
    "Offer",
    "Outgoing",
    "OutcomeRead",
    "Park",
    "Parked",
    "Purge",
    "Purged",
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
    "Settled",
    "Stale",
    "Step",
    "Sweep",
    "Swept",
    "Take",
    "Taken",
    "Unsettled",
    "Verdict",
    "Withdraw",
    "WithdrawAnswer",
    "pack_body",
    "split_outcome",
    "unpack_body",
)

PROTOCOL_VERSION: Final = 1

#: A take skips at most this many ids of withdrawn messages in one step.
MAX_TOMBSTONES_SKIPPED: Final = 32


class JournalUnavailable(Exception):
    """The store gave no usable answer: unreachable, loading, read-only, out of memory, out of disk.

    `sent` is False where it is certain that the store saw none of the steps.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


# Bodies and outcomes.


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


class Body(Struct, frozen=True):
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
    return Body(name.decode(), int(deadline), waited == b"a", key.decode(), envelope)


def split_outcome(outcome: bytes) -> tuple[str, bytes]:
    """The state word and the opaque rest of a stored outcome.

    Raises:
        ValueError: the bytes are not of that form.
    """
    word, line_feed, rest = outcome.partition(b"\n")
    if not line_feed:
        raise ValueError("not a stored outcome")
    return word.decode(), rest


# What the store hands to an owner.


class Dispatched(Struct, frozen=True):
    """One message of a dispatch."""

    unique: str
    body: bytes
    #: Takes of this message so far, this one included.
    attempt: int
    #: How many of the earlier attempts were cut off.
    interruptions: int


class Dispatch(Struct, frozen=True):
    """Messages that are DISPATCHED to the owner now: one, or a run of transactional ones.

    Invariant: more than one only if every one of them is stamped transactional and none has been
    attempted before.
    """

    turn: int
    messages: tuple[Dispatched, ...]
    #: The head was cut off before under the METHOD policy: run the user's method, not the handler.
    recovering: bool
    version: int
    #: The entity's state, or None where the caller's `held_version` is current or there is none yet
    #: (`version` 0).
    state: bytes | None


class Unsettled(Struct, frozen=True):
    """A dispatch that an earlier claim left behind."""

    entity: str
    turn: int
    uniques: tuple[str, ...]


class Offer(Struct, frozen=True):
    """What an entity has to do next, as far as the step could tell.

    At most one of the first five says something; all empty means that nothing waits.
    """

    dispatch: Dispatch | None = None
    #: The head waits for its back-off until this store time.
    not_before_ms: int = 0
    #: The entity is parked; nothing is taken until it is resumed.
    parked: bool = False
    #: The head's deadline passed before any attempt: send `Expire` with this unique id and key.
    expired: tuple[str, str] | None = None
    #: An earlier claim's dispatch stands in the way: send `Interrupt` for it, then `Take`.
    unsettled: Unsettled | None = None
    #: Something waits, but the step did not take it (no room, or too many withdrawn ids): `Take` again.
    more: bool = False


NOTHING: Final = Offer()


# Steps of a sender: they need no claim.


class Append(Struct, frozen=True):
    """Accept a message: push it to its entity's log; and take it at once where that is possible.

    Dedupes by `unique` (in the log, running, or with a kept outcome) and, where `key` is not empty,
    by `(entity, key)`: the same key with the same digest answers with the first message's id and
    `duplicate=True`; with another digest it is rejected as `key_reused`. A `unique` whose birth (its
    first 12 hex digits: milliseconds) is older than half of the result's time to live, and that is
    neither in the log nor has a kept outcome, is rejected as `unknown_message`: it might have run
    already. Depth limits reject with `queue_depth_exceeded` before anything is written.

    If `claim` is the partition's current claim, nothing of the entity is dispatched or waiting, and it
    is not parked, then the message is taken in the same step, as `Take` would. Otherwise, if `claim`
    is not current, the partition's doorbell is rung. A stale claim does not refuse the message.
    """

    partition: int
    entity: str
    unique: str
    body: bytes
    #: "" means none. Also stands in the body.
    key: str = ""
    #: A digest of the message's name and payload; compared where the key was used before.
    digest: str = ""
    #: The entity's waiting messages may not exceed this; 0 means unbounded.
    depth_limit: int = 0
    claim: str = ""
    #: The kind's stamps, one `\nname=stamp` a handler, then `\n*=stamp\n` for every other name.
    policy: str = ""
    #: The state version in the caller's memory; -1 for none.
    held_version: int = -1


class Appended(Struct, frozen=True):
    """The message is accepted (now, or it was before)."""

    #: The accepted message's unique id: the first one's, where the key was used before.
    unique: str
    duplicate: bool
    #: For a duplicate that has finished already, and whose id is the one sent: its outcome.
    outcome: bytes | None
    offer: Offer


class Withdraw(Struct, frozen=True):
    """Take a message back that no attempt was made for. `key` is the message's key, or ""."""

    partition: int
    entity: str
    unique: str
    key: str = ""


class WithdrawAnswer(Struct, frozen=True):
    """Where the message is after the step."""

    #: `withdrawn`; or unchanged: `enqueued` (an attempt was made before), `dispatched`, `finished`,
    #: `unknown`, or `needs_key` (the message has the key in `key`: send the step again with it).
    state: Literal["withdrawn", "enqueued", "dispatched", "finished", "unknown", "needs_key"]
    outcome: bytes | None = None
    key: str = ""


class ReadOutcome(Struct, frozen=True):
    """Look a message up."""

    partition: int
    entity: str
    unique: str


class OutcomeRead(Struct, frozen=True):
    """Where the message is. `outcome` is set where `state` is `finished`."""

    state: Literal["enqueued", "dispatched", "finished", "unknown"]
    outcome: bytes | None = None


class Replay(Struct, frozen=True):
    """Send a dead letter again, as a new message `new_unique`, and mark the letter.

    A letter that is marked already answers with the id of its first replay and changes nothing. At
    the head it goes before everything that waits; a running turn is not disturbed.
    """

    partition: int
    entity: str
    unique: str
    new_unique: str
    at_head: bool


class Replayed(Struct, frozen=True):
    """The replay's unique id; `again` where the letter had been replayed before."""

    unique: str
    again: bool


class Purge(Struct, frozen=True):
    """Forget dead letters of one partition by message id (`kind/id/unique`)."""

    partition: int
    message_ids: tuple[str, ...]


class Purged(Struct, frozen=True):
    """How many letters were there and are gone now."""

    count: int


class ListDeadLetters(Struct, frozen=True):
    """Read dead letters, oldest death first.

    Args: `kind` "" for all; `after_ms` and `after_id` continue behind the last letter of the page
    before; `message_id` reads that one alone.
    """

    partition: int
    kind: str = ""
    after_ms: int = 0
    after_id: str = ""
    limit: int = 100
    message_id: str = ""


class StoredLetter(Struct, frozen=True):
    """A dead letter as stored. `error` is opaque (what the owner's `Verdict.error` held, or b"")."""

    message_id: str
    reason: Literal["failed", "interrupted", "expired", "undeliverable"]
    attempts: int
    interruptions: int
    died_ms: int
    #: The unique id of the replay, or "".
    replayed_as: str
    error: bytes
    body: bytes


class DeadLetterPage(Struct, frozen=True):
    """Some dead letters. `complete` is False where more may follow."""

    letters: tuple[StoredLetter, ...]
    complete: bool


class Park(Struct, frozen=True):
    """Stop taking an entity's messages until a person resumes it; a running turn goes on."""

    partition: int
    entity: str


class Resume(Struct, frozen=True):
    """Let a parked entity go on, and ring the doorbell."""

    partition: int
    entity: str


class Parked(Struct, frozen=True):
    """The answer to `Park` and `Resume`: whether the entity was parked before the step."""

    was_parked: bool


class Inspect(Struct, frozen=True):
    """Look at one entity."""

    partition: int
    entity: str


class EntityStatus(Struct, frozen=True):
    """One entity, as the store sees it."""

    waiting: int
    dispatched: int
    parked: bool
    version: int
    turn: int
    not_before_ms: int


class CountKind(Struct, frozen=True):
    """Count a kind's entities and letters in one partition."""

    partition: int
    kind: str


class KindCount(Struct, frozen=True):
    """Entities with a turn running, entities with work waiting (parked ones left out), dead letters."""

    dispatched: int
    ready: int
    dead_letters: int


class Audit(Struct, frozen=True):
    """Read one partition's books."""

    partition: int


class Audited(Struct, frozen=True):
    """One partition's books.

    `counts` has `accepted`, one number a `State` word, and `refused` (part of `completed`). They add
    up: accepted = enqueued + dispatched + completed + failed + interrupted + withdrawn + expired. The
    rest is counted from the structures themselves, so that the books can be checked against them.
    """

    counts: dict[str, int]
    #: Messages in the index of dispatched entities.
    indexed_dispatched: int
    #: Entities in the index of ready ones.
    indexed_ready: int
    dead_letters: int
    outbound: int
    commit: int
    incarnation: int


# Steps of an owner.


class Take(Struct, frozen=True):
    """Move the due head, or a run of transactional messages from the head, to DISPATCHED.

    An entity that has a dispatch of this claim already answers with it again: same turn, no new
    attempt. The run ends before a message that is not stamped transactional, that is expired, or that
    was attempted before; a head that was attempted before is taken alone, and so is every member of a
    run that was cut off.
    """

    partition: int
    entity: str
    claim: str
    policy: str
    held_version: int = -1
    #: At most this many messages in one dispatch.
    run_limit: int = 1


class Taken(Struct, frozen=True):
    """What there is to do."""

    offer: Offer


class Verdict(Struct, frozen=True):
    """How one message of a turn ended. `event` is one of `_wal.Event`'s words."""

    unique: str
    #: complete, refuse, fail, interrupt, retry, requeue. `interrupt` is the answer `Park` of a user's
    #: `on_interrupted` method: final, a dead letter of that reason. `requeue` gives back a member of a
    #: run that did not begin (its attempt is not counted).
    event: str
    #: What is kept for the asker: opaque bytes behind the state word, which the journal writes itself.
    reply: bytes = b""
    #: For `fail` and `interrupt`: what the dead letter says; opaque.
    error: bytes = b""
    #: For `retry`: the back-off.
    delay_ms: int = 0


class Outgoing(Struct, frozen=True):
    """A message of a turn's outbox."""

    partition: int
    entity: str
    unique: str
    body: bytes


class Finish(Struct, frozen=True):
    """Commit a turn: outcomes, state, outbox, dead letters, all or nothing; then take the next.

    `verdicts` covers every message of the dispatch, in order. Finals (complete, refuse, fail) come
    first (`interrupt` among them); at most one `retry` follows them; the rest is `requeue`. `retry` and
    `requeue` put their messages back at the head in order; after a `retry` the head's interruptions
    are kept, and the next take is a plain one, not a recovering one. A `fail` or `interrupt` whose
    partition has no room for another dead letter becomes `retry` without delay, what follows it in the
    run is given back too, and the entity is parked: nothing is dropped.

    Checks, before anything is written: claim; turn (`Stale` where the entity's dispatch is not this
    turn of this claim, unless this very turn was finished before: then the stored answer comes back);
    `expected_version` where `state` is given (`Rejected("version_conflict")`).

    Outbox messages for entities of the same partition are appended here (they bind to no depth limit,
    and the doorbell is rung for nobody: the caller is the owner and takes them). The others get the
    next numbers of the streams (this partition, incarnation, target partition).
    """

    partition: int
    entity: str
    claim: str
    turn: int
    verdicts: tuple[Verdict, ...]
    #: The new state, or None where it did not change.
    state: bytes | None
    expected_version: int
    outbox: tuple[Outgoing, ...] = ()
    #: Park the entity in the same commit.
    park: bool = False
    policy: str = ""
    #: 0 takes nothing: the owner is draining.
    run_limit: int = 1


class Finished(Struct, frozen=True):
    """The turn is committed."""

    version: int
    offer: Offer
    #: Uniques whose `fail` became a `retry` for want of room for dead letters.
    not_buried: tuple[str, ...] = ()


class Interrupt(Struct, frozen=True):
    """Settle a dispatch that was cut off, of this claim or of an earlier one.

    A run of more than one goes back to the head, to be taken one at a time. A single message's
    interruptions grow by one, and `_wal.decide_interruption` says by the stamp what becomes of it. For
    INTERRUPT it gets an outcome and a dead letter, and the entity parks where the stamp says so. A turn
    that is settled already answers `Settled("requeue", ...)` or what it was, and changes nothing.
    `began` False says that no handler began: back to the head, nothing counted, not even the attempt.
    """

    partition: int
    entity: str
    claim: str
    turn: int
    uniques: tuple[str, ...]
    began: bool = True


class Settled(Struct, frozen=True):
    """How it was settled: a `_wal.Settlement` word, or `gone` where there was nothing to settle."""

    settlement: Literal["requeue", "recover", "interrupt", "gone"]
    bodies: tuple[bytes, ...] = ()


class Expire(Struct, frozen=True):
    """Expire a waiting message by name: its deadline has passed and no attempt was made."""

    partition: int
    entity: str
    unique: str
    key: str = ""


class Expired(Struct, frozen=True):
    """Whether it is expired (now or before). `body` is there the first time, to tell its sender."""

    expired: bool
    body: bytes | None = None


class Sweep(Struct, frozen=True):
    """Find work: entities that are due, and dispatches that earlier claims left behind."""

    partition: int
    claim: str
    limit: int = 100


class Swept(Struct, frozen=True):
    """What there is. `next_due_ms` is the earliest later not-before, 0 for none."""

    due: tuple[str, ...]
    unsettled: tuple[Unsettled, ...]
    next_due_ms: int
    #: Targets of the outbox streams with messages that are not acknowledged yet.
    outbound: tuple[int, ...]


class RelayRead(Struct, frozen=True):
    """Read the oldest messages of the stream from this partition to `target`."""

    partition: int
    claim: str
    target: int
    limit: int = 100


class RelayEntry(Struct, frozen=True):
    """One numbered message of a stream."""

    number: int
    entity: str
    unique: str
    body: bytes


class RelayPage(Struct, frozen=True):
    """The oldest unacknowledged messages, in order; numbers have no gaps."""

    incarnation: int
    entries: tuple[RelayEntry, ...]


class RelayIn(Struct, frozen=True):
    """Append a stream's next messages in the target's partition (`partition`).

    The target keeps the last number of every (source, incarnation) without end: entries at or below it
    are duplicates and are skipped; the first one above it must be the next number, else the step is
    rejected as `stream_gap`. Binds to no depth limit. Rings the target's doorbell.
    """

    partition: int
    source: int
    incarnation: int
    entries: tuple[RelayEntry, ...]


class Relayed(Struct, frozen=True):
    """The last number that the target has, and the entities that got something new."""

    last: int
    entities: tuple[str, ...]


class RelayAck(Struct, frozen=True):
    """Forget the stream's messages up to and including `last`."""

    partition: int
    claim: str
    target: int
    last: int


class RelayAcked(Struct, frozen=True):
    """How many messages are left in the stream."""

    left: int


# The lease.


class ClaimPartition(Struct, frozen=True):
    """Become the owner of a partition.

    Succeeds where the lease is free, or is exactly `(expected_claim, expected_renewals)`. The epoch
    grows by one. A claim that is already `claim` answers `Claimed` again.
    """

    partition: int
    claim: str
    #: Opaque: who the owner is, for its successors and for people.
    node: bytes
    expected_claim: str = ""
    expected_renewals: int = 0


class Claimed(Struct, frozen=True):
    """The partition is the caller's."""

    epoch: int
    incarnation: int
    commit: int


class LeaseHeld(Struct, frozen=True):
    """Somebody else holds the lease."""

    node: bytes
    epoch: int
    claim: str
    renewals: int


class Renew(Struct, frozen=True):
    """Show that the owner is alive: one more renewal. Touches one key."""

    partition: int
    claim: str


class Renewed(Struct, frozen=True):
    """The lease goes on; how often it was renewed."""

    renewals: int


class Release(Struct, frozen=True):
    """Give the partition up. Rejected as `dispatched` while its index of dispatched entities is not empty."""

    partition: int
    claim: str


class Released(Struct, frozen=True):
    """The lease is free (now, or it was)."""


# Answers that any step may give.


class Stale(Struct, frozen=True):
    """The claim or the turn is not the current one: a fence, not a failure. Nothing was written."""

    what: Literal["claim", "turn"]


class Rejected(Struct, frozen=True):
    """The step's own check said no. Nothing was written.

    Codes: queue_depth_exceeded, key_reused, unknown_message, version_conflict, stream_gap, dispatched,
    bad_step.
    """

    code: str
    text: str = ""


Step = (
    Append
    | Take
    | Finish
    | Interrupt
    | Expire
    | Withdraw
    | ReadOutcome
    | Replay
    | Purge
    | ListDeadLetters
    | Park
    | Resume
    | Inspect
    | CountKind
    | Audit
    | Sweep
    | RelayRead
    | RelayIn
    | RelayAck
    | ClaimPartition
    | Renew
    | Release
)

Result = (
    Appended
    | Taken
    | Finished
    | Settled
    | Expired
    | WithdrawAnswer
    | OutcomeRead
    | Replayed
    | Purged
    | DeadLetterPage
    | Parked
    | EntityStatus
    | KindCount
    | Audited
    | Swept
    | RelayPage
    | Relayed
    | RelayAcked
    | Claimed
    | LeaseHeld
    | Renewed
    | Released
    | Stale
    | Rejected
)


class JournalSettings(Struct, frozen=True):
    """What a journal has to know of the configuration."""

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


class BatchResult(Struct, frozen=True):
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
    ) -> None: ...
