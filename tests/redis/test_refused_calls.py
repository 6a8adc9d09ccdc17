"""A server that refuses a call for now (full, busy, alone): nothing of the call happens, and it goes through later."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import redis
from attrs import frozen

from atomic_actors import Actor, ActorSystem, Command, Config, StoreUnavailable, StoreUnsafe, handler
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audit,
    Audited,
    BatchResult,
    Journal,
    JournalSettings,
    JournalUnavailable,
    Step,
)
from atomic_actors.journal.commit._commit_queue import CommitLimits
from atomic_actors.journal.commit._group_commit import GroupCommit
from tests.journals import WrappedJournal
from tests.redis.test_append_only_file import contents
from tests.redis.test_wire import (
    CLAIM,
    ENTITY,
    POLICY,
    all_steps,
    body,
    now_ms,
    open_journal,
    own,
    send,
    uid_at,
)
from tests.sentinel_servers import wait_for
from tests.servers import KINDS, Server, start_server
from tests.system.support import QUICK, Stage

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    directory = tmp_path_factory.mktemp("f")
    with start_server(
        request.param, tmp_path=directory, tcp=True, appendonly="no", extra=("--busy-reply-threshold", "1")
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def clean(server: Server) -> None:
    server.call("FLUSHALL")


# --- no memory left --------------------------------------------------------------------------------------


@contextmanager
def full(server: Server) -> Generator[None]:
    server.call("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        server.call("CONFIG", "SET", "maxmemory", 0)


async def test_a_full_store_refuses_each_sort_of_step(server: Server, namespace: str) -> None:
    async with open_journal(server, JournalSettings(namespace=namespace)) as journal:
        for step in all_steps(uid_at(await now_ms(journal))):
            before = contents(server)
            with full(server), pytest.raises(JournalUnavailable, match="OOM") as error:
                await journal.execute([step])
            assert error.value.sent is False, step
            assert contents(server) == before, step
            await send(journal, step)


async def test_what_was_accepted_while_the_memory_ran_out(server: Server, namespace: str) -> None:
    """Each message is accepted and there, or refused and not there."""
    accepted = refused = 0
    async with open_journal(server, JournalSettings(namespace=namespace)) as journal:
        used = int(server.call("INFO", "memory")["used_memory"])
        server.call("CONFIG", "SET", "maxmemory", used + 2_000_000)
        now = await now_ms(journal)
        for number in range(100):
            steps = [
                Append(partition=0, entity=f"account/{number}", uid=uid_at(now), body=body() + bytes(20_000))
                for _ in range(3)
            ]
            try:
                results = (await journal.execute(steps)).results
            except JournalUnavailable:
                refused += 3
            else:
                assert all(isinstance(result, Appended) for result in results)
                accepted += 3
        server.call("CONFIG", "SET", "maxmemory", 0)
        assert accepted
        assert refused
        audited = await send(journal, Audit(0))
        assert isinstance(audited, Audited)
        assert audited.counts["accepted"] == audited.counts["enqueued"] == accepted


@frozen
class Work(Command[str]):
    word: str


class Worker(Actor, kind="worker"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler
    async def work(self, message: Work) -> str:
        await self.stage.visit(message.word)
        return message.word


async def tell_until_it_fails(system: ActorSystem) -> None:
    while True:
        await system.tell(Worker.ref("b"), Work("refused"))


async def test_a_turn_that_ends_while_the_store_is_full(server: Server, namespace: str) -> None:
    stage = Stage()
    config = Config(
        url=server.url,
        namespace=namespace,
        actors=[Worker.using(stage=stage)],
        allow_no_persistence=True,
        ask_timeout_s=20.0,
        lease_ttl_s=10.0,
        **QUICK,
    )
    async with ActorSystem(config) as system, anyio.create_task_group() as task_group:
        replies: list[str] = []

        async def ask() -> None:
            replies.append(await system.ask(Worker.ref("a"), Work("there")))

        stage.hold("there")
        task_group.start_soon(ask)
        await stage.wait_for("there")
        with full(server):
            stage.release("there")
            with pytest.raises(StoreUnavailable):
                await tell_until_it_fails(system)
            assert replies == []
    assert replies == ["there"]
    assert stage.log.count("there") == 1


async def test_a_server_that_comes_back_unsafe(tmp_path: Path, namespace: str) -> None:
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="always") as server:
        async with open_journal(server, JournalSettings(namespace=namespace)) as journal:
            await own(journal)
            server.kill9()
            server.extra = ("--maxmemory-policy", "allkeys-lru")
            server.start()
            with pytest.raises(JournalUnavailable):
                await journal.execute([Audit(0)])
            for _ in range(2):
                with pytest.raises(StoreUnsafe, match="maxmemory-policy is allkeys-lru"):
                    await journal.execute([Audit(0)])


# --- busy ------------------------------------------------------------------------------------------------


@contextmanager
def busy(server: Server) -> Generator[None]:
    """Somebody's script runs without end."""

    def run() -> None:
        with server.client(socket_timeout=60.0) as client, suppress(redis.ResponseError):
            client.eval("while true do end", 0)

    def is_busy() -> bool:
        try:
            return not server.call("PING")
        except redis.ResponseError as error:
            return str(error).startswith("BUSY") or "BUSY" in type(error).__name__.upper()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(is_busy, "the script")
        yield
    finally:
        server.call("SCRIPT", "KILL")
        thread.join()


async def test_a_busy_server_refuses_and_nothing_happened(server: Server, namespace: str) -> None:
    async with open_journal(server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        step = Append(
            partition=0,
            entity=ENTITY,
            uid=uid_at(await now_ms(journal)),
            body=body(),
            claim=CLAIM,
            policy=POLICY,
        )
        with busy(server), pytest.raises(JournalUnavailable, match="BUSY") as error:
            await journal.execute([step])
        assert error.value.sent is False
        answer = await send(journal, step)
        assert isinstance(answer, Appended)
        assert not answer.duplicate


class Calls(WrappedJournal):
    """Keeps the size of each call."""

    def __init__(self, store: Journal) -> None:
        super().__init__(store)
        self.sizes: list[int] = []

    async def execute(self, steps: Any) -> BatchResult:
        self.sizes.append(len(steps))
        return await super().execute(steps)


#: A call of the most steps there may be takes the server a tenth of this, on a machine that does nothing else.
LONGEST_CALL_S = 0.25


async def test_no_call_holds_the_server_for_long(server: Server, namespace: str) -> None:
    """However much waits at once, a call has so many steps and bytes, and the server is back soon."""
    default = Config()
    longest: list[float] = []
    for _ in range(3):
        server.call("CONFIG", "SET", "slowlog-log-slower-than", 500, "slowlog-max-len", 1_000)
        server.call("SLOWLOG", "RESET")
        calls = Calls(open_journal(server, JournalSettings(namespace=namespace)))
        async with GroupCommit(
            inner=calls, limits=CommitLimits(max_batch_steps=default.max_batch_steps)
        ) as group:
            now = (await group.execute([Audit(0)])).now_ms
            steps: list[Step] = [
                Append(
                    partition=number % 8,
                    entity=f"account/{number}",
                    uid=uid_at(now),
                    body=body() + bytes(1000),
                )
                for number in range(1_000)
            ]
            answer = await group.execute(steps)
            assert all(isinstance(result, Appended) for result in answer.results)
        assert max(calls.sizes) == default.max_batch_steps
        with server.client() as client:
            log = cast("list[dict[str, Any]]", client.slowlog_get(1_000))
        longest.append(max(entry["duration"] for entry in log if b"aa1_commit" in entry["command"]) / 1e6)
    print(f"\nthe longest call took the server {min(longest) * 1000:.1f} ms")
    # The machine may have been busy with something else; not every time.
    assert min(longest) < LONGEST_CALL_S


# --- alone -----------------------------------------------------------------------------------------------


async def test_a_primary_without_replicas_takes_nothing(tmp_path: Path, namespace: str) -> None:
    """As an old primary on the wrong side of a split network, with `min-replicas-to-write`."""
    extra = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1", "--repl-diskless-sync-delay", "0")
    with (
        start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="no", extra=extra) as primary,
        start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="no") as replica,
    ):
        replica.call("REPLICAOF", "127.0.0.1", primary.port)
        wait_for(lambda: primary.call("INFO", "replication")["min_slaves_good_slaves"] == 1, "the replica")
        async with open_journal(primary, JournalSettings(namespace=namespace)) as journal:
            await own(journal)
            replica.call("REPLICAOF", "NO", "ONE")
            wait_for(lambda: primary.call("INFO", "replication")["min_slaves_good_slaves"] == 0, "its end")
            before = contents(primary)
            step = Append(partition=0, entity=ENTITY, uid=uid_at(0), body=body(), claim=CLAIM, policy=POLICY)
            with pytest.raises(JournalUnavailable, match="NOREPLICAS") as error:
                await journal.execute([step])
            assert error.value.sent is False
            assert contents(primary) == before
