"""What must hold in every state, each as a function that names what is wrong, or gives None."""

from __future__ import annotations

from collections.abc import Callable

from atomic_actors.base._lifecycle import State
from tests.model.actions import ACCEPTED, Actions
from tests.model.states import (
    APPLIED,
    ATTEMPTS,
    CLAIM,
    DISPATCHED,
    ENDED_AS,
    ENQUEUED,
    FINAL,
    HANDLER_TURN,
    HELD,
    HELD_EPOCH,
    LOG,
    MESSAGE,
    NODES,
    RANK,
    RUNNING,
    RUNNING_CLAIM,
    RUNS,
    SENT,
    STARTS,
    STATE,
    STATES,
    STATUS,
    STREAM,
    TURN,
    VALID,
    VERSION,
    Alarm,
)

__all__ = ("Invariants",)

Invariant = Callable[[bytes], str | None]
COMPLETED = STATES.index(State.COMPLETED)


class Invariants:
    """The invariants of one configuration.

    Args:
        actions: of the configuration.
    """

    def __init__(self, actions: Actions) -> None:
        self._shape = shape = actions.shape
        specs = actions.configuration.messages
        self._specs = specs
        self._home = actions.configuration.entity_partitions
        #: For each message: where its record, its history and its entity begin.
        self._places = [
            (shape.messages[message], shape.histories[message], shape.entities[spec.entity])
            for message, spec in enumerate(specs)
        ]
        self._once_only = [
            (message, shape.histories[message] + STARTS)
            for message, spec in enumerate(specs)
            if spec.max_attempts == 1 and spec.stamp[:2] in ("ed", "em")
        ]
        self._children = [
            (spec.sends, message) for message, spec in enumerate(specs) if spec.sends is not None
        ]
        self._members = [
            [message for message, spec in enumerate(specs) if spec.entity == entity]
            for entity in range(shape.entity_count)
        ]
        self._of_nodes: tuple[Invariant, ...] = (
            self.no_alarm,
            self.one_handler,
            self.handler_has_its_dispatch,
        )
        self._of_the_store: tuple[Invariant, ...] = (
            self.strictly_once,
            self.one_start_for_each_attempt,
            self.one_end,
            self.nothing_is_lost,
            self.chain_is_whole,
            self.log_is_in_order,
            *((self.outbox_is_carried_once,) if self._children else ()),
        )
        #: The beginnings of states, up to the nodes' memory, in which what concerns the store holds: many
        #: states have the same.
        self._sound: set[bytes] = set()

    def check(self, state: bytes) -> str | None:
        """The first invariant that does not hold."""
        for invariant in self._of_nodes:
            broken = invariant(state)
            if broken is not None:
                return broken
        beginning = state[: self._shape.begun_turns[0]]
        if beginning in self._sound:
            return None
        for invariant in self._of_the_store:
            broken = invariant(state)
            if broken is not None:
                return broken
        self._sound.add(beginning)
        return None

    def no_alarm(self, state: bytes) -> str | None:
        """No step did what no step may do."""
        alarms = state[self._shape.alarm]
        if not alarms:
            return None
        return ", ".join(alarm.name.lower().replace("_", " ") for alarm in Alarm(alarms) if alarm.name)

    def no_stale_write(self, state: bytes) -> str | None:
        """No node that is not the owner has written: one of the alarms alone."""
        return "stale write" if state[self._shape.alarm] & Alarm.STALE_WRITE else None

    def one_handler(self, state: bytes) -> str | None:
        """At most one handler of an entity runs under a lease that has not run out."""
        for entity, partition in enumerate(self._home):
            running = 0
            for node in range(NODES):
                if (
                    state[self._shape.activations[node][entity] + STATUS] == RUNS
                    and state[self._shape.holdings[node][partition] + VALID]
                ):
                    running += 1
            if running > 1:
                return f"two handlers of entity {entity} run, and both leases are good"
        return None

    def strictly_once(self, state: bytes) -> str | None:
        """A message that may not be run again never starts twice."""
        for message, starts in self._once_only:
            if state[starts] > 1:
                return f"message {message} started twice"
        return None

    def one_start_for_each_attempt(self, state: bytes) -> str | None:
        """No handler starts without an attempt that the store has counted."""
        for message, (record, history, _) in enumerate(self._places):
            if state[history + STARTS] > state[record + ATTEMPTS]:
                return f"message {message} started more often than it was taken"
        return None

    def one_end(self, state: bytes) -> str | None:
        """What is final stays as it is."""
        for message, (record, history, _) in enumerate(self._places):
            now = state[record + STATE]
            if state[history + ENDED_AS] != (now if now in FINAL else 0):
                return f"message {message} had ended and is {STATES[now].value}"
        return None

    def nothing_is_lost(self, state: bytes) -> str | None:
        """What a client was told to be accepted is there, and what is not final waits or runs, once."""
        for message, (record, history, entity) in enumerate(self._places):
            now = state[record + STATE]
            if state[history + SENT] == ACCEPTED and not now:
                return f"message {message} was accepted and is gone"
            waits = state[entity + LOG : entity + LOG + self._shape.message_count].count(message + 1)
            if waits != (now == ENQUEUED):
                return f"message {message} is {STATES[now].value} and stands {waits} times in the log"
            if (now == DISPATCHED) != (state[entity + RUNNING] == message + 1):
                return f"message {message} is {STATES[now].value}, and another turn is out"
        return None

    def chain_is_whole(self, state: bytes) -> str | None:
        """An entity's state holds every turn that was committed, once, and nothing else."""
        for entity, block in enumerate(self._shape.entities):
            applied, completed = state[block + APPLIED], 0
            for message in self._members[entity]:
                if state[self._shape.histories[message] + ENDED_AS] == COMPLETED:
                    completed |= 1 << message
            if applied & ~completed or applied.bit_count() != state[block + VERSION]:
                return f"the state of entity {entity} and its version are of different turns"
        return None

    def log_is_in_order(self, state: bytes) -> str | None:
        """What runs was accepted before what waits, and what waits stands in the order of acceptance."""
        for entity, block in enumerate(self._shape.entities):
            last = 0
            for entry in (
                state[block + RUNNING],
                *state[block + LOG : block + LOG + self._shape.message_count],
            ):
                if entry:
                    rank = state[self._shape.histories[entry - 1] + RANK]
                    if rank < last:
                        return f"the log of entity {entity} is out of order"
                    last = rank
        return None

    def handler_has_its_dispatch(self, state: bytes) -> str | None:
        """What runs under the current claim and a good lease is what the store has dispatched."""
        for entity, partition in enumerate(self._home):
            block = self._shape.entities[entity]
            lease = state[self._shape.partitions[partition] + CLAIM]
            for node in range(NODES):
                activation = self._shape.activations[node][entity]
                holding = self._shape.holdings[node][partition]
                if (
                    state[activation + STATUS] == RUNS
                    and state[holding + VALID]
                    and (
                        state[holding + HELD],
                        state[activation + MESSAGE],
                        state[activation + HANDLER_TURN],
                        state[holding + HELD],
                    )
                    != (lease, state[block + RUNNING], state[block + TURN], state[block + RUNNING_CLAIM])
                ):
                    return f"a handler of entity {entity} runs without its dispatch"
        return None

    def outbox_is_carried_once(self, state: bytes) -> str | None:
        """What a committed turn sent is on its way or accepted, and the stream is taken from its beginning."""
        for child, parent in self._children:
            _, _, entity = self._places[parent]
            was_sent = bool(state[entity + APPLIED] & 1 << parent)
            was_accepted = bool(state[self._places[child][1] + RANK])
            stream = self._shape.partitions[self._home[self._specs[parent].entity]] + STREAM
            on_its_way = child + 1 in state[stream : stream + self._shape.stream_places]
            if was_sent != (was_accepted or on_its_way):
                return f"message {child} of the outbox is {'lost' if was_sent else 'there without its turn'}"
        for block in self._shape.partitions:
            entries = state[block + STREAM : block + STREAM + self._shape.stream_places]
            taken = [bool(state[self._places[entry - 1][1] + RANK]) for entry in entries if entry]
            if taken != sorted(taken, reverse=True):
                return "a stream was not taken from its beginning"
        return None

    def unfinished(self, state: bytes) -> str | None:
        """What still has to happen; asked in a state where nothing can."""
        for message, (record, _, _) in enumerate(self._places):
            if state[record + STATE] in (ENQUEUED, DISPATCHED):
                return f"nothing moves, and message {message} is {STATES[state[record + STATE]].value}"
        if any(state[block + STREAM] for block in self._shape.partitions):
            return "nothing moves, and a stream is not empty"
        return None

    def one_owner_an_epoch(self, state: bytes) -> str | None:
        """No two nodes hold the same epoch of a partition. Asynchronous failover breaks it."""
        first, second = self._shape.holdings
        for partition, (one, other) in enumerate(zip(first, second, strict=True)):
            if (
                state[one + HELD]
                and state[other + HELD]
                and state[one + HELD_EPOCH] == state[other + HELD_EPOCH]
            ):
                return f"two nodes hold epoch {state[one + HELD_EPOCH]} of partition {partition}"
        return None
