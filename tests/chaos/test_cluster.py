"""A worker on a real cluster while slots move, primaries change places, and one is killed and comes back."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from atomic_actors.base._records import partition_of
from atomic_actors.journal.redis.cluster._slots import slot_of
from tests.chaos.checks import finish
from tests.chaos.processes import Template, replay_command, wait_until
from tests.chaos.worker import Job, read_events
from tests.chaos.workload import Plan, done
from tests.cluster_servers import Cluster, start_cluster
from tests.servers import Kind, Server

#: Of each kind; a long run has 20.
ROUNDS = max(int(os.environ.get("AA_TESTS_CHAOS_MIGRATIONS", "4")), 2)
SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
PARTITIONS = 16
#: From an event until every client has sent something more.
RECOVERY_LIMIT_S = 30.0

#: Where it does not matter, one of each.
VARIANTS: list[tuple[str, Kind]] = [("asyncio", "redis"), ("trio", "valkey")]


def _share(number: int, of: int) -> int:
    return ROUNDS // of + (number < ROUNDS % of)


def _plan(cluster: Cluster, directory: Path, backend: str) -> Plan:
    return Plan(
        cluster.url,
        f"chaos-{secrets.token_hex(4)}",
        directory,
        SEED,
        backend,
        partitions=PARTITIONS,
        settings={"allow_no_persistence": True},
    )


def _places(plan: Plan) -> list[int]:
    return [done(plan, client) for client in range(plan.clients)]


def _wait_for_more(plan: Plan, log: Callable[[], str]) -> float:
    """Return once every client has sent something more; how long that took."""
    began_s, before = time.monotonic(), _places(plan)
    wait_until(
        lambda: all(now > then for now, then in zip(_places(plan), before, strict=True)),
        RECOVERY_LIMIT_S,
        f"progress of every client\n{log()}",
    )
    return time.monotonic() - began_s


def _slot(plan: Plan, partition: int) -> int:
    return slot_of(f"{{{plan.namespace}:default:{partition}}}".encode())


def _end(plan: Plan, took_s: list[float], what: str) -> None:
    told = read_events(plan)[-1]["told"]
    verdict = anyio.run(lambda: finish(plan), backend=plan.backend)
    log = (plan.directory / "log").read_text()
    assert "lost history" not in log, log
    print(f"{len(took_s)} {what}, progress within {max(took_s, default=0):.2f} s; told {told}; {verdict}")


def _tell_replay(test: str) -> None:
    print(f"\n{replay_command(f'{__file__}::{test}', SEED, ROUNDS, 'AA_TESTS_CHAOS_MIGRATIONS')}")


def _take_over(cluster: Cluster, heir: Server) -> None:
    """Make a replica the primary. It gives up silently if it cannot catch up in time, and is asked again."""
    for _ in range(6):
        if heir.call("ROLE")[0] == "slave":
            heir.call("CLUSTER", "FAILOVER")
        try:
            wait_until(lambda: cluster.is_primary(heir), 6, "a new primary")
        except AssertionError:
            continue
        return
    raise AssertionError(f"{heir} did not become a primary; its log ends with\n{heir.log[-2000:]}")


def _is_replica(server: Server) -> bool:
    """Whether a server follows a primary, and has caught up."""
    role: list[Any] = server.call("ROLE")
    return role[0] == "slave" and role[3] == "connected"


@pytest.mark.timeout(180 + 20 * ROUNDS)
@pytest.mark.parametrize(
    ("backend", "kind", "at_once"),
    [("asyncio", "redis", False), ("trio", "valkey", False), ("asyncio", "valkey", True)],
)
def test_slots_move_under_load(
    backend: str, kind: Kind, at_once: bool, template: Template, tmp_path: Path
) -> None:
    number = 2 if at_once else backend == "trio"
    choices = random.Random(f"{SEED}/{backend}/{at_once}")
    _tell_replay("test_slots_move_under_load")
    with start_cluster(kind, tmp_path=tmp_path) as cluster:
        plan = _plan(cluster, tmp_path, backend)
        worker = template.start(Job(plan, outages=True))
        wait_until(lambda: min(_places(plan)) > 0, 30, "the first message")
        took_s: list[float] = []
        for _ in range(max(_share(number, 3), 2)):
            slot = _slot(plan, partition_of(f"account/{choices.choice(plan.names)}", PARTITIONS))
            source = cluster.primary_of(slot)
            target = choices.choice([server for server in cluster.servers if server is not source])
            if at_once:
                cluster.move_slot_at_once(slot, target)
            else:
                cluster.begin_move(slot, target)
                if not took_s:
                    # Longer than a lease, and than a call waits for a slot on its way.
                    cluster.move_keys(slot, source, target, 3)
                    time.sleep(3)
                pause_s = choices.choice((0, 0, 0.001, 0.01, 0.1))
                while cluster.move_keys(slot, source, target, choices.randint(1, 20)):
                    time.sleep(pause_s)
                cluster.end_move(slot, source, target)
            took_s.append(_wait_for_more(plan, worker.log))
        worker.stop()
        _end(plan, took_s, "slots moved")


@pytest.mark.timeout(180 + 20 * ROUNDS)
@pytest.mark.parametrize(("backend", "kind"), VARIANTS)
def test_replicas_take_over_under_load(backend: str, kind: Kind, template: Template, tmp_path: Path) -> None:
    """In good order: the replica has everything when it takes over."""
    _tell_replay("test_replicas_take_over_under_load")
    with start_cluster(kind, tmp_path=tmp_path, replicas=1) as cluster:
        plan = _plan(cluster, tmp_path, backend)
        worker = template.start(Job(plan, outages=True))
        wait_until(lambda: min(_places(plan)) > 0, 30, "the first message")
        took_s: list[float] = []
        for round_ in range(_share(backend == "trio", 2)):
            pair = cluster.servers[round_ % 3], cluster.servers[round_ % 3 + 3]
            heir = next(server for server in pair if not cluster.is_primary(server))
            wait_until(lambda: _is_replica(heir), 20, "a replica")  # noqa: B023
            _take_over(cluster, heir)
            took_s.append(_wait_for_more(plan, worker.log))
            other: Server = pair[0] if heir is pair[1] else pair[1]
            wait_until(lambda: _is_replica(other), 20, "a new replica")  # noqa: B023
        worker.stop()
        _end(plan, took_s, "replicas took over")


@pytest.mark.timeout(180 + 20 * ROUNDS)
@pytest.mark.parametrize(("backend", "kind"), VARIANTS)
def test_primaries_are_killed_and_come_back(
    backend: str, kind: Kind, template: Template, tmp_path: Path
) -> None:
    moments = random.Random(f"{SEED}/{backend}")
    _tell_replay("test_primaries_are_killed_and_come_back")
    with start_cluster(kind, tmp_path=tmp_path, appendonly="always") as cluster:
        plan = _plan(cluster, tmp_path, backend)
        worker = template.start(Job(plan, outages=True))
        wait_until(lambda: min(_places(plan)) > 0, 30, "the first message")
        took_s: list[float] = []
        for _ in range(_share(backend == "trio", 2)):
            victim = moments.choice(cluster.servers)
            victim.kill9()
            time.sleep(moments.uniform(0, 1.0))
            victim.start()
            cluster.wait_ok()
            took_s.append(_wait_for_more(plan, worker.log))
        worker.stop()
        _end(plan, took_s, "primaries killed")
