"""The steps of a journal: each one state-checked operation on one partition, as a whole or not at all.

See `_protocol` for the rules that hold for all of them, and `_answers` for what they answer. First
stand the steps of a sender, which need no claim; then those of an owner; then the lease.
"""

from __future__ import annotations

from msgspec import Struct

from atomic_actors.journal._answers import RelayEntry, Target

__all__ = (
    "Append",
    "Audit",
    "ClaimPartition",
    "CountKind",
    "Defer",
    "Expire",
    "Finish",
    "Inspect",
    "Interrupt",
    "ListDeadLetters",
    "Outgoing",
    "Park",
    "Purge",
    "ReadOutcome",
    "RelayAck",
    "RelayIn",
    "RelayRead",
    "Release",
    "Renew",
    "Replay",
    "Resume",
    "SettleLost",
    "Step",
    "Sweep",
    "Take",
    "Verdict",
    "Withdraw",
)


class Append(Struct, frozen=True, gc=False, kw_only=True):
    """Accept a message: push it to its entity's log; and take it at once where that is possible.

    Dedupes by `uid` (in the log, running, or with a kept outcome) and, where `key` is not empty,
    by `(entity, key)`: the same key with the same digest answers with the first message's id and
    `duplicate=True`; with another digest it is rejected as `key_reused`. A `uid` whose birth (its
    first 12 hex digits: milliseconds) is older than half of the result's time to live, and that is
    neither in the log nor has a kept outcome, is rejected as `unknown_message`: it might have run
    already. Depth limits reject with `queue_depth_exceeded` before anything is written.

    If `claim` is the partition's current claim, nothing of the entity is dispatched or waiting, and it
    is not parked, then the message is taken in the same step, as `Take` would. Otherwise, if `claim`
    is not current, the partition's doorbell is rung. A stale claim does not refuse the message.
    """

    partition: int
    entity: str
    uid: str
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


class Withdraw(Struct, frozen=True, gc=False):
    """Take a message back that no attempt was made for. `key` is the message's key, or ""."""

    partition: int
    entity: str
    uid: str
    key: str = ""


class ReadOutcome(Struct, frozen=True, gc=False):
    """Look a message up."""

    partition: int
    entity: str
    uid: str


class Replay(Struct, frozen=True, gc=False, kw_only=True):
    """Send a dead letter again, as a new message `new_uid`, and mark the letter.

    A letter that is marked already answers with the id of its first replay and changes nothing. At
    the head it goes before everything that waits; a running turn is not disturbed.

    If `claim` is the partition's current claim, the new message is taken in the same step where nothing of the
    entity is dispatched or waiting and it is not parked, as with `Append`. Otherwise the partition's doorbell is rung.
    """

    partition: int
    entity: str
    uid: str
    new_uid: str
    at_head: bool
    claim: str = ""
    #: As of `Append`.
    policy: str = ""
    #: The state version in the caller's memory; -1 for none.
    held_version: int = -1


class Purge(Struct, frozen=True, gc=False):
    """Forget dead letters of one partition by message id (`kind/id/uid`)."""

    partition: int
    message_ids: tuple[str, ...]


class ListDeadLetters(Struct, frozen=True, gc=False, kw_only=True):
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


class Park(Struct, frozen=True, gc=False):
    """Stop taking an entity's messages until a person resumes it; a running turn goes on."""

    partition: int
    entity: str


class Resume(Struct, frozen=True, gc=False):
    """Resume a parked entity, and ring the doorbell."""

    partition: int
    entity: str


class Inspect(Struct, frozen=True, gc=False):
    """Look at one entity."""

    partition: int
    entity: str


class CountKind(Struct, frozen=True, gc=False):
    """Count a kind's entities and letters in one partition."""

    partition: int
    kind: str


class Audit(Struct, frozen=True, gc=False):
    """Read one partition's books."""

    partition: int


class Take(Struct, frozen=True, gc=False, kw_only=True):
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


class Verdict(Struct, frozen=True, gc=False, kw_only=True):
    """How one message of a turn ended. `event` is one of `_wal.Event`'s words."""

    uid: str
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


class Outgoing(Struct, frozen=True, gc=False, kw_only=True):
    """A message of a turn's outbox."""

    partition: int
    entity: str
    uid: str
    body: bytes
    #: The service that its kind belongs to; "" for the sender's own.
    service: str = ""

    @property
    def target(self) -> Target:
        """Where its stream leads."""
        return f"{self.service}/{self.partition}" if self.service else self.partition


class Finish(Struct, frozen=True, gc=False, kw_only=True):
    """Commit a turn: outcomes, state, outbox, dead letters, all or nothing; then take the next.

    `verdicts` covers every message of the dispatch, in order. Finals (complete, refuse, fail) come
    first (`interrupt` among them); at most one `retry` follows them; the rest is `requeue`. `retry` and
    `requeue` put their messages back at the head in order; after a `retry` the head's interruptions
    are kept, and the next take is a plain one, not a recovering one. A `fail` or `interrupt` whose
    partition has no room for another dead letter becomes `retry` without delay, and the entity is
    parked: nothing is dropped. Where anything but `requeue` follows such a death, the step is rejected as
    `dead_letters_full`: what ran after it would be applied to the state twice.

    Checks, before anything is written: claim; turn (`Stale` where the entity's dispatch is not this
    turn of this claim, unless this very turn was finished before: then the stored answer comes back);
    `expected_version` where `state` is given (`Rejected("version_conflict")`).

    Outbox messages for entities of the same partition are appended here (they bind to no depth limit,
    and the doorbell is not rung: the caller is the owner and takes them). The others get the
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
    #: What the store publishes with the commit, as (channel, payload). Hints, which may be lost; a journal without
    #: channels leaves them out.
    pushes: tuple[tuple[bytes, bytes], ...] = ()


class Interrupt(Struct, frozen=True, gc=False, kw_only=True):
    """Settle a dispatch that was cut off, of this claim or of an earlier one.

    Every message's interruptions grow by one. A run of more than one goes back to the head, to be taken
    one at a time. For a single message `_wal.decide_interruption` says by the stamp what becomes of it. For
    INTERRUPT it gets an outcome and a dead letter, and the entity parks where the stamp demands it. A turn
    that is settled already answers `Settled("requeue", ...)` or what it was, and changes nothing.
    `began` False says that no handler began: back to the head, nothing counted, not even the attempt.
    """

    partition: int
    entity: str
    claim: str
    turn: int
    uids: tuple[str, ...]
    began: bool = True


class SettleLost(Struct, frozen=True, gc=False, kw_only=True):
    """Settle a message whose dispatch the store has lost: it waits again, though a handler began.

    Counts the attempt and an interruption, as far as they are not counted yet, and decides as `Interrupt`
    does, by the stamp of `policy`: INTERRUPT ends it where it waits, with an outcome and a dead letter, and
    parks the entity where the stamp demands it; otherwise it keeps its place, and is taken alone. Answers
    `Settled("gone")` where it does not wait: it is dispatched (`Interrupt` is for that), has another
    outcome, or is not there any more.
    """

    partition: int
    entity: str
    claim: str
    uid: str
    policy: str
    #: As they were in the lost dispatch.
    attempt: int
    interruptions: int
    recovering: bool = False


class Defer(Struct, frozen=True, gc=False):
    """Let sweeps find an entity again only after `delay_ms`: nothing here can run its head.

    Changes nothing but the entity's place in the index of ready ones, and that only where it waits there. A
    take, an append or any other step on the entity works as before, and may bring it back to its
    place in that index.
    """

    partition: int
    entity: str
    claim: str
    delay_ms: int


class Expire(Struct, frozen=True, gc=False):
    """Expire a waiting message by name: its deadline has passed and no attempt was made."""

    partition: int
    entity: str
    uid: str
    key: str = ""


class Sweep(Struct, frozen=True, gc=False, kw_only=True):
    """Find work: entities that are due, and dispatches that earlier claims left behind.

    With `own_from`, also a page of the dispatches of this very claim. A copy of a `Take` that arrives late may
    have made one that its owner never heard of. `Take` answers with it.
    """

    partition: int
    claim: str
    limit: int = 100
    #: Entities that will be due so soon count as due: what an earlier owner put off may be for this one.
    ahead_ms: int = 0
    #: Where the page begins: "" for the first one, else the `Swept.own_next` of the page before. None for no page.
    own_from: str | None = None


class RelayRead(Struct, frozen=True, gc=False):
    """Read the oldest messages of the stream from this partition to `target`."""

    partition: int
    claim: str
    target: Target
    limit: int = 100


class RelayIn(Struct, frozen=True, gc=False, kw_only=True):
    """Append a stream's next messages in the target's partition (`partition`).

    The target keeps the last number of every (source, incarnation) without end: entries at or below it
    are duplicates and are skipped; the first one above it must be the next number, else the step is
    rejected as `stream_gap`. Binds to no depth limit. Rings the target's doorbell.

    A source forgets only what the target has taken, so a gap means that the target has lost history.
    """

    partition: int
    source: Target
    incarnation: int
    entries: tuple[RelayEntry, ...]
    #: Go on with the first entry, whatever was taken last: a gap before it was found, and reported.
    after_loss: bool = False


class RelayAck(Struct, frozen=True, gc=False, kw_only=True):
    """Forget the stream's messages of an incarnation up to and including `last`."""

    partition: int
    claim: str
    target: Target
    last: int
    #: The page's; 0 means the one of the stream's oldest message.
    incarnation: int = 0


class ClaimPartition(Struct, frozen=True, gc=False, kw_only=True):
    """Become the owner of a partition.

    Succeeds where the lease is free, or is exactly `(expected_claim, expected_renewals)`. The epoch
    grows by one. A claim that is already `claim` answers `Claimed` again.

    With `new_incarnation`, the partition's streams begin anew: what they get from now on is numbered from
    1, in an incarnation that no target knows. What waits in them keeps its incarnation and its numbers,
    because it may have arrived already. The epoch will be above `epoch_above`, too.
    """

    partition: int
    claim: str
    #: Opaque: who the owner is, for its successors and for people.
    node: bytes
    expected_claim: str = ""
    expected_renewals: int = 0
    #: The store has lost history since the partition was owned here.
    new_incarnation: bool = False
    #: An epoch that was given out, and that the store may have forgotten.
    epoch_above: int = 0


class Renew(Struct, frozen=True, gc=False):
    """Show that the owner is alive: one more renewal. Touches one key."""

    partition: int
    claim: str


class Release(Struct, frozen=True, gc=False):
    """Give the partition up. Rejected as `dispatched` while its index of dispatched entities is not empty."""

    partition: int
    claim: str


class ReadLease(Struct, frozen=True, gc=False):
    """Who owns the partition, for those who watch it and those who show it."""

    partition: int


Step = (
    Append
    | Take
    | Finish
    | Interrupt
    | SettleLost
    | Defer
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
    | ReadLease
)
