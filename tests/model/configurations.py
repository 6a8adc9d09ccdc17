"""What a run of the checker is made of: the messages, how much may go wrong, and which guards stand.

Two nodes share a store. A configuration bounds everything else, so that the states are finite.
"""

from __future__ import annotations

from enum import Enum

from attrs import evolve, frozen

from atomic_actors.base._lifecycle import Event

__all__ = (
    "CONFIGURATIONS",
    "Configuration",
    "Fault",
    "Guard",
    "MessageSpec",
    "named",
)


class Fault(Enum):
    """What may go wrong. Each one that happens uses up one of `Configuration.faults`."""

    #: A node's process dies; what it has sent may still arrive. A new process takes its place.
    CRASH = "crash"
    #: A node stands still until its leases have run out, and then goes on where it was.
    PAUSE = "pause"
    #: A node cuts its own handler off while its lease is good, as when it has to leave.
    CUT = "cut"
    #: The store does a step and the answer is lost: the node sends the step again.
    ANSWER_LOST = "answer lost"
    #: A copy of a step stays in the network and arrives at any later time, or never.
    LATE_COPY = "late copy"
    #: A client hears nothing of its append and sends it again; or a copy arrives late.
    APPEND_AGAIN = "append again"
    #: Two nodes claim at the same time.
    RACE = "race"
    #: A replica takes over that has everything: all steps on the way are done and no answer arrives.
    FAILOVER = "failover"
    #: A replica falls behind, and may take over: what was done in between is forgotten.
    LOSING_FAILOVER = "losing failover"


class Guard(Enum):
    """What the model can do without, to show that the checker notices."""

    #: The store compares the claim of an owner's step with the lease and with the dispatch.
    CLAIM = "claim check"
    #: The store compares turn and message of an owner's step with the dispatch.
    TURN = "turn check"
    #: The store compares the version that a turn began with.
    VERSION = "version check"
    #: The store knows a message that was appended before.
    DEDUPE = "dedupe"
    #: The target of a stream keeps the last number that it took.
    STREAM_NUMBER = "stream number"
    #: A turn that was cut off is settled by the stamp of its take.
    INTERRUPTION = "interruption on take-over"
    #: A claim is a random id; without it, it is its epoch.
    CLAIM_ID = "random claim id"
    #: A node takes over only a lease that has run out.
    LEASE = "lease"
    #: A node looks through the dispatches of its own claim for those that it does not know.
    LOOK = "look at its own dispatches"


@frozen
class MessageSpec:
    """One message of the model.

    Args:
        entity: the number of its entity.
        stamp: as `_wal.Stamp.encode` writes it.
        max_attempts: of its handler; 0 means unbounded.
        endings: how its handler may end: COMPLETE, REFUSE, and FAIL for a handler that raises.
        sends: the message that its turn puts into the outbox, if it completes.
        may_be_withdrawn: a client may take it back at any time after it was sent.
    """

    entity: int = 0
    stamp: str = "edc3"
    max_attempts: int = 1
    endings: tuple[Event, ...] = (Event.COMPLETE,)
    sends: int | None = None
    may_be_withdrawn: bool = False


@frozen
class Configuration:
    """One model: what there is and what may happen.

    Args:
        name: for people.
        messages: all that are ever sent.
        entity_partitions: for each entity the number of its partition.
        claimants: for each partition the nodes that may claim it, as a placement would say.
        faults: how many things may go wrong in one run.
        allowed: which ones.
        releases: how often a partition is given up while nothing is wrong.
        takes_next: whether a commit takes the next message in the same step.
        owner_appends: whether messages are also appended by the owner, which takes them in the same step.
        guards_off: what the protocol has to do without.
    """

    name: str
    messages: tuple[MessageSpec, ...]
    entity_partitions: tuple[int, ...] = (0,)
    claimants: tuple[tuple[int, ...], ...] = ((0, 1), (0, 1))
    faults: int = 1
    allowed: frozenset[Fault] = frozenset()
    releases: int = 0
    takes_next: bool = True
    owner_appends: bool = False
    guards_off: frozenset[Guard] = frozenset()

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return max(self.entity_partitions) + 1

    def without(self, *guards: Guard) -> Configuration:
        """The same with some guards switched off."""
        return evolve(self, guards_off=frozenset(guards))


_NODES_FAIL = frozenset({Fault.CRASH, Fault.PAUSE, Fault.CUT})
_ANSWERS_FAIL = frozenset({Fault.ANSWER_LOST, Fault.LATE_COPY, Fault.FAILOVER})

CONFIGURATIONS = (
    Configuration(
        "one effectful message, and three faults of every kind",
        (MessageSpec(),),
        faults=3,
        allowed=_NODES_FAIL | _ANSWERS_FAIL | {Fault.RACE, Fault.APPEND_AGAIN},
        releases=1,
        owner_appends=True,
    ),
    Configuration(
        "an effectful message and a transactional one",
        (MessageSpec(), MessageSpec(stamp="tdc3")),
        faults=2,
        allowed=_NODES_FAIL | _ANSWERS_FAIL | {Fault.RACE, Fault.APPEND_AGAIN},
        releases=1,
    ),
    Configuration(
        "three messages that end in every way",
        (
            MessageSpec(max_attempts=2, endings=(Event.COMPLETE, Event.FAIL)),
            MessageSpec(stamp="emc2", endings=(Event.COMPLETE, Event.REFUSE), may_be_withdrawn=True),
            MessageSpec(stamp="erc2"),
        ),
        faults=1,
        allowed=_NODES_FAIL | {Fault.ANSWER_LOST, Fault.LATE_COPY},
    ),
    Configuration(
        "two entities, one of which sends to the other",
        (MessageSpec(sends=2), MessageSpec(entity=1, stamp="tdc3"), MessageSpec(entity=1)),
        entity_partitions=(0, 0),
        faults=2,
        allowed=frozenset({Fault.CRASH, Fault.ANSWER_LOST, Fault.LATE_COPY}),
    ),
    Configuration(
        "a stream of two messages to another partition",
        (
            MessageSpec(stamp="tdc3", sends=2),
            MessageSpec(sends=3),
            MessageSpec(entity=1, stamp="tdc3"),
            MessageSpec(entity=1),
        ),
        entity_partitions=(0, 1),
        claimants=((0, 1), (1,)),
        faults=1,
        allowed=frozenset({Fault.CRASH, Fault.PAUSE, Fault.ANSWER_LOST, Fault.LATE_COPY}),
    ),
)


def named(part: str) -> Configuration:
    """The configuration whose name contains `part`.

    Raises:
        ValueError: not exactly one does.
    """
    (found,) = (configuration for configuration in CONFIGURATIONS if part in configuration.name)
    return found
