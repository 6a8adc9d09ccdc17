"""Rules about turns: their order, that there is one at a time, that each starts once, and who owns the partition.

The records of one step of the store may stand in any order but for two things: what a step takes comes last, and a
message is accepted before anything else happens to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from attrs import define, field, frozen

from atomic_actors.testing.checkers._history import (
    Accepted,
    Began,
    Claimed,
    Committed,
    Ended,
    Fault,
    Freed,
    PutBack,
    Stopped,
    Taken,
)
from atomic_actors.testing.checkers._rule import Rule, is_crash

__all__ = ("Fifo", "OneStart", "OneTurn", "SingleOwner")

#: Ends that only a handler's answer leads to.
_ANSWERS: Final = ("complete", "refuse", "fail")


_State = Literal["waiting", "dispatched", "ended", "forgotten"]


@define(eq=False)
class _Log:
    """One entity's messages as they have to be taken."""

    waiting: deque[str] = field(factory=deque[str])
    states: dict[str, _State] = field(factory=dict[str, _State])
    #: The place of each message in the last dispatch.
    places: dict[str, int] = field(factory=dict[str, int])

    def head(self) -> str:
        """The first waiting message, or ""."""
        while self.waiting and self.states[self.waiting[0]] != "waiting":
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else ""

    def put_back(self, uids: tuple[str, ...]) -> None:
        """Put dispatched messages before all that wait, in the order in which they were dispatched."""
        back: list[str] = []
        while self.head() in self.places:
            back.append(self.waiting.popleft())
        for uid in uids:
            if self.states.get(uid) == "dispatched":
                self.states[uid] = "waiting"
                back.append(uid)
        back.sort(key=lambda uid: self.places.get(uid, -1))
        self.waiting.extendleft(reversed(back))


@define(eq=False)
class _Run:
    """The messages of one dispatch, as handlers begin with them."""

    uids: tuple[str, ...]
    begun: int = 0


class Fifo(Rule):
    """Messages of an entity start in the order in which they were accepted.

    A replay at the head goes before what waits, and so does what was put back, in the order of its dispatch. What
    ended before it started is passed over. After lost history, only what was accepted since is held to an order.
    """

    name = "fifo"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._logs: dict[str, _Log] = {}
        self._runs: dict[tuple[str, int, str, int], tuple[_Run, int]] = {}

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {
            Accepted: self._accepted,
            Taken: self._taken,
            PutBack: self._put_back,
            Ended: self._ended,
            Began: self._began,
        }

    def forget(self, partitions: frozenset[int] | None) -> None:
        """The messages so far may come in any order, or not at all."""
        for entity, log in self._logs.items():
            if self.is_concerned(entity, partitions):
                log.waiting.clear()
                log.places = {}
                log.states = dict.fromkeys(log.states, "forgotten")

    def _log(self, entity: str) -> _Log:
        log = self._logs.get(entity)
        if log is None:
            log = self._logs[entity] = _Log()
        return log

    def _accepted(self, record: Accepted) -> None:
        log = self._log(record.entity)
        if log.states.get(record.uid, "forgotten") != "forgotten":
            return
        log.states[record.uid] = "waiting"
        if record.at_head:
            log.waiting.appendleft(record.uid)
        else:
            log.waiting.append(record.uid)

    def _taken(self, record: Taken) -> None:
        log = self._log(record.entity)
        for uid in record.uids:
            state = log.states.get(uid)
            if state is None:
                self.report(record.entity, f"{uid} is taken and was not accepted")
            elif state == "waiting":
                head = log.head()
                if head != uid:
                    self.report(record.entity, f"{uid} is taken before {head}")
                log.states[uid] = "dispatched"
        log.places = {uid: place for place, uid in enumerate(record.uids)}
        run = _Run(record.uids)
        for place, (uid, attempt) in enumerate(zip(record.uids, record.attempts, strict=True)):
            self._runs[record.entity, record.epoch, uid, attempt] = (run, place)

    def _put_back(self, record: PutBack) -> None:
        self._log(record.entity).put_back(record.uids)

    def _ended(self, record: Ended) -> None:
        states = self._log(record.entity).states
        if states.get(record.uid, "forgotten") != "forgotten":
            states[record.uid] = "ended"

    def _began(self, record: Began) -> None:
        found = self._runs.get((record.entity, record.epoch, record.uid, record.attempt))
        if found is None:
            return
        run, place = found
        if place > run.begun:
            self.report(record.entity, f"{record.uid} began before {run.uids[run.begun]}")
        run.begun = max(run.begun, place + 1)


@define(eq=False, kw_only=True)
class _Dispatched:
    """The dispatch that the store has, or had last."""

    turn: int
    epoch: int
    #: Messages that have neither ended nor gone back.
    left: set[str]
    #: What only a handler's answer can have done, in words.
    answers: list[str] = field(factory=list[str])
    #: The epoch of the commit that ended it; 0 before.
    committed_epoch: int = 0


@frozen
class _Running:
    """A handler between its first and its last line."""

    uid: str
    node: int
    epoch: int


class OneTurn(Rule):
    """An entity has one dispatch at a time in the store, and handlers that overlap only across a change of owner.

    Two handlers of an entity may overlap if they run at different nodes under different epochs, and a newer epoch
    than the older handler's was claimed. With `leases_honoured` that does not excuse it alone: the older handler's
    node must have met a fault of its own, or any clock one, since it claimed the partition, for a handler ends
    before its lease does. A dispatch that is settled under another epoch than its own leaves no trace of its
    handlers: no new state, and no end that a handler decides.

    After lost history, handlers whose dispatch is older than the loss may overlap with others, and a dispatch from
    before it may come back.
    """

    name = "one-turn"

    def __init__(self, *, healed: bool = False, leases_honoured: bool = False) -> None:
        super().__init__(healed=healed)
        self._leases_honoured = leases_honoured
        self._dispatches: dict[str, _Dispatched] = {}
        self._turns: dict[str, int] = {}
        #: Entities that lost history, until their next dispatch.
        self._uncertain: set[str] = set()
        #: By entity, then by (node, epoch, uid, attempt, recovering).
        self._running: dict[str, dict[tuple[int, int, str, int, bool], _Running]] = {}
        self._newest: dict[int, int] = {}
        self._claims: dict[tuple[int, int], int] = {}
        self._faults: dict[int, int] = {}
        #: When a partition, and when any of them, lost history last.
        self._lost: dict[int | None, int] = {}
        self._dispatch_positions: dict[tuple[str, int, str, int], int] = {}

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {
            Taken: self._taken,
            PutBack: self._put_back,
            Ended: self._ended,
            Committed: self._committed,
            Began: self._began,
            Stopped: self._stopped,
            Claimed: self._claimed,
            Fault: self._fault,
        }

    def forget(self, partitions: frozenset[int] | None) -> None:
        """Dispatches and running handlers so far are not compared with what comes."""
        for partition in [None] if partitions is None else partitions:
            self._lost[partition] = self.position
        for entity in [*self._turns]:
            if self.is_concerned(entity, partitions):
                self._dispatches.pop(entity, None)
                del self._turns[entity]
                self._running.pop(entity, None)
                self._uncertain.add(entity)

    # What the store has.

    def _taken(self, record: Taken) -> None:
        entity = record.entity
        before = self._dispatches.get(entity)
        if before is not None and before.left:
            self.report(entity, f"turn {record.turn} is taken while the store has turn {before.turn}")
        elif record.turn <= self._turns.get(entity, 0):
            self.report(entity, f"turn {record.turn} is taken after turn {self._turns[entity]}")
        self._turns[entity] = record.turn
        self._uncertain.discard(entity)
        self._dispatches[entity] = _Dispatched(turn=record.turn, epoch=record.epoch, left=set(record.uids))
        for uid, attempt in zip(record.uids, record.attempts, strict=True):
            self._dispatch_positions[entity, record.epoch, uid, attempt] = self.position

    def _put_back(self, record: PutBack) -> None:
        dispatch = self._dispatches.get(record.entity)
        for uid in record.uids:
            if dispatch is not None and uid in dispatch.left:
                dispatch.left.discard(uid)
                if record.event == "retry":
                    self._answer(record.entity, dispatch, f"{uid} gets another attempt")
            elif record.entity not in self._uncertain:
                self.report(record.entity, f"{uid} is put back and was not dispatched")

    def _ended(self, record: Ended) -> None:
        dispatch = self._dispatches.get(record.entity)
        if dispatch is None or record.uid not in dispatch.left:
            return
        dispatch.left.discard(record.uid)
        if record.event in ("withdraw", "expire"):
            self.report(record.entity, f"{record.uid} ends ({record.event}) while it is dispatched")
        elif record.event in _ANSWERS:
            self._answer(record.entity, dispatch, f"{record.uid} ends ({record.event})")

    def _committed(self, record: Committed) -> None:
        entity = record.entity
        dispatch = self._dispatches.get(entity)
        if dispatch is None or dispatch.turn != record.turn:
            if entity not in self._uncertain:
                self.report(entity, f"turn {record.turn} is committed and was not dispatched")
            return
        if dispatch.committed_epoch:
            self.report(entity, f"turn {record.turn} is committed twice")
            return
        dispatch.committed_epoch = record.epoch
        if record.version_after != record.version_before:
            self._answer(entity, dispatch, f"the state becomes version {record.version_after}")
        elif dispatch.answers:
            self._answer(entity, dispatch, dispatch.answers.pop())

    def _answer(self, entity: str, dispatch: _Dispatched, text: str) -> None:
        dispatch.answers.append(text)
        if dispatch.committed_epoch not in (0, dispatch.epoch):
            self.report(
                entity,
                f"turn {dispatch.turn} of epoch {dispatch.epoch} is settled under epoch "
                f"{dispatch.committed_epoch}, and yet: {text}",
            )

    # What runs.

    def _began(self, record: Began) -> None:
        entity = record.entity
        if self._is_from_before_a_loss(record):
            return
        running = self._running.setdefault(entity, {})
        for other in running.values():
            self._check_overlap(record, other)
        key = (record.node, record.epoch, record.uid, record.attempt, record.recovering)
        running[key] = _Running(record.uid, record.node, record.epoch)

    def _check_overlap(self, record: Began, other: _Running) -> None:
        partition = self.partition_of.get(record.entity, -1)
        older_node, older_epoch = min((other.epoch, other.node), (record.epoch, record.node))[::-1]
        text = f"{record.uid} began at node {record.node} while {other.uid} ran at node {other.node}"
        if other.node == record.node or other.epoch == record.epoch:
            self.report(record.entity, f"{text}, under epochs {record.epoch} and {other.epoch}")
        elif self._newest.get(partition, 0) <= older_epoch:
            self.report(record.entity, f"{text}, and no epoch above {older_epoch} was claimed")
        elif self._leases_honoured:
            claimed = self._claims.get((partition, older_epoch), -1)
            if self._faults.get(older_node, -1) < claimed and 0 not in self._faults:
                self.report(record.entity, f"{text}, and nothing was wrong with node {older_node}")

    def _is_from_before_a_loss(self, record: Began) -> bool:
        if not self._lost:
            return False
        key = (record.entity, record.epoch, record.uid, record.attempt)
        dispatched = self._dispatch_positions.get(key, -1)
        partition = self.partition_of.get(record.entity, -1)
        return dispatched < max(self._lost.get(None, -1), self._lost.get(partition, -1))

    def _stopped(self, record: Stopped) -> None:
        running = self._running.get(record.entity, {})
        same = (record.node, record.uid, record.attempt, record.recovering)
        for key in [key for key in running if (key[0], *key[2:]) == same]:
            del running[key]

    def _claimed(self, record: Claimed) -> None:
        self._newest[record.partition] = record.epoch
        self._claims.setdefault((record.partition, record.epoch), self.position)

    def _fault(self, record: Fault) -> None:
        if record.node or "clock" in record.what:
            self._faults[record.node] = self.position
        if is_crash(record):
            for running in self._running.values():
                for key in [key for key in running if key[0] == record.node]:
                    del running[key]


@define(eq=False)
class _Attempts:
    """What is known of one message's attempts."""

    attempt: int = 0
    #: Attempts that a handler or an `on_interrupted` method began with.
    begun: set[int] = field(factory=set[int])
    returned: set[int] = field(factory=set[int])
    #: It was dispatched before its partition lost history: its attempts may be counted, and run, anew.
    is_relaxed: bool = False


class OneStart(Rule):
    """Each attempt starts once, as it was dispatched, and attempts count up by one.

    An attempt that went back before it began may get its number again. A message completes only after the handler of
    its last attempt has returned, and is withdrawn or expires only if none ever began. What was dispatched before
    history was lost may start again.
    """

    name = "one-start"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._messages: dict[tuple[str, str], _Attempts] = {}
        self._dispatched: set[tuple[str, str, int, int, int]] = set()

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {Taken: self._taken, Began: self._began, Stopped: self._stopped, Ended: self._ended}

    def forget(self, partitions: frozenset[int] | None) -> None:
        """What was dispatched so far is not counted any more."""
        for (entity, _), message in self._messages.items():
            message.is_relaxed = message.is_relaxed or self.is_concerned(entity, partitions)

    def _message(self, entity: str, uid: str) -> _Attempts:
        key = (entity, uid)
        message = self._messages.get(key)
        if message is None:
            message = self._messages[key] = _Attempts()
        return message

    def _taken(self, record: Taken) -> None:
        for uid, attempt in zip(record.uids, record.attempts, strict=True):
            message = self._message(record.entity, uid)
            last = message.attempt
            expected = (last + 1,) if last == 0 or last in message.begun else (last, last + 1)
            if attempt not in expected and not message.is_relaxed:
                self.report(record.entity, f"{uid} is taken for attempt {attempt} after attempt {last}")
            message.attempt = attempt
            self._dispatched.add((record.entity, uid, attempt, record.epoch, record.node))

    def _began(self, record: Began) -> None:
        dispatch = (record.entity, record.uid, record.attempt, record.epoch, record.node)
        if dispatch not in self._dispatched:
            self.report(
                record.entity,
                f"attempt {record.attempt} of {record.uid} began at node {record.node} under epoch "
                f"{record.epoch}, and was not dispatched there",
            )
        message = self._message(record.entity, record.uid)
        if record.attempt in message.begun and not message.is_relaxed:
            self.report(record.entity, f"attempt {record.attempt} of {record.uid} began twice")
        message.begun.add(record.attempt)

    def _stopped(self, record: Stopped) -> None:
        message = self._message(record.entity, record.uid)
        if record.attempt not in message.begun:
            self.report(record.entity, f"attempt {record.attempt} of {record.uid} stopped and had not begun")
        elif record.how == "returned":
            message.returned.add(record.attempt)

    def _ended(self, record: Ended) -> None:
        message = self._message(record.entity, record.uid)
        if message.is_relaxed:
            return
        uid, event = record.uid, record.event
        if event == "complete" and message.attempt not in message.returned:
            self.report(record.entity, f"{uid} is complete, and attempt {message.attempt} has not returned")
        elif event == "refuse" and message.attempt not in message.begun:
            self.report(record.entity, f"{uid} is refused, and attempt {message.attempt} has not begun")
        elif event in ("withdraw", "expire") and message.begun:
            self.report(record.entity, f"{uid} ends ({event}) after attempt {max(message.begun)} began")


class SingleOwner(Rule):
    """Epochs of a partition only grow, and only the newest claim takes, commits and gives it up.

    After lost history anything goes until the next claim.
    """

    name = "single-owner"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._owners: dict[int, Claimed] = {}
        self._free: set[int] = set()
        self._lost: set[int] = set()

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {Claimed: self._claimed, Freed: self._freed, Taken: self._acted, Committed: self._acted}

    def forget(self, partitions: frozenset[int] | None) -> None:
        """Who owns what is known again with the next claim."""
        gone = set(self._owners) if partitions is None else set(partitions)
        self._lost |= gone
        for partition in gone:
            self._owners.pop(partition, None)
            self._free.discard(partition)

    def _claimed(self, record: Claimed) -> None:
        owner = self._owners.get(record.partition)
        if owner is not None:
            again = (owner.epoch, owner.node, owner.claim) == (record.epoch, record.node, record.claim)
            if again and record.partition not in self._free:
                return
            if record.epoch <= owner.epoch:
                self.report(
                    "",
                    f"node {record.node} claims partition {record.partition} with epoch {record.epoch} "
                    f"after epoch {owner.epoch}",
                )
                return
        self._owners[record.partition] = record
        self._free.discard(record.partition)
        self._lost.discard(record.partition)

    def _acted(self, record: Taken | Committed) -> None:
        word = "takes" if isinstance(record, Taken) else "commits"
        self._check(record, f"{word} turn {record.turn}", record.entity)

    def _freed(self, record: Freed) -> None:
        self._check(record, f"frees partition {record.partition}", "")
        self._free.add(record.partition)

    def _check(self, record: Taken | Committed | Freed, does: str, entity: str) -> None:
        partition = record.partition
        if partition in self._lost:
            return
        owner = self._owners.get(partition)
        text = f"node {record.node} {does} under epoch {record.epoch}"
        if owner is None or partition in self._free:
            self.report(entity, f"{text}, and partition {partition} has no owner")
        elif (owner.epoch, owner.node) != (record.epoch, record.node):
            self.report(entity, f"{text}; node {owner.node} owns it under epoch {owner.epoch}")
