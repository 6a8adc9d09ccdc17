"""`kill -9` of a worker again and again, at random moments, most of them in the middle of a turn.

`AA_TESTS_CHAOS_KILLS` says how often in all (200), `AA_TESTS_CHAOS_SEED` begins the seeds (1): it fixes what is sent and when
a worker is killed, though not how far the worker has come by then.
"""

from __future__ import annotations

import os
import random
import secrets
import statistics
import time
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from atomic_actors.journal.embedded._server import files_of, read_record
from tests.chaos.checks import finish
from tests.chaos.processes import Template, read_store, replay_command, wait_until
from tests.chaos.worker import Job, read_events
from tests.chaos.workload import Plan

KILLS = int(os.environ.get("AA_TESTS_CHAOS_KILLS", "200"))
SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
#: The kills are done in so many parts, each with accounts and a store of its own.
PARTS = 4
#: From the fork of the next worker until it owns every partition of the one that was killed.
TAKEOVER_LIMIT_S = 2.0
#: Workers that are killed while they start, before they own anything.
EARLY = 0.15


@pytest.mark.timeout(120 + 5 * KILLS // PARTS)
@pytest.mark.parametrize("part", range(PARTS))
def test_kills(part: int, template: Template, store: Path) -> None:
    kills = KILLS // PARTS + (part < KILLS % PARTS)
    seed = SEED + part
    moments = random.Random(seed)
    print(f"\n{replay_command(f'{__file__}::test_kills[{part}]', SEED, KILLS)}")
    store.parent.mkdir(parents=True, exist_ok=True)
    plan = Plan(f"embedded://{store}", f"chaos-{secrets.token_hex(4)}", store.parent, seed)
    in_turn = in_flight = 0
    began_s = time.monotonic()
    for number in range(kills):
        backend = ("asyncio", "trio")[(number + part) % 2]
        early = number > 0 and moments.random() < EARLY
        worker = template.start(Job(evolve(plan, backend=backend)))
        ready = len(read_events(plan))
        if early:
            time.sleep(moments.uniform(0.0, 0.2))
        else:
            wait_until(lambda: len(read_events(plan)) > ready, 30, "the takeover")  # noqa: B023
            time.sleep(moments.uniform(0.0, 0.5))
        worker.kill()
        record = read_record(files_of(store))
        assert record is not None
        report = read_store(plan, f"unix://{record.socket_path}")
        assert report.is_balanced, report.problems
        in_turn += report.dispatched > 0
        in_flight += report.dispatched
    took_s = time.monotonic() - began_s

    verdict = anyio.run(lambda: finish(plan), backend=("asyncio", "trio")[part % 2])
    takeovers = [event["ready_s"] for event in read_events(plan) if "ready_s" in event]
    heard = sum("heard" in event for event in read_events(plan)) + verdict.told["interrupted"]
    print(
        f"{kills} kills in {took_s:.0f} s, {in_turn} of them in a turn ({in_flight} messages dispatched); "
        f"{len(takeovers)} takeovers, median {statistics.median(takeovers):.3f} s, longest {max(takeovers):.3f} s; "
        f"{heard} asks were told that they were interrupted; {verdict}"
    )
    assert max(takeovers) < TAKEOVER_LIMIT_S
    assert in_turn * 2 >= kills, "too few kills hit a running turn to prove anything"
    assert verdict.dead_letters > 0
    assert heard > 0 or kills < 20
