"""`replication="acknowledged"`: nothing counts before enough replicas have it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import redis
from attrs import evolve

from atomic_actors import ActorSystem, AskTimeout, Config, InvalidConfig, StoreIncompatible, StoreUnavailable
from atomic_actors.base._store_url import parse_store_url
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    BatchResult,
    ClaimPartition,
    JournalSettings,
    JournalUnavailable,
    ReadOutcome,
)
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.journal.redis._lease_client import RedisLeaseClient
from atomic_actors.journal.redis._link import RedisServer
from atomic_actors.journal.redis._replication import Replication
from tests.redis.test_sentinel import FAILOVER_LIMIT_S, Add, Counter
from tests.redis.test_wire import CLAIM, ENTITY, POLICY, body, now_ms, own, send, uid_at
from tests.sentinel_servers import paused, wait_for
from tests.servers import KINDS, Server, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

#: A primary and its replica.
Pair = tuple[Server, Server]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    path, extra = tmp_path_factory.mktemp("p"), ("--repl-diskless-sync-delay", "0")
    kind = request.param
    with (
        start_server(kind, tmp_path=path, tcp=True, appendonly="always", extra=extra) as primary,
        start_server(kind, tmp_path=path, tcp=True, appendonly="always", extra=extra) as replica,
    ):
        replica.call("REPLICAOF", "127.0.0.1", primary.port)
        wait_for(lambda: replica.call("INFO", "replication")["master_link_status"] == "up", "the replica")
        wait_for(lambda: primary.call("WAIT", 1, 100) == 1, "the replica")
        yield primary, replica


#: For a replica that works, however busy the machine is, and for one that does not.
PATIENT, IMPATIENT = Replication(1, 10.0), Replication(1, 0.2)


def open_journal(server: Server, namespace: str) -> RedisJournal:
    settings = JournalSettings(namespace=namespace)
    return RedisJournal.from_url(server.url, settings, replication=PATIENT)


@contextmanager
def out_of_reach(replica: Server, *waiting: RedisJournal | RedisLeaseClient) -> Generator[None]:
    """Pause the replica; these do not wait for it for long."""
    for one in waiting:
        one._replication = IMPATIENT
    with paused(replica):
        yield
    for one in waiting:
        one._replication = PATIENT


async def execute(journal: RedisJournal, steps: list[Any]) -> BatchResult:
    return await journal.execute(steps)


async def send_directly(journal: RedisJournal, steps: list[Any]) -> BatchResult:
    done, answers = anyio.Event(), list[Any]()

    def on_answer(answer: BatchResult | Exception) -> None:
        answers.append(answer)
        done.set()

    if not journal.send(steps, on_answer):
        return await journal.execute(steps)  # TLS, or the writer has something to do
    await done.wait()
    if isinstance(answers[0], Exception):
        raise answers[0]
    result: BatchResult = answers[0]
    return result


@pytest.mark.parametrize("way", [execute, send_directly])
async def test_an_answer_counts_when_the_replica_has_it(
    pair: Pair, namespace: str, way: Callable[..., Any]
) -> None:
    primary, replica = pair
    async with open_journal(primary, namespace) as journal:
        await own(journal)
        commits = journal.commits[0]
        uid = uid_at(await now_ms(journal))
        step = Append(partition=0, entity=ENTITY, uid=uid, body=body(), claim=CLAIM, policy=POLICY)
        with out_of_reach(replica, journal):
            for _ in range(2):
                with pytest.raises(JournalUnavailable, match="0 of 1 replicas have") as error:
                    await way(journal, [step])
                assert error.value.sent
                # If a failover loses it now, nothing that counted is lost.
                assert journal.commits[0] == commits
        (answer,) = (await way(journal, [step])).results
        assert isinstance(answer, Appended)
        assert answer.duplicate
        assert journal.commits[0] > commits


@pytest.mark.parametrize("way", [execute, send_directly])
async def test_a_new_connection_waits_for_what_others_wrote(
    pair: Pair, namespace: str, way: Callable[..., Any]
) -> None:
    """It wrote nothing itself, and `WAIT` alone would answer at once."""
    primary, replica = pair
    settings = JournalSettings(namespace=namespace)
    async with (
        open_journal(primary, namespace) as journal,
        RedisJournal.from_url(primary.url, settings) as hasty,
    ):
        await own(journal)
        uid = uid_at(await now_ms(journal))
        step = Append(partition=0, entity=ENTITY, uid=uid, body=body(), claim=CLAIM, policy=POLICY)
        with paused(replica):
            assert isinstance(await send(hasty, step), Appended)
            async with open_journal(primary, namespace) as other:
                other._replication = IMPATIENT
                for question in (step, ReadOutcome(0, ENTITY, uid)):
                    with pytest.raises(JournalUnavailable, match="0 of 1 replicas have"):
                        await way(other, [question])
        async with open_journal(primary, namespace) as other:
            (answer,) = (await way(other, [step])).results
            assert isinstance(answer, Appended)
            assert answer.duplicate


def has_waitaof(server: Server) -> bool:
    return bool(server.call("COMMAND LIST", "FILTERBY", "PATTERN", "waitaof"))


async def test_the_disks_are_waited_for(pair: Pair, namespace: str) -> None:
    primary, replica = pair
    journal = RedisJournal.from_url(
        primary.url, JournalSettings(namespace=namespace), replication=evolve(PATIENT, on_disk=True)
    )
    if not has_waitaof(primary):
        with pytest.raises(StoreIncompatible, match=r"needs Redis 7\.2"):
            async with journal:
                pass
        return
    async with journal:
        await own(journal)
    # It has everything, and no file.
    replica.call("CONFIG", "SET", "appendonly", "no")
    hasty = RedisJournal.from_url(
        primary.url, JournalSettings(namespace=namespace), replication=evolve(IMPATIENT, on_disk=True)
    )
    try:
        async with hasty:
            with pytest.raises(JournalUnavailable, match="0 of 1 replicas have it on their disks"):
                await send(hasty, ClaimPartition(partition=1, claim=CLAIM, node=b"node"))
    finally:
        replica.call("CONFIG", "SET", "appendonly", "yes")


async def test_a_renewal_counts_when_the_replica_has_it(pair: Pair, namespace: str) -> None:
    primary, replica = pair
    async with open_journal(primary, namespace) as journal:
        await own(journal)
        client = RedisLeaseClient(
            RedisServer(parse_store_url(primary.url)[0], connect_timeout_s=1.0),
            journal,
            timeout_s=10.0,
            replication=PATIENT,
        )
        assert client.renew([0], [CLAIM]) == [True]
        with out_of_reach(replica, client):
            with pytest.raises(redis.TimeoutError, match="0 of 1 replicas have the renewal"):
                client.renew([0], [CLAIM])
        assert client.renew([0], [CLAIM]) == [True]
        assert client.renew([0], ["another"]) == [False]
        client.close()


async def test_asks_wait_for_the_replica(pair: Pair, namespace: str) -> None:
    primary, replica = pair
    config = Config(
        url=primary.url,
        namespace=namespace,
        actors=[Counter],
        partitions=4,
        replication="acknowledged",
        replication_timeout_s=1.0,
    )
    async with ActorSystem(config) as system:
        ref = Counter.ref("a")
        assert await system.ask(ref, Add()) == 1
        with paused(replica):
            with pytest.raises(AskTimeout) as error:
                await system.ask(ref, Add(), timeout_s=0.5)
        with anyio.fail_after(FAILOVER_LIMIT_S):
            while True:
                try:
                    value = await system.ask(ref, Add(), timeout_s=FAILOVER_LIMIT_S)
                    break
                except StoreUnavailable:
                    await anyio.sleep(0.02)
        # The one that was given up may have begun before its deadline; never twice.
        assert value in (2, 3)
        assert error.value.message_id
        assert await system.ask(ref, Add()) == value + 1
        report = await system.audit()
        assert report.is_balanced, report.problems


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"url": "memory:"}, "replication: 'acknowledged' has no effect with url='memory:'"),
        ({"url": "embedded:"}, "replication: 'acknowledged' has no effect with url='embedded:'"),
        (
            {"url": "redis://h", "replication_timeout_s": 1.6},
            "replication_timeout_s: 1.6 is more than store_timeout_s",
        ),
    ],
)
async def test_wrong_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        Config(replication="acknowledged", **settings)
