"""A worker kills itself at each call of the journal in turn: just before it is sent, just after its answer.

The workload has an end, and the next process ends it: whatever the crash, the books must be right. The
first calls claim the partitions, the next ones settle and sweep, then come appends, takes and commits.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from tests.chaos.checks import Verdict, finish
from tests.chaos.processes import Template, read_store
from tests.chaos.worker import Job
from tests.chaos.workload import Plan
from tests.servers import Server, start_server

SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
CALLS = 60
#: Sweeps are in the way of nothing: a worker is at its work long before this call.
FIRST_CALLS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("s")
    with start_server("valkey", tmp_path=folder, tcp=False, appendonly="always") as server:
        yield server


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", ["before", "after"])
def test_crash_at_every_call(where: str, template: Template, server: Server, tmp_path: Path) -> None:
    in_turn = again = letters = heard = 0
    for call in range(1, CALLS + 1):
        directory = tmp_path / str(call)
        directory.mkdir()
        backend = ("asyncio", "trio")[call % 2]
        plan = Plan(
            server.url,
            f"step-{where}-{call}",
            directory,
            SEED,
            backend,
            accounts=4,
            clients=2,
            places=30,
            partitions=4,
            pace_s=0.001,
        )
        worker = template.start(Job(plan, crash=(call, where)))
        status = worker.wait()
        assert status == -signal.SIGKILL, f"call {call} did not happen ({status})\n{worker.log()}"
        if call > FIRST_CALLS:
            in_turn += read_store(plan, server.url).dispatched > 0
        verdict = _finish(plan, call, where)
        again += verdict.again
        letters += verdict.dead_letters
        heard += verdict.told["interrupted"]
    print(
        f"\ncrashed {where} each of {CALLS} calls, {in_turn} times in a turn: {letters} dead letters, "
        f"{heard} asks told, {again} transactional handlers run again"
    )
    assert in_turn > CALLS // 3
    assert letters
    assert heard
    assert again


def _finish(plan: Plan, call: int, where: str) -> Verdict:
    try:
        return anyio.run(lambda: finish(plan), backend=plan.backend)
    except BaseException as error:
        error.add_note(f"after a crash {where} call {call} of the journal; AA_TESTS_CHAOS_SEED={plan.seed}")
        raise
