"""An application that one of its messages kills, as a fault in an extension module does.

Usage: `python -m tests.system.crashing URL NAMESPACE BACKEND`.
"""

from __future__ import annotations

import os
import signal
import sys

import anyio
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, handler


@frozen
class Crash(Command[None]):
    pass


@frozen
class Note(Command[int]):
    pass


@define
class Count:
    count: int = 0


class Crasher(Actor[Count], kind="crasher"):
    @handler
    async def crash(self, message: Crash) -> None:
        self.state.count += 100
        os.kill(os.getpid(), signal.SIGSEGV)
        await anyio.sleep_forever()

    @handler
    async def note(self, message: Note) -> int:
        self.state.count += 1
        return self.state.count


CRASHER = Crasher.ref("one")


async def main(url: str, namespace: str) -> None:
    config = Config(url=url, namespace=namespace, actors=[Crasher], partitions=2, allow_no_persistence=True)
    async with ActorSystem(config) as system:
        # Nothing runs before all of them are accepted.
        await system.pause(CRASHER)
        await system.tell_many([(CRASHER, Crash()), (CRASHER, Note())])
        await system.resume(CRASHER)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
