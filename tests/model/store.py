"""The store: each step of the journal as one change of a draft, after the in-memory journal.

What a step does stands in the order of `journal/memory/_journal.py` and `journal/memory/_turns.py`, less what the model
has not: keys, depth limits, room for dead letters, back-off, parked entities, runs. What becomes of a message is
asked of `base/_lifecycle`, so that the model has no table of its own.

Beside the steps stand the monitors: they raise an `Alarm` where a step did what no step may do, whatever guards
are off. Nothing reads them but the invariants.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

from atomic_actors.base._lifecycle import (
    TRANSITIONS,
    Event,
    IllegalTransition,
    InterruptionRules,
    Settlement,
    decide_interruption,
    may_leave_unrun,
)
from tests.model.configurations import Configuration, Guard
from tests.model.states import (
    APPLIED,
    ATTEMPTS,
    CLAIM,
    ENDED_AS,
    ENQUEUED,
    EPOCH,
    FINISHED_CLAIM,
    FINISHED_TURN,
    INTERRUPTIONS,
    LAST_IN,
    LAST_OUT,
    LOG,
    MESSAGE_LENGTH,
    OWNER,
    RANK,
    RECOVERING,
    RUNNING,
    RUNNING_CLAIM,
    STATE,
    STATES,
    STREAM,
    TURN,
    VERSION,
    Alarm,
    Draft,
    Shape,
    Step,
)

__all__ = ("ENDINGS", "Answer", "Dispatch", "Store", "Word")

#: By event: the number of the next state, by the number of the state before.
_NEXT: Final = {
    event: {
        STATES.index(before): STATES.index(edges[event])
        for before, edges in TRANSITIONS.items()
        if event in edges
    }
    for event in Event
}

#: How a turn may end; its place here, with one added, stands in a FINISH.
ENDINGS: Final = (Event.COMPLETE, Event.REFUSE, Event.FAIL, Event.RETRY)

#: Counters stand still here: no configuration has a limit as high.
COUNT_MAX: Final = 9


class Word(IntEnum):
    """What a step was answered with."""

    DONE = 0
    STALE = 1
    REJECTED = 2
    HELD = 3
    GONE = 4


class Dispatch(NamedTuple):
    """What a take hands out: one message, and the state that its turn begins with.

    The fields stand in the order in which an activation remembers them.
    """

    message: int
    turn: int
    version: int
    applied: int
    failures: int
    is_recovery: int


class Answer(NamedTuple):
    """A step's answer; `number` is the epoch of a claim, or the last number of a stream."""

    word: Word
    dispatch: Dispatch | None = None
    number: int = 0


_DONE: Final = Answer(Word.DONE)
_STALE: Final = Answer(Word.STALE)
_REJECTED: Final = Answer(Word.REJECTED)
_GONE: Final = Answer(Word.GONE)


class Store:
    """The steps, for one configuration.

    Args:
        configuration: what there is, and which guards stand.
        shape: where things are in a state.
    """

    def __init__(self, configuration: Configuration, shape: Shape) -> None:
        self._shape = shape
        self._messages = configuration.messages
        self._home = configuration.entity_partitions
        self._takes_next = configuration.takes_next
        off = configuration.guards_off
        self._claim_check = Guard.CLAIM not in off
        self._turn_check = Guard.TURN not in off
        self._version_check = Guard.VERSION not in off
        self._dedupe = Guard.DEDUPE not in off
        self._numbers_checked = Guard.STREAM_NUMBER not in off
        self._random_claims = Guard.CLAIM_ID not in off
        self._settlements = self._tabulate_settlements(Guard.INTERRUPTION not in off)
        self._steps: list[Callable[[Draft, Step], Answer]] = [
            lambda draft, step: _GONE,
            self._append,
            self._take,
            self._finish,
            self._interrupt,
            self._claim_partition,
            self._release,
            self._relay_in,
            self._relay_ack,
        ]

    def _tabulate_settlements(self, by_stamp: bool) -> list[list[list[Settlement]]]:
        """By message, interruptions and whether it was recovering: how an interruption is settled."""
        return [
            [
                [
                    decide_interruption(InterruptionRules.decode(spec.stamp), count, recovering=recovering)
                    if by_stamp
                    else Settlement.REQUEUE
                    for recovering in (False, True)
                ]
                for count in range(COUNT_MAX + 1)
            ]
            for spec in self._messages
        ]

    def execute(self, draft: Draft, step: Step) -> Answer:
        """Do one step.

        Raises:
            IllegalTransition: a message would have been moved as the table does not allow.
        """
        return self._steps[step[0]](draft, step)

    # Moving messages.

    def _alarm(self, draft: Draft, alarm: Alarm) -> None:
        draft[self._shape.alarm] |= alarm

    def _move(self, draft: Draft, message: int, event: Event) -> int:
        place = self._shape.messages[message] + STATE
        after = _NEXT[event].get(draft[place])
        if after is None:
            raise IllegalTransition(STATES[draft[place]], event)
        draft[place] = after
        return after

    def _accept(self, draft: Draft, message: int) -> None:
        """Push a new message to its entity's log."""
        shape = self._shape
        entity = self._messages[message].entity
        block, history = shape.messages[message], shape.histories[message]
        if draft[history + RANK]:
            self._alarm(draft, Alarm.ACCEPTED_TWICE)
        draft[history + RANK] = 1 + max(
            draft[shape.histories[other] + RANK]
            for other, spec in enumerate(self._messages)
            if spec.entity == entity
        )
        # A journal makes a new record, whatever there was before: only dedupe stands in the way.
        draft[block : block + MESSAGE_LENGTH] = bytes(MESSAGE_LENGTH)
        self._move(draft, message, Event.APPEND)
        log = shape.entities[entity] + LOG
        for place in range(log, log + shape.message_count):
            if draft[place] in (0, message + 1):
                draft[place] = message + 1
                return
        raise AssertionError("the log has a place for every message")

    def _pop(self, draft: Draft, log: int, place: int) -> None:
        end = log + self._shape.message_count
        draft[place:end] = draft[place + 1 : end] + b"\0"

    def _put_back(self, draft: Draft, entity: int, message: int, event: Event) -> None:
        self._move(draft, message, event)
        log = self._shape.entities[entity] + LOG
        end = log + self._shape.message_count
        draft[log:end] = bytes((message + 1,)) + draft[log : end - 1]

    def _finalise(self, draft: Draft, message: int, event: Event) -> None:
        after = self._move(draft, message, event)
        history = self._shape.histories[message]
        if draft[history + ENDED_AS]:
            self._alarm(draft, Alarm.COMMITTED_TWICE)
        draft[history + ENDED_AS] = after

    def _owned_by(self, draft: Draft, partition: int, claim: int) -> bool:
        return claim != 0 and draft[self._shape.partitions[partition] + CLAIM] == claim

    def _is_stale(self, draft: Draft, partition: int, claim: int) -> bool:
        return self._claim_check and not self._owned_by(draft, partition, claim)

    def _watch_claim(self, draft: Draft, partition: int, claim: int) -> None:
        """An owner's step is about to write."""
        if not self._owned_by(draft, partition, claim):
            self._alarm(draft, Alarm.STALE_WRITE)

    # A sender's steps.

    def _append(self, draft: Draft, step: Step) -> Answer:
        message, claim = step[2] - 1, step[4]
        entity = self._messages[message].entity
        block = self._shape.entities[entity]
        is_owners = self._owned_by(draft, self._home[entity], claim)
        if self._dedupe and draft[self._shape.messages[message] + STATE]:
            if is_owners and draft[block + RUNNING_CLAIM] == claim and draft[block + RUNNING] == message + 1:
                return Answer(Word.DONE, self._describe(draft, block))
            return _DONE
        was_idle = not draft[block + RUNNING] and not draft[block + LOG]
        self._accept(draft, message)
        if not is_owners or not was_idle:
            return _DONE
        return Answer(Word.DONE, self._take_next(draft, entity, claim, run_limit=1))

    def withdraw(self, draft: Draft, message: int) -> bool:
        """Take a message back that no attempt was made for; returns whether anything changed."""
        block = self._shape.messages[message]
        if draft[block + STATE] != ENQUEUED or not may_leave_unrun(draft[block + ATTEMPTS]):
            return False
        log = self._shape.entities[self._messages[message].entity] + LOG
        self._pop(draft, log, draft.index(message + 1, log, log + self._shape.message_count))
        self._finalise(draft, message, Event.WITHDRAW)
        return True

    # Turns.

    def _describe(self, draft: Draft, block: int) -> Dispatch:
        running = draft[block + RUNNING]
        record = self._shape.messages[running - 1]
        return Dispatch(
            running,
            draft[block + TURN],
            draft[block + VERSION],
            draft[block + APPLIED],
            draft[record + ATTEMPTS] - draft[record + INTERRUPTIONS],
            draft[record + RECOVERING],
        )

    def _take_next(self, draft: Draft, entity: int, claim: int, run_limit: int) -> Dispatch | None:
        block = self._shape.entities[entity]
        if draft[block + RUNNING]:
            return self._describe(draft, block) if draft[block + RUNNING_CLAIM] == claim else None
        head = draft[block + LOG]
        if not head or not run_limit:
            return None
        self._watch_claim(draft, self._home[entity], claim)
        self._pop(draft, block + LOG, block + LOG)
        self._move(draft, head - 1, Event.TAKE)
        attempts = self._shape.messages[head - 1] + ATTEMPTS
        draft[attempts] = min(draft[attempts] + 1, COUNT_MAX)
        draft[block + TURN] += 1
        draft[block + RUNNING] = head
        draft[block + RUNNING_CLAIM] = claim
        return self._describe(draft, block)

    def _take(self, draft: Draft, step: Step) -> Answer:
        _, entity, _, _, claim, *_ = step
        if self._is_stale(draft, self._home[entity], claim):
            return _STALE
        return Answer(Word.DONE, self._take_next(draft, entity, claim, run_limit=1))

    def _is_current(self, draft: Draft, block: int, step: Step) -> bool:
        """Whether a FINISH is for the dispatch that is out."""
        return bool(
            draft[block + RUNNING]
            and (draft[block + TURN] == step[3] or not self._turn_check)
            and (draft[block + RUNNING_CLAIM] == step[4] or not self._claim_check)
        )

    def _finish(self, draft: Draft, step: Step) -> Answer:
        _, entity, message, turn, claim, version, applied, ending = step
        block, home = self._shape.entities[entity], self._home[entity]
        if self._is_stale(draft, home, claim):
            return _STALE
        if not self._is_current(draft, block, step):
            if (draft[block + FINISHED_TURN], draft[block + FINISHED_CLAIM]) == (turn, claim):
                return Answer(Word.DONE, self._take_next(draft, entity, claim, run_limit=0))
            return _STALE
        running, event = draft[block + RUNNING], ENDINGS[ending - 1]
        if self._turn_check and running != message:
            return _REJECTED
        completes = event is Event.COMPLETE
        if completes and self._version_check and version != draft[block + VERSION]:
            self._alarm(draft, Alarm.VERSION_CONFLICT)
            return _REJECTED
        self._watch_claim(draft, home, claim)
        self._end_turn(draft, block, turn, claim)
        if event is Event.RETRY:
            draft[self._shape.messages[running - 1] + RECOVERING] = 0
            self._put_back(draft, entity, running - 1, event)
        else:
            self._finalise(draft, running - 1, event)
        if completes:
            draft[block + VERSION] += 1
            draft[block + APPLIED] = applied
            self._send(draft, home, message - 1)
        return Answer(Word.DONE, self._take_next(draft, entity, claim, run_limit=int(self._takes_next)))

    def _end_turn(self, draft: Draft, block: int, turn: int, claim: int) -> None:
        draft[block + RUNNING] = draft[block + RUNNING_CLAIM] = 0
        draft[block + FINISHED_TURN], draft[block + FINISHED_CLAIM] = turn, claim

    def _send(self, draft: Draft, home: int, message: int) -> None:
        """Commit an outbox: into this partition at once, into another one through its stream."""
        sent = self._messages[message].sends
        if sent is None:
            return
        if self._home[self._messages[sent].entity] == home:
            self._accept(draft, sent)
            return
        block = self._shape.partitions[home]
        places = range(block + STREAM, block + STREAM + self._shape.stream_places)
        free = next((place for place in places if not draft[place]), None)
        if free is None:
            self._alarm(draft, Alarm.COMMITTED_TWICE)
            return
        draft[block + LAST_OUT] += 1
        draft[free] = sent + 1

    def _interrupt(self, draft: Draft, step: Step) -> Answer:
        _, entity, message, turn, claim, began, *_ = step
        block, home = self._shape.entities[entity], self._home[entity]
        if self._is_stale(draft, home, claim):
            return _STALE
        running = draft[block + RUNNING]
        if not running or (self._turn_check and draft[block + TURN] != turn):
            return _GONE
        if self._turn_check and running != message:
            return _REJECTED
        self._watch_claim(draft, home, claim)
        self._end_turn(draft, block, 0, 0)
        record = self._shape.messages[running - 1]
        if not began:
            draft[record + ATTEMPTS] -= 1
            self._put_back(draft, entity, running - 1, Event.REQUEUE)
            return _DONE
        interruptions = draft[record + INTERRUPTIONS] = min(draft[record + INTERRUPTIONS] + 1, COUNT_MAX)
        settlement = self._settlements[running - 1][interruptions][draft[record + RECOVERING]]
        if settlement is Settlement.INTERRUPT:
            self._finalise(draft, running - 1, settlement.event)
        else:
            draft[record + RECOVERING] = settlement is Settlement.RECOVER
            self._put_back(draft, entity, running - 1, settlement.event)
        return _DONE

    # The lease.

    def _claim_partition(self, draft: Draft, step: Step) -> Answer:
        _, partition, _, _, claim, expected, owner, _ = step
        block = self._shape.partitions[partition]
        lease = draft[block + CLAIM]
        if lease != claim:
            if lease not in (0, expected):
                return Answer(Word.HELD)
            draft[block + EPOCH] += 1
            draft[block + OWNER] = owner
            draft[block + CLAIM] = claim if self._random_claims else draft[block + EPOCH]
        return Answer(Word.DONE, number=draft[block + EPOCH])

    def _release(self, draft: Draft, step: Step) -> Answer:
        _, partition, _, _, claim, *_ = step
        block = self._shape.partitions[partition]
        lease = draft[block + CLAIM]
        if lease and self._is_stale(draft, partition, claim):
            return _STALE
        if lease:
            if any(
                draft[self._shape.entities[entity] + RUNNING]
                for entity, home in enumerate(self._home)
                if home == partition
            ):
                return _REJECTED
            self._watch_claim(draft, partition, claim)
            draft[block + CLAIM] = draft[block + OWNER] = 0
        return _DONE

    # The stream.

    def _relay_in(self, draft: Draft, step: Step) -> Answer:
        _, target, message, number, _, following, *_ = step
        last = self._shape.partitions[target] + LAST_IN
        if self._numbers_checked and number > draft[last] + 1:
            self._alarm(draft, Alarm.STREAM_GAP)
            return _REJECTED
        for entry, its_number in ((message, number), (following, number + 1)):
            if entry and (its_number > draft[last] or not self._numbers_checked):
                draft[last] = its_number
                self._accept(draft, entry - 1)
        return Answer(Word.DONE, number=draft[last])

    def _relay_ack(self, draft: Draft, step: Step) -> Answer:
        _, source, _, last, claim, *_ = step
        if self._is_stale(draft, source, claim):
            return _STALE
        block = self._shape.partitions[source]
        end = block + STREAM + self._shape.stream_places
        while draft[block + STREAM] and self.oldest(draft, source) <= last:
            self._watch_claim(draft, source, claim)
            draft[block + STREAM : end] = draft[block + STREAM + 1 : end] + b"\0"
        return _DONE

    def oldest(self, state: bytes | Draft, source: int) -> int:
        """The number of the oldest message of a partition's stream."""
        block = self._shape.partitions[source]
        places = state[block + STREAM : block + STREAM + self._shape.stream_places]
        return state[block + LAST_OUT] - sum(place > 0 for place in places) + 1
