"""Several workers on one store: they are killed, paused and cut off, and the store is; the books balance.

`AA_TESTS_CHAOS_CLUSTER_KILLS` says how often a worker is killed in all (10), and how often other things happen in
proportion to it; `AA_TESTS_CHAOS_SEED` begins the seeds (1).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import cast

import anyio
import pytest

from tests.chaos.checks import Verdict, finish
from tests.chaos.cluster import Cluster, new_plan
from tests.chaos.network import Weather, run_network
from tests.chaos.processes import Template, wait_until
from tests.servers import Server, start_server

KILLS = int(os.environ.get("AA_TESTS_CHAOS_CLUSTER_KILLS", "10"))
SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
#: How often everything else happens in one test.
ROUNDS = max(KILLS // 10, 1)
LEASE_TTL_S = 2.0


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    with start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="always") as server:
        yield server


def judge(cluster: Cluster, backend: str = "asyncio") -> Verdict:
    verdict = anyio.run(lambda: finish(cluster.plan, paused=cluster.paused), backend=backend)
    print(verdict)
    return verdict


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("same_host", [True, False], ids=["same-host", "strangers"])
def test_kills(same_host: bool, server: Server, template: Template, namespace: str, tmp_path: Path) -> None:
    kills = KILLS // 2 + (KILLS % 2 and same_host)
    moments = random.Random(f"{SEED}/{same_host}")
    plan = new_plan(server.url, namespace, tmp_path, SEED, same_host_takeover=same_host)
    cluster = Cluster(template, plan, 4)
    cluster.start()
    cluster.wait_progress()
    took: list[float] = []
    in_turn = 0
    for _ in range(kills):
        time.sleep(moments.uniform(0.0, 0.4))
        owners = [number for number in range(cluster.size) if cluster.owned(number)]
        number = moments.choice(owners if owners and moments.random() < 0.7 else range(cluster.size))
        cluster.kill(number)
        in_turn += bool(cluster.running(number))
        others = [other for other in range(cluster.size) if other != number]
        if moments.random() < 0.5:
            took.append(cluster.wait_progress(*others))
        cluster.replace(number)
    took.append(cluster.wait_progress())
    told = cluster.stop()
    print(f"\n{kills} kills, {in_turn} of them in an effectful turn; on again after {took}; told {told}")
    judge(cluster)


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_a_rolling_restart(server: Server, template: Template, namespace: str, tmp_path: Path) -> None:
    """Each worker leaves in good order, under load, and another one comes: no message fails."""
    plan = new_plan(server.url, namespace, tmp_path, SEED)
    cluster = Cluster(template, plan, outages=False)
    cluster.start()
    cluster.wait_progress()
    told: Counter[str] = Counter()
    for number in list(range(cluster.size)) * ROUNDS:
        told += cluster.leave(number)
        cluster.replace(number)
        cluster.wait_progress()
    told += cluster.stop()
    print(f"\ntold {told}")
    assert set(told) <= {"replied", "declined"}
    verdict = judge(cluster)
    assert verdict.again == verdict.dead_letters == 0, cluster.log()


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_a_paused_worker(server: Server, template: Template, namespace: str, tmp_path: Path) -> None:
    """It wakes up as a zombie: its turns are cancelled, and nothing of them is committed."""
    plan = new_plan(server.url, namespace, tmp_path, SEED, pace_s=0.2, same_host_takeover=False)
    cluster = Cluster(template, plan)
    cluster.start()
    cluster.wait_progress()
    moments = random.Random(SEED)
    for _ in range(ROUNDS):
        # One that owns something; before, it has to have got it.
        wait_until(lambda: any(cluster.owned(number) for number in range(cluster.size)), 20, "an owner")
        owners = [number for number in range(cluster.size) if cluster.owned(number)]
        number = moments.choice(owners)
        cluster.pause(number)
        paused_s = time.monotonic()
        zombies = cluster.running(number)
        others = [other for other in range(cluster.size) if other != number]
        took_s = cluster.wait_progress(*others)
        time.sleep(max(0.0, paused_s + 2 * LEASE_TTL_S - time.monotonic()))
        cluster.resume(number)
        wait_until(lambda: not set(zombies) & set(cluster.running(number)), 10, "the end of the zombies")  # noqa: B023
        print(f"\npaused in {len(zombies)} turns; the others went on after {took_s:.1f} s")
        cluster.wait_progress()
    told = cluster.stop()
    print(f"told {told}")
    verdict = judge(cluster)
    assert verdict.dead_letters >= 1
    assert not verdict.zombies["unended"]


@pytest.mark.timeout(180 + 30 * ROUNDS)
@pytest.mark.parametrize("weather", ["cut", "silent", "slow"])
def test_one_is_cut_off(
    weather: str, server: Server, template: Template, namespace: str, tmp_path: Path
) -> None:
    """It notices, its partitions go to others, and it comes back by itself."""
    plan = new_plan(server.url, namespace, tmp_path, SEED, same_host_takeover=False)
    with run_network(server.port) as network:
        cluster = Cluster(template, plan, urls={0: network.url})
        cluster.start()
        cluster.wait_progress()
        for lost in range(1, ROUNDS + 1):
            before = network.opened
            network.change(cast("Weather", weather))
            began_s = time.monotonic()
            wait_until(lambda: len(cluster.heard(0, "store-lost")) == lost, 20, "noticing")  # noqa: B023
            noticed_s = time.monotonic() - began_s
            wait_until(lambda: cluster.owned(0) == 0, 10, "the end of its partitions")
            took_s = cluster.wait_progress(1, 2)
            tried = (network.opened - before) / (time.monotonic() - began_s)
            network.change("fair")
            wait_until(lambda: len(cluster.heard(0, "store-back")) == lost, 20, "coming back")  # noqa: B023
            wait_until(lambda: cluster.owned(0) > 0, 20, "getting its share again")
            cluster.wait_progress()
            print(
                f"\n{weather}: noticed after {noticed_s:.1f} s, the others went on after {took_s:.1f} s more; "
                f"{tried:.1f} connections a second"
            )
            assert tried < 20
        told = cluster.stop()
    print(f"{network.felt}; told {told}")
    assert weather == "cut" or network.felt
    judge(cluster)


@pytest.mark.timeout(120)
def test_calls_that_arrive_twice(server: Server, template: Template, namespace: str, tmp_path: Path) -> None:
    """And connections whose other end is gone."""
    plan = new_plan(server.url, namespace, tmp_path, SEED)
    with run_network(server.port) as network:
        cluster = Cluster(template, plan, urls={0: network.url})
        cluster.start()
        cluster.wait_progress()
        network.change("doubled")
        cluster.wait_progress()
        network.change("fair")
        network.forget_connections()
        took_s = cluster.wait_progress()
        assert not cluster.heard(0, "store-lost")
        told = cluster.stop()
    print(f"\n{network.felt}; on again after {took_s:.1f} s; told {told}")
    assert network.felt["doubled"] > 10
    assert network.felt["lost"]
    judge(cluster)


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_the_store_restarts(server: Server, template: Template, namespace: str, tmp_path: Path) -> None:
    plan = new_plan(server.url, namespace, tmp_path, SEED)
    cluster = Cluster(template, plan)
    cluster.start()
    cluster.wait_progress()
    moments = random.Random(SEED)
    for _ in range(ROUNDS):
        server.kill9()
        server.start()
        print(f"\non again {cluster.wait_progress():.1f} s after a restart", end="; ")
        server.kill9()
        time.sleep(moments.uniform(0.5, 3.0))
        server.start()
        print(f"{cluster.wait_progress():.1f} s after a pause", end="; ")
        server.call("CLIENT", "KILL", "TYPE", "normal")
        print(f"{cluster.wait_progress():.1f} s after losing all connections")
    print(f"told {cluster.stop()}")
    judge(cluster)


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_hints_and_the_library_are_lost(
    server: Server, template: Template, namespace: str, tmp_path: Path
) -> None:
    """Nobody notices but by the clock: no message fails, none is even unsure."""
    plan = new_plan(server.url, namespace, tmp_path, SEED)
    cluster = Cluster(template, plan, outages=False)
    cluster.start()
    cluster.wait_progress()
    for _ in range(ROUNDS):
        for _ in range(3):
            assert server.call("CLIENT", "KILL", "TYPE", "pubsub") > 0
            cluster.wait_progress()
        server.call("FUNCTION", "FLUSH")
        cluster.wait_progress()
    told = cluster.stop()
    print(f"\ntold {told}")
    assert set(told) <= {"replied", "declined"}
    verdict = judge(cluster)
    assert verdict.again == verdict.dead_letters == 0, cluster.log()
