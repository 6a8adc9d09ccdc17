"""What a store gives back with one bit turned over: it costs its own message or entity, and nobody else's."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, cast

import pytest
import redis
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, EntityRef, handler
from atomic_actors.base._records import partition_of
from atomic_actors.codec._envelope import encode_plain
from atomic_actors.journal._protocol import pack_body
from tests.envelopes import envelope_of
from tests.servers import Server
from tests.system.support import QUICK, NewSystem, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

PARTITIONS: int = QUICK["partitions"]
#: Messages that a corrupted name or deadline keeps waiting are looked at again and again; this is long enough for all.
PATIENCE_S = 20.0
#: The lines of a stored message that the store itself reads; the third one is the name.
HEAD = re.compile(rb"[0-9]+\n[at]\n([^\n]*)\n[^\n]*\n")


@frozen
class Enter(Command[int]):
    """Transactional."""

    words: list[str]
    amount: int


@define
class Entries:
    words: list[str] = Factory(list)
    amount: int = 0


class Register(Actor[Entries], kind="register"):
    @handler(transactional=True)
    async def enter(self, message: Enter) -> int:
        self.state.words += message.words
        self.state.amount += message.amount
        return len(self.state.words)


@pytest.fixture
def store_url(valkey_server: Server) -> str:
    return valkey_server.url


@pytest.fixture
def client(valkey_server: Server) -> Generator[redis.Redis]:
    with valkey_server.client() as client:
        yield client


def record_of(new_system: NewSystem, entity: EntityRef) -> str:
    """The key of what the store has of an entity."""
    partition = partition_of(str(entity), PARTITIONS)
    return f"{{{new_system.namespace}:default:{partition}}}:e:{entity}"


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def spoil(client: redis.Redis, new_system: NewSystem, field: str, entities: list[EntityRef]) -> list[bytes]:
    """Turn another bit over in the field of each entity's record, up to its last bit; returns what they are now."""
    spoiled: list[bytes] = []
    for number, entity in enumerate(entities):
        key = record_of(new_system, entity)
        (name,) = [name for name in cast("list[bytes]", client.hkeys(key)) if name.decode().startswith(field)]
        data = cast("bytes", client.hget(key, cast("Any", name)))
        if number == len(data) * 8:
            return spoiled
        spoiled.append(flip(data, number))
        client.hset(key, cast("Any", name), cast("Any", spoiled[-1]))
    raise AssertionError("there are fewer entities than bits")


async def check_that_it_lives(system: ActorSystem) -> None:
    assert await system.ask(Register.ref("healthy"), Enter(["a"], 1)) == 1
    report = await system.audit()
    assert report.is_balanced, report.problems


async def tell(new_system: NewSystem, *entities: EntityRef) -> None:
    """Send each entity a message that waits: nobody owns it."""
    async with new_system(Register):
        pass
    async with new_system() as sender:
        await sender.tell_many([(entity, Enter(["word"], 7)) for entity in entities])


async def test_messages(new_system: NewSystem, client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Each ends with an outcome, waits for a handler of its name, or parks its entity where the store cannot read it."""
    entities = [Register.ref(f"e{number}") for number in range(500)]
    await tell(new_system, *entities)
    bodies = spoil(client, new_system, "m:", entities)
    heads = [HEAD.match(body) for body in bodies]
    unreadable = heads.count(None)
    names = [head[1] for head in heads if head is not None]
    unhandled = [name for name in names if name.isascii() and name != b"Enter"]
    async with new_system(Register) as system:

        async def rest() -> bool:
            report = await system.audit()
            return not report.dispatched and report.enqueued == unreadable + len(unhandled)

        await until(rest, PATIENCE_S)
        report = await system.audit()
        assert report.failed > len(bodies) // 10
        for letter in await system.dead_letters.list(limit=len(entities)):
            assert await system.ask(letter.entity, Enter(["next"], 1)) == 1
        await check_that_it_lives(system)
    parked = [record.getMessage() for record in caplog.records if "is parked" in record.getMessage()]
    assert len({text.split()[0] for text in parked}) == len(parked) == unreadable > 0


@pytest.mark.parametrize(
    "headers",
    [{"p": 7}, {"p": None}, {"p": [1, None]}, {"p": "text"}, {"s": 9}, {"s": {"p": 1}}, {"unknown": [1]}],
    ids=str,
)
async def test_headers(new_system: NewSystem, client: redis.Redis, headers: dict[str, Any]) -> None:
    entity = Register.ref("one")
    await tell(new_system, entity)
    key = record_of(new_system, entity)
    (name,) = [name for name in cast("list[bytes]", client.hkeys(key)) if name.startswith(b"m:")]
    body = pack_body(
        name="Enter",
        deadline_ms=0,
        waited_for=True,
        key="",
        envelope=envelope_of(headers, encode_plain({"words": ["word"], "amount": 7})),
    )
    client.hset(key, cast("Any", name), cast("Any", body))
    async with new_system(Register) as system:

        async def ended() -> bool:
            report = await system.audit()
            return report.completed + report.failed == 1

        await until(ended)
        await check_that_it_lives(system)


async def test_states(new_system: NewSystem, client: redis.Redis) -> None:
    """An entity whose state cannot be read is parked, and its message waits for a person."""
    entities = [Register.ref(f"e{number}") for number in range(300)]
    async with new_system(Register) as system:
        await system.tell_many([(entity, Enter(["word"], 7)) for entity in entities])

        async def done() -> bool:
            return (await system.audit()).completed == len(entities)

        await until(done, PATIENCE_S)
    states = spoil(client, new_system, "s", entities)
    async with new_system(Register) as system:
        receipts = await system.tell_many([(entity, Enter(["more"], 1)) for entity in entities])

        async def rest() -> bool:
            report = await system.audit()
            parked = [entity for entity in entities if (await system.where(entity)).is_parked]
            return not report.dispatched and report.enqueued == len(parked)

        await until(rest, PATIENCE_S)
        parked = [entity for entity in entities if (await system.where(entity)).is_parked]
        assert 0 < len(parked) <= len(states)
        assert not await system.dead_letters.list()
        # What another release left out, or added, is no corruption: a field of another name is a field that is new.
        for entity, receipt in zip(entities, receipts, strict=True):
            if entity not in parked:
                assert await system.result(receipt) in (1, 2)
        await check_that_it_lives(system)
