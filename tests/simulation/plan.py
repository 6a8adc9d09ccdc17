"""What a schedule consists of, and how one is drawn from a seed: first which things exist at all, then how often."""

from __future__ import annotations

import random
from typing import Any, Final

from attrs import Factory, frozen

from tests.simulation.actors import MESSAGES, Plan
from tests.simulation.faults import FAULTS, MOMENTS, CrashPoint

VERBS: Final = (
    "tell",
    "ask",
    "tell_many",
    "ask_cancelled",
    "ask_short",
    "tell_expiring",
    "tell_keyed",
    "ask_keyed",
    "withdraw",
    "result",
    "passivate",
    "pause",
    "resume",
    "replay",
)
#: Steps that a node may die at; the others never come up in a schedule.
CRASH_KINDS: Final = (
    "Append",
    "Take",
    "Finish",
    "Interrupt",
    "Expire",
    "Withdraw",
    "ReadOutcome",
    "Replay",
    "Park",
    "Resume",
    "Sweep",
    "RelayRead",
    "RelayIn",
    "RelayAck",
    "ClaimPartition",
    "Release",
)
ENDS: Final = ("ok", "refuse", "fail", "hang", "crash")
RECOVERIES: Final = ("complete", "retry", "park", "fail", "hang", "crash")


@frozen
class Call:
    """One thing that a client does, `after_s` behind its last one."""

    verb: str
    entity: str = "0"
    message: str = "Put"
    plan: Plan = Factory(Plan)
    after_s: float = 0.0
    #: How long an ask waits, or a message may wait; which of a client's messages or letters is meant.
    number: float = 0.0


@frozen
class NodeLife:
    """One node: where it crashes, or after how many seconds it is asked to leave."""

    crash: CrashPoint | None
    leave_after_s: float


@frozen
class Schedule:
    """Everything that a run depends on."""

    seed: int
    backend: str
    clients: tuple[tuple[Call, ...], ...]
    #: The lives of the nodes, one after the other; the last one is followed by a healthy one.
    nodes: tuple[NodeLife, ...]
    faults: tuple[str, ...] = ()
    fault_rate: float = 0.0
    settings: dict[str, Any] = Factory(dict[str, Any])


def draw_schedule(seed: int, backend: str) -> Schedule:
    """A schedule of this seed; the same one each time."""
    rng = random.Random(seed)
    verbs = ["tell", "ask", *_some(rng, VERBS)]
    messages = _some(rng, tuple(MESSAGES)) or ["Put"]
    ends = ["ok", *_some(rng, ENDS)]
    entities = [str(number) for number in range(rng.choice((1, 2, 4, 6)))]
    may = {name: rng.random() < 0.4 for name in ("asks", "child", "sleep")}
    may["sends"] = rng.random() < 0.7
    clients = tuple(
        tuple(_draw_call(rng, verbs, messages, ends, entities, may) for _ in range(rng.randint(3, 14)))
        for _ in range(rng.randint(1, 5))
    )
    nodes = tuple(_draw_node(rng) for _ in range(rng.choice((0, 1, 1, 2, 4))))
    return Schedule(
        seed=seed,
        backend=backend,
        clients=clients,
        nodes=nodes,
        faults=tuple(_some(rng, FAULTS)),
        fault_rate=rng.choice((0.0, 0.02, 0.1, 0.3)),
        settings=_draw_settings(rng),
    )


def draw_rich_schedule(seed: int, backend: str, nodes: tuple[NodeLife, ...]) -> Schedule:
    """A schedule in fair weather in which everything that clients and handlers can do exists."""
    rng = random.Random(seed)
    may = dict.fromkeys(("sends", "asks", "child", "sleep"), True)
    ends = ["ok", "ok", "refuse", "fail", "hang"]
    clients = tuple(
        tuple(_draw_call(rng, list(VERBS), list(MESSAGES), ends, ["0", "1", "2"], may) for _ in range(14))
        for _ in range(5)
    )
    settings = {**_draw_settings(rng), "partitions": 7, "max_depth": 0, "max_activations": 0}
    return Schedule(seed=seed, backend=backend, clients=clients, nodes=nodes, settings=settings)


def _some(rng: random.Random, things: tuple[str, ...]) -> list[str]:
    return [thing for thing in things if rng.random() < 0.5]


def _draw_call(
    rng: random.Random,
    verbs: list[str],
    messages: list[str],
    ends: list[str],
    entities: list[str],
    may: dict[str, bool],
) -> Call:
    message = rng.choice(messages)
    is_query = message == "Count"
    end = rng.choice(ends) if rng.random() < 0.5 else "ok"
    sends = [rng.choice(entities) for _ in range(rng.randint(1, 3))]
    plan = Plan(
        end=end,
        # What kills a node or never ends does so only for a while, or nothing would ever be quiet again.
        well_from=rng.choice((2, 3)) if end in ("hang", "crash") else rng.choice((2, 3, 1_000)),
        sleep_s=rng.choice((-1, 0, 0.01, 0.3)) if may["sleep"] else rng.choice((-1, 0)),
        sends=sends if may["sends"] and not is_query and rng.random() < 0.5 else [],
        asks=rng.choice(entities) if may["asks"] and rng.random() < 0.3 else "",
        child=rng.choice(("", "", "ok", "fail")) if may["child"] else "",
        recovery=rng.choice(RECOVERIES),
    )
    return Call(
        verb=rng.choice(verbs),
        entity=rng.choice(entities),
        message=message,
        plan=plan,
        after_s=rng.choice((0, 0, 0, 0.001, 0.05, 0.5)),
        number=rng.random(),
    )


def _draw_node(rng: random.Random) -> NodeLife:
    if rng.random() < 0.25:
        return NodeLife(None, rng.choice((0.01, 0.2, 2.0)))
    kind = rng.choice(("", *CRASH_KINDS))
    # Steps that are frequent are counted further, so that nodes die at every age.
    count = rng.randint(1, 60) if kind in ("", "Sweep", "ClaimPartition") else rng.randint(1, 6)
    moment: Any = rng.choice(MOMENTS)
    return NodeLife(CrashPoint(kind, count, moment), rng.choice((5.0, 30.0)))


def _draw_settings(rng: random.Random) -> dict[str, Any]:
    return {
        "partitions": rng.choice((1, 2, 7, 7)),
        "max_attempts": rng.choice((1, 1, 2, 3)),
        "max_interruptions": rng.choice((1, 2, 3)),
        "on_dead": rng.choice(("continue", "continue", "park")),
        "max_run_length": rng.choice((1, 2, 5, 100)),
        "max_activations": rng.choice((0, 1, 2, 100)),
        "max_depth": rng.choice((0, 0, 0, 3)),
        "max_dead_letters": rng.choice((0, 0, 0, 3)),
        "idle_timeout_s": rng.choice((0.001, 0.1, 30.0)),
        "turn_timeout_s": rng.choice((0.5, 3.0)),
        "ask_timeout_s": rng.choice((1.0, 10.0)),
        "drain_timeout_s": rng.choice((0.05, 2.0)),
        "backoff_initial_s": rng.choice((0.0, 0.05, 1.0)),
        "backoff_max_s": 1.5,
        "max_batch_steps": rng.choice((1, 3, 256)),
        "tick_interval_s": rng.choice((0.05, 0.1)),
        "result_ttl_s": 7_200.0,
    }
