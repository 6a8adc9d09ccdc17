"""Calls that are written by whoever makes them, beside those of the driver's own tasks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import frozen
from coredis.connection import TCPLocation, UnixDomainSocketLocation

from atomic_actors import Actor, ActorSystem, Command, Config, handler
from atomic_actors.journal._protocol import (
    Append,
    Audit,
    Audited,
    BatchResult,
    ClaimPartition,
    DirectJournal,
    JournalSettings,
    JournalUnavailable,
    Rejected,
    pack_body,
)
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.redis._direct_connection import (
    DirectConnection,
    DirectTCPConnection,
    DirectUnixConnection,
)
from atomic_actors.journal.redis._journal import RedisJournal
from tests.servers import Server, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

BIG = b"x" * 20_000_000
#: What a server says of itself first.
HELLO = b"%3\r\n$7\r\nversion\r\n$5\r\n9.0.0\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n"


@pytest.fixture(scope="module", params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A server of this module's own: its clients are killed and its library is flushed."""
    with start_server(
        "valkey",
        tmp_path=tmp_path_factory.mktemp("d"),
        tcp=request.param == "tcp",
        appendonly="everysec",
    ) as server:
        yield server


def connection_to(server: Server) -> DirectConnection:
    if server.tcp:
        return DirectTCPConnection(TCPLocation("127.0.0.1", server.port))
    return DirectUnixConnection(UnixDomainSocketLocation(str(server.socket_path)))


@asynccontextmanager
async def opened(connection: DirectConnection) -> AsyncGenerator[DirectConnection]:
    async with anyio.create_task_group() as task_group:
        await task_group.start(connection.run)
        yield connection
        task_group.cancel_scope.cancel()


class Replies:
    """Gathers replies, and wakes whoever waits for so many of them."""

    def __init__(self, count: int) -> None:
        self.got: list[Any] = []
        self._count = count
        self._all = anyio.Event()

    def __call__(self, reply: Any) -> None:
        self.got.append(reply)
        if len(self.got) == self._count:
            self._all.set()

    async def wait(self) -> list[Any]:
        with anyio.fail_after(20):
            await self._all.wait()
        return self.got


async def test_replies_come_in_the_order_of_the_calls(server: Server) -> None:
    async with opened(connection_to(server)) as connection:
        replies = Replies(300)
        for number in range(300):
            assert connection.sends_now
            connection.send_now(((b"ECHO", b"%d" % number), replies))
        assert await replies.wait() == [b"%d" % number for number in range(300)]


async def test_a_call_does_not_overtake_the_writers_task(server: Server) -> None:
    async with opened(connection_to(server)) as connection:
        replies = Replies(1)
        queued = connection.create_request(b"ECHO", b"queued", decode=False)
        assert not connection.sends_now
        assert await queued == b"queued"
        assert connection.sends_now
        connection.send_now(((b"ECHO", b"direct"), replies))
        behind = connection.create_request(b"ECHO", b"behind", decode=False)
        assert await behind == b"behind"
        assert replies.got == [b"direct"]


async def test_more_than_the_socket_takes_is_sent_in_order(server: Server) -> None:
    async with opened(connection_to(server)) as connection:
        replies = Replies(4)
        for argument in (BIG, b"small", BIG + b"y", b"last"):
            assert connection.sends_now
            connection.send_now(((b"ECHO", argument), replies))
        got = await replies.wait()
        assert [len(reply) for reply in got] == [len(BIG), 5, len(BIG) + 1, 4]
        assert await connection.create_request(b"ECHO", b"after", decode=False) == b"after"


async def test_an_error_is_the_reply(server: Server) -> None:
    async with opened(connection_to(server)) as connection:
        replies = Replies(2)
        connection.send_now(((b"NONSENSE",), replies))
        connection.send_now(((b"PING",), replies))
        error, pong = await replies.wait()
        assert "NONSENSE" in str(error)
        assert pong == b"PONG"


async def test_whoever_waits_is_told_that_the_connection_is_lost(server: Server) -> None:
    async with opened(connection_to(server)) as connection:
        replies = Replies(2)
        connection.send_now(
            ((b"CLIENT", b"KILL", b"SKIPME", b"no", b"ID", b"%d" % connection.client_id), replies)
        )
        connection.send_now(((b"PING",), replies))
        got = await replies.wait()
        assert isinstance(got[1], Exception)
        assert not connection.usable
        assert not connection.sends_now


async def test_a_peer_that_answers_nonsense_loses_the_connection() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(HELLO)
            for _ in range(2):
                await stream.receive()
                await stream.send(b"+OK\r\n")
            await stream.receive()
            await stream.send(b"?nonsense\r\n")
            await anyio.sleep_forever()

    async with listener, anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, serve)
        replies = Replies(1)
        async with opened(DirectTCPConnection(TCPLocation("127.0.0.1", port))) as connection:
            assert connection.sends_now
            connection.send_now(((b"PING",), replies))
            (reply,) = await replies.wait()
            assert isinstance(reply, Exception)
        task_group.cancel_scope.cancel()


async def test_a_journal_sends_directly(server: Server, namespace: str) -> None:
    async with RedisJournal.from_url(server.url, JournalSettings(namespace=namespace)) as journal:
        assert isinstance(journal, DirectJournal)
        replies = Replies(2)
        assert journal.send([Audit(0), Audit(1)], replies)
        assert journal.send([Audit(2)], replies)
        two, one = await replies.wait()
        assert [len(answer.results) for answer in (two, one)] == [2, 1]
        assert all(isinstance(answer, BatchResult) for answer in (two, one))


async def test_no_question_keeps_batches_from_being_sent_directly(server: Server, namespace: str) -> None:
    """One that goes by the driver's writer makes the batches behind it do so, and those the ones behind them."""
    async with RedisJournal.from_url(server.url, JournalSettings(namespace=namespace)) as journal:
        replies = Replies(1)
        server.call("CLIENT", "PAUSE", 60_000, "WRITE")
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(journal.directory.announce, "node", b"record")
            task_group.start_soon(journal.execute, [Audit(0)])
            await anyio.wait_all_tasks_blocked()
            assert len(journal._answers.sent_s) == 2
            assert journal.send([Audit(1)], replies)
            server.call("CLIENT", "UNPAUSE")
        (answer,) = await replies.wait()
        assert isinstance(answer, BatchResult)


async def test_whoever_waits_for_a_push_is_written_to_before_the_caller(
    server: Server, namespace: str
) -> None:
    """The store writes last to whom it began to answer first, so a call that rings has an answer before it."""

    def pings() -> int:
        return int(server.call("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"])

    def message(claim: str) -> Append:
        uid = f"{int(time.time() * 1000):012x}{os.urandom(10).hex()}"
        body = pack_body(name="Work", deadline_ms=0, waited_for=True, key="", envelope=b"{}")
        return Append(partition=0, entity="box/a", uid=uid, body=body, claim=claim, policy="*=edc3")

    async with RedisJournal.from_url(server.url, JournalSettings(namespace=namespace)) as journal:
        await journal.execute([ClaimPartition(partition=0, claim="claim-1", node=b"node")])
        before = pings()
        for count, steps in (
            (0, [Audit(0)]),
            (0, [message("claim-1")]),
            (1, [message("")]),
            (1, [message("") for _ in range(20)]),
        ):
            replies = Replies(1)
            assert journal.send(steps, replies)
            (answer,) = await replies.wait()
            assert isinstance(answer, BatchResult)
            assert pings() - before == count


async def test_a_late_answer_costs_the_connection(server: Server, namespace: str) -> None:
    settings = JournalSettings(namespace=namespace)
    async with RedisJournal.from_url(server.url, settings, timeout_s=0.3) as journal:
        replies = Replies(1)
        await journal.execute([Audit(0)])
        server.call("CLIENT", "PAUSE", 60_000, "WRITE")
        assert journal.send([Audit(0)], replies)
        (error,) = await replies.wait()
        assert isinstance(error, JournalUnavailable)
        assert error.sent
        server.call("CLIENT", "UNPAUSE")
        (answer,) = (await journal.execute([Audit(0)])).results
        assert isinstance(answer, Audited)


async def test_group_commit_sends_again_what_had_no_answer(server: Server, namespace: str) -> None:
    inner = RedisJournal.from_url(server.url, JournalSettings(namespace=namespace), timeout_s=0.3)
    async with GroupCommit(inner=inner) as journal:
        replies = Replies(40)
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for partition in range(20):
            journal.submit(Audit(partition), replies)
        server.call("FUNCTION", "FLUSH")
        for partition in range(20):
            journal.submit(Audit(partition), replies)
        got = await replies.wait()
        assert all(isinstance(answer, Audited) for answer in got)
        assert journal.statistics().pending == 0


@frozen
class Work(Command[int]):
    pass


class Box(Actor[None], kind="box"):
    @handler
    async def work(self, message: Work) -> int:
        return 1


def test_plain_asyncio_is_enough(server: Server, namespace: str) -> None:
    # The loop calls back outside of any task, and only `anyio.run` tells it there which loop it is.
    seen: list[float] = []

    async def main() -> None:
        async with ActorSystem(Config(url=server.url, namespace=namespace, actors=[Box])) as system:
            system.listen("completed", lambda _: seen.append(anyio.current_time()))
            for number in range(5):
                assert await system.ask(Box.ref(f"a{number}"), Work()) == 1

    asyncio.run(main())
    assert len(seen) == 5


@pytest.mark.parametrize("broken", ["record", "head", "partition"])
async def test_each_of_several_messages_is_told_what_is_wrong(
    server: Server, namespace: str, broken: str
) -> None:
    settings = JournalSettings(namespace=namespace, partitions=4)
    partition, claim = (9 if broken == "partition" else 1), ""
    async with RedisJournal.from_url(server.url, settings) as journal:
        prefix = f"{{{namespace}:{settings.service}:1}}"

        def message(number: int) -> Append:
            uid = f"{int(time.time() * 1000):012x}{number:020x}"
            body = pack_body(name="Work", deadline_ms=0, waited_for=False, key="", envelope=b"{}")
            return Append(
                partition=partition, entity="box/a", uid=uid, body=body, claim=claim, policy="*=edc3"
            )

        if broken == "record":
            server.call("SET", f"{prefix}:e:box/a", "not a record")
        if broken == "head":
            claim = "claim-1"
            await journal.execute([ClaimPartition(partition=1, claim=claim, node=b"node")])
            server.call("HSET", f"{prefix}:e:box/a", "m:1", "not a message", "d", "1")
            server.call("RPUSH", f"{prefix}:q:box/a", "1")
        results = (await journal.execute([message(number) for number in range(3)])).results
        assert [type(result) for result in results] == [Rejected] * 3
