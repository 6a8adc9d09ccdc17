"""The actors that the tests of the client talk to, and the process in which they live.

    python -m tests.client.till redis://127.0.0.1:6379/0 namespace

It says "ready" on standard output, and leaves when its standard input ends.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    Command,
    Config,
    EntityId,
    EntityRef,
    Query,
    Refused,
    handler,
)

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
    return Config(
        url=url,
        namespace=namespace,
        partitions=PARTITIONS,
        allow_no_persistence=True,
        drain_timeout_s=1.0,
        **settings,
    )


async def main(url: str, namespace: str) -> None:
    async with ActorSystem(config_for(url, namespace, actors=[Till])):
        print("ready", flush=True)
        await run_sync(sys.stdin.read)


if __name__ == "__main__":
    # Imported by its real name, so that its classes have the home that the tests know.
    from tests.client import till as real

    anyio.run(real.main, sys.argv[1], sys.argv[2])
