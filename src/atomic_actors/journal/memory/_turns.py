"""The in-memory journal's turns: how messages are taken, finished, interrupted and expire.

Every function validates first and writes after: nothing that can fail follows the first write.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, Literal

from atomic_actors.base._lifecycle import (
    Event,
    InterruptionRules,
    Settlement,
    State,
    decide_interruption,
    may_leave_unrun,
)
from atomic_actors.base._records import message_id_of
from atomic_actors.journal._protocol import (
    MAX_TOMBSTONES_SKIPPED,
    NOTHING,
    Dispatch,
    Dispatched,
    Expire,
    Expired,
    Finish,
    Finished,
    Interrupt,
    Offer,
    Outgoing,
    Rejected,
    Settled,
    SettleLost,
    Stale,
    Sweep,
    Swept,
    Unsettled,
    sort_targets,
    split_outcome,
    unpack_body,
)
from atomic_actors.journal.memory._counters import (
    Entity,
    FinishedTurn,
    Message,
    Partition,
    Running,
    SettledTurn,
    read_policy,
    stamp_of,
)

#: The order in which the verdicts of a turn have to come.
_RANKS: Final = {
    Event.COMPLETE.value: 0,
    Event.REFUSE.value: 0,
    Event.FAIL.value: 0,
    Event.INTERRUPT.value: 0,
    Event.RETRY.value: 1,
    Event.REQUEUE.value: 2,
}


def bad_step(text: str) -> Rejected:
    """The answer to a step that no caller should send."""
    return Rejected("bad_step", text)


def describe(entity: Entity, running: Running, held_version: int) -> Offer:
    """The offer of a turn that runs."""
    messages = tuple(
        Dispatched(message.uid, message.body, message.attempts, message.interruptions)
        for message in running.messages
    )
    needs_state = entity.version not in (0, held_version)
    return Offer(
        dispatch=Dispatch(
            turn=running.turn,
            messages=messages,
            recovering=running.recovering,
            version=entity.version,
            state=entity.state if needs_state else None,
        )
    )


def unsettled(entity: Entity, running: Running) -> Unsettled:
    """What an earlier claim left behind."""
    return Unsettled(entity.name, running.turn, running.uids)


def take(
    partition: Partition,
    entity: Entity,
    claim: str,
    *,
    stamps: dict[str, InterruptionRules],
    held_version: int,
    run_limit: int,
    now_ms: int,
) -> Offer:
    """Take the due head or a run, or say why not. With `run_limit` 0 it only looks."""
    if entity.running is not None:
        if entity.running.claim == claim:
            return describe(entity, entity.running, held_version)
        return Offer(unsettled=unsettled(entity, entity.running))
    if entity.parked:
        return Offer(parked=True)
    if not entity.waiting:
        return NOTHING
    waiting = _first_waiting(entity, run_limit)
    if not waiting:
        if run_limit > 0:
            _drop_ids(entity, MAX_TOMBSTONES_SKIPPED + 1)
        return Offer(more=True)
    head, _ = waiting[0]
    if now_ms < head.not_before_ms:
        return Offer(not_before_ms=head.not_before_ms)
    if head.expired_unrun(now_ms):
        return Offer(expired=(head.uid, head.head.key))
    if run_limit <= 0:
        return Offer(more=True)
    stamp = stamp_of(stamps, head.head.name)
    length = 1
    if stamp.transactional and head.attempts == 0:
        length = _run_length(waiting[:run_limit], stamps, now_ms)
    _drop_ids(entity, waiting[length - 1][1])
    messages = tuple(message for message, _ in waiting[:length])
    return describe(entity, partition.dispatch(entity, messages, claim, stamp), held_version)


def _first_waiting(entity: Entity, run_limit: int) -> list[tuple[Message, int]]:
    """Messages at the head, each with the number of ids that leave the log with it.

    Looked at are the first `run_limit` ids, and only if all of them are tombstones a few more: a store
    reads a run's worth of ids at once, and a shorter run costs less than reading on.
    """
    found: list[tuple[Message, int]] = []
    end = max(run_limit, 1)
    for position, uid in enumerate(entity.log):
        if position == end:
            if found:
                break
            end += MAX_TOMBSTONES_SKIPPED + 1
        message = entity.messages.get(uid)
        if message is not None:
            found.append((message, position + 1))
        elif not found and position >= MAX_TOMBSTONES_SKIPPED:
            break
    return found


def _drop_ids(entity: Entity, number: int) -> None:
    for _ in range(number):
        entity.log.popleft()


def _run_length(waiting: list[tuple[Message, int]], stamps: dict[str, InterruptionRules], now_ms: int) -> int:
    length = 1
    for message, _ in waiting[1:]:
        if (
            message.attempts
            or message.expired_unrun(now_ms)
            or not stamp_of(stamps, message.head.name).transactional
        ):
            break
        length += 1
    return length


def finish(partition: Partition, step: Finish, now_ms: int) -> Finished | Stale | Rejected:
    """Commit a turn and take the next."""
    if not partition.owned_by(step.claim):
        return Stale("claim")
    try:
        read_policy(step.policy)
    except ValueError as error:
        return bad_step(str(error))
    entity = partition.entities.get(step.entity)
    if entity is None:
        return Stale("turn")
    running = entity.running
    if running is None or running.turn != step.turn or running.claim != step.claim:
        last = entity.last
        if isinstance(last, FinishedTurn) and (last.turn, last.claim) == (step.turn, step.claim):
            return _finished(partition, entity, step, last, now_ms, run_limit=0)
        return Stale("turn")
    wrong = _check_finish(partition, entity, running, step, now_ms)
    if wrong is not None:
        return wrong
    not_buried = _apply_verdicts(partition, entity, running, step, now_ms)
    if step.state is not None:
        entity.version += 1
        entity.state = step.state
    if step.park or not_buried:
        entity.parked = True
    last = FinishedTurn(step.turn, step.claim, entity.version, not_buried)
    partition.end_turn(entity, last)
    for outgoing in step.outbox:
        if outgoing.target == step.partition:
            partition.accept(partition.entity(outgoing.entity), outgoing.uid, outgoing.body)
        else:
            partition.send(outgoing.target, outgoing.entity, outgoing.uid, outgoing.body)
    answer = _finished(partition, entity, step, last, now_ms, run_limit=step.run_limit)
    partition.index(entity)
    return answer


def _finished(
    partition: Partition, entity: Entity, step: Finish, last: FinishedTurn, now_ms: int, *, run_limit: int
) -> Finished:
    offer = take(
        partition,
        entity,
        step.claim,
        stamps=read_policy(step.policy),
        held_version=step.expected_version if step.state is None else last.version,
        run_limit=run_limit,
        now_ms=now_ms,
    )
    return Finished(last.version, offer, last.not_buried)


def _check_finish(
    partition: Partition, entity: Entity, running: Running, step: Finish, now_ms: int
) -> Rejected | None:
    if tuple(verdict.uid for verdict in step.verdicts) != running.uids:
        return bad_step("verdicts: they must cover the dispatch's messages, in order")
    ranks = [_RANKS.get(verdict.event) for verdict in step.verdicts]
    reached = 0
    for verdict, rank in zip(step.verdicts, ranks, strict=True):
        if rank is None or rank < reached or (rank == reached == 1):
            return bad_step(f"verdicts: {verdict.event!r} is not allowed in this place")
        if verdict.delay_ms < 0:
            return bad_step("verdicts: delay_ms must not be negative")
        reached = rank
    if step.state is not None and step.expected_version != entity.version:
        return Rejected("version_conflict", f"the state's version is {entity.version}")
    if not _has_room(partition, step, now_ms):
        return Rejected("dead_letters_full", "give back what follows a death that has no room")
    return _check_outbox(partition, step.partition, step.outbox)


def _has_room(partition: Partition, step: Finish, now_ms: int) -> bool:
    """Whether no death without room has something behind it that ran: its effects are in the state already."""
    room = partition.room_for_letters(now_ms)
    if room is None:
        return True
    deaths = (Event.FAIL.value, Event.INTERRUPT.value)
    for verdict, following in pairwise(step.verdicts):
        if verdict.event in deaths:
            if room == 0 and following.event != Event.REQUEUE.value:
                return False
            room = max(0, room - 1)
    return True


def _check_outbox(partition: Partition, home: int, outbox: tuple[Outgoing, ...]) -> Rejected | None:
    seen: set[tuple[str, str]] = set()
    for outgoing in outbox:
        if outgoing.partition < 0 or (
            not outgoing.service and outgoing.partition >= partition.settings.partitions
        ):
            return bad_step(f"outbox: there is no partition {outgoing.partition}")
        try:
            unpack_body(outgoing.body)
        except ValueError as error:
            return bad_step(f"outbox: {error}")
        target = partition.entities.get(outgoing.entity) if outgoing.target == home else None
        where = (outgoing.entity, outgoing.uid)
        if where in seen or (target is not None and outgoing.uid in target.messages):
            return bad_step(f"outbox: {outgoing.uid} was sent before")
        seen.add(where)
    return None


def _apply_verdicts(
    partition: Partition, entity: Entity, running: Running, step: Finish, now_ms: int
) -> tuple[str, ...]:
    """Move every message of the turn; returns those whose dead letter had no room."""
    room = partition.room_for_letters(now_ms)
    back: list[tuple[Message, Event]] = []
    not_buried: list[str] = []
    for message, verdict in zip(running.messages, step.verdicts, strict=True):
        event = Event(verdict.event)
        dies = event in (Event.FAIL, Event.INTERRUPT)
        message.not_before_ms = 0
        if dies and room == 0:
            # A recovering message stays one: what its handler did stays unknown after a resume.
            not_buried.append(message.uid)
            back.append((message, Event.RETRY))
        elif event is Event.RETRY:
            message.recovering = False
            message.not_before_ms = now_ms + verdict.delay_ms if verdict.delay_ms else 0
            back.append((message, event))
        elif event is Event.REQUEUE:
            message.attempts -= 1
            back.append((message, event))
        else:
            if dies:
                room = None if room is None else room - 1
                reason: Literal["failed", "interrupted"] = "failed" if event is Event.FAIL else "interrupted"
                partition.bury(entity, message, reason, verdict.error, now_ms)
            partition.finalise(entity, message, event, verdict.reply, now_ms)
    for message, event in reversed(back):
        partition.put_back(entity, [message], event)
    return tuple(not_buried)


def interrupt(partition: Partition, step: Interrupt, now_ms: int) -> Settled | Stale | Rejected:
    """Settle a dispatch that was cut off."""
    if not partition.owned_by(step.claim):
        return Stale("claim")
    entity = partition.entities.get(step.entity)
    running = entity.running if entity is not None else None
    if entity is None or running is None or running.turn != step.turn:
        return _settled_before(partition, entity, step)
    if running.uids != step.uids:
        return bad_step(f"uids: turn {step.turn} has other messages")
    messages = list(running.messages)
    settlement = Settlement.REQUEUE
    bodies: tuple[bytes, ...] = ()
    if not step.began:
        _give_back(messages)
        partition.put_back(entity, messages, settlement.event)
    elif len(messages) > 1:
        # Nothing of a run was committed, and it is unknown which member was to blame. Their attempts stay
        # counted, so that each is taken alone from now on.
        for message in messages:
            message.interruptions += 1
        partition.put_back(entity, messages, settlement.event)
    else:
        settlement, bodies = _interrupt_one(partition, entity, running, now_ms)
    partition.end_turn(entity, SettledTurn(step.turn, settlement))
    partition.index(entity)
    return Settled(settlement.value, bodies)


def _give_back(messages: list[Message]) -> None:
    for message in messages:
        message.attempts -= 1
        message.not_before_ms = 0


def _interrupt_one(
    partition: Partition, entity: Entity, running: Running, now_ms: int
) -> tuple[Settlement, tuple[bytes, ...]]:
    (message,) = running.messages
    message.interruptions += 1
    message.not_before_ms = 0
    settlement = decide_interruption(running.stamp, message.interruptions, recovering=running.recovering)
    if settlement is not Settlement.INTERRUPT:
        message.recovering = settlement is Settlement.RECOVER
        partition.put_back(entity, [message], settlement.event)
        return settlement, ()
    # It must not run again, so its letter is written even where there is no room; parking the entity
    # keeps the excess at one letter an entity.
    entity.parked = entity.parked or running.stamp.park_on_dead or partition.room_for_letters(now_ms) == 0
    partition.bury(entity, message, "interrupted", b"", now_ms)
    partition.finalise(entity, message, settlement.event, b"", now_ms)
    return settlement, (message.body,)


def settle_lost(
    partition: Partition, step: SettleLost, now_ms: int
) -> tuple[Settled | Stale | Rejected, bool]:
    """Settle a waiting message whose dispatch was lost; also whether anything changed."""
    if not partition.owned_by(step.claim):
        return Stale("claim"), False
    try:
        stamps = read_policy(step.policy)
    except ValueError as error:
        return bad_step(str(error)), False
    entity = partition.entities.get(step.entity)
    message = entity.messages.get(step.uid) if entity is not None else None
    if entity is None or message is None or message.state is not State.ENQUEUED:
        return _settled_lost_before(partition, step, now_ms), False
    stamp = stamp_of(stamps, message.head.name)
    before = (message.attempts, message.interruptions, message.recovering)
    message.attempts = max(message.attempts, step.attempt)
    message.interruptions = max(message.interruptions, step.interruptions + 1)
    settlement = decide_interruption(stamp, message.interruptions, recovering=step.recovering)
    if settlement is not Settlement.INTERRUPT:
        message.recovering = settlement is Settlement.RECOVER
        changed = before != (message.attempts, message.interruptions, message.recovering)
        return Settled("recover" if message.recovering else "requeue"), changed
    entity.parked = entity.parked or stamp.park_on_dead or partition.room_for_letters(now_ms) == 0
    partition.take_out(entity, message)
    partition.bury(entity, message, "interrupted", b"", now_ms)
    partition.finalise(entity, message, settlement.event, b"", now_ms)
    partition.index(entity)
    return Settled("interrupt", (message.body,)), True


def _settled_lost_before(partition: Partition, step: SettleLost, now_ms: int) -> Settled:
    outcome = partition.outcome(step.entity, step.uid, now_ms)
    if outcome is None or split_outcome(outcome)[0] != State.INTERRUPTED.value:
        return Settled("gone")
    letter = partition.letters.get(message_id_of(step.entity, step.uid))
    return Settled("interrupt", (letter.body,) if letter is not None else ())


def _settled_before(partition: Partition, entity: Entity | None, step: Interrupt) -> Settled:
    last = entity.last if entity is not None else None
    if not isinstance(last, SettledTurn) or last.turn != step.turn:
        return Settled("gone")
    bodies: tuple[bytes, ...] = ()
    if last.settlement is Settlement.INTERRUPT and step.uids:
        letter = partition.letters.get(message_id_of(step.entity, step.uids[0]))
        bodies = (letter.body,) if letter is not None else ()
    return Settled(last.settlement.value, bodies)


def expire(partition: Partition, step: Expire, now_ms: int) -> Expired | Rejected:
    """Expire a waiting message by name."""
    entity = partition.entities.get(step.entity)
    message = entity.messages.get(step.uid) if entity is not None else None
    if entity is None or message is None:
        outcome = partition.outcome(step.entity, step.uid, now_ms)
        return Expired(outcome is not None and split_outcome(outcome)[0] == State.EXPIRED.value)
    if (
        message.state is not State.ENQUEUED
        or not may_leave_unrun(message.attempts)
        or not message.expired_unrun(now_ms)
    ):
        return Expired(False)
    if step.key != message.head.key:
        return bad_step(f"key: the message has the key {message.head.key!r}")
    if not message.head.waited_for:
        if partition.room_for_letters(now_ms) == 0:
            entity.parked = True
            partition.index(entity)
            return Expired(False)
        partition.bury(entity, message, "expired", b"", now_ms)
    partition.finalise(entity, message, Event.EXPIRE, b"", now_ms)
    partition.index(entity)
    return Expired(True, message.body)


def sweep(partition: Partition, step: Sweep, now_ms: int) -> Swept | Stale | Rejected:
    """Find what waits, and the dispatches that may need attention."""
    if not partition.owned_by(step.claim):
        return Stale("claim")
    if step.limit < 1:
        return bad_step("limit: must be at least 1")
    ready = sorted((not_before_ms, name.encode(), name) for name, not_before_ms in partition.ready.items())
    due = tuple(name for not_before_ms, _, name in ready if not_before_ms <= now_ms + step.ahead_ms)
    left_behind = [
        unsettled(entity, entity.running)
        for entity in partition.running.values()
        if entity.running is not None and entity.running.claim != step.claim
    ]
    own: list[str] = []
    if step.own_from is not None:
        own = sorted(name for name in partition.running if name > step.own_from)
    page = [partition.running[name] for name in own[: step.limit]]
    return Swept(
        due=due[: step.limit],
        unsettled=tuple(left_behind[: step.limit]),
        next_due_ms=ready[len(due)][0] if len(due) < len(ready) else 0,
        outbound=sort_targets(target for target, stream in partition.streams.items() if stream),
        own=tuple(
            unsettled(entity, entity.running)
            for entity in page
            if entity.running is not None and entity.running.claim == step.claim
        ),
        own_next=page[-1].name if len(page) < len(own) else "",
    )
