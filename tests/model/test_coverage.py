"""What the model is said to cover does happen in it: a search that finds nothing proves nothing otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from attrs import evolve

from atomic_actors.base._lifecycle import TRANSITIONS, Event, State
from tests.model.actions import Actions
from tests.model.configurations import CONFIGURATIONS, Configuration, Fault, named
from tests.model.protocol import Protocol, words
from tests.model.search import search
from tests.model.states import (
    ENDED_AS,
    IS_RECOVERY,
    LAST_IN,
    RUNS,
    STATE,
    STATES,
    STATUS,
    STREAM,
    VALID,
    Shape,
)

WALKS = 150
WALK_ACTIONS = 60
FAULT_SHARE = 0.1

#: The word of each fault's label; that of a race is the one of any claim.
FAULT_WORDS = {
    Fault.CRASH: "crashes",
    Fault.PAUSE: "stands still",
    Fault.CUT: "cuts",
    Fault.ANSWER_LOST: "answer lost",
    Fault.LATE_COPY: "copy is late",
    Fault.APPEND_AGAIN: "append arrives again",
    Fault.FAILOVER: "fails over",
}


def test_every_transition_and_every_fault_happens() -> None:
    moved: set[tuple[State, State]] = set()
    happened: set[str | int] = set()
    for configuration in CONFIGURATIONS:
        actions = Actions(evolve(configuration, faults=4))
        for seed in range(WALKS):
            draw, state = random.Random(seed), actions.shape.first()
            for _ in range(WALK_ACTIONS):
                faults, moves = actions.faults(state), actions.moves(state)
                # What was not seen yet goes first: some faults need two things at once.
                ways = [way for way in faults if way[0][0] not in happened]
                ways = ways or (faults if draw.random() < FAULT_SHARE else moves)
                if not ways:
                    break
                label, after = draw.choice(ways)
                happened.add(label[0])
                for block in actions.shape.messages:
                    moved.add((STATES[state[block + STATE]], STATES[after[block + STATE]]))
                state = after
    assert set(FAULT_WORDS.values()) <= happened
    # Deadlines are not modelled.
    modelled = {
        (before, after)
        for before, edges in TRANSITIONS.items()
        for event, after in edges.items()
        if event is not Event.EXPIRE
    }
    assert modelled <= moved
    # An owner's append takes in the same step.
    at_once = {(State.ABSENT, State.DISPATCHED)}
    assert {(before, after) for before, after in moved if before is not after} <= modelled | at_once


def reach(configuration: Configuration, is_there: Callable[[Shape, bytes], bool]) -> list[str]:
    """The shortest way to a state, in words."""
    protocol = Protocol(configuration)
    shape = protocol.actions.shape
    protocol.wrong = lambda state: "there" if is_there(shape, state) else None
    found = search(protocol, states_max=100_000).found
    assert found is not None
    return words(found.trace)


def two_handlers_run(shape: Shape, state: bytes) -> bool:
    return all(state[shape.activations[node][0] + STATUS] == RUNS for node in range(2))


def a_handler_recovers(shape: Shape, state: bytes) -> bool:
    return any(
        state[shape.activations[node][0] + STATUS] == RUNS and state[shape.activations[node][0] + IS_RECOVERY]
        for node in range(2)
    )


def a_stream_is_acknowledged(shape: Shape, state: bytes) -> bool:
    source, target = shape.partitions
    return state[target + LAST_IN] == 2 and not state[source + STREAM]


def test_two_handlers_run_when_the_lease_of_one_has_run_out() -> None:
    """After a pause, effects on the outside world can overlap: the invariant is about good leases only."""
    configuration = evolve(
        named("an effectful message and"), allowed=frozenset({Fault.PAUSE}), faults=1, releases=0
    )
    way = reach(configuration, two_handlers_run)
    assert "node A stands still" in way
    assert way[-1] == "node B begins"
    protocol = Protocol(configuration)
    shape = protocol.actions.shape
    protocol.wrong = lambda state: (
        "both are good"
        if two_handlers_run(shape, state) and all(state[shape.holdings[node][0] + VALID] for node in range(2))
        else None
    )
    report = search(protocol, states_max=100_000)
    assert report.complete
    assert report.found is None


def test_a_method_runs_after_an_interruption() -> None:
    configuration = named("three messages")
    one = evolve(configuration, messages=configuration.messages[1:2], allowed=frozenset({Fault.CRASH}))
    assert "node A sends interrupt" in reach(one, a_handler_recovers)


def test_a_stream_comes_to_its_end() -> None:
    way = reach(evolve(named("a stream"), faults=0), a_stream_is_acknowledged)
    assert way[-1] == "node A answered relay ack"


@pytest.mark.parametrize(
    ("ending", "begun"),
    [
        (State.COMPLETED, 1),
        # Its handler raises in both of its attempts.
        (State.FAILED, 2),
        # A take is enough: nobody can tell whether its handler had begun.
        (State.INTERRUPTED, 0),
        (State.WITHDRAWN, 0),
    ],
)
def test_every_end_is_reached(ending: State, begun: int) -> None:
    configuration = named("three messages")
    wanted = STATES.index(ending)
    way = reach(
        evolve(configuration, messages=configuration.messages[:2], allowed=frozenset({Fault.CRASH})),
        lambda shape, state: any(state[block + ENDED_AS] == wanted for block in shape.histories),
    )
    assert sum(action.endswith("begins") for action in way) == begun
