"""Two processes on one embedded store: whoever owns is killed, and the other one takes over and goes on.

One of them sends and the other does not, so that messages come from the owner itself and from outside.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from tests.chaos.checks import finish
from tests.chaos.processes import Template, Worker, replay_command, wait_until
from tests.chaos.worker import Job, read_events
from tests.chaos.workload import Plan, done

KILLS = max(int(os.environ.get("AA_TESTS_CHAOS_KILLS", "200")) // 20, 2)
SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
#: The survivor looks four times in a lease of two seconds whether the owner still lives.
TAKEOVER_LIMIT_S = 2.0
PROGRESS_LIMIT_S = 20.0


def _sent(plan: Plan) -> int:
    return sum(done(plan, client) for client in range(plan.clients))


def _owns(worker: Worker) -> bool:
    events = read_events(worker.job.plan)
    return any("owns_at_s" in event for event in events if event["pid"] == worker.pid)


def _started(worker: Worker) -> bool:
    return any(event["pid"] == worker.pid for event in read_events(worker.job.plan))


def _start(template: Template, plan: Plan, backend: str, *, sends: bool) -> Worker:
    # Its partitions may come from a process that is still about to give them up.
    job = Job(evolve(plan, backend=backend), sends=sends, joins=True, outages=True)
    worker = template.start(job)
    wait_until(lambda: _started(worker), 30, "the start of a worker")
    return worker


@pytest.mark.timeout(120 + 10 * KILLS)
def test_the_survivor_takes_over(template: Template, store: Path) -> None:
    moments = random.Random(SEED)
    print(f"\n{replay_command(f'{__file__}::test_the_survivor_takes_over', SEED, KILLS * 20)}")
    plan = Plan(f"embedded://{store}", f"chaos-{secrets.token_hex(4)}", store.parent, SEED)
    owner = _start(template, plan, "asyncio", sends=False)
    wait_until(lambda: _owns(owner), 10, "owning")
    other = _start(template, plan, "trio", sends=True)
    takeovers: list[float] = []
    for number in range(KILLS):
        before = _sent(plan)
        wait_until(lambda: _sent(plan) > before, PROGRESS_LIMIT_S, "progress")  # noqa: B023
        time.sleep(moments.uniform(0.1, 0.6))
        assert not _owns(other)
        killed_s = time.monotonic()
        owner.kill()
        wait_until(lambda: _owns(other), 10, f"the takeover\n{other.log()}")  # noqa: B023
        takeovers.append(time.monotonic() - killed_s)
        fallen, owner = owner, other
        backend = ("asyncio", "trio")[number % 2]
        other = _start(template, plan, backend, sends=fallen.job.sends)
    sender = owner if owner.job.sends else other
    (owner if sender is other else other).stop()
    sender.stop()
    verdict = anyio.run(lambda: finish(plan))
    heard = sum("heard" in event for event in read_events(plan))
    print(
        f"{KILLS} kills; takeovers took {min(takeovers):.2f} to {max(takeovers):.2f} s; "
        f"{heard} asks were told that they were interrupted; {verdict}"
    )
    assert max(takeovers) < TAKEOVER_LIMIT_S
    assert verdict.dead_letters
