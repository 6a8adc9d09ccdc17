"""What fuzzing has found, each by itself: damaged records of a real store, and a system that goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from atomic_actors import AskTimeout, AtomicActorsError, HandlerFailed, OutcomeUnknown, Refused
from atomic_actors._system import ActorSystem
from atomic_actors.base._errors import InvalidConfig
from atomic_actors.base._lifecycle import InterruptionRules
from atomic_actors.base._records import EntityRef, partition_of
from atomic_actors.base._store_url import parse_store_url
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import decode_envelope, plain_of
from atomic_actors.contracts._contracts import read_record
from atomic_actors.contracts._outcomes import RefusalReader, error_of_outcome, read_outcome
from atomic_actors.journal._kind_registry import KindRecord
from atomic_actors.journal._protocol import (
    Append,
    ClaimPartition,
    Finish,
    Finished,
    Outgoing,
    Rejected,
    RelayPage,
    RelayRead,
    Step,
    Take,
    Verdict,
    pack_body,
    unpack_body,
)
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._peers import NodeRecord
from tests.envelopes import envelope_of
from tests.servers import Server
from tests.system.support import (
    Break,
    Desk,
    NewSystem,
    Stage,
    Work,
    Write,
    desk,
    partition_mates,
    unlike,
    until,
)

DEEP = b"\x91" * 100_000 + b"\xc0"
#: Where the tests' own entities live.
ONE = desk("one")


# Decoders.


@pytest.mark.parametrize("data", [DEEP, b"\xa1\xff", b"\x81\x81\xa1a\x01\x01"], ids=["deep", "utf-8", "key"])
def test_what_is_no_message_pack_is_one_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is msgspec's
        plain_of(data)
    with pytest.raises(ValueError):  # noqa: PT011
        decode_envelope(b"\x93\x01\x81\xa1a" + data + b"\x90")


@pytest.mark.parametrize("deadline", [b"-5", b" 5", b"1_000", b"9" * 400, b""])
def test_a_deadline_is_digits(deadline: bytes) -> None:
    with pytest.raises(ValueError, match="not a stored message"):
        unpack_body(deadline + b"\na\nDeposit\n\n\xc0")


def test_a_stamp_has_plain_digits() -> None:
    with pytest.raises(ValueError, match="not a stamp"):
        InterruptionRules.decode("edc\u0663")


def test_deep_json_is_no_node() -> None:
    assert NodeIdentity.decode(b"[" * 100_000) is None
    assert NodeRecord.decode(b"[" * 100_000) is None
    with pytest.raises(ValueError, match="cannot be read"):
        read_record("a", KindRecord("default", 4, (b'{"messages":{"a":{"payload":' + b'{"a":' * 9_000,)))


@pytest.mark.parametrize("lease", ["NaN", "Infinity", "-1", "1e999"])
def test_a_lease_without_end_is_no_identity(lease: str) -> None:
    text = '{"node":"n","boot":"b","pidns":"p","pid":1,"start":"1","lease":' + lease + "}"
    assert NodeIdentity.decode(text.encode()) is None


@pytest.mark.parametrize("url", ["redis://h/" + "9" * 5_000, "redis://h:" + "1" * 5_000])
def test_a_long_number_in_a_url(url: str) -> None:
    with pytest.raises(InvalidConfig):
        parse_store_url(url)


def test_a_user_name_of_odd_bytes_can_be_shown() -> None:
    location, _ = parse_store_url("redis://u\udcc3@h")
    assert str(location) == "redis://u%3F@h:6379/0"


@pytest.mark.parametrize("data", [b"\xff", b"\x05", DEEP, b"\x80", b""])
def test_a_damaged_end_is_still_an_end(data: bytes) -> None:
    refusals = RefusalReader(Codec())
    assert isinstance(refusals.read_refusal(data), Refused)
    assert isinstance(error_of_outcome("failed", data, "a/b/c", refusals), HandlerFailed)


def test_a_damaged_outcome_is_unknown() -> None:
    with pytest.raises(OutcomeUnknown, match="cannot be read"):
        read_outcome(b"\xff\xfe", "a/b/c", Codec().coder(Any), RefusalReader(Codec()))


# Systems.


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "atomic_actors"):
        yield caplog


@pytest.mark.anyio
@pytest.mark.parametrize("path", [5, [5], {"a": 1}, None], ids=str)
async def test_a_damaged_path_header_ends_no_node(path: object) -> None:
    new_system = NewSystem("memory:")
    journal = new_system.journal = MemoryJournal(journal_settings(new_system.config()))
    async with new_system(Desk.using(stage=Stage())) as system:
        await system.pause(ONE)
        receipt = await system.tell(ONE, Write("a"))
        entity = journal._partitions[partition_of(str(ONE), 4)].entities[str(ONE)]  # pyright: ignore[reportPrivateUsage]
        (message,) = entity.messages.values()
        head = unpack_body(message.body)
        envelope = envelope_of({"p": path}, bytes(decode_envelope(head.envelope).payload))
        message.body = pack_body(name="Write", deadline_ms=0, waited_for=False, key="", envelope=envelope)
        await system.resume(ONE)
        assert await system.result(receipt) == 1


class Keys:
    """The keys of a system's store."""

    def __init__(self, server: Server, new_system: NewSystem) -> None:
        self._server = server
        self._namespace = new_system.namespace

    def of(self, entity: EntityRef | int, name: str) -> str:
        """A partition's key, or one of the partition of an entity."""
        number = entity if isinstance(entity, int) else partition_of(str(entity), 4)
        return f"{{{self._namespace}:default:{number}}}:{name}"

    def call(self, *words: Any) -> Any:
        with self._server.client() as client:
            untyped: Any = client
            return untyped.execute_command(*words)

    def retype(self, key: str) -> None:
        """Put something of another type in a key's place."""
        self.call("DEL", key)
        self.call("SET", key, "x")


@pytest.fixture
def new_system(valkey_server: Server) -> NewSystem:
    return NewSystem(valkey_server.url)


@pytest.fixture
def keys(valkey_server: Server, new_system: NewSystem) -> Keys:
    return Keys(valkey_server, new_system)


async def is_parked(system: ActorSystem, ref: EntityRef) -> None:
    async def parked() -> bool:
        return (await system.where(ref)).is_parked

    await until(parked)


on_server = [pytest.mark.anyio, pytest.mark.redis]


class TestOnServer:
    """With the records of one server."""

    pytestmark = on_server

    async def test_a_refused_commit_parks_its_entity(
        self, new_system: NewSystem, keys: Keys, said: pytest.LogCaptureFixture
    ) -> None:
        """Nowhere to put a dead letter: the turn can be neither committed nor settled, and never runs again."""
        stage = Stage()
        async with new_system(Desk.using(stage=stage)) as system:
            await system.ask(ONE, Write("a"))
            keys.retype(keys.of(ONE, "dl"))
            with pytest.raises(AskTimeout):
                await system.ask(ONE, Break(), timeout_s=0.3)
            await is_parked(system, ONE)
            assert "was refused" in said.text
            assert "cannot be settled" in said.text
            for other in partition_mates(ONE)[:3]:
                assert await system.ask(other, Write("a")) == 1
            await system.resume(ONE)
            await system.passivate(ONE)
            with pytest.raises(AskTimeout):
                await system.ask(ONE, Write("b"), timeout_s=0.3)
            assert (await system.where(ONE)).dispatched == 1
            assert stage.log == ["a", "a", "a", "a"]
        # Put right, it is settled by whoever comes next.
        keys.call("DEL", keys.of(ONE, "dl"))
        async with new_system(Desk.using(stage=stage)) as system:
            assert await system.ask(ONE, Write("c")) == 2
            (letter,) = await system.dead_letters.list()
            assert letter.reason == "interrupted"

    async def test_a_log_that_lost_its_messages_makes_nobody_spin(
        self, new_system: NewSystem, keys: Keys, said: pytest.LogCaptureFixture
    ) -> None:
        async with new_system(Desk.using(stage=Stage())) as system:
            await system.pause(ONE)
            await system.tell(ONE, Write("a"))
            keys.call("DEL", keys.of(ONE, f"q:{ONE}"))
            await system.resume(ONE)
            await is_parked(system, ONE)
            assert "has lost messages" in said.text
            assert (await system.where(ONE)).waiting == 1

    async def test_a_message_that_cannot_be_read_parks_its_entity(
        self, new_system: NewSystem, keys: Keys, said: pytest.LogCaptureFixture
    ) -> None:
        stage = Stage()
        stage.hold("held")
        async with new_system(Desk.using(stage=stage)) as system:
            held = await system.tell(ONE, Work("held"))
            await stage.wait_for("held")
            receipt = await system.tell(ONE, Write("a"))
            uid = receipt.message_id.rpartition("/")[2]
            keys.call("HSET", keys.of(ONE, f"e:{ONE}"), f"m:{uid}", b"\xff")
            stage.release()
            assert await system.result(held) == "held"
            await is_parked(system, ONE)
            assert "not a stored message" in said.text
            for refused in (system.resume(ONE), system.withdraw(receipt)):
                with pytest.raises(AtomicActorsError, match="not a stored message"):
                    await refused

    async def test_a_damaged_letter_is_shown(self, new_system: NewSystem, keys: Keys) -> None:
        async with new_system(Desk.using(stage=Stage())) as system:
            receipts = [await system.tell(ONE, Break()) for _ in range(2)]
            for receipt in receipts:
                with pytest.raises(HandlerFailed):
                    await system.result(receipt)
            keys.call("HSET", keys.of(ONE, "dl"), receipts[0].message_id, b"\xff\xfe")
            letters = {letter.message_id: letter for letter in await system.dead_letters.list()}
            assert set(letters) == {receipt.message_id for receipt in receipts}
            assert letters[receipts[0].message_id].message == b"\xff\xfe"
            assert letters[receipts[1].message_id].error == "broken"
            with pytest.raises(AtomicActorsError, match="damaged"):
                await system.dead_letters.replay(receipts[0].message_id)
            assert await system.dead_letters.purge(receipts[0].message_id) == 1

    async def test_damaged_books_stop_one_partition(
        self, new_system: NewSystem, keys: Keys, said: pytest.LogCaptureFixture
    ) -> None:
        number = partition_of(str(ONE), 4)
        async with new_system(Desk.using(stage=Stage())) as system:
            await system.ask(ONE, Write("a"))
            keys.retype(keys.of(ONE, "C"))
            for other in unlike(ONE):
                assert await system.ask(other, Write("a")) == 1
            report = await system.audit()
            assert [problem for problem in report.problems if f"partition {number}" in problem]
            with pytest.raises(AtomicActorsError, match="damaged"):
                await system.ask(ONE, Write("b"), timeout_s=1)
            assert await system.dead_letters.list() == []

            async def is_said() -> bool:
                return f"partition {number} is damaged" in said.text

            await until(is_said)

    async def test_a_number_of_the_books_is_shown_by_audits(self, new_system: NewSystem, keys: Keys) -> None:
        async with new_system(Desk.using(stage=Stage())) as system:
            await system.ask(ONE, Write("a"))
            keys.call("HSET", keys.of(ONE, "C"), "accepted", "many")
            assert await system.ask(ONE, Write("b")) == 2
            assert not (await system.audit()).is_balanced

    async def test_a_lease_of_another_type_keeps_no_other_from_being_renewed(
        self, new_system: NewSystem, keys: Keys
    ) -> None:
        async with new_system(Desk.using(stage=Stage())) as system:
            keys.retype(keys.of(ONE, "L"))
            others = unlike(ONE)

            async def is_lost() -> bool:
                return not any(
                    partition.partition == partition_of(str(ONE), 4) and partition.node_id
                    for partition in await _owners(system)
                )

            await until(is_lost)
            lease = keys.of(others[0], "L")
            renewals = int(keys.call("HGET", lease, "r"))

            async def is_renewed() -> bool:
                return int(keys.call("HGET", lease, "r")) >= renewals + 4

            await until(is_renewed, patience_s=10.0)
            for other in others:
                assert await system.ask(other, Write("a")) == 1

    async def test_damaged_entries_of_the_directory(self, new_system: NewSystem, keys: Keys) -> None:
        nodes = f"{{{new_system.namespace}:meta}}:nodes"
        async with new_system(Desk.using(stage=Stage())) as system:
            keys.call("HSET", nodes, b"r:\xff", b"\xff", "r:x", "[" * 5_000, "b:x", "many")
            (mine,) = [node for node in await system.nodes() if node.node_id != "x"]
            keys.call("HSET", nodes, f"b:{mine.node_id}", "many")
            await system.nodes()
            assert await system.ask(ONE, Write("a")) == 1
            keys.retype(nodes)
            with pytest.raises(AtomicActorsError):
                await system.nodes()
            assert await system.ask(ONE, Write("b")) == 2

    async def test_odd_bells_and_frames(self, new_system: NewSystem, keys: Keys) -> None:
        async with new_system(Desk.using(stage=Stage())) as system:
            (node,) = await system.nodes()
            channel = f"{new_system.namespace}:reply:{node.node_id}"
            for number in range(4):
                for bell in (b"\xff", b"desk/", b"desk", b"", b"desk/a\x00b", b"\n\n"):
                    keys.call("SPUBLISH", keys.of(number, "bell"), bell)
            for frame in (DEEP, b"\xff", b"", b"\x90"):

                async def is_heard(frame: bytes = frame) -> bool:
                    return bool(keys.call("PUBLISH", channel, frame))

                await until(is_heard)
            assert await system.ask(ONE, Write("a")) == 1
            assert await system.ask(ONE, Write("b")) == 2


async def _owners(system: ActorSystem) -> list[Any]:
    try:
        return list(await system.partitions())
    except AtomicActorsError:
        return []


@pytest.mark.anyio
@pytest.mark.redis
async def test_a_damaged_stream_is_never_numbered_anew(new_system: NewSystem, keys: Keys) -> None:
    """Left out, the entry's number would go to the next one: that would be sent twice, and the entry not at all."""
    settings = journal_settings(new_system.config())
    uid = "{:012x}" + "7" * 19
    async with RedisJournal.from_url(new_system.url, settings, allow_no_persistence=True) as journal:
        now_ms = (await journal.execute([ClaimPartition(partition=0, claim="claim", node=b"n")])).now_ms
        head = uid.format(now_ms)
        body = pack_body(name="Write", deadline_ms=0, waited_for=False, key="", envelope=b"\xc0")
        outbox = tuple(Outgoing(partition=1, entity="desk/x", uid=f"{head}{n}", body=body) for n in range(3))
        verdicts = (Verdict(uid=f"{head}9", event="complete"),)
        steps: list[Step] = [
            Append(partition=0, entity="desk/a", uid=f"{head}9", body=body),
            Take(partition=0, entity="desk/a", claim="claim", policy=""),
            Finish(
                partition=0,
                entity="desk/a",
                claim="claim",
                turn=1,
                verdicts=verdicts,
                state=None,
                expected_version=0,
                outbox=outbox,
            ),
        ]
        assert isinstance((await journal.execute(steps)).results[2], Finished)
        keys.call("LSET", keys.of(0, "x:1"), 1, "nothing of a message")
        (page,) = (await journal.execute([RelayRead(0, "claim", 1)])).results
        assert isinstance(page, RelayPage)
        assert [entry.number for entry in page.entries] == [1]
        keys.call("LSET", keys.of(0, "x:1"), 0, "nothing of a message")
        (page,) = (await journal.execute([RelayRead(0, "claim", 1)])).results
        assert isinstance(page, Rejected)
        assert "damaged" in page.text
