"""The actors that the tests of the client talk to, and the processes in which they live.

`python -m tests.client.till` imports everything once and takes orders on standard input, one line of JSON each:
`{"start": [url, namespace]}` is answered with the id of a process whose actor system is ready; `{"stop": pid}` and
`{"wait": pid}` with its exit status once it is gone. When its input ends it stops what is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Annotated, Any

import anyio
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, EntityId, EntityRef, Query, Refused, handler

PARTITIONS = 4


@frozen
class Add(Command[int]):
    amount: int


@frozen
class AddTo(Command[int], kind="till"):
    till: Annotated[str, EntityId]
    amount: int


@frozen
class Write(Command[None]):
    line: str


@frozen
class Read(Query[list[str]]):
    pass


@frozen
class Total(Query[int]):
    pass


@frozen
class Sleep(Command[str]):
    seconds: float


@frozen
class Refuse(Command[None]):
    balance: int


@frozen
class Break(Command[None]):
    pass


@frozen
class Die(Command[None]):
    """Ends the process in the middle of its turn."""


@define
class Overdrawn(Refused):
    balance: int


@define
class Content:
    total: int = 0
    lines: list[str] = Factory(list)


class Till(Actor[Content], kind="till"):
    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.state.total += message.amount
        return self.state.total

    @handler(transactional=True)
    async def add_to(self, message: AddTo) -> int:
        self.state.total += message.amount
        return self.state.total

    @handler(transactional=True)
    async def write(self, message: Write) -> None:
        self.state.lines.append(message.line)

    @handler
    async def read(self, message: Read) -> list[str]:
        return self.state.lines

    @handler
    async def total(self, message: Total) -> int:
        return self.state.total

    @handler
    async def sleep(self, message: Sleep) -> str:
        await anyio.sleep(message.seconds)
        return "slept"

    @handler
    async def refuse(self, message: Refuse) -> None:
        raise Overdrawn(message.balance)

    @handler
    async def fail(self, message: Break) -> None:
        raise RuntimeError("lp0 on fire")

    @handler
    async def die(self, message: Die) -> None:
        os._exit(3)

    @handler("Ship")
    async def ship(self, message: dict[str, Any]) -> str:
        return f"shipped {message['sku']}"


def till(name: str) -> EntityRef:
    return EntityRef("till", name)


def config_for(url: str, namespace: str, **settings: Any) -> Config:
    defaults = {"partitions": PARTITIONS, "allow_no_persistence": True, "drain_timeout_s": 1.0}
    return Config(url=url, namespace=namespace, **{**defaults, **settings})


async def live(url: str, namespace: str, ready: int) -> None:
    async with ActorSystem(config_for(url, namespace, actors=[Till], handle_signals=True)):
        os.write(ready, b"ready")
        os.close(ready)
        await anyio.sleep_forever()


def start(url: str, namespace: str) -> int:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            anyio.run(live, url, namespace, writing)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if pipe.read() == b"ready":
            return pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def main() -> None:
    alive: set[int] = set()
    for line in sys.stdin:
        match json.loads(line):
            case {"start": [url, namespace]}:
                answer = start(url, namespace)
                if answer > 0:
                    alive.add(answer)
            case {"stop": int(pid)} if pid in alive:
                os.kill(pid, signal.SIGTERM)
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                alive.discard(pid)
            case {"wait": int(pid)} if pid in alive:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                alive.discard(pid)
            case other:
                raise ValueError(f"no order: {other!r}")
        print(answer, flush=True)
    for pid in alive:
        assert pid > 0, "-1 would be every process there is"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    # Imported by its real name, so that its classes have the home that the tests know.
    from tests.client.till import main as real_main

    real_main()
