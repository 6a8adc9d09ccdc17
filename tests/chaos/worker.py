"""The process that is killed: an actor system and its clients, forked from a warm parent.

`python -m tests.chaos.worker` imports everything once and then takes orders on standard input, one line of
JSON each: `{"start": job}`, answered with the new process's id; `{"kill": pid}` and `{"wait": pid}`, answered
with its exit status once it is gone. When its input ends it kills what is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from attrs import define

from atomic_actors import ActorSystem
from atomic_actors.journal.redis._journal import RedisJournal
from tests.chaos.bank import Account, Look, Witness
from tests.chaos.workload import Clients, Plan, make_config

__all__ = ("Job", "read_events")


@define
class Job:
    """What a worker is to do. `crash` is (call of the journal, "before" or "after"), to kill itself there."""

    plan: Plan
    crash: tuple[int, str] | None = None
    outages: bool = False
    #: Whether it sends, or only owns until it is told to leave.
    sends: bool = True
    #: Whether another worker runs that may own the partitions.
    joins: bool = False
    #: Those of the plan's clients that it runs; all where None.
    clients: list[int] | None = None

    def encode(self) -> dict[str, Any]:
        from attrs import asdict

        return {**asdict(self), "plan": {**asdict(self.plan), "directory": str(self.plan.directory)}}

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Job:
        plan = Plan(**{**data["plan"], "directory": Path(data["plan"]["directory"])})
        return cls(**{**data, "plan": plan})


def read_events(plan: Plan) -> list[dict[str, Any]]:
    """What workers said, in order; a line that a kill cut off is left out."""
    path = plan.directory / "events"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def say(plan: Plan, **event: Any) -> None:
    descriptor = os.open(plan.directory / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(
            descriptor, (json.dumps({"pid": os.getpid(), "at_s": time.monotonic(), **event}) + "\n").encode()
        )
    finally:
        os.close(descriptor)


def crash_at(call: int, where: str) -> None:
    """Kill this process at the nth call of the journal: before it is sent, or after its answer came."""
    execute, send = RedisJournal.execute, RedisJournal.send
    count = 0

    def die_at(mine: int, moment: str) -> None:
        if mine == call and where == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    async def counted_execute(self: RedisJournal, steps: Any) -> Any:
        nonlocal count
        count += 1
        mine = count
        die_at(mine, "before")
        answer = await execute(self, steps)
        die_at(mine, "after")
        return answer

    def counted_send(self: RedisJournal, steps: Any, on_answer: Callable[[Any], None]) -> bool:
        nonlocal count
        count += 1
        mine = count
        die_at(mine, "before")

        def answered(answer: Any) -> None:
            die_at(mine, "after")
            on_answer(answer)

        sent = send(self, steps, answered)
        if not sent:
            count -= 1  # it becomes a call of `execute`
        return sent

    RedisJournal.execute, RedisJournal.send = counted_execute, counted_send  # type: ignore[method-assign]


async def work(job: Job, began_s: float) -> None:
    plan = job.plan
    witness = Witness(plan.witness_path, plan.pace_s)
    async with ActorSystem(make_config(plan, witness)) as system:
        if not job.joins:
            await wait_ownership(plan, system)
        say(plan, ready_s=time.monotonic() - began_s)
        for event in ("store-lost", "store-back"):
            system.listen(event, lambda health: say(plan, store=health.event, reason=health.reason))
        clients = Clients(plan, system, job.outages, only=job.clients)
        clients.on_interrupted = partial(say, plan, heard="interrupted")
        async with anyio.create_task_group() as group:
            if job.clients is None:
                group.start_soon(stop_at_signal, plan, clients)
                group.start_soon(wait_ownership, plan, system)
                if job.sends:
                    await clients.run()
            else:
                group.start_soon(report_ownership, plan, system)
                async with anyio.create_task_group() as both:
                    both.start_soon(stop_at_signal, plan, clients)
                    await clients.run()
                    say(plan, silent=True)
            if job.clients is not None or (job.sends and plan.places):
                group.cancel_scope.cancel()
        say(plan, told=dict(clients.told))


async def wait_ownership(plan: Plan, system: ActorSystem) -> None:
    """Say so once every partition is this process's."""
    while system.statistics().owned_partitions < plan.partitions:  # noqa: ASYNC110 - claims give no event
        await anyio.sleep(0.005)
    say(plan, owns_at_s=time.monotonic())


async def report_ownership(plan: Plan, system: ActorSystem) -> None:
    """Say how many partitions are this process's, whenever that changes."""
    owned = -1
    while True:
        now = system.statistics().owned_partitions
        if now != owned:
            owned = now
            say(plan, owned=owned)
        await anyio.sleep(0.02)


async def stop_at_signal(plan: Plan, clients: Clients) -> None:
    """SIGUSR1: the clients end what they are at. SIGTERM: and then the process leaves in good order."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
        async for number in signals:
            clients.stop = True
            if number == signal.SIGTERM:
                say(plan, stopping=True)
                break


def child(job: Job) -> None:
    began_s = time.monotonic()
    log = os.open(job.plan.directory / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        if job.crash is not None:
            crash_at(*job.crash)
        anyio.run(work, job, began_s, backend=job.plan.backend)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def warm_up() -> None:
    """Import what is imported late, so that the children need not."""

    async def run() -> None:
        async with ActorSystem(make_config(plan, witness)) as system:
            await system.ask(Account.ref("a0"), Look())

    witness = Witness(Path(os.devnull))
    plan = Plan("memory:", "warm", Path("."), 0)
    for backend in ("asyncio", "trio"):
        anyio.run(run, backend=backend)
    witness.close()


def main() -> None:
    warm_up()
    children: set[int] = set()
    orders, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with os.fdopen(orders) as lines:
        for line in lines:
            order = json.loads(line)
            if "start" in order:
                answer = os.fork()
                if not answer:
                    os.close(orders)
                    os.close(answers)
                    child(Job.decode(order["start"]))
                children.add(answer)
            else:
                pid = order.get("kill") or order["wait"]
                if "kill" in order:
                    os.kill(pid, signal.SIGKILL)
                children.discard(pid)
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(answers, f"{answer}\n".encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
