"""What a journal answers: one record a step, and what an owner is handed to run.

See `_protocol` for the rules, and `_steps` for what each step does. The answer to a step stands in the
order of the steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct

__all__ = (
    "MORE",
    "NOTHING",
    "Appended",
    "Audited",
    "Claimed",
    "DeadLetterPage",
    "Deferred",
    "Dispatch",
    "Dispatched",
    "EntityStatus",
    "Expired",
    "Finished",
    "KindCount",
    "LeaseHeld",
    "LeaseState",
    "Offer",
    "OutcomeRead",
    "Parked",
    "Purged",
    "Rejected",
    "RelayAcked",
    "RelayEntry",
    "RelayPage",
    "Relayed",
    "Released",
    "Renewed",
    "Replayed",
    "Result",
    "Settled",
    "Stale",
    "StoredLetter",
    "Swept",
    "Taken",
    "Target",
    "Unsettled",
    "WithdrawAnswer",
    "sort_targets",
)

#: Where a stream leads, or comes from: a partition of the same service, or "service/partition" of another one.
Target = int | str


def sort_targets(targets: Iterable[Target]) -> tuple[Target, ...]:
    """Partitions by number, then those of other services by name."""
    return tuple(
        sorted(targets, key=lambda target: (0, target, "") if isinstance(target, int) else (1, 0, target))
    )


class Dispatched(Struct, frozen=True, gc=False):
    """One message of a dispatch."""

    uid: str
    body: bytes
    #: Takes of this message so far, this one included.
    attempt: int
    #: How many of the earlier attempts were cut off.
    interruptions: int


class Dispatch(Struct, frozen=True, gc=False, kw_only=True):
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


class Unsettled(Struct, frozen=True, gc=False):
    """A dispatch that is there but not running: an earlier claim left it behind, as a rule."""

    entity: str
    turn: int
    uids: tuple[str, ...]


class Offer(Struct, frozen=True, gc=False, kw_only=True):
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
MORE: Final = Offer(more=True)


class Appended(Struct, frozen=True, gc=False):
    """The message is accepted (now, or it was before)."""

    #: The accepted message's unique id: the first one's, where the key was used before.
    uid: str
    duplicate: bool
    #: For a duplicate that has finished already, and whose id is the one sent: its outcome.
    outcome: bytes | None
    offer: Offer


class WithdrawAnswer(Struct, frozen=True, gc=False):
    """Where the message is after the step."""

    #: `withdrawn`; or unchanged: `enqueued` (an attempt was made before), `dispatched`, `finished`,
    #: `unknown`, or `needs_key` (the message has the key in `key`: send the step again with it).
    state: Literal["withdrawn", "enqueued", "dispatched", "finished", "unknown", "needs_key"]
    outcome: bytes | None = None
    key: str = ""


class OutcomeRead(Struct, frozen=True, gc=False):
    """Where the message is. `outcome` is set where `state` is `finished`."""

    state: Literal["enqueued", "dispatched", "finished", "unknown"]
    outcome: bytes | None = None


class Replayed(Struct, frozen=True, gc=False):
    """The replay's unique id; `again` where the letter had been replayed before."""

    uid: str
    again: bool
    #: What the entity has to do next, for an owner that replayed.
    offer: Offer = NOTHING


class Purged(Struct, frozen=True, gc=False):
    """How many letters were there and are gone now."""

    count: int


class StoredLetter(Struct, frozen=True, gc=False, kw_only=True):
    """A dead letter as stored. `error` is opaque (what the owner's `Verdict.error` held, or b"")."""

    message_id: str
    reason: Literal["failed", "interrupted", "expired"]
    attempts: int
    interruptions: int
    died_ms: int
    #: The unique id of the replay, or "".
    replayed_as: str
    error: bytes
    body: bytes


class DeadLetterPage(Struct, frozen=True, gc=False):
    """Some dead letters. `complete` is False where more may follow."""

    letters: tuple[StoredLetter, ...]
    complete: bool


class Parked(Struct, frozen=True, gc=False):
    """The answer to `Park` and `Resume`: whether the entity was parked before the step."""

    was_parked: bool


class EntityStatus(Struct, frozen=True, gc=False, kw_only=True):
    """One entity, as the store sees it."""

    waiting: int
    dispatched: int
    parked: bool
    version: int
    turn: int
    not_before_ms: int


class KindCount(Struct, frozen=True, gc=False):
    """Entities with a turn running, entities with work waiting (parked ones left out), dead letters."""

    dispatched: int
    ready: int
    dead_letters: int


class Audited(Struct, frozen=True, gc=False, kw_only=True):
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


class Taken(Struct, frozen=True, gc=False):
    """What there is to do."""

    offer: Offer


class Finished(Struct, frozen=True, gc=False):
    """The turn is committed."""

    version: int
    offer: Offer
    #: Uniques whose `fail` became a `retry` because there was no room for dead letters.
    not_buried: tuple[str, ...] = ()


class Settled(Struct, frozen=True, gc=False):
    """How it was settled: a `_wal.Settlement` word, or `gone` where there was nothing to settle."""

    settlement: Literal["requeue", "recover", "interrupt", "gone"]
    bodies: tuple[bytes, ...] = ()


class Deferred(Struct, frozen=True, gc=False):
    """Whether something of the entity waits that a sweep will find."""

    waits: bool


class Expired(Struct, frozen=True, gc=False):
    """Whether it is expired (now or before). `body` is there the first time, to tell its sender."""

    expired: bool
    body: bytes | None = None


class Swept(Struct, frozen=True, gc=False, kw_only=True):
    """What there is. `next_due_ms` is the earliest later not-before, 0 for none."""

    due: tuple[str, ...]
    unsettled: tuple[Unsettled, ...]
    next_due_ms: int
    #: Targets of the outbox streams with messages that are not acknowledged yet; those of this service first.
    outbound: tuple[Target, ...]
    #: A page of the dispatches of the step's own claim, where it asks for one; most of them just run. There are
    #: about `limit` in a page. Whatever is dispatched from the first page to the last is in one of them.
    own: tuple[Unsettled, ...] = ()
    #: Where the next page begins; "" after the last one.
    own_next: str = ""


class RelayEntry(Struct, frozen=True, gc=False):
    """One numbered message of a stream."""

    number: int
    entity: str
    uid: str
    body: bytes


class RelayPage(Struct, frozen=True, gc=False):
    """The oldest unacknowledged messages, in order; numbers have no gaps."""

    incarnation: int
    entries: tuple[RelayEntry, ...]


class Relayed(Struct, frozen=True, gc=False):
    """The last number that the target has, and the entities that got something new."""

    last: int
    entities: tuple[str, ...]


class RelayAcked(Struct, frozen=True, gc=False):
    """How many messages are left in the stream."""

    left: int


class Claimed(Struct, frozen=True, gc=False):
    """The partition is the caller's."""

    epoch: int
    incarnation: int
    commit: int


class LeaseHeld(Struct, frozen=True, gc=False):
    """Another node holds the lease."""

    node: bytes
    epoch: int
    claim: str
    renewals: int


class LeaseState(Struct, frozen=True, gc=False):
    """A partition's lease; `claim` is "" while it has no owner."""

    node: bytes
    epoch: int
    claim: str
    renewals: int


class Renewed(Struct, frozen=True, gc=False):
    """The lease goes on; how often it was renewed."""

    renewals: int


class Released(Struct, frozen=True, gc=False):
    """The lease is free (now, or it was)."""


class Stale(Struct, frozen=True, gc=False):
    """The claim or the turn is not the current one: a fence, not a failure. Nothing was written."""

    what: Literal["claim", "turn"]


class Rejected(Struct, frozen=True, gc=False):
    """The step's own check failed. Nothing was written.

    Codes: queue_depth_exceeded, key_reused, unknown_message, version_conflict, stream_gap, dispatched,
    dead_letters_full, bad_step.
    """

    code: str
    text: str = ""


Result = (
    Appended
    | Taken
    | Finished
    | Settled
    | Deferred
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
    | LeaseState
    | Renewed
    | Released
    | Stale
    | Rejected
)
