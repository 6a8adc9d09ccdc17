"""An application whose messages die, in this process or in one that is killed.

`python -m tests.cli.application URL` sends a message, says its id once its turn has begun, and never ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from attrs import define, frozen

from atomic_actors._system import ActorSystem
from atomic_actors.actors._messages import Command
from atomic_actors.actors._specs import Actor, handler
from atomic_actors.base._config import Config
from atomic_actors.base._errors import HandlerFailed, Interrupted

PARTITIONS = 4
#: In every payload; nothing may show it unasked.
CARD = "4111-1111"
#: A stored text must not be able to clear somebody's screen.
CLEAR = "\x1b[2J"
ROOT = Path(__file__).parents[2]


@frozen
class Pay(Command[int]):
    card: str


@frozen
class Hang(Command[int]):
    card: str


@define
class Balance:
    amount: int = 0


class Account(Actor[Balance], kind="account"):
    @handler
    async def pay(self, message: Pay) -> int:
        raise ValueError(f"the bank [bold]said no{CLEAR}\nand hung up")

    @handler
    async def hang(self, message: Hang) -> int:
        print(self.context.message_id, flush=True)
        await anyio.sleep_forever()
        return 0


class Parcel(Actor[Balance], kind="parcel", on_dead="park"):
    @handler
    async def pay(self, message: Pay) -> int:
        raise ValueError("lost")


def config_of(url: str) -> Config:
    return Config(url=url, partitions=PARTITIONS, actors=[Account, Parcel])


async def _fail(url: str, entities: tuple[str, ...]) -> list[str]:
    ids: list[str] = []
    async with ActorSystem(config_of(url)) as system:
        for entity in entities:
            kind, _, entity_id = entity.partition("/")
            actor = {"account": Account, "parcel": Parcel}[kind]
            with pytest.raises(HandlerFailed) as caught:
                await system.ask(actor.ref(entity_id), Pay(CARD), timeout_s=20)
            assert caught.value.message_id is not None
            ids.append(caught.value.message_id)
    return ids


def fail(url: str, *entities: str) -> list[str]:
    """One dead letter for each entity; returns their ids."""
    return anyio.run(_fail, url, entities)


async def _settle(url: str, message_id: str) -> None:
    async with ActorSystem(config_of(url)) as system:
        with pytest.raises(Interrupted):
            await system.result(message_id, 20)


def kill_in_turn(url: str) -> str:
    """A process killed in the middle of a turn, and another that found that out; returns the message's id."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cli.application", url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        message_id = process.stdout.readline().strip()
        process.kill()
    assert message_id
    anyio.run(_settle, url, message_id)
    return message_id


async def _hang(url: str) -> None:
    async with ActorSystem(config_of(url)) as system:
        await system.tell(Account.ref("slow"), Hang(CARD))
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(_hang, sys.argv[1])
