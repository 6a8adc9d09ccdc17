"""A volatile kind in a process of its own.

Usage: `python -m tests.system.volatile_owner URL NAMESPACE BACKEND`. It prints a line when it owns every
partition, and one when a turn begins that never ends.
"""

from __future__ import annotations

import os
import sys

import anyio
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, handler


@frozen
class Count(Command[tuple[int, int]]):
    """The reply: the process that answers, and how often it was asked."""


@frozen
class Hang(Command[None]):
    pass


@define
class Counted:
    times: int = 0


class Counter(Actor[Counted], kind="counter", durable=False):
    @handler
    async def count(self, message: Count) -> tuple[int, int]:
        self.state.times += 1
        return os.getpid(), self.state.times

    @handler
    async def hang(self, message: Hang) -> None:
        print("turn began", flush=True)
        await anyio.sleep_forever()


def config(url: str, namespace: str, weight: float = 1.0) -> Config:
    return Config(
        url=url,
        namespace=namespace,
        partitions=4,
        actors=[Counter],
        allow_no_persistence=True,
        tick_interval_s=0.01,
        node_weight=weight,
    )


async def main(url: str, namespace: str) -> None:
    async with ActorSystem(config(url, namespace)) as system:
        assert system.statistics().owned_partitions == 4
        print("owns", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:3], backend=sys.argv[3])
