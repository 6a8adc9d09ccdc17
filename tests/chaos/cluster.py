"""Several workers on one store, as a chaos test sees them: who runs, who owns, whether everybody gets on."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from tests.chaos.checks import Line, read_witness
from tests.chaos.processes import Template, Worker, read_store, wait_until
from tests.chaos.worker import Job, read_events
from tests.chaos.workload import Plan, done

__all__ = ("Cluster", "new_plan")

#: Enough for a takeover and a few dozen messages, on a busy machine.
PATIENCE_S = 45.0


@define(eq=False)
class Cluster:
    """`size` workers; the plan's clients are dealt out among them, and a worker's successor goes on with its.

    A worker's number is its place here; `urls` are those places whose way to the store is another one.
    """

    template: Template
    plan: Plan
    size: int = 3
    outages: bool = True
    urls: dict[int, str] = field(factory=dict)
    workers: list[Worker] = field(factory=list, init=False)
    #: Every process that was stopped for a while.
    paused: set[int] = field(factory=set, init=False)
    _started: int = field(default=0, init=False)

    def start(self) -> None:
        for number in range(self.size):
            self.workers.append(self._start(number))

    def _start(self, number: int) -> Worker:
        self._started += 1
        plan = evolve(
            self.plan,
            backend=("asyncio", "trio")[self._started % 2],
            url=self.urls.get(number, self.plan.url),
        )
        job = Job(plan, joins=True, outages=self.outages, clients=self.clients_of(number))
        worker = self.template.start(job)
        wait_until(
            lambda: any("ready_s" in event for event in self.events(worker)), 30, "the start of a worker"
        )
        return worker

    def clients_of(self, number: int) -> list[int]:
        return list(range(number, self.plan.clients, self.size))

    def kill(self, number: int) -> None:
        self.workers[number].kill()

    def leave(self, number: int) -> Counter[str]:
        """Let a worker leave in good order, whatever is going on; what its asks were told."""
        worker = self.workers[number]
        worker.stop()
        return Counter(self.events(worker)[-1]["told"])

    def replace(self, number: int) -> None:
        """Start the successor of a worker that is gone."""
        self.workers[number] = self._start(number)

    def pause(self, number: int) -> None:
        """Stop a worker in the middle of an effectful turn."""
        pid = self.workers[number].pid
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, f"never in a turn\n{self.log()}"
            os.kill(pid, signal.SIGSTOP)
            self.paused.add(pid)
            if self.running(number):
                return
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)

    def resume(self, number: int) -> None:
        os.kill(self.workers[number].pid, signal.SIGCONT)

    def running(self, number: int) -> list[Line]:
        """The effectful turns that a worker has begun and not ended."""
        pid, turns = self.workers[number].pid, dict[tuple[str, int, int], Line]()
        for line in read_witness(self.plan):
            if line.process == pid and line.sort == "e":
                turn = (line.message_id, line.attempt, line.token)
                if line.what == "begun":
                    turns[turn] = line
                else:
                    del turns[turn]
        return list(turns.values())

    # What is going on.

    def events(self, worker: Worker) -> list[dict[str, Any]]:
        return [event for event in read_events(self.plan) if event["pid"] == worker.pid]

    def owned(self, number: int) -> int:
        """How many partitions a worker owns, by its own account."""
        owned = [event["owned"] for event in self.events(self.workers[number]) if "owned" in event]
        return owned[-1] if owned else 0

    def heard(self, number: int, event: str) -> list[float]:
        """When a worker's store was `store-lost`, or `store-back`."""
        mine = self.events(self.workers[number])
        return [found["at_s"] for found in mine if found.get("store") == event]

    def places(self, *numbers: int) -> dict[int, int]:
        """How far the clients of these workers are; of all, where none is named."""
        clients = [client for number in numbers or range(self.size) for client in self.clients_of(number)]
        return {client: done(self.plan, client) for client in clients}

    def wait_progress(self, *numbers: int) -> float:
        """Until each client of these workers (of all, where none is named) has sent to every account.

        Returns:
            How many seconds that took.
        """
        before, began_s = self.places(*numbers), time.monotonic()
        wait_until(
            lambda: all(
                done(self.plan, client) >= place + self.plan.accounts for client, place in before.items()
            ),
            PATIENCE_S,
            f"progress of the clients of workers {numbers or 'all'}\n{self.log()}",
        )
        return time.monotonic() - began_s

    def log(self) -> str:
        path = self.plan.directory / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-60:]) if path.exists() else ""

    def wait_quiet(self) -> None:
        """Let the clients end what they are at, and the workers what was sent to them."""

        def is_quiet() -> bool:
            report = read_store(self.plan, self.plan.url)
            return not (report.enqueued or report.dispatched or report.outbound)

        for worker in self.workers:
            os.kill(worker.pid, signal.SIGUSR1)
        for worker in self.workers:
            wait_until(
                lambda: any("silent" in event for event in self.events(worker)),  # noqa: B023
                PATIENCE_S,
                f"the end of the clients\n{self.log()}",
            )
        wait_until(is_quiet, PATIENCE_S, "the end of all turns")

    def stop(self) -> Counter[str]:
        """Let every worker leave in good order, with nothing to do any more; what their asks were told."""
        self.wait_quiet()
        told: Counter[str] = Counter()
        for number in range(self.size):
            told += self.leave(number)
        return told


def new_plan(url: str, namespace: str, directory: Path, seed: int, **settings: Any) -> Plan:
    """A workload for several workers: enough accounts that each owns some, and turns that last."""
    pace_s = settings.pop("pace_s", 0.01)
    # An ask in a turn outlives two takeovers in a row: its failure would be the turn's.
    settings.setdefault("ask_timeout_s", 30.0)
    return Plan(url, namespace, directory, seed, accounts=12, clients=6, pace_s=pace_s, settings=settings)
