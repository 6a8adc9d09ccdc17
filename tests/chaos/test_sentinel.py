"""`kill -9` of the primary under load, with sentinels that appoint another: `AA_TESTS_CHAOS_FAILOVERS` says how often (2).

With `replication="acknowledged"`, a failover loses nothing that anybody was told of: the books are balanced, the
order is kept, and nothing that has other effects ran twice.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.chaos.checks import finish
from tests.chaos.processes import Template, wait_until
from tests.chaos.worker import Job, read_events
from tests.chaos.workload import Plan, done
from tests.sentinel_servers import start_watched
from tests.servers import Kind

pytestmark = pytest.mark.redis

FAILOVERS = max(int(os.environ.get("AA_TESTS_CHAOS_FAILOVERS", "2")), 1)
SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
#: From the kill until every client has sent something more: noticing, electing, leases that end, settling.
RECOVERY_LIMIT_S = 40.0


def _places(plan: Plan) -> list[int]:
    return [done(plan, client) for client in range(plan.clients)]


@pytest.mark.timeout(180 + 60 * FAILOVERS)
@pytest.mark.parametrize(("kind", "backend"), [("valkey", "asyncio"), ("redis", "trio")])
def test_primary_kills(kind: Kind, backend: str, template: Template, tmp_path: Path) -> None:
    moments = random.Random(f"{SEED}/{kind}")
    print(
        f"\nAA_TESTS_CHAOS_SEED={SEED} AA_TESTS_CHAOS_FAILOVERS={FAILOVERS} pytest -s '{__file__}::test_primary_kills[{kind}-{backend}]'"
    )
    recoveries: list[float] = []
    # Two replicas: with one of them gone, the other still acknowledges.
    with start_watched(kind, tmp_path=tmp_path, replicas=2) as watched:
        # A handler's own asks would be refused after a few failed calls, and their turns fail: rightly, but
        # what is looked for here is what the store loses.
        settings = {"replication": "acknowledged", "store_failure_threshold": 10_000, "ask_timeout_s": 60.0}
        plan = Plan(watched.url, f"chaos-{secrets.token_hex(4)}", tmp_path, SEED, backend, settings=settings)
        worker = template.start(Job(plan, outages=True))
        wait_until(lambda: min(_places(plan)) > 0, 30, "the first message")
        for _ in range(FAILOVERS):
            watched.wait_ready()
            time.sleep(moments.uniform(0.05, 0.6))
            fallen = watched.primary
            fallen.kill9()
            killed_s, before = time.monotonic(), _places(plan)
            watched.wait_other_primary(fallen.port)
            wait_until(
                lambda: all(now > then for now, then in zip(_places(plan), before, strict=True)),  # noqa: B023
                RECOVERY_LIMIT_S,
                f"a recovery\n{worker.log()}",
            )
            recoveries.append(time.monotonic() - killed_s)
            fallen.start()  # Sentinel makes it a replica
        watched.wait_ready()
        worker.stop()
        told = read_events(plan)[-1]["told"]
        verdict = anyio.run(partial(finish, plan), backend=backend)
    print(f"{FAILOVERS} failovers, recovered within {max(recoveries):.2f} s; told {told}; {verdict}")
    assert "history-lost" not in worker.log()
    assert "has lost history" not in (tmp_path / "log").read_text(errors="replace")
    assert len(recoveries) == FAILOVERS
