"""`kill -9` of the store under a worker that nobody restarts."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, AtomicActorsError, Command, Config, StoreUnavailable, handler
from atomic_actors.journal.embedded._server import files_of, read_record
from tests.chaos.checks import finish
from tests.chaos.processes import Template, replay_command, wait_until
from tests.chaos.worker import Job, read_events
from tests.chaos.workload import Plan, done
from tests.servers import Server, start_server

KILLS = max(int(os.environ.get("AA_TESTS_CHAOS_KILLS", "200")) // 10, 1)
SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
#: From the kill until every client has sent something more.
RECOVERY_LIMIT_S = 20.0


def _pid(store: Path) -> int:
    record = read_record(files_of(store))
    return record.pid if record is not None else 0


def _places(plan: Plan) -> list[int]:
    return [done(plan, client) for client in range(plan.clients)]


def _kill_server(plan: Plan, store: Path, before: int) -> int:
    wait_until(lambda: _pid(store) not in (0, before), 20, "a new server")
    pid = _pid(store)
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_embedded_server_kills(backend: str, template: Template, store: Path) -> None:
    kills = KILLS // 2 + (KILLS % 2 and backend == "asyncio")
    moments = random.Random(f"{SEED}/{backend}")
    print(f"\n{replay_command(f'{__file__}::test_embedded_server_kills[{backend}]', SEED, KILLS * 10)}")
    plan = Plan(f"embedded://{store}", f"chaos-{secrets.token_hex(4)}", store.parent, SEED, backend)
    worker = template.start(Job(plan, outages=True))
    recoveries: list[float] = []
    pid = 0
    wait_until(lambda: min(_places(plan)) > 0, 30, "the first message")
    for _ in range(kills):
        time.sleep(moments.uniform(0.05, 0.6))
        pid = _kill_server(plan, store, pid)
        killed_s, before = time.monotonic(), _places(plan)
        wait_until(
            lambda: all(now > then for now, then in zip(_places(plan), before, strict=True)),  # noqa: B023
            RECOVERY_LIMIT_S,
            f"a recovery\n{worker.log()}",
        )
        recoveries.append(time.monotonic() - killed_s)
    worker.stop()
    told = read_events(plan)[-1]["told"]
    verdict = anyio.run(lambda: finish(plan), backend=backend)
    print(f"{kills} kills, recovered within {max(recoveries, default=0):.2f} s; told {told}; {verdict}")
    assert len(recoveries) == kills


# --- one long outage, seen from inside -------------------------------------------------------------------


@define
class Count:
    done: int = 0


@frozen
class Wait(Command[int]):
    pass


@define(eq=False)
class Gate:
    entered: anyio.Event
    leave: anyio.Event
    starts: int = 0


class Waiter(Actor[Count], kind="waiter"):
    """Ends its turn when the test says so."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    @handler
    async def wait(self, message: Wait) -> int:
        self.gate.starts += 1
        self.gate.entered.set()
        await self.gate.leave.wait()
        self.state.done += 1
        return self.state.done


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="always") as server:
        yield server


def _config(server: Server, gate: Gate) -> Config:
    return Config(url=server.url, namespace="outage", actors=[Waiter.using(gate=gate)], partitions=4)


@pytest.mark.anyio
async def test_a_turn_that_ends_in_a_short_outage_is_committed(server: Server) -> None:
    gate = Gate(anyio.Event(), anyio.Event())
    replies: list[int] = []

    async def ask() -> None:
        replies.append(await system.ask(Waiter.ref("one"), Wait(), timeout_s=20))

    async with ActorSystem(_config(server, gate)) as system, anyio.create_task_group() as group:
        group.start_soon(ask)
        await gate.entered.wait()
        await anyio.to_thread.run_sync(server.kill9)
        gate.leave.set()
        await anyio.sleep(0.4)
        assert not replies
        await anyio.to_thread.run_sync(server.start)
    assert replies == [1]
    assert gate.starts == 1


async def _tell_until_it_raises(system: ActorSystem) -> None:
    """Until the store counts as unavailable, a message that may have been sent waits."""
    while True:
        with anyio.move_on_after(1):
            await system.tell(Waiter.ref("two"), Wait())


@pytest.mark.anyio
async def test_a_long_outage_is_told_and_outlived(server: Server) -> None:
    gate = Gate(anyio.Event(), anyio.Event())
    told: list[str] = []

    async def ask() -> None:
        try:
            await system.ask(Waiter.ref("one"), Wait(), timeout_s=20)
        except AtomicActorsError as error:
            told.append(error.code)

    async with ActorSystem(_config(server, gate)) as system, anyio.create_task_group() as group:
        group.start_soon(ask)
        await gate.entered.wait()
        await anyio.to_thread.run_sync(server.kill9)
        began_s = anyio.current_time()
        with pytest.raises(StoreUnavailable):
            await _tell_until_it_raises(system)
        assert anyio.current_time() - began_s < 4
        # Longer than the lease: the turn is cut off, for another owner might begin now.
        await anyio.sleep(3)
        assert gate.starts == 1
        gate.leave.set()
        await anyio.to_thread.run_sync(server.start)
        with anyio.fail_after(20):
            while True:
                try:
                    assert await system.ask(Waiter.ref("three"), Wait()) == 1
                    break
                except StoreUnavailable:
                    await anyio.sleep(0.05)
    assert told == ["interrupted"]
    async with ActorSystem(_config(server, gate)) as system:
        letters = await system.dead_letters.list()
        assert [(letter.entity.id, letter.reason) for letter in letters] == [("one", "interrupted")]
        report = await system.audit()
        assert report.is_balanced, report.problems
        assert report.interrupted == 1
