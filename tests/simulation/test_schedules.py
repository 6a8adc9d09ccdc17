"""Whole schedules: a node, its clients, bad weather, crashes, successors; and every promise checked all the time.

Each seed draws which faults exist, what clients do, what handlers do, and where nodes die. A red seed is replayed
with `python -m tests.simulation --seed N --backend trio --trace`. `AA_TESTS_SOAK_S=600` adds new seeds for
so many seconds.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.actors import MESSAGES, Plan
from tests.simulation.faults import FAULTS, MOMENTS, CrashPoint
from tests.simulation.plan import (
    CRASH_KINDS,
    ENDS,
    RECOVERIES,
    VERBS,
    Call,
    NodeLife,
    Schedule,
    draw_rich_schedule,
    draw_schedule,
)
from tests.simulation.world import World, run_schedule

SEEDS = 80
SEEDS_IN_A_TEST = 40
BACKENDS = ("trio", "asyncio")

#: What all the schedules of this process met, for `test_everything_happened`.
met: Counter[str] = Counter()


def replay_command(schedule: Schedule) -> str:
    return f"python -m tests.simulation --seed {schedule.seed} --backend {schedule.backend} --trace"


def run_one(schedule: Schedule, *, replayable: bool = True) -> World:
    world = run_schedule(schedule)
    weather = world.weather
    met.update({f"fault {kind}": count for kind, count in weather.fired.items()})
    met.update({f"crash {kind} {moment}": count for (kind, moment), count in weather.crashes.items()})
    met.update({f"end {life.end}": 1 for life in world.oracle.lives.values()})
    met.update({"schedules": 1, "steps": weather.steps, "starts": world.oracle.starts, "nodes": world.nodes})
    met.update({f"step {kind}": count for kind, count in weather.step_kinds.items()})
    met["interruptions"] += sum(life.interruptions for life in world.oracle.lives.values())
    met["recoveries"] += sum(life.recoveries.total() for life in world.oracle.lives.values())
    met["replays"] += sum(life.replay for life in world.oracle.lives.values())
    if world.oracle.broken:
        how = replay_command(schedule) if replayable else repr(schedule)
        text = "\n  ".join(world.oracle.broken[:10])
        raise AssertionError(f"{how}\n  {text}\n" + "\n".join(world.oracle.trace[-60:])) from world.error
    return world


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_IN_A_TEST))
def test_seeds(first: int, backend: str) -> None:
    for seed in range(first, first + SEEDS_IN_A_TEST):
        run_one(draw_schedule(seed, backend))


@pytest.mark.timeout(0)
@pytest.mark.skipif("AA_TESTS_SOAK_S" not in os.environ, reason="set AA_TESTS_SOAK_S to seconds")
def test_new_seeds() -> None:
    end_s = time.monotonic() + float(os.environ["AA_TESTS_SOAK_S"])
    seed = secrets.randbits(32)
    while time.monotonic() < end_s:
        run_one(draw_schedule(seed, BACKENDS[seed % 2]))
        seed += 1
    print(dict(met))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_gives_the_same_run(backend: str) -> None:
    for seed in range(12):
        first, second = (run_schedule(draw_schedule(seed, backend)).oracle.trace for _ in range(2))
        assert first == second, f"seed {seed}: a red run could not be replayed"


def test_seeds_give_different_schedules_on_trio() -> None:
    schedule = draw_schedule(3, "trio")
    traces = {tuple(run_schedule(evolve(schedule, seed=seed)).oracle.trace) for seed in range(5)}
    assert len(traces) > 1, "the scheduler of Trio is not shuffled"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", CRASH_KINDS)
def test_crash_at_each_kind_of_step(kind: str, moment: Any) -> None:
    crashed = 0
    for seed in range(4):
        # The first one leaves something behind to settle.
        first = NodeLife(CrashPoint("Finish", 3, "before"), 30.0)
        lives = (first, *(NodeLife(CrashPoint(kind, count, moment), 30.0) for count in (1, 2, 4)))
        schedule = draw_rich_schedule(seed, BACKENDS[seed % 2], lives)
        crashed += run_one(schedule, replayable=False).weather.crashes[kind, moment]
    assert crashed, "no node has met its end there"
    met[f"crash {kind}"] += crashed


# The same with Hypothesis, which makes a red schedule small.

plans = st.builds(
    Plan,
    end=st.sampled_from(ENDS),
    well_from=st.sampled_from((2, 3)),
    sleep_s=st.sampled_from((-1.0, 0.0, 0.1)),
    sends=st.lists(st.sampled_from(("0", "1", "2")), max_size=2),
    asks=st.sampled_from(("", "", "0", "1")),
    child=st.sampled_from(("", "", "ok", "fail")),
    recovery=st.sampled_from(RECOVERIES),
)
calls = st.builds(
    Call,
    verb=st.sampled_from(VERBS),
    entity=st.sampled_from(("0", "1", "2")),
    message=st.sampled_from(sorted(set(MESSAGES) - {"Count"})),
    plan=plans,
    after_s=st.sampled_from((0.0, 0.01, 0.3)),
    number=st.floats(0, 0.99),
)
crashes = st.builds(
    CrashPoint,
    kind=st.sampled_from(("", *CRASH_KINDS)),
    count=st.integers(1, 20),
    moment=st.sampled_from(MOMENTS),
)
schedules = st.builds(
    Schedule,
    seed=st.integers(0, 1 << 16),
    backend=st.sampled_from(BACKENDS),
    clients=st.lists(st.lists(calls, min_size=1, max_size=8).map(tuple), min_size=1, max_size=3).map(tuple),
    nodes=st.lists(
        st.builds(NodeLife, st.one_of(st.none(), crashes), st.sampled_from((0.1, 3.0))), max_size=3
    ).map(tuple),
    faults=st.lists(st.sampled_from(FAULTS), unique=True, max_size=4).map(tuple),
    fault_rate=st.sampled_from((0.0, 0.1, 0.3)),
    settings=st.fixed_dictionaries(
        {
            "partitions": st.sampled_from((1, 2)),
            "max_attempts": st.sampled_from((1, 3)),
            "max_interruptions": st.sampled_from((1, 3)),
            "on_dead": st.sampled_from(("continue", "park")),
            "max_run_length": st.sampled_from((1, 3, 100)),
            "max_activations": st.sampled_from((0, 2)),
            "max_dead_letters": st.sampled_from((0, 3)),
            "idle_timeout_s": st.sampled_from((0.001, 30.0)),
            "drain_timeout_s": st.sampled_from((0.05, 2.0)),
            "turn_timeout_s": st.just(2.0),
            "backoff_initial_s": st.sampled_from((0.0, 0.5)),
            "backoff_max_s": st.just(1.0),
            "tick_interval_s": st.just(0.1),
            "result_ttl_s": st.just(7_200.0),
        }
    ),
)


@pytest.mark.timeout(180)
@given(schedule=schedules)
def test_any_schedule(schedule: Schedule) -> None:
    run_one(schedule, replayable=False)


def test_everything_happened() -> None:
    """A fault that never fires proves nothing. Runs last, over what the tests above met."""
    if met["schedules"] < 2 * SEEDS:
        pytest.skip("only with the whole file")
    missing = [f"fault {kind}" for kind in (*FAULTS, "late_delivery") if met[f"fault {kind}"] < 20]
    ends = ("complete", "refuse", "fail", "interrupt", "withdraw", "expire")
    missing += [f"end {end}" for end in ends if met[f"end {end}"] < 20]
    missing += [what for what in ("Finish", "Interrupt", "RelayIn", "RelayAck") if met[f"step {what}"] < 200]
    missing += [f"crash {kind}" for kind in CRASH_KINDS if met[f"crash {kind}"] < 1]
    missing += [what for what in ("interruptions", "recoveries", "replays") if met[what] < 20]
    assert not missing, f"{missing}\n{met}"
