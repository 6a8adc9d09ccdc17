"""The life of a message: one total, pure transition table.

Theory first. A message is *accepted* when the store has appended it to its entity's log. From then
on it is in exactly one `State` at any time, and an `Event` is the only thing that moves it. The
states on the right of the picture are final:

    (absent) --append--> ENQUEUED --take--> DISPATCHED --complete | refuse--> COMPLETED
                            |  ^                |  |  |
                            |  +--retry---------+  |  +--fail------> FAILED       (dead letter)
                            |  +--requeue----------+  +--interrupt-> INTERRUPTED  (dead letter)
                            +--withdraw--> WITHDRAWN
                            +--expire----> EXPIRED

Three rules do not fit into (state, event) pairs, because they look at how often a message was
taken. They are the small pure functions below the table, and they choose *which* event happens:

* `may_leave_unrun`: WITHDRAW and EXPIRE need a message that no attempt was made for;
* `decide_failure`: RETRY while attempts are left, else FAIL;
* `decide_interruption`: REQUEUE, RECOVER or INTERRUPT by the stamp that the take left behind.

Nothing else in the package knows the table. The in-memory journal calls `advance`; the Lua library's
copy, the diagram in the docs and the counters of `audit()` are generated from it or keyed by it
(`nox -s generate`). After h11's `_state.py`: whatever is not in the table cannot happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from attrs import frozen

__all__ = (
    "FINAL_STATES",
    "TRANSITIONS",
    "Event",
    "IllegalTransition",
    "InterruptionPolicy",
    "InterruptionRules",
    "Settlement",
    "State",
    "advance",
    "decide_failure",
    "decide_interruption",
    "may_leave_unrun",
)


class State(StrEnum):
    """Where a message is. Values are the words on the wire and in the store."""

    ABSENT = "absent"
    ENQUEUED = "enqueued"
    DISPATCHED = "dispatched"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"


class Event(StrEnum):
    """What can happen to a message."""

    APPEND = "append"
    TAKE = "take"
    #: The handler returned and everything was committed.
    COMPLETE = "complete"
    #: The handler raised `Refused`: an answer, no state change.
    REFUSE = "refuse"
    #: The handler raised or ran into its deadline, and attempts are left.
    RETRY = "retry"
    #: The handler raised or ran into its deadline, and none are left.
    FAIL = "fail"
    #: The turn was cut off and may be run again, or never began.
    REQUEUE = "requeue"
    #: The turn was cut off and must not be run again unnoticed.
    INTERRUPT = "interrupt"
    WITHDRAW = "withdraw"
    EXPIRE = "expire"


_TABLE: dict[State, dict[Event, State]] = {
    State.ABSENT: {Event.APPEND: State.ENQUEUED},
    State.ENQUEUED: {
        Event.TAKE: State.DISPATCHED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.EXPIRE: State.EXPIRED,
    },
    State.DISPATCHED: {
        Event.COMPLETE: State.COMPLETED,
        Event.REFUSE: State.COMPLETED,
        Event.RETRY: State.ENQUEUED,
        Event.FAIL: State.FAILED,
        Event.REQUEUE: State.ENQUEUED,
        Event.INTERRUPT: State.INTERRUPTED,
    },
    State.COMPLETED: {},
    State.FAILED: {},
    State.INTERRUPTED: {},
    State.WITHDRAWN: {},
    State.EXPIRED: {},
}

#: Total over `State`: a missing event is an illegal one.
TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {state: MappingProxyType(edges) for state, edges in _TABLE.items()}
)

#: The states that no event leaves.
FINAL_STATES: Final = frozenset(state for state, edges in _TABLE.items() if not edges)


class IllegalTransition(Exception):
    """An event that the table does not allow in this state; always a bug in a journal, never a user's."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"a message that is {state} cannot {event}")
        self.state = state
        self.event = event


def advance(state: State, event: Event) -> State:
    """The state that `event` leads to from `state`.

    Raises:
        IllegalTransition: the table has no such edge; the message stays where it is.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(state, event) from None


class InterruptionPolicy(StrEnum):
    """What becomes of an effectful turn that was cut off. Values are single letters on the wire."""

    #: Dead-letter it and tell its sender: the default, and the motto.
    DEAD_LETTER = "d"
    #: Run it again: the user says that the handler is safe to repeat.
    RETRY = "r"
    #: Ask the user's method, which looks at the outside world.
    METHOD = "m"


def _is_count(text: str) -> bool:
    """Whether a text is a number as `InterruptionRules` writes it; `int` reads digits of other scripts, too."""
    return text.isascii() and text.isdecimal()


@frozen
class InterruptionRules:
    """What a take writes beside the dispatch, so that the node that settles it later knows the rules.

    On the wire, four parts without separators: `t` or `e` (transactional or effectful), the policy's
    letter, `c` or `p` (after a dead letter the entity continues, or parks for a person), and
    `max_interruptions` in decimal digits. `edc3` is an effectful handler with every default.
    """

    transactional: bool
    policy: InterruptionPolicy
    park_on_dead: bool
    #: 0 means unbounded.
    max_interruptions: int

    def encode(self) -> str:
        """The wire form."""
        return (
            f"{'t' if self.transactional else 'e'}{self.policy.value}"
            f"{'p' if self.park_on_dead else 'c'}{self.max_interruptions}"
        )

    @classmethod
    def decode(cls, text: str) -> InterruptionRules:
        """Read the wire form.

        Raises:
            ValueError: the text is not a stamp.
        """
        if len(text) < 4 or text[0] not in "te" or text[2] not in "cp" or not _is_count(text[3:]):
            raise ValueError(f"{text!r} is not a stamp")
        return cls(text[0] == "t", InterruptionPolicy(text[1]), text[2] == "p", int(text[3:]))


def may_leave_unrun(attempts: int) -> bool:
    """Whether a message may still be withdrawn or expire: only if it was never taken."""
    return attempts == 0


def decide_failure(attempts: int, interruptions: int, max_attempts: int) -> Event:
    """RETRY or FAIL, after a handler raised or ran into its deadline.

    Args:
        attempts: takes so far, this one included.
        interruptions: how many of them were cut off; they do not count against `max_attempts`.
        max_attempts: 0 means unbounded.
    """
    failures = attempts - interruptions
    return Event.RETRY if max_attempts == 0 or failures < max_attempts else Event.FAIL


class Settlement(StrEnum):
    """How a turn that was cut off is settled."""

    #: Back to the head; the next take is a plain one.
    REQUEUE = "requeue"
    #: Back to the head; the next take runs the user's `on_interrupted` method instead of the handler.
    RECOVER = "recover"
    #: Final: a dead letter.
    INTERRUPT = "interrupt"

    @property
    def event(self) -> Event:
        """The table's event for this settlement."""
        return Event.INTERRUPT if self is Settlement.INTERRUPT else Event.REQUEUE


def decide_interruption(stamp: InterruptionRules, interruptions: int, *, recovering: bool) -> Settlement:
    """What to do with a turn that was cut off.

    Args:
        stamp: what the take wrote beside the dispatch.
        interruptions: how often this message has been cut off, this time included.
        recovering: whether the turn that was cut off was itself the `on_interrupted` method; a
            second interruption there is final.
    """
    if interruptions >= stamp.max_interruptions > 0 or recovering:
        return Settlement.INTERRUPT
    if stamp.transactional or stamp.policy is InterruptionPolicy.RETRY:
        return Settlement.REQUEUE
    if stamp.policy is InterruptionPolicy.METHOD:
        return Settlement.RECOVER
    return Settlement.INTERRUPT
