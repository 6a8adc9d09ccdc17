"""What happened in a simulation, one record for each thing: what checkers read, and timelines show.

Records stand in the order in which they happened, which is the only order there is: the simulation runs in one
thread. `at_s` is virtual time, in seconds since the simulation began. An `entity` is `kind/id`, a `uid` is the
last part of a message id, `node` is a small number (the first node is 1). What the store did is recorded at the
moment of the store's step, whether or not it was observed.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import define, field
from msgspec import Struct

__all__ = (
    "Accepted",
    "Answered",
    "Began",
    "Called",
    "Claimed",
    "Committed",
    "Ended",
    "Fault",
    "Freed",
    "History",
    "PutBack",
    "Record",
    "Sent",
    "Stopped",
    "Taken",
)

#: What a caller learned: see `Answered`.
Word = Literal["reply", "accepted", "refused", "failed", "interrupted", "never", "unknown"]


class Accepted(Struct, frozen=True, gc=False, kw_only=True):
    """The store has accepted a message."""

    at_s: float
    entity: str
    uid: str
    name: str
    #: How it came: sent by a caller, from another entity's outbox, or as the replay of a dead letter.
    source: Literal["sent", "outbox", "replayed"]
    #: It goes before everything that waits (a replay at the head).
    at_head: bool = False


class Taken(Struct, frozen=True, gc=False, kw_only=True):
    """A dispatch: these messages are the entity's next turn. Each counts one attempt more."""

    at_s: float
    partition: int
    entity: str
    node: int
    #: The fencing token of the claim under which they were taken.
    epoch: int
    turn: int
    uids: tuple[str, ...]
    attempts: tuple[int, ...]


class Began(Struct, frozen=True, gc=False, kw_only=True):
    """A handler, or an `on_interrupted` method, begins at a node."""

    at_s: float
    node: int
    entity: str
    uid: str
    attempt: int
    epoch: int
    #: The `on_interrupted` method, not the handler.
    recovering: bool = False


class Stopped(Struct, frozen=True, gc=False, kw_only=True):
    """It has ended; one that runs when its node crashes never does."""

    at_s: float
    node: int
    entity: str
    uid: str
    attempt: int
    how: Literal["returned", "raised", "cancelled"]
    recovering: bool = False


class PutBack(Struct, frozen=True, gc=False):
    """Dispatched messages went back to the head of the log, in this order (`retry`, `requeue`)."""

    at_s: float
    entity: str
    uids: tuple[str, ...]
    event: str


class Sent(Struct, frozen=True, gc=False, kw_only=True):
    """A commit put a message into the outbox. It has to be accepted once, in the order of its stream."""

    at_s: float
    #: The entity and the message whose handler sent it.
    source: str
    parent: str
    #: Whom it is for; its unique id there.
    target: str
    uid: str


class Committed(Struct, frozen=True, gc=False, kw_only=True):
    """A turn was committed (`Finish`), or settled without a handler's answer (then the version stays)."""

    at_s: float
    partition: int
    entity: str
    node: int
    epoch: int
    turn: int
    version_before: int
    version_after: int
    #: Digests of the state, as the store had it and has it now.
    state_before: str
    state_after: str


class Ended(Struct, frozen=True, gc=False, kw_only=True):
    """A message is final: complete, refuse, fail, interrupt, withdraw or expire."""

    at_s: float
    entity: str
    uid: str
    event: str
    #: The asker's answer: encoded, as the store keeps it.
    reply: bytes = b""


class Claimed(Struct, frozen=True, gc=False, kw_only=True):
    """A node became the owner of a partition."""

    at_s: float
    partition: int
    node: int
    epoch: int
    claim: str


class Freed(Struct, frozen=True, gc=False):
    """The owner gave a partition up."""

    at_s: float
    partition: int
    node: int
    epoch: int


class Called(Struct, frozen=True, gc=False, kw_only=True):
    """A caller sends a message, or asks for a result."""

    at_s: float
    #: A number of its own; `Answered.call` refers to it.
    call: int
    caller: str
    verb: str
    entity: str
    #: The message itself, for the sequential model; its unique id where the caller knew it beforehand, else "".
    message: Any
    uid: str = ""


class Answered(Struct, frozen=True, gc=False, kw_only=True):
    """What the caller learned. A call whose node crashed has no such record: it is like `unknown`.

    `reply`: it completed, with this value. `accepted`: a receipt, no more. `refused`, `failed` and `interrupted`:
    final. `never`: it surely never ran and never will (withdrawn, expired, too much waiting, never sent).
    `unknown`: it may run later, have run, or never run.
    """

    at_s: float
    call: int
    word: Word
    value: Any = None
    uid: str = ""


class Fault(Struct, frozen=True, gc=False):
    """Something was done to a node, the network, the store or a clock; `node` 0 where it is none of them alone."""

    at_s: float
    node: int
    what: str
    detail: str = ""


Record = (
    Accepted
    | Taken
    | Began
    | Stopped
    | PutBack
    | Sent
    | Committed
    | Ended
    | Claimed
    | Freed
    | Called
    | Answered
    | Fault
)


@define(eq=False)
class History:
    """Everything that happened, oldest first."""

    records: list[Record] = field(factory=list[Record])

    def add(self, record: Record) -> None:
        """Write one more thing down."""
        self.records.append(record)
