"""What a state is: a string of bytes, with a place for each thing that the store and the nodes know.

A state is `bytes`, because a million of them have to be kept, compared and hashed. A *draft* is the same as a
`bytearray`, which an action changes. `Shape` says where each block begins; the constants say where a field
stands within its block. Numbers of messages are stored with one added, so that 0 means none.

The store's part comes first and in one piece, so that a replica's copy of it is a slice.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from atomic_actors.base._lifecycle import FINAL_STATES, State
from tests.model.configurations import Configuration

__all__ = (
    "FINAL",
    "NODES",
    "STATES",
    "Alarm",
    "Draft",
    "Shape",
    "Step",
    "StepKind",
    "read_step",
    "write_step",
)

NODES: Final = 2

Draft = bytearray

#: Kind, partition or entity, message, turn, claim, and three numbers that depend on the kind.
Step = tuple[int, int, int, int, int, int, int, int]
STEP_LENGTH: Final = 8

#: A message's state is its place here; 0 is ABSENT.
STATES: Final = tuple(State)
FINAL: Final = frozenset(STATES.index(state) for state in FINAL_STATES)
ENQUEUED: Final = STATES.index(State.ENQUEUED)
DISPATCHED: Final = STATES.index(State.DISPATCHED)

# A partition in the store. The owner is the number of its node, with one added.
CLAIM, EPOCH, OWNER, LAST_OUT, LAST_IN, STREAM = range(6)

# An entity in the store. A finished turn is kept with the claim that finished it; 0 after a settled one.
TURN, RUNNING, RUNNING_CLAIM, FINISHED_TURN, FINISHED_CLAIM, VERSION, APPLIED, LOG = range(8)

# A message in the store.
STATE, ATTEMPTS, INTERRUPTIONS, RECOVERING = range(4)
MESSAGE_LENGTH: Final = 4

# What nobody in the protocol knows: what clients were told, and what has ever happened.
SENT, STARTS, ENDED_AS, RANK = range(4)
HISTORY_LENGTH: Final = 4

# A partition in a node's memory.
HELD, VALID, HELD_EPOCH = range(3)
HOLDING_LENGTH: Final = 3

# An entity in a node's memory: what it was offered or runs, and the last turn it began.
STATUS, MESSAGE, HANDLER_TURN, READ_VERSION, READ_APPLIED, FAILURES, IS_RECOVERY, KNOWN_TURN = range(8)
ACTIVATION_LENGTH: Final = 8

IDLE, OFFERED, RUNS, COMMITS = range(4)


class StepKind(IntEnum):
    """The steps of a journal that the model has; 0 means that no step is there."""

    NONE = 0
    APPEND = 1
    TAKE = 2
    FINISH = 3
    INTERRUPT = 4
    CLAIM_PARTITION = 5
    RELEASE = 6
    RELAY_IN = 7
    RELAY_ACK = 8


class Alarm(IntFlag):
    """What a step did that no step may do; seen as it happens, because a state does not show it."""

    ACCEPTED_TWICE = 1
    STALE_WRITE = 2
    COMMITTED_TWICE = 4
    BEGUN_TWICE = 8
    OUT_OF_ORDER = 16
    STREAM_GAP = 32
    VERSION_CONFLICT = 64


class Shape:
    """Where each block of a configuration's states begins.

    Args:
        configuration: says how many partitions, entities and messages there are.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.entity_count = len(configuration.entity_partitions)
        self.message_count = len(configuration.messages)
        self.stream_places = max(1, sum(spec.sends is not None for spec in configuration.messages))
        self._end = 0
        #: The store.
        self.partitions = self._blocks(configuration.partitions, STREAM + self.stream_places)
        self.entities = self._blocks(self.entity_count, LOG + self.message_count)
        self.messages = self._blocks(self.message_count, MESSAGE_LENGTH)
        self.store_length = self._end
        #: The rest.
        self.histories = self._blocks(self.message_count, HISTORY_LENGTH)
        self.begun_turns = self._blocks(self.entity_count, 1)
        self.holdings = [self._blocks(configuration.partitions, HOLDING_LENGTH) for _ in range(NODES)]
        self.activations = [self._blocks(self.entity_count, ACTIVATION_LENGTH) for _ in range(NODES)]
        #: What each node has sent and has no answer for; and the copy that is still in the network.
        self.sent_steps = self._blocks(NODES, STEP_LENGTH)
        (self.late_step,) = self._blocks(1, STEP_LENGTH)
        self.faults, self.releases, self.claims, self.alarm, self.replica = self._blocks(5, 1)
        #: Where a replica fell behind, its copy of the store begins here.
        self.copy = self._end
        self.length = self._end

    def _blocks(self, number: int, length: int) -> list[int]:
        begins = [self._end + place * length for place in range(number)]
        self._end += number * length
        return begins

    def first(self) -> bytes:
        """The state in which nothing has happened."""
        return bytes(self.length)


def read_step(state: bytes | Draft, place: int) -> Step:
    """The step that stands at a place of a state."""
    kind, where, message, turn, claim, first, second, third = state[place : place + STEP_LENGTH]
    return kind, where, message, turn, claim, first, second, third


def write_step(draft: Draft, place: int, step: Step) -> None:
    """Put a step at a place of a draft."""
    draft[place : place + STEP_LENGTH] = bytes(step)
