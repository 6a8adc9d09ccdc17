"""Whether what the callers of one entity saw can be explained by one message at a time.

The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993): take, of the operations that no
other one precedes, one whose output is what the model says, and go on; where none is left that could be taken before
an operation that has returned, step back. Lowe's addition ("Testing for linearizability", 2017) makes it bearable: a
pair of (set of operations taken, state) that was seen before leads nowhere new. Porcupine and Knossos do the same.

Operations of different entities need not be compared: a history is linearizable exactly if each entity's part of it
is (Herlihy and Wing, 1990).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from attrs import define, field, frozen

from atomic_actors.testing.checkers._history import Answered, Called, Ended, History

__all__ = (
    "ANYTHING",
    "NotLinearizable",
    "Operation",
    "RefusedWith",
    "SequentialModel",
    "Undecided",
    "check_linearizable",
    "entities_called",
    "operations_of",
)

S = TypeVar("S", bound=Hashable)


class _Anything:
    """An output that was not observed."""

    def __repr__(self) -> str:
        return "?"


#: The output of an operation whose answer was not observed.
ANYTHING: Final = _Anything()


@frozen
class RefusedWith:
    """The output of an operation that was refused, with the refusal."""

    value: Any = None


@frozen(kw_only=True)
class Operation:
    """What one caller did, and what came of it.

    An operation without `returned_at` has an unknown outcome: it may take effect at any time after its call, or
    never. One that has returned took effect in between, and its output is the model's, unless it is `ANYTHING`.
    """

    caller: str
    input: Any
    #: Places on one common line: positions in a history, or times.
    called_at: float
    returned_at: float | None = None
    output: Any = ANYTHING

    def __str__(self) -> str:
        until = "..." if self.returned_at is None else f"{self.returned_at:g}"
        return f"{self.caller}: {self.input!r} -> {self.output!r} [{self.called_at:g}, {until}]"


class SequentialModel(Protocol[S]):
    """What an entity would do if its messages came one at a time and nothing failed."""

    def initial(self) -> S:
        """The state before the first operation."""
        ...

    def apply(self, state: S, input: Any) -> tuple[S, Any]:
        """The state after an operation, and its output; must not change `state`."""
        ...


@frozen(kw_only=True)
class NotLinearizable:
    """No order explains what was seen."""

    #: The longest order that explains its part, and the state after it.
    prefix: tuple[Operation, ...]
    state: Any
    #: The operation that fits nowhere behind it, and the model's answer there.
    stuck: Operation
    expected: Any
    #: Others that were under way then.
    pending: tuple[Operation, ...]

    def __str__(self) -> str:
        shown = self.prefix[-_PREFIX_SHOWN:]
        lines = [f"not linearizable: {len(self.prefix)} operations can be put in order, the last ones"]
        lines += [f"    {operation}" for operation in shown]
        lines.append(f"  which leads to the state {self.state!r}. Then this one fits nowhere:")
        lines.append(f"    {self.stuck}")
        lines.append(f"  for the model says {self.expected!r}. Under way beside it:")
        lines += [f"    {operation}" for operation in self.pending] or ["    nothing"]
        return "\n".join(lines)


@frozen
class Undecided:
    """The search was given up: nothing is known."""

    configurations: int

    def __str__(self) -> str:
        return f"undecided after {self.configurations} configurations"


#: How much of the prefix an explanation shows.
_PREFIX_SHOWN: Final = 8

#: How many operations with an unknown outcome the first rounds of a search allow in a row.
_IN_ROW_BOUNDS: Final = (0, 1, 2, 4)


@define(eq=False, kw_only=True)
class _Entry:
    """A call or a return, in a list in which operations that are taken are left out."""

    number: int
    #: The return that belongs to a call; None for a return, and for a call with an unknown outcome.
    match: _Entry | None = None
    is_call: bool = True
    before: _Entry | None = field(default=None, repr=False)
    after: _Entry | None = field(default=None, repr=False)

    def unlink(self) -> None:
        """Leave it out; its own links stay, for `relink`."""
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        """Put it back; the last one that was left out comes first."""
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self

    def take(self) -> None:
        """Leave a call and its return out."""
        self.unlink()
        if self.match is not None:
            self.match.unlink()

    def give_back(self) -> None:
        """Put a call and its return back."""
        if self.match is not None:
            self.match.relink()
        self.relink()


def _make_entries(operations: Sequence[Operation]) -> _Entry:
    """The list's head, which stands for nothing. A call comes before a return of the same time."""
    events: list[tuple[float, int, int, _Entry]] = []
    for number, operation in enumerate(operations):
        call = _Entry(number=number)
        events.append((operation.called_at, 0, number, call))
        if operation.returned_at is not None:
            if operation.returned_at < operation.called_at:
                raise ValueError(f"{operation} returns before it is called")
            call.match = _Entry(number=number, is_call=False)
            events.append((operation.returned_at, 1, number, call.match))
    head = last = _Entry(number=-1)
    for *_, entry in sorted(events, key=lambda event: event[:3]):
        entry.before, last.after = last, entry
        last = entry
    return head


def _twins(operations: Sequence[Operation]) -> list[int]:
    """For each operation with an unknown outcome: the one like it that was called last before it, or -1."""
    twins = [-1] * len(operations)
    latest: dict[Any, int] = {}
    order = sorted(range(len(operations)), key=lambda number: operations[number].called_at)
    for number in order:
        operation = operations[number]
        if operation.returned_at is not None or not isinstance(operation.input, Hashable):
            continue
        try:
            twins[number] = latest.get(operation.input, -1)
            latest[operation.input] = number
        except TypeError:
            # A tuple that holds a list calls itself hashable and is not.
            continue
    return twins


class _Row:
    """How many operations with an unknown outcome stand in a row now, and may."""

    def __init__(self) -> None:
        self.length = 0
        self.limit = 0
        #: Whether the limit has kept one out in this round.
        self.held_back = False


class _Search:
    """One search: the operations taken so far, and where it got furthest."""

    def __init__(self, operations: Sequence[Operation], model: SequentialModel[Any], limit: int) -> None:
        self.operations = operations
        self.model = model
        self.limit = limit
        self.head = _make_entries(operations)
        self.twins = _twins(operations)
        self.known_left = sum(operation.returned_at is not None for operation in operations)
        self.state: Any = model.initial()
        self.taken = 0
        #: Each call that was taken, with the state before it and how many unknown ones stood there in a row.
        self.stack: list[tuple[_Entry, Any, int]] = []
        self.in_row = _Row()
        #: (operations taken, state) of this round; and how many there were in the rounds before.
        self.seen: set[tuple[int, Any]] = set()
        self.seen_before = 0
        self.furthest: NotLinearizable | None = None

    def run(self) -> NotLinearizable | Undecided | None:
        """Search in rounds, until there is an order, or none, or the limit is reached.

        Operations with an unknown outcome are what makes a search long: any set of them may have happened, in any
        order. A round allows only so many of them in a row. Few suffice if there is an order at all; that there is
        none is known when a round was not held back by its bound.
        """
        for bound in (*_IN_ROW_BOUNDS, len(self.operations)):
            self.in_row.limit = bound
            self.in_row.held_back = False
            found = self._run_round()
            if not isinstance(found, NotLinearizable) or not self.in_row.held_back:
                return found
            self.seen_before += len(self.seen)
            self.seen.clear()
        raise AssertionError("the last round has no bound")

    def _run_round(self) -> NotLinearizable | Undecided | None:
        """From each place, try operations that returned first, and then those with an unknown outcome."""
        entry = self.head.after
        wants_known = True
        while self.known_left:
            assert entry is not None, "a remaining return comes after every call that can be taken"
            if not entry.is_call:
                if wants_known:
                    wants_known, entry = False, self.head.after
                    continue
                self._note_furthest(entry)
                if not self.stack:
                    assert self.furthest is not None
                    return self.furthest
                taken = self._step_back()
                wants_known, entry = taken.match is not None, taken.after
            elif (entry.match is not None) == wants_known and self._take(entry):
                if self.seen_before + len(self.seen) > self.limit:
                    return Undecided(self.seen_before + len(self.seen))
                wants_known, entry = True, self.head.after
            else:
                entry = entry.after
        return None

    def _take(self, entry: _Entry) -> bool:
        """Take a call next, if the model agrees and that leads to something new."""
        number = entry.number
        operation = self.operations[number]
        is_known = operation.returned_at is not None
        twin = self.twins[number]
        if twin >= 0 and not self.taken >> twin & 1:
            return False  # the earlier one does as well
        state, output = self.model.apply(self.state, operation.input)
        if is_known:
            if operation.output is not ANYTHING and output != operation.output:
                return False
        elif state == self.state:
            return False  # it would explain nothing, and may be left out
        elif self.in_row.length == self.in_row.limit:
            self.in_row.held_back = True
            return False
        taken = self.taken | 1 << number
        if (taken, state) in self.seen:
            return False
        self.seen.add((taken, state))
        self.stack.append((entry, self.state, self.in_row.length))
        self.state, self.taken = state, taken
        self.in_row.length = 0 if is_known else self.in_row.length + 1
        self.known_left -= is_known
        entry.take()
        return True

    def _step_back(self) -> _Entry:
        entry, self.state, self.in_row.length = self.stack.pop()
        self.taken ^= 1 << entry.number
        self.known_left += entry.match is not None
        entry.give_back()
        return entry

    def _note_furthest(self, stuck: _Entry) -> None:
        if self.furthest is not None and len(self.stack) <= len(self.furthest.prefix):
            return
        operation = self.operations[stuck.number]
        pending: list[Operation] = []
        entry = self.head.after
        while entry is not None and entry is not stuck:
            if entry.number != stuck.number:
                pending.append(self.operations[entry.number])
            entry = entry.after
        self.furthest = NotLinearizable(
            prefix=tuple(self.operations[call.number] for call, *_ in self.stack),
            state=self.state,
            stuck=operation,
            expected=self.model.apply(self.state, operation.input)[1],
            pending=tuple(pending),
        )


def check_linearizable(
    operations: Iterable[Operation], model: SequentialModel[Any], *, limit: int = 200_000
) -> NotLinearizable | Undecided | None:
    """Whether there is an order of the operations that the model agrees with.

    Args:
        operations: those of one entity, in any order.
        model: what it would do one message at a time. Its states are hashable.
        limit: how many pairs of (operations taken, state) may be looked at.

    Returns:
        None if there is such an order; else why not; `Undecided` if the limit was reached first.

    Raises:
        ValueError: an operation returns before it is called.
    """
    return _Search(list(operations), model, limit).run()


# --- from a history ------------------------------------------------------------------------------------

#: The verbs that send a message; `result` only learns more of one, and others say nothing of how it ended.
_SENDING: Final = frozenset({"ask", "tell", "tell_many"})


@define(eq=False, kw_only=True)
class _Sending:
    """What is known of one message's effect."""

    caller: str
    input: Any
    called_at: int
    uid: str
    returned_at: int | None = None
    output: Any = ANYTHING
    #: How often it was sent, and how often its sender was answered that this sending never runs.
    sent: int = 1
    denied: int = 0
    #: It ended without a commit of its state.
    is_undone: bool = False

    @property
    def has_no_effect(self) -> bool:
        """Whether it surely left the state as it was."""
        return self.output is ANYTHING and (self.is_undone or self.denied >= self.sent)

    def hear(self, record: Answered, position: int) -> None:
        """Note what a caller learned of it; the first to learn its result is the one that counts."""
        if record.word == "never":
            self.denied += 1
        elif record.word in ("failed", "interrupted"):
            self.is_undone = True
        elif record.word in ("reply", "refused") and self.output is ANYTHING:
            self.returned_at = position
            self.output = record.value if record.word == "reply" else RefusedWith(record.value)

    def end(self, event: str, position: int) -> None:
        """Note what the store says of it."""
        if event in ("complete", "refuse"):
            self.returned_at = position if self.returned_at is None else self.returned_at
        else:
            self.is_undone = True


def entities_called(history: History) -> list[str]:
    """The entities that were called, sorted."""
    return sorted({record.entity for record in history.records if isinstance(record, Called)})


def operations_of(history: History, entity: str, *, bounded_by_ends: bool = False) -> list[Operation]:
    """What the callers of an entity did: an operation for each message that was asked or told.

    A reply, or a refusal (`RefusedWith`), is its output. One that never ran, failed or was interrupted has left no
    state behind and is left out. Any other has an unknown outcome: an answer `unknown` or `accepted`, or none. Calls
    about the same unique id (sent again, or asked for with `result`) are one operation, from the first call to
    the first answer that says how it ended.

    Args:
        history: what happened.
        entity: `kind/id`.
        bounded_by_ends: believe the store's `Ended` about messages whose callers did not learn their outcome. That
            makes the search far quicker where there are many, and it no longer is about what callers saw alone.
    """
    sendings: dict[int, _Sending] = {}
    by_uid: dict[str, _Sending] = {}
    ends: dict[str, tuple[str, int]] = {}
    for position, record in enumerate(history.records):
        if isinstance(record, Called) and record.entity == entity:
            known = by_uid.get(record.uid) if record.uid else None
            if known is not None and record.verb in (*_SENDING, "result"):
                known.sent += record.verb in _SENDING
                sendings[record.call] = known
            elif known is None and record.verb in _SENDING:
                sending = _Sending(
                    caller=record.caller, input=record.message, called_at=position, uid=record.uid
                )
                sendings[record.call] = sending
                if record.uid:
                    by_uid[record.uid] = sending
        elif isinstance(record, Answered) and record.call in sendings:
            sending = sendings[record.call]
            if record.uid and not sending.uid:
                sending.uid = record.uid
                first = by_uid.setdefault(record.uid, sending)
                if first is not sending:
                    first.sent += 1
                    sendings[record.call] = sending = first
            sending.hear(record, position)
        elif isinstance(record, Ended) and record.entity == entity:
            ends[record.uid] = (record.event, position)
    found: list[Operation] = []
    for sending in dict.fromkeys(sendings.values()):
        if bounded_by_ends and sending.output is ANYTHING and sending.uid in ends:
            sending.end(*ends[sending.uid])
        if not sending.has_no_effect:
            found.append(
                Operation(
                    caller=sending.caller,
                    input=sending.input,
                    called_at=sending.called_at,
                    returned_at=sending.returned_at,
                    output=sending.output,
                )
            )
    return found
