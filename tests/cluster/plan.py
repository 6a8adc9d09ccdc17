"""What a seed decides before the run: the cluster, its settings, which faults exist, and how much of them."""

from __future__ import annotations

import random
from typing import Any

from attrs import frozen

from atomic_actors.testing.simulation._faults import CALL_FAULTS, FRAME_FAULTS, NODE_FAULTS
from tests.cluster.actors import Plan

ENDS = ("ok", "ok", "ok", "refuse", "refuse", "fail", "hang")
RECOVERIES = ("complete", "retry", "park", "fail")
LEASE_TTL_S = 1.0


@frozen
class Swarm:
    """One seed's cluster and weather."""

    seed: int
    nodes: int
    settings: dict[str, Any]
    kinds: tuple[str, ...]
    call_rate: float
    frame_rate: float
    #: About how long the driver waits between two faults of nodes, in seconds.
    node_fault_every_s: float
    clients: int
    workers: tuple[str, ...]
    counters: tuple[str, ...]
    verbs: tuple[str, ...]
    messages: tuple[str, ...]
    #: How long a client rests between two calls, at most.
    rest_s: float
    rich_plans: bool
    #: The store also goes back in time now and then.
    loses_history: bool


VERBS = (
    "tell",
    "ask",
    "count",
    "tell_many",
    "ask_short",
    "ask_cancelled",
    "tell_keyed",
    "tell_expiring",
    "withdraw",
    "result",
    "passivate",
    "pause_entity",
    "replay",
)


def draw_swarm(seed: int) -> Swarm:
    """The swarm of a seed; the same one each time."""
    rng = random.Random(seed)
    kinds = [kind for kind in (*CALL_FAULTS, *FRAME_FAULTS, *NODE_FAULTS) if rng.random() < 0.5]
    kinds += rng.sample(NODE_FAULTS, 2)
    return Swarm(
        seed=seed,
        nodes=rng.choice((3, 3, 4, 5)),
        settings=draw_settings(rng),
        kinds=tuple(dict.fromkeys(kinds)),
        call_rate=rng.choice((0.0, 0.01, 0.04, 0.1)),
        frame_rate=rng.choice((0.0, 0.05, 0.3)),
        node_fault_every_s=rng.choice((0.2, 0.4, 0.8)),
        clients=rng.choice((12, 20, 32)),
        workers=tuple(str(number) for number in range(rng.choice((4, 12, 24)))),
        counters=tuple(str(number) for number in range(rng.choice((1, 3)))),
        verbs=("tell", "ask", "count", *(verb for verb in VERBS if rng.random() < 0.4)),
        messages=tuple(rng.sample(("Put", "Work", "Again", "Look"), rng.randint(1, 4))),
        rest_s=rng.choice((0.03, 0.06, 0.12)),
        rich_plans=rng.random() < 0.7,
        loses_history=rng.random() < 0.1,
    )


def draw_settings(rng: random.Random) -> dict[str, Any]:
    """The settings of every node."""
    return {
        "partitions": rng.choice((3, 4, 7)),
        "lease_ttl_s": LEASE_TTL_S,
        "lease_renew_interval_s": 0.2,
        "lease_margin_s": 0.25,
        "loop_stall_limit_s": 0.5,
        "store_timeout_s": 0.7,
        "store_ping_interval_s": 0.5,
        "accept_timeout_s": 5.0,
        "max_attempts": rng.choice((1, 1, 2, 3)),
        "max_interruptions": rng.choice((1, 2, 3)),
        "on_dead": rng.choice(("continue", "continue", "park")),
        "max_run_length": rng.choice((1, 2, 5, 100)),
        "max_activations": rng.choice((0, 2, 100)),
        "max_depth": rng.choice((0, 0, 4)),
        "max_dead_letters": rng.choice((0, 0, 40)),
        "idle_timeout_s": rng.choice((0.05, 0.5, 30.0)),
        "turn_timeout_s": rng.choice((0.1, 0.4)),
        "ask_timeout_s": rng.choice((0.3, 1.0)),
        "drain_timeout_s": rng.choice((0.1, 1.0)),
        "backoff_initial_s": rng.choice((0.0, 0.02, 0.2)),
        "backoff_max_s": 0.4,
        "max_batch_steps": rng.choice((1, 3, 256)),
        "same_host_takeover": rng.random() < 0.5,
        "tick_interval_s": 0.1,
        "result_ttl_s": 7_200.0,
    }


def draw_plan(rng: random.Random, swarm: Swarm) -> Plan:
    """What one handler does."""
    if not swarm.rich_plans or rng.random() < 0.5:
        return Plan(sleep_s=rng.choice((-1, 0)))
    end = rng.choice(ENDS)
    return Plan(
        end=end,
        well_from=rng.choice((2, 3)) if end == "hang" else rng.choice((2, 3, 1_000)),
        sleep_s=rng.choice((-1, 0, 0.01, 0.2)),
        sends=[rng.choice(swarm.workers) for _ in range(rng.choice((0, 0, 1, 2)))],
        asks=rng.choice(swarm.counters) if rng.random() < 0.2 else "",
        child=rng.choice(("", "", "", "ok", "fail")),
        recovery=rng.choice(RECOVERIES),
    )
