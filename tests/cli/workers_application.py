"""What the tests of `atomic-actors run` serve; the store comes from the environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import anyio.lowlevel
from attrs import define, frozen

from atomic_actors._system import ActorSystem
from atomic_actors.actors._messages import Command
from atomic_actors.actors._specs import Actor, handler
from atomic_actors.base._config import Config

#: What a handler prints that takes long.
BEGUN = "the turn has begun"


@frozen
class Add(Command[int]):
    amount: int


@frozen
class WhoAreYou(Command[int]):
    pass


@frozen
class Nap(Command[int]):
    """Takes longer than any test; says when it has begun."""


@frozen
class Block(Command[int]):
    """The same, without giving the event loop a chance."""


@define
class Total:
    amount: int = 0


class Counter(Actor[Total], kind="counter"):
    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def who(self, message: WhoAreYou) -> int:
        return os.getpid()

    @handler
    async def nap(self, message: Nap) -> int:
        print(BEGUN, flush=True)
        await anyio.sleep_forever()
        return 0

    @handler
    async def block(self, message: Block) -> int:
        print(BEGUN, flush=True)
        time.sleep(1000)  # noqa: ASYNC251
        return 0


config = Config.from_env(actors=[Counter])
system = ActorSystem(config)
memory = Config(url="memory:", actors=[Counter])


def make_system() -> ActorSystem:
    print("printed by a worker")
    return ActorSystem(config)


async def make_config() -> Config:
    await anyio.lowlevel.checkpoint()
    return config


def make_wrong_config() -> Config:
    return Config(lease_ttl_s=0.1)


def fail() -> Config:
    raise RuntimeError("no bank")


def hang() -> Config:
    time.sleep(1000)
    return config


def serve_once() -> Config:
    """The first process serves; every later one dies before it is ready."""
    with Path(os.environ["AA_TESTS_STARTS"]).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
        if starts.tell() > len(f"{os.getpid()}\n"):
            os._exit(3)
    return config


class Sub:
    actors = Counter
