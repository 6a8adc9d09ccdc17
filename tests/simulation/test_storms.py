"""What must not run away: retries of a handler that always fails, and messages that kill every node."""

from __future__ import annotations

import pytest
from attrs import evolve

from tests.simulation.actors import Plan
from tests.simulation.plan import Call, NodeLife, Schedule
from tests.simulation.world import World, run_schedule

BACKENDS = ("trio", "asyncio")
SETTINGS = {
    "partitions": 3,
    "ask_timeout_s": 30.0,
    "turn_timeout_s": 3.0,
    "backoff_initial_s": 0.5,
    "backoff_max_s": 2.0,
    "tick_interval_s": 0.05,
    "result_ttl_s": 7_200.0,
}


def run(schedule: Schedule) -> World:
    world = run_schedule(schedule)
    assert not world.oracle.broken, "\n".join((*world.oracle.broken, *world.oracle.trace))
    return world


def schedule_of(backend: str, *calls: Call, **settings: object) -> Schedule:
    return Schedule(1, backend, (calls,), (), settings={**SETTINGS, **settings})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attempts", [1, 2, 5])
@pytest.mark.parametrize("message", ["Put", "Work", "Again", "Look"])
def test_a_retry_storm_is_bounded(backend: str, message: str, attempts: int) -> None:
    calls = [Call("tell", str(number % 3), message, Plan(end="fail")) for number in range(12)]
    world = run(schedule_of(backend, *calls, max_attempts=attempts))
    lives = world.oracle.lives.values()
    assert len(lives) == 12
    assert {life.end for life in lives} == {"fail"}
    assert {life.starts.total() for life in lives} == {attempts}
    # Each attempt costs its commit and, after a back-off, a take; sweeps come on top, by time only.
    kinds = world.weather.step_kinds
    assert kinds["Finish"] <= 12 * attempts
    assert kinds["Take"] <= 12 * attempts + 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_offs_grow_and_hold_only_their_entity(backend: str) -> None:
    calls = (
        Call("tell", "0", "Work", Plan(end="fail", well_from=4)),
        Call("tell", "0", "Work", Plan()),
        Call("tell", "1", "Work", Plan()),
    )
    world = run(schedule_of(backend, *calls, max_attempts=5, backoff_jitter=0.0))
    order = [line for line in world.oracle.trace if line.startswith("complete")]
    assert order == ["complete worker/1 c0.2", "complete worker/0 c0.0", "complete worker/0 c0.1"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("message", ["Put", "Work", "Again", "Look"])
def test_poison_dies(backend: str, message: str, limit: int) -> None:
    """A message that kills each node that runs it is dead after `max_interruptions`, and the entity goes on."""
    poison = Call("tell", "0", message, Plan(end="crash", recovery="crash"))
    world = run(schedule_of(backend, poison, max_interruptions=limit))
    (life,) = world.oracle.lives.values()
    assert life.end == "interrupt"
    # One run of the method that dies too is final; what is dead-lettered at once runs once.
    runs = {"Put": limit, "Again": limit, "Work": 1, "Look": min(limit, 2)}[message]
    assert life.starts.total() + life.recoveries.total() == runs
    assert world.nodes == runs + 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_poison_in_a_run_takes_no_neighbours_along(backend: str, limit: int) -> None:
    """The members of a run go on one by one after the crash, and only the poisonous one dies."""
    well, poison = Plan(), Plan(end="crash")
    slow = Call("tell", "0", "Put", Plan(sleep_s=0.5))
    calls = (slow, *(Call("tell", "0", "Put", poison if number == 3 else well) for number in range(8)))
    world = run(schedule_of(backend, *calls, max_interruptions=limit))
    ends = {life.tag: life.end for life in world.oracle.lives.values()}
    dead = [tag for tag, end in ends.items() if end == "interrupt"]
    assert len(dead) == 1
    assert sorted(set(ends.values())) == ["complete", "interrupt"]
    # The run that dies first may count or not; then the poison is alone, and a last node cleans up.
    assert world.nodes <= limit + 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_asker_of_poison_hears_of_it(backend: str) -> None:
    """An asker whose message was interrupted by leaving, not by a crash, is told so."""
    ask = Call("ask", "0", "Work", Plan(end="hang"))
    schedule = schedule_of(backend, ask, turn_timeout_s=0.0, drain_timeout_s=0.1)
    world = run(evolve(schedule, nodes=(NodeLife(None, 1.0),)))
    (answer,) = world.answers
    assert type(answer.error).__name__ == "Interrupted"
