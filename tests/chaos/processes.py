"""Workers and servers as a chaos test sees them: started, killed, looked at from outside."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from attrs import define

import atomic_actors
from atomic_actors.base._config import Config
from atomic_actors.journal._protocol import Audit, Audited
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.node.operations._reports import AuditReport, make_report
from tests.chaos.worker import Job
from tests.chaos.workload import Plan

__all__ = ("Template", "Worker", "read_store", "replay_command", "start_template", "wait_until")

#: An order takes milliseconds; importing everything takes seconds on a busy machine.
ANSWER_LIMIT_S = 60.0
#: Turns last milliseconds here: whoever leaves has nothing to wait for.
STOP_LIMIT_S = 10.0
ROOT = Path(__file__).parents[2]
SOURCE = Path(atomic_actors.__file__).parents[1]


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait for something that another process does, which gives no event here."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {limit_s:g} s"
        time.sleep(0.005)


@define(eq=False)
class Template:
    """The warm parent of the workers."""

    process: subprocess.Popen[str]

    def order(self, **order: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(ANSWER_LIMIT_S), f"no answer to {order}"
        line = self.process.stdout.readline()
        assert line, "the parent of the workers has ended"
        return int(line)

    def start(self, job: Job) -> Worker:
        return Worker(self, job, self.order(start=job.encode()))


@define(eq=False)
class Worker:
    """One worker process."""

    template: Template
    job: Job
    pid: int

    def kill(self) -> None:
        """`kill -9`; fails if the worker had ended by itself."""
        status = self.template.order(kill=self.pid)
        assert status == -signal.SIGKILL, f"the worker ended by itself with {status}\n{self.log()}"

    def wait(self) -> int:
        """The exit status, once it has ended by itself: minus the signal's number, if by one."""
        return self.template.order(wait=self.pid)

    def stop(self) -> None:
        """Ask it to leave in good order."""
        began_s = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        status = self.wait()
        assert status == 0, f"the worker ended with {status}\n{self.log()}"
        took_s = time.monotonic() - began_s
        assert took_s < STOP_LIMIT_S, f"leaving took {took_s:.1f} s\n{self.log()}"

    def log(self) -> str:
        return "\n".join((self.job.plan.directory / "log").read_text(errors="replace").splitlines()[-40:])


@contextmanager
def start_template() -> Generator[Template]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SOURCE)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.worker"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield Template(process)
        finally:
            # The end of its input makes it kill its children and go.
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def read_store(plan: Plan, url: str) -> AuditReport:
    """The books, read from outside, on a connection of its own."""
    settings = journal_settings(
        Config(url=plan.url, namespace=plan.namespace, partitions=plan.partitions, **plan.settings)
    )

    async def read() -> AuditReport:
        async with RedisJournal.from_url(url, settings) as journal:
            answer = await journal.execute([Audit(number) for number in range(plan.partitions)])
        return make_report([book for book in answer.results if isinstance(book, Audited)])

    return anyio.run(read)


def replay_command(test: str, seed: int, kills: int, name: str = "AA_TESTS_CHAOS_KILLS") -> str:
    return f"AA_TESTS_CHAOS_SEED={seed} {name}={kills} pytest -s {test}"
