"""A store behind real sentinels: the primary is found, followed, and left when it is none any more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from attrs import define, frozen
from coredis.connection import BaseConnection

from atomic_actors import Actor, ActorSystem, Command, Config, StoreIncompatible, StoreUnavailable, handler
from atomic_actors.base._errors import InvalidConfig
from atomic_actors.base._store_url import parse_store_url
from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import Audit, JournalSettings, JournalUnavailable, Renew
from atomic_actors.journal.redis._channels import RedisChannels
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.journal.redis._lease_client import RedisLeaseClient
from atomic_actors.journal.redis._link import RedisServer
from atomic_actors.journal.redis._sentinel import Primary
from tests.journals import Losses
from tests.redis.test_wire import CLAIM, own, send, take_one
from tests.sentinel_servers import (
    FAILOVER_LIMIT_S,
    SERVICE,
    Sentinel,
    Watched,
    start_watched,
    wait_for,
)
from tests.servers import KINDS, Kind, Server, free_port, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@define
class Count:
    value: int = 0


@frozen
class Add(Command[int]):
    pass


class Counter(Actor[Count], kind="counter"):
    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.state.value += 1
        return self.state.value


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Watched]:
    with start_watched(request.param, tmp_path=tmp_path_factory.mktemp("w")) as watched:
        yield watched


@pytest.fixture
def watched(shared: Watched) -> Watched:
    shared.wait_ready()
    return shared


def new_primary(url: str) -> Primary:
    return Primary(parse_store_url(url)[0], warn_asynchronous=False)


def new_system(url: str, namespace: str, **settings: Any) -> ActorSystem:
    return ActorSystem(Config(url=url, namespace=namespace, actors=[Counter], partitions=4, **settings))


async def until(condition: Callable[[], object]) -> None:
    """Let things happen until they have."""
    await anyio.to_thread.run_sync(partial(wait_for, condition, "it", FAILOVER_LIMIT_S))


async def ask_until_answered(system: ActorSystem, entity: str) -> int:
    with anyio.fail_after(FAILOVER_LIMIT_S):
        while True:
            try:
                return await system.ask(Counter.ref(entity), Add(), timeout_s=FAILOVER_LIMIT_S)
            except StoreUnavailable:
                await anyio.sleep(0.05)


# --- opening ---------------------------------------------------------------------------------------------


async def test_open_through_sentinels(
    watched: Watched, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_system(watched.url, namespace) as system:
        assert await system.ask(Counter.ref("a"), Add()) == 1
    keys = watched.primary.call("KEYS", f"{{{namespace}:*")
    assert keys
    warnings = [record for record in caplog.records if "min-replicas-to-write" in record.getMessage()]
    assert len(warnings) == 1


async def test_no_warning_where_replicas_are_needed(
    watched: Watched, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = watched.primary
    server.call("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        async with new_system(watched.url, namespace) as system:
            assert await system.ask(Counter.ref("a"), Add()) == 1
    finally:
        server.call("CONFIG", "SET", "min-replicas-to-write", 0)
    assert "min-replicas-to-write" not in caplog.text


async def test_a_dead_sentinel_does_not_matter(watched: Watched, namespace: str) -> None:
    hosts = watched.url.removeprefix("redis+sentinel://")
    url = f"redis+sentinel://127.0.0.1:{free_port()},{hosts}"
    async with new_system(url, namespace) as system:
        assert await system.ask(Counter.ref("a"), Add()) == 1


async def test_wrong_service_name(watched: Watched, namespace: str) -> None:
    with pytest.raises(StoreIncompatible, match="do not know service 'other'"):
        async with new_system(watched.url_of("other"), namespace):
            pass


async def test_no_sentinel_answers(namespace: str) -> None:
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/main"
    with pytest.raises(StoreUnavailable, match="no sentinel of 'main' answered"):
        async with new_system(url, namespace):
            pass


async def test_a_silent_sentinel_is_not_waited_for_long(namespace: str) -> None:
    """It accepts the connection, and says nothing."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        primary = new_primary(f"redis+sentinel://127.0.0.1:{port}/main")
        with anyio.fail_after(2.5):
            with pytest.raises(JournalUnavailable, match="no sentinel of 'main' answered"):
                await primary.find()


async def test_a_stale_sentinel_is_not_believed(watched: Watched, tmp_path: Path) -> None:
    replica = watched.replicas[0]
    (tmp_path / "stale").mkdir()
    stale = Sentinel(watched.sentinels[0].kind, tmp_path / "stale", free_port())
    stale.start(replica)  # what it would say that was cut off since the replica was the primary
    try:
        wait_for(lambda: stale.call("PING"), "the stale sentinel")
        # Alone it never agrees with enough others to act.
        alone = new_primary(f"redis+sentinel://127.0.0.1:{stale.port}/{SERVICE}")
        with pytest.raises(JournalUnavailable, match=f"has no primary now.*{replica.port}, which is a slave"):
            await alone.find()
        good = watched.sentinels[0].port
        both = new_primary(f"redis+sentinel://127.0.0.1:{stale.port},127.0.0.1:{good}/{SERVICE}")
        assert (await both.find())[1] == watched.primary.port
    finally:
        stale.kill9()


async def test_password(tmp_path: Path, namespace: str) -> None:
    with start_watched("redis", tmp_path=tmp_path, password="secret") as watched:
        async with new_system(watched.url, namespace) as system:
            assert await system.ask(Counter.ref("a"), Add()) == 1
        for wrong in ("", ":wrong@"):
            with pytest.raises(StoreIncompatible, match="rejected the user or the password"):
                async with new_system(watched.url.replace(":secret@", wrong), namespace):
                    pass


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("tls=maybe", "tls='maybe' is neither true nor false"),
        ("tls=false&ssl_cert_reqs=none", "ssl_cert_reqs has no effect with tls=false"),
        ("ssl_ca_certs=/nowhere/ca.pem", "the certificates of .* cannot be read"),
    ],
)
async def test_wrong_options(options: str, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        new_primary(f"redis+sentinel://h/main?{options}")


# --- following -------------------------------------------------------------------------------------------


async def test_asks_go_on_after_a_failover(watched: Watched, namespace: str) -> None:
    """The old primary lives, and takes writes until Sentinel tells it to be a replica: none of them counts."""
    async with new_system(watched.url, namespace, replication="acknowledged") as system:
        losses: list[object] = []
        system.listen("history-lost", losses.append)
        assert await system.ask(Counter.ref("a"), Add()) == 1
        old = watched.primary
        await anyio.to_thread.run_sync(watched.fail_over)
        assert await ask_until_answered(system, "a") == 2
        assert await ask_until_answered(system, "b") == 1
        assert old.port != watched.primary.port
        # Longer than a lease: it is renewed at the new one.
        leases = [f"{{{namespace}:default:{number}}}:L" for number in range(4)]
        before = [watched.primary.call("HGETALL", lease) for lease in leases]

        def renewed() -> bool:
            found = [watched.primary.call("HGETALL", lease) for lease in leases]
            return all(now != then for now, then in zip(found, before, strict=True))

        await until(renewed)
        assert not losses


@asynccontextmanager
async def opened(watched: Watched, namespace: str) -> AsyncGenerator[tuple[Primary, RedisJournal]]:
    primary = new_primary(watched.url)
    settings = JournalSettings(namespace=namespace)
    async with RedisJournal(primary, settings) as journal:
        yield primary, journal


async def execute_until_answered(journal: RedisJournal) -> None:
    with anyio.fail_after(FAILOVER_LIMIT_S):
        while True:
            try:
                await journal.execute([Audit(0)])
                return
            except JournalUnavailable:
                await anyio.sleep(0.02)


class CountedServer(RedisServer):
    connections = 0

    async def connect(self) -> BaseConnection:
        self.connections += 1
        return await super().connect()


@define(eq=False)
class MovedServer:
    """A server that is somewhere else each time."""

    urls: list[str]

    def url(self) -> str:
        return self.urls.pop(0)


async def test_read_only_answer_closes_the_link(tmp_path: Path, namespace: str) -> None:
    """A server that was demoted behind the back of Sentinel keeps its clients."""
    with (
        start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="always") as server,
        start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="always") as other,
    ):
        place = CountedServer(parse_store_url(server.url)[0], connect_timeout_s=1.0)
        async with RedisJournal(place, JournalSettings(namespace=namespace)) as journal:
            await own(journal)
            client = RedisLeaseClient(place, journal, timeout_s=1.0)
            assert client.renew([0], [CLAIM]) == [True]
            server.call("REPLICAOF", "127.0.0.1", other.port)
            with pytest.raises(redis.ReadOnlyError):
                client.renew([0], [CLAIM])
            with pytest.raises(JournalUnavailable) as error:
                await send(journal, Renew(0, CLAIM))
            assert error.value.sent is False
            assert "closed" in repr(journal)
            server.call("REPLICAOF", "NO", "ONE")
            # What a server had is gone once it was a replica.
            await own(journal)
            assert place.connections == 2
            assert client.renew([0], [CLAIM]) == [True]
            client.close()


async def test_a_demoted_primary_that_lives_on_is_left(watched: Watched, namespace: str) -> None:
    """Nobody ends these connections: it is the watch that finds out."""
    async with opened(watched, namespace) as (primary, journal), primary:
        await own(journal)
        client = RedisLeaseClient(primary, journal, timeout_s=1.0)
        assert client.renew([0], [CLAIM]) == [True]
        old = watched.primary
        # A failover by command does not wait for replicas, and the lease has to be there.
        await anyio.to_thread.run_sync(watched.wait_replicated)
        await anyio.to_thread.run_sync(watched.fail_over)
        await until(lambda: primary.address != ("127.0.0.1", old.port))
        # Never answered by the old one, whatever it still believes itself to be.
        old.call("REPLICAOF", "NO", "ONE")
        try:
            assert client.renew([0], [CLAIM]) == [True]
            assert client._url.startswith(f"redis://127.0.0.1:{watched.primary.port}/")
        finally:
            old.call("REPLICAOF", "127.0.0.1", watched.primary.port)
        await execute_until_answered(journal)
        client.close()


async def test_renewal_is_not_believed_when_the_primary_changed_meanwhile(
    valkey_server: Server, namespace: str
) -> None:
    settings = JournalSettings(namespace=namespace)
    async with RedisJournal.from_url(valkey_server.url, settings, allow_no_persistence=True) as journal:
        await own(journal)
        client = RedisLeaseClient(
            MovedServer([valkey_server.url, "redis://127.0.0.1:1/0"]), journal, timeout_s=1.0
        )
        with pytest.raises(redis.ConnectionError, match="the primary changed"):
            client.renew([0], [CLAIM])
        client.close()


async def test_channels_follow(watched: Watched, namespace: str) -> None:
    primary = new_primary(watched.url)
    heard: list[tuple[int, str]] = []
    settings = JournalSettings(namespace=namespace)
    async with primary, RedisChannels(primary, settings) as channels:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(channels.listen_doorbells, [0], lambda *bell: heard.append(bell))
            await until(lambda: heard)
            await anyio.to_thread.run_sync(watched.fail_over)
            channel = channels.bell_channel(0)
            await until(lambda: watched.primary.call("SPUBLISH", channel, "account/a") == 1)
            await until(lambda: heard[-1] == (0, "account/a"))
            task_group.cancel_scope.cancel()


# --- lost history ----------------------------------------------------------------------------------------


def losses_of(journal: RedisJournal) -> list[HistoryLoss]:
    losses = Losses()
    journal.history.watch(losses)
    return losses


async def test_failover_that_loses_nothing_is_no_lost_history(watched: Watched, namespace: str) -> None:
    async with opened(watched, namespace) as (primary, journal), primary:
        losses = losses_of(journal)
        await own(journal)
        await take_one(journal)
        # A failover by command does not wait for replicas.
        await anyio.to_thread.run_sync(watched.wait_replicated)
        await anyio.to_thread.run_sync(watched.fail_over)
        await until(lambda: primary.address == ("127.0.0.1", watched.primary.port))
        await execute_until_answered(journal)
        await take_one(journal, entity="account/other")
        assert not losses
        assert journal.run_id == watched.primary.call("INFO", "server")["run_id"]


def cut_replica_off(primary: Server) -> None:
    """The replica loses its link and cannot come back: it does not have the password."""
    primary.call("CONFIG", "SET", "requirepass", "unknown to the replica")
    with primary.client(password="unknown to the replica") as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
async def test_failover_that_loses_commits_is_reported(kind: Kind, namespace: str, tmp_path: Path) -> None:
    with start_watched(kind, tmp_path=tmp_path) as watched:
        async with opened(watched, namespace) as (_, journal):
            losses = losses_of(journal)
            await own(journal)
            await take_one(journal)
            old = watched.primary
            await anyio.to_thread.run_sync(watched.wait_replicated)
            known = journal.commits[0]
            cut_replica_off(old)
            await take_one(journal, entity="account/lost")
            lost = journal.commits[0]
            assert lost > known
            old.kill9()
            await anyio.to_thread.run_sync(partial(watched.wait_other_primary, old.port))
            await execute_until_answered(journal)
            assert losses == [HistoryLoss(0, lost, known)]
