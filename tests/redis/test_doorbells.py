"""Doorbells that lie: doubled, shuffled, or rung for nothing. They are hints; what is dispatched, the store decides."""

from __future__ import annotations

import collections
import random

import anyio
import anyio.lowlevel
import pytest
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, Query, handler
from atomic_actors.base._records import partition_of
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.redis._wire import Wire
from tests.servers import Server
from tests.system.support import QUICK, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

MESSAGES, ENTITIES = 60, 6


@frozen
class Count(Command[int]):
    number: int


@frozen
class Get(Query[list[int]]):
    pass


@define
class Numbers:
    numbers: list[int]

    def __init__(self, numbers: list[int] | None = None) -> None:
        self.numbers = numbers or []


class Counting(Actor[Numbers], kind="counting"):
    def __init__(self, starts: collections.Counter[int]) -> None:
        self.starts = starts

    @handler
    async def count(self, message: Count) -> int:
        self.starts[message.number] += 1
        await anyio.lowlevel.checkpoint()
        self.state.numbers.append(message.number)
        return message.number

    @handler
    async def get(self, message: Get) -> list[int]:
        return self.state.numbers


async def test_each_message_is_dispatched_once(
    store_server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    starts: collections.Counter[int] = collections.Counter()
    shared = {"url": store_server.url, "namespace": namespace, "allow_no_persistence": True, **QUICK}
    config = Config(actors=[Counting.using(starts=starts)], **shared)
    wire = Wire(journal_settings(config))
    refs = [Counting.ref(f"e{number}") for number in range(ENTITIES)]
    rings = [str(ref).encode() for ref in refs] * 10
    rings += [b"counting/nobody", b"stranger/a", b"", b"\xff\xfe", b"no entity", b"\n".join(rings)]
    lots = random.Random(1)

    async def ring() -> None:
        while sum(starts.values()) < MESSAGES:
            lots.shuffle(rings)
            with store_server.client() as client:
                pipeline = client.pipeline(transaction=False)
                for entity in rings:
                    partition = partition_of(entity.decode(errors="replace"), config.partitions)
                    pipeline.execute_command("SPUBLISH", f"{wire.prefix(partition)}:bell", entity)
                    # And at the door of somebody else.
                    other = (partition + 1) % config.partitions
                    pipeline.execute_command("SPUBLISH", f"{wire.prefix(other)}:bell", entity)
                pipeline.execute()
            await anyio.sleep(0.005)

    async with ActorSystem(config) as owner, ActorSystem(Config(**shared)) as sender:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ring)
            for number in range(MESSAGES):
                await sender.tell(refs[number % ENTITIES], Count(number))

        async def done() -> bool:
            return (await owner.audit()).completed == MESSAGES

        await until(done)
        assert starts == dict.fromkeys(range(MESSAGES), 1)
        for start, ref in enumerate(refs):
            assert await owner.ask(ref, Get()) == list(range(start, MESSAGES, ENTITIES))
        assert (await owner.audit()).is_balanced
    assert "could not be read" not in caplog.text
