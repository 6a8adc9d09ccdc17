"""An application whose handler forks, as `multiprocessing` does.

Usage: `python -m tests.system.forking URL NAMESPACE BACKEND`. One child ends after some work of its own, another one
becomes another program. The parent prints its books and the exit statuses of its children.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import warnings

import anyio
import anyio.to_thread
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, handler

STATUS = 3


@frozen
class Fork(Command[str]):
    way: str


@frozen
class Note(Command[int]):
    number: int


@define
class Numbers:
    numbers: list[int] = Factory(list)


def work() -> None:
    """What a child does: among other things it throws its copies of everything away."""
    gc.collect()
    sys.exit(STATUS)


def start_child(way: str) -> int:
    """Fork; returns the child's process id."""
    if way == "process":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        assert process.pid is not None
        return process.pid
    child = os.fork()
    if child:
        return child
    os.execv(sys.executable, [sys.executable, "-c", f"raise SystemExit({STATUS})"])


children: list[int] = []


class Forker(Actor[Numbers], kind="forker"):
    @handler
    async def fork(self, message: Fork) -> str:
        with warnings.catch_warnings():
            # What Python says of threads and forks is right, and what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            children.append(start_child(message.way))
        self.state.numbers.append(0)
        return "parent"

    @handler
    async def note(self, message: Note) -> int:
        self.state.numbers.append(message.number)
        return len(self.state.numbers)


FORKER = Forker.ref("one")


async def main(url: str, namespace: str) -> None:
    config = Config(url=url, namespace=namespace, actors=[Forker], partitions=2, allow_no_persistence=True)
    async with ActorSystem(config) as system:
        async with anyio.create_task_group() as task_group:
            for number in range(50):
                task_group.start_soon(system.ask, Forker.ref(f"n{number}"), Note(number))
            for way in ("process", "exec"):
                assert await system.ask(FORKER, Fork(way)) == "parent"
        ended = [await anyio.to_thread.run_sync(os.waitpid, child, 0) for child in children]
        for number in range(3, 50):
            assert await system.ask(FORKER, Note(number)) == number
        report = await system.audit()
        assert report.is_balanced, report.problems
        assert not report.dead_letters
        statuses = [os.waitstatus_to_exitcode(status) for _, status in ended]
        print(report.completed, report.accepted, *statuses, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
