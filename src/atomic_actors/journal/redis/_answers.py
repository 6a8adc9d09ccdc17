"""The answers of `aa1_commit`, read as results.

An answer is a list: a status, then what the functions of the Lua library return for the step. Texts come as
bytes, numbers as integers, and "nothing" as None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from atomic_actors.base._lifecycle import State
from atomic_actors.journal._protocol import (
    MORE,
    NOTHING,
    Append,
    Appended,
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    CountKind,
    DeadLetterPage,
    Defer,
    Deferred,
    Dispatch,
    Dispatched,
    EntityStatus,
    Expire,
    Expired,
    Finish,
    Finished,
    Inspect,
    Interrupt,
    KindCount,
    LeaseHeld,
    LeaseState,
    ListDeadLetters,
    Offer,
    OutcomeRead,
    Park,
    Parked,
    Purge,
    Purged,
    ReadLease,
    ReadOutcome,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayEntry,
    RelayIn,
    RelayPage,
    RelayRead,
    Release,
    Released,
    Renew,
    Renewed,
    Replay,
    Replayed,
    Result,
    Resume,
    Settled,
    SettleLost,
    Stale,
    Step,
    StoredLetter,
    Sweep,
    Swept,
    Take,
    Taken,
    Unsettled,
    Withdraw,
    WithdrawAnswer,
    sort_targets,
)

__all__ = ("read_results",)

#: The order in which `aa1_commit` answers an audit.
BOOKS: Final = (
    "accepted",
    "enqueued",
    "dispatched",
    "completed",
    "failed",
    "interrupted",
    "withdrawn",
    "expired",
    "refused",
    "commit",
    "incarnation",
    "time",
    "outbound",
)

#: The code of a step that was done, and whose answer cannot be read.
UNREADABLE: Final = "unreadable"

_DONE, _STALE, _REJECTED, _HELD, _SAME = range(5)
_STATUSES: Final = frozenset((_DONE, _STALE, _REJECTED, _HELD, _SAME))
_REASONS: Final = (b"failed", b"interrupted", b"expired")
_NOTHING, _DISPATCH, _NOT_BEFORE, _PARKED, _EXPIRED, _UNSETTLED, _MORE = range(7)

Reply = list[Any]


def read_results(steps: Sequence[Step], answers: Sequence[Reply]) -> list[Result]:
    """The results of a call's steps, in their order.

    Raises:
        ValueError: the answers do not fit the steps.
    """
    results: list[Result] = []
    for answer in answers:
        status: int = answer[0]
        if status not in _STATUSES:
            raise ValueError(f"unknown status {status!r}")
        at = len(results)
        count: int = answer[1] if status == _SAME else 1
        try:
            if status == _SAME:
                results += _appended_together(cast("Sequence[Append]", steps[at : at + count]), answer)
            else:
                results.append(_read_one(steps[at], status, answer))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            # It tells of a record that is damaged. The other steps may be of entities that are well.
            text = f"what the store has cannot be read ({type(error).__name__}: {error})"
            results += [Rejected(UNREADABLE, text)] * count
    if len(results) != len(steps):
        raise ValueError(f"{len(results)} answers to {len(steps)} steps")
    return results


def _read_one(step: Step, status: int, answer: Reply) -> Result:
    if status == _DONE:
        return _READERS[type(step)](step, answer)
    if status == _STALE:
        return Stale(answer[1].decode())
    if status == _REJECTED:
        return Rejected(answer[1].decode(), answer[2].decode("utf-8", "replace"))
    _, node, epoch, claim, renewals = answer
    return LeaseHeld(node, epoch, claim.decode(), renewals)


def _read_offer(reply: Reply, at: int, body: bytes = b"") -> Offer:
    kind = reply[at]
    if kind == _NOTHING:
        return NOTHING
    if kind == _DISPATCH:
        _, turn, recovering, version, state = reply[at : at + 5]
        if len(reply) == at + 9:
            uid, own_body, attempt, interruptions = reply[at + 5 :]
            messages: tuple[Dispatched, ...] = (
                Dispatched(uid.decode(), body if own_body is None else own_body, attempt, interruptions),
            )
        else:
            messages = tuple(
                Dispatched(reply[j].decode(), reply[j + 1] or b"", reply[j + 2], reply[j + 3])
                for j in range(at + 5, len(reply), 4)
            )
        return Offer(
            dispatch=Dispatch(
                turn=turn, messages=messages, recovering=recovering == 1, version=version, state=state
            )
        )
    if kind == _NOT_BEFORE:
        return Offer(not_before_ms=reply[at + 1])
    if kind == _PARKED:
        return Offer(parked=True)
    if kind == _EXPIRED:
        return Offer(expired=(reply[at + 1].decode(), reply[at + 2].decode()))
    if kind == _UNSETTLED:
        return Offer(unsettled=Unsettled("", reply[at + 1], _texts(reply, at + 2, len(reply))))
    if kind == _MORE:
        return MORE
    raise ValueError(f"unknown offer {kind}")


def _texts(reply: Reply, start: int, stop: int) -> tuple[str, ...]:
    return tuple(text.decode() for text in reply[start:stop])


def _with_entity(offer: Offer, entity: str) -> Offer:
    left = offer.unsettled
    return Offer(unsettled=Unsettled(entity, left.turn, left.uids)) if left is not None else offer


def _appended(step: Append, reply: Reply) -> Result:
    offer = _read_offer(reply, 4, step.body)
    if offer.unsettled is not None:
        offer = _with_entity(offer, step.entity)
    duplicate = reply[2] == 1
    return Appended(reply[1].decode() if duplicate else step.uid, duplicate, reply[3], offer)


def _appended_together(steps: Sequence[Append], reply: Reply) -> list[Result]:
    offer = _with_entity(_read_offer(reply, 2), steps[0].entity)
    return [Appended(step.uid, False, None, offer) for step in steps]


def _taken(step: Take, reply: Reply) -> Result:
    return Taken(_with_entity(_read_offer(reply, 1), step.entity))


def _finished(step: Finish, reply: Reply) -> Result:
    unburied = reply[2]
    offer = _with_entity(_read_offer(reply, 3 + unburied), step.entity)
    if not unburied:
        return Finished(reply[1], offer)
    return Finished(reply[1], offer, _texts(reply, 3, 3 + unburied))


def _settled(step: Interrupt | SettleLost, reply: Reply) -> Result:
    return Settled(reply[1].decode(), tuple(reply[2:]))


def _withdrawn(step: Withdraw, reply: Reply) -> Result:
    return WithdrawAnswer(reply[1].decode(), reply[2], reply[3].decode())


def _letter(message_id: bytes, letter: bytes | None) -> StoredLetter:
    """A dead letter. One that is damaged has 0 as its time, and all that is there as its body."""
    try:
        return _whole_letter(message_id, letter or b"")
    except ValueError:
        return StoredLetter(
            message_id=message_id.decode("utf-8", "replace"),
            reason="failed",
            attempts=0,
            interruptions=0,
            died_ms=0,
            replayed_as="",
            error=b"",
            body=letter or b"",
        )


def _whole_letter(message_id: bytes, letter: bytes) -> StoredLetter:
    reason, attempts, interruptions, died_ms, replayed_as, size, rest = letter.split(b"\n", 6)
    error_bytes = int(size)
    if reason not in _REASONS:
        raise ValueError("not a dead letter")
    return StoredLetter(
        message_id=message_id.decode(),
        reason=cast("Any", reason.decode()),
        attempts=int(attempts),
        interruptions=int(interruptions),
        died_ms=int(died_ms),
        replayed_as=replayed_as.decode(),
        error=rest[:error_bytes],
        body=rest[error_bytes:],
    )


def _letters(step: ListDeadLetters, reply: Reply) -> Result:
    letters = tuple(_letter(reply[j], reply[j + 1]) for j in range(2, len(reply), 2))
    return DeadLetterPage(letters, reply[1] == 1)


def _audited(step: Audit, reply: Reply) -> Result:
    books: dict[str, int] = dict(zip(BOOKS, reply[5:], strict=True))
    counts = {"accepted": books["accepted"], **{str(state): books.get(str(state), 0) for state in State}}
    counts["refused"] = books["refused"]
    _, dispatched, ready, letters, outbound = reply[:5]
    return Audited(
        counts=counts,
        indexed_dispatched=dispatched,
        indexed_ready=ready,
        dead_letters=letters,
        outbound=outbound,
        commit=books["commit"],
        incarnation=books["incarnation"],
    )


def _swept(step: Sweep, reply: Reply) -> Result:
    _, next_due_ms, due, targets = reply[:4]
    found, own_next, at = 0, "", 4 + due + targets
    if step.own_from is not None:
        found, own_next, at = reply[at], reply[at + 1].decode(), at + 2
    own: list[Unsettled] = []
    others: list[Unsettled] = []
    while at < len(reply):
        entity, turn, members = reply[at : at + 3]
        # A damaged one cannot be settled; the others must be.
        with suppress(UnicodeDecodeError):
            dispatch = Unsettled(entity.decode(), turn, _texts(reply, at + 3, at + 3 + members))
            (own if found > 0 else others).append(dispatch)
        found -= 1
        at += 3 + members
    outbound = sort_targets(
        int(target) if target.isdigit() else target.decode() for target in reply[4 + due : 4 + due + targets]
    )
    # A name that cannot be decoded is replaced; the others must be reported.
    names = (text.decode("utf-8", "replace") for text in reply[4 : 4 + due])
    return Swept(
        due=tuple(names),
        unsettled=tuple(others),
        next_due_ms=next_due_ms,
        outbound=outbound,
        own=tuple(own),
        own_next=own_next,
    )


def _relay_page(step: RelayRead, reply: Reply) -> Result:
    first: int = reply[2]
    entries = tuple(
        RelayEntry(first + number, reply[j].decode(), reply[j + 1].decode(), reply[j + 2])
        for number, j in enumerate(range(3, len(reply), 3))
    )
    return RelayPage(reply[1], entries)


def _deferred(step: Defer, reply: Reply) -> Result:
    return Deferred(reply[1] == 1)


def _expired(step: Expire, reply: Reply) -> Result:
    return Expired(reply[1] == 1, reply[2])


def _outcome_read(step: ReadOutcome, reply: Reply) -> Result:
    return OutcomeRead(reply[1].decode(), reply[2])


def _replayed(step: Replay, reply: Reply) -> Result:
    uid, again = reply[1].decode(), reply[2] == 1
    if not step.claim:
        return Replayed(uid, again)
    return Replayed(uid, again, _with_entity(_read_offer(reply, 3), step.entity))


def _purged(step: Purge, reply: Reply) -> Result:
    return Purged(reply[1])


def _parked(step: Park | Resume, reply: Reply) -> Result:
    return Parked(reply[1] == 1)


def _status(step: Inspect, reply: Reply) -> Result:
    return EntityStatus(
        waiting=reply[1],
        dispatched=reply[2],
        parked=reply[3] == 1,
        version=reply[4],
        turn=reply[5],
        not_before_ms=reply[6],
    )


def _counted(step: CountKind, reply: Reply) -> Result:
    return KindCount(*reply[1:])


def _relayed(step: RelayIn, reply: Reply) -> Result:
    return Relayed(reply[1], _texts(reply, 2, len(reply)))


def _acknowledged(step: RelayAck, reply: Reply) -> Result:
    return RelayAcked(reply[1])


def _claimed(step: ClaimPartition, reply: Reply) -> Result:
    return Claimed(*reply[1:])


def _renewed(step: Renew, reply: Reply) -> Result:
    return Renewed(reply[1])


def _released(step: Release, reply: Reply) -> Result:
    return Released()


def _lease_read(step: ReadLease, reply: Reply) -> Result:
    _, node, epoch, claim, renewals = reply
    return LeaseState(node, epoch, claim.decode(), renewals)


_READERS: Final = cast(
    "dict[type[Any], Callable[[Any, Reply], Result]]",
    {
        Append: _appended,
        Take: _taken,
        Finish: _finished,
        Interrupt: _settled,
        SettleLost: _settled,
        Defer: _deferred,
        Expire: _expired,
        Withdraw: _withdrawn,
        ReadOutcome: _outcome_read,
        Replay: _replayed,
        Purge: _purged,
        ListDeadLetters: _letters,
        Park: _parked,
        Resume: _parked,
        Inspect: _status,
        CountKind: _counted,
        Audit: _audited,
        Sweep: _swept,
        RelayRead: _relay_page,
        RelayIn: _relayed,
        RelayAck: _acknowledged,
        ClaimPartition: _claimed,
        Renew: _renewed,
        Release: _released,
        ReadLease: _lease_read,
    },
)
