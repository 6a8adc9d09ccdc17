"""Systems and journals over a real cluster: what a node that dies, a slot that moves or a flush does to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, evolve, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    AtomicActorsError,
    Command,
    Config,
    HistoryLost,
    StoreIncompatible,
    StoreUnavailable,
    StoreUnsafe,
    handler,
)
from atomic_actors.base._records import partition_of
from atomic_actors.base._store_url import parse_store_url
from atomic_actors.base._telemetry import Listeners
from atomic_actors.journal._protocol import (
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    JournalSettings,
    JournalUnavailable,
    Renew,
    Renewed,
    Resume,
)
from atomic_actors.journal.commit._commit_queue import CommitLimits, StoreEvents
from atomic_actors.journal.commit._partitioned_commit import PartitionedCommit
from atomic_actors.journal.redis._link import ACL_RULES, CLUSTER_ACL_RULES
from atomic_actors.journal.redis.cluster._channels import ClusterChannels
from atomic_actors.journal.redis.cluster._journal import ClusterJournal
from atomic_actors.journal.redis.cluster._leases import ClusterLeaseClient
from atomic_actors.journal.redis.cluster._slots import slot_of
from tests.cluster_servers import Cluster, start_cluster
from tests.journals import Losses
from tests.redis.test_channels import Heard
from tests.sentinel_servers import paused
from tests.servers import Kind, Server
from tests.system.support import Desk, Read, Send, Stage, Work, Write, desk, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

PARTITIONS = 12


@frozen
class Ring(Command[int]):
    pass


@define
class Rings:
    count: int = 0


class Bell(Actor[Rings], kind="bell", durable=False):
    @handler
    async def ring(self, message: Ring) -> int:
        self.state.count += 1
        return self.state.count


@pytest.fixture
def kind(anyio_backend_name: str) -> Kind:
    """Clusters take long to start: one program with asyncio, the other one with Trio."""
    return "redis" if anyio_backend_name == "asyncio" else "valkey"


@pytest.fixture
def own_cluster(kind: Kind, tmp_path: Path) -> Generator[Cluster]:
    """A cluster that only this test has, and may hurt."""
    with start_cluster(kind, tmp_path=tmp_path, appendonly="always") as cluster:
        yield cluster


def settings_of(namespace: str) -> JournalSettings:
    return JournalSettings(namespace=namespace, partitions=PARTITIONS)


def journal_at(cluster: Cluster, namespace: str, **options: Any) -> ClusterJournal:
    return ClusterJournal.from_url(
        cluster.url, settings_of(namespace), **{"allow_no_persistence": True, **options}
    )


def new_system(cluster: Cluster, namespace: str, *actors: Any, **settings: Any) -> ActorSystem:
    return ActorSystem(
        Config(
            url=cluster.url,
            namespace=namespace,
            actors=actors,
            partitions=PARTITIONS,
            allow_no_persistence=True,
            **{"tick_interval_s": 0.005, **settings},
        )
    )


def slot_in(namespace: str, partition: int) -> int:
    return slot_of(f"{{{namespace}:default:{partition}}}:L".encode())


def partitions_at(cluster: Cluster, namespace: str, server: Server) -> list[int]:
    return [p for p in range(PARTITIONS) if cluster.primary_of(slot_in(namespace, p)) is server]


def desk_in(partition: int, number: int = 0) -> Any:
    """The entities of a partition, one after the other."""
    found = [desk(f"d-{n}") for n in range(2000) if partition_of(f"desk/d-{n}", PARTITIONS) == partition]
    return found[number]


def elsewhere(cluster: Cluster, server: Server) -> Server:
    return next(other for other in cluster.servers if other is not server)


async def ask_until_answered(system: ActorSystem, partition: int, word: str) -> None:
    async def is_answered() -> bool:
        try:
            await system.ask(desk_in(partition), Write(word), key=word, timeout_s=1)
        except AtomicActorsError:
            return False
        return True

    await until(is_answered, 30)


# Everything in its place.


async def test_a_system_over_a_cluster(store_cluster: Cluster, namespace: str) -> None:
    stage = Stage()
    async with (
        new_system(store_cluster, namespace, Desk.using(stage=stage)) as owner,
        new_system(store_cluster, namespace) as sender,
    ):
        for partition in range(PARTITIONS):
            assert await owner.ask(desk_in(partition), Write("own")) == 1
            assert await sender.ask(desk_in(partition), Write("remote")) == 2
            await sender.ask(
                desk_in(partition), Send(desk_in((partition + 1) % PARTITIONS, 1).id, ["a", "b"])
            )
        for partition in range(PARTITIONS):

            async def is_relayed() -> bool:
                return await owner.ask(desk_in(partition, 1), Read()) == ["a", "b"]  # noqa: B023

            await until(is_relayed)
        report = await owner.audit()
        assert report.is_balanced, report.problems
        # Leases are renewed, at every primary.
        await anyio.sleep(2.5)
        assert owner.statistics().owned_partitions == PARTITIONS
        assert owner.statistics().histories_lost == 0
        assert await sender.ask(desk_in(0), Work("late")) == "late"


async def test_volatile_kinds_over_a_cluster(store_cluster: Cluster, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(new_system(store_cluster, namespace, Bell))
        # Each sender is connected to another node of the cluster than the one before, or hears at another.
        for number in range(4):
            sender = await stack.enter_async_context(new_system(store_cluster, namespace))
            for _ in range(3):
                await sender.tell(Bell.ref("b"), Ring())
            assert await sender.ask(Bell.ref("b"), Ring()) == 4 * (number + 1)


async def test_a_call_by_key(store_cluster: Cluster, namespace: str) -> None:
    async with journal_at(store_cluster, namespace) as journal:
        for number in range(6):
            key = f"{{{namespace}:{number}}}".encode()
            answer = await journal.call(b"aa1_register", (key,), (b"s", b"7", b"1"))
            assert [int(part) for part in answer] == [7, 1]
        with pytest.raises(StoreIncompatible, match="Function not found"):
            await journal.call(b"aa1_nothing", (b"k",), ())


async def test_what_is_refused(store_cluster: Cluster, valkey_server: Server, namespace: str) -> None:
    with pytest.raises(StoreUnsafe, match="appendonly"):
        async with journal_at(store_cluster, namespace, allow_no_persistence=False):
            pass
    url = valkey_server.url.replace("redis://", "redis+cluster://")
    with pytest.raises(StoreIncompatible, match="is not a node of a cluster"):
        async with ClusterJournal.from_url(url, settings_of(namespace)):
            pass
    async with journal_at(store_cluster, namespace):
        pass
    with pytest.raises(StoreIncompatible, match="partitions"):
        async with ClusterJournal.from_url(
            store_cluster.url, JournalSettings(namespace=namespace, partitions=3), allow_no_persistence=True
        ):
            pass
    with pytest.raises(JournalUnavailable, match="no node of the cluster"):
        async with ClusterJournal.from_url("redis+cluster://127.0.0.1:1", settings_of(namespace)):
            pass


# Slots that move.


@pytest.mark.parametrize("partition", [0, 5])
async def test_a_slot_moves_in_the_middle_of_everything(
    store_cluster: Cluster, namespace: str, partition: int
) -> None:
    slot = slot_in(namespace, partition)
    journal = journal_at(store_cluster, namespace, timeout_s=0.3)
    client = ClusterLeaseClient(parse_store_url(store_cluster.url)[0], journal, timeout_s=2)
    losses = Losses()
    journal.history.watch(losses)
    async with journal:
        (claimed,) = (
            await journal.execute([ClaimPartition(partition=partition, claim="c", node=b"node")])
        ).results
        assert isinstance(claimed, Claimed)
        await anyio.to_thread.run_sync(client.open)

        async def renew() -> Any:
            return await anyio.to_thread.run_sync(client.renew, [partition], ["c"])

        assert await renew() == [True]
        source = store_cluster.primary_of(slot)
        target = elsewhere(store_cluster, source)
        store_cluster.begin_move(slot, target)
        for limit in (0, 1, 100):
            if limit:
                store_cluster.move_keys(slot, source, target, limit)
            # Nothing is done by halves: steps wait until the slot has arrived, and say that they were not sent.
            with pytest.raises(JournalUnavailable, match="is moving") as caught:
                await journal.execute([Renew(partition, "c")])
            assert not caught.value.sent
            assert await renew() == [True]
        store_cluster.end_move(slot, source, target)
        (renewed,) = (await journal.execute([Renew(partition, "c")])).results
        assert renewed == Renewed(5)
        assert await renew() == [True]
        # And back, while the same client knows the old place.
        await anyio.to_thread.run_sync(store_cluster.move_slot, slot, source)
        assert await renew() == [True]
        (renewed,) = (await journal.execute([Renew(partition, "c")])).results
        assert renewed == Renewed(8)
    await anyio.to_thread.run_sync(client.close)
    assert losses == []


async def test_doorbells_follow_their_slots(store_cluster: Cluster, namespace: str) -> None:
    heard = Heard()
    async with journal_at(store_cluster, namespace) as journal:
        location = parse_store_url(store_cluster.url)[0]
        async with (
            ClusterChannels(location, journal.settings, journal.slots) as channels,
            anyio.create_task_group() as task_group,
        ):
            task_group.start_soon(channels.listen_doorbells, range(PARTITIONS), heard)
            for _ in range(PARTITIONS):
                assert (await heard.next())[1] == ""
            for partition in range(PARTITIONS):
                await journal.execute([Resume(partition, "account/a")])
                assert await heard.next() == (partition, "account/a")
            slot = slot_in(namespace, 3)
            source = store_cluster.primary_of(slot)
            for target in (elsewhere(store_cluster, source), source):
                await anyio.to_thread.run_sync(store_cluster.move_slot, slot, target)
                await journal.execute([Resume(3, "account/b")])
                # Heard at the new place; whoever was late is told to sweep.
                while (bell := await heard.next()) != (3, ""):
                    assert bell == (3, "account/b")
                await journal.execute([Resume(3, "account/c")])
                while (bell := await heard.next()) != (3, "account/c"):
                    assert bell in [(3, ""), (3, "account/b")]
            channels.unwatch(3)
            task_group.cancel_scope.cancel()
    heard.close()


# The library.


async def test_a_flush_of_the_library_at_one_primary(store_cluster: Cluster, namespace: str) -> None:
    stage = Stage()
    async with new_system(store_cluster, namespace, Desk.using(stage=stage)) as system:
        for server in store_cluster.servers:
            server.call("FUNCTION", "FLUSH")
            for partition in range(PARTITIONS):
                await system.ask(desk_in(partition), Write("on"))
        for partition in range(PARTITIONS):
            assert await system.ask(desk_in(partition), Read()) == ["on"] * 3


# A primary that dies.


async def _tell_until_it_raises(system: ActorSystem, partition: int) -> None:
    """Until its primary is known to be away, a message that may have been sent waits."""
    while True:
        with anyio.move_on_after(1):
            await system.tell(desk_in(partition), Write("lost"))


async def test_only_the_partitions_of_a_dead_primary_stop(own_cluster: Cluster, namespace: str) -> None:
    stage = Stage()
    meta = own_cluster.primary_of(slot_of(f"{{{namespace}:meta}}".encode()))
    victim = elsewhere(own_cluster, meta)
    theirs = partitions_at(own_cluster, namespace, victim)
    others = [p for p in range(PARTITIONS) if p not in theirs]
    assert theirs, "choose more partitions"
    assert others
    async with new_system(own_cluster, namespace, Desk.using(stage=stage), drain_timeout_s=0.5) as system:
        for partition in range(PARTITIONS):
            await system.tell(desk_in(partition), Write("before"))
        await anyio.to_thread.run_sync(victim.kill9)
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await _tell_until_it_raises(system, theirs[0])
        # Told at once from now on, and longer than a lease the others go on as if nothing were.
        ends_s = anyio.current_time() + 3
        while anyio.current_time() < ends_s:
            for partition in others:
                with anyio.fail_after(1):
                    await system.ask(desk_in(partition), Write("during"))
            with anyio.fail_after(0.5), pytest.raises(StoreUnavailable):
                await system.tell(desk_in(theirs[0]), Write("refused"))
        assert system.statistics().store.available
        await anyio.to_thread.run_sync(victim.start)
        for partition in theirs:

            async def answers() -> bool:
                try:
                    await system.ask(desk_in(partition), Write("after"), timeout_s=1)  # noqa: B023
                except AtomicActorsError:
                    return False
                return True

            await until(answers, 15)
        for partition in range(PARTITIONS):
            words = await system.ask(desk_in(partition), Read())
            assert words[0] == "before"
            assert "refused" not in words
        assert system.statistics().histories_lost == 0
        report = await system.audit()
        assert report.is_balanced, report.problems


async def test_a_system_starts_while_a_primary_is_away(own_cluster: Cluster, namespace: str) -> None:
    stage = Stage()
    meta = own_cluster.primary_of(slot_of(f"{{{namespace}:meta}}".encode()))
    victim = elsewhere(own_cluster, meta)
    theirs = partitions_at(own_cluster, namespace, victim)
    await anyio.to_thread.run_sync(victim.kill9)
    async with new_system(own_cluster, namespace, Desk.using(stage=stage)) as system:
        assert system.statistics().owned_partitions == PARTITIONS - len(theirs)
        for partition in range(PARTITIONS):
            if partition not in theirs:
                await system.ask(desk_in(partition), Write("on"))
        await anyio.to_thread.run_sync(victim.start)
        for partition in theirs:
            await ask_until_answered(system, partition, "on")
        assert system.statistics().owned_partitions == PARTITIONS


async def test_a_user_with_few_rights(own_cluster: Cluster, namespace: str) -> None:
    rights = f"{ACL_RULES} {CLUSTER_ACL_RULES}".replace("<namespace>", namespace).split()
    user = ("ACL", "SETUSER", "app", "reset", "on", ">secret")
    for server in own_cluster.servers:
        server.call(*user, *rights)
    url = own_cluster.url.replace("://", "://app:secret@")
    config = Config(url=url, namespace=namespace, partitions=PARTITIONS)
    stage = Stage()
    async with (
        ActorSystem(evolve(config, actors=[Desk.using(stage=stage)])) as owner,
        ActorSystem(config) as sender,
    ):
        for partition in range(PARTITIONS):
            assert await sender.ask(desk_in(partition), Work("remote")) == "remote"
        slot = slot_in(namespace, 0)
        target = elsewhere(own_cluster, own_cluster.primary_of(slot))
        await anyio.to_thread.run_sync(own_cluster.move_slot, slot, target)
        await ask_until_answered(sender, 0, "moved")
        await anyio.sleep(2.5)
        assert owner.statistics().owned_partitions == PARTITIONS
    for server in own_cluster.servers:
        server.call(*user, *(right for right in rights if right != "+cluster|slots"))
    with pytest.raises(StoreIncompatible, match=r"\+cluster\|slots"):
        async with ActorSystem(config):
            pass


async def test_nobody_waits_for_lanes_that_were_left(own_cluster: Cluster, namespace: str) -> None:
    told: list[tuple[type[object], bool]] = []
    commit = PartitionedCommit(inner=journal_at(own_cluster, namespace))
    with ExitStack() as pauses:
        async with commit:
            await commit.request(Audit(0))
            for server in own_cluster.servers:
                pauses.enter_context(paused(server))
            commit.submit(Audit(0), lambda answer: told.append((type(answer), commit.is_left)))
    assert told == [(JournalUnavailable, True)]
    with pytest.raises(JournalUnavailable, match="closed"):
        commit.submit(Audit(0), lambda _: None)


async def test_a_lane_for_each_partition(own_cluster: Cluster, namespace: str) -> None:
    victim = own_cluster.servers[1]
    theirs = partitions_at(own_cluster, namespace, victim)
    others = [p for p in range(PARTITIONS) if p not in theirs]
    seen: list[bool] = []
    listeners = Listeners()
    listeners.add("store-lost", lambda _: seen.append(False))
    listeners.add("store-back", lambda _: seen.append(True))
    async with PartitionedCommit(
        inner=journal_at(own_cluster, namespace),
        limits=CommitLimits(retry_delay_max_s=0.1),
        events=StoreEvents(listeners),
    ) as commit:
        await commit.execute([Audit(partition) for partition in range(PARTITIONS)])
        await anyio.to_thread.run_sync(victim.kill9)
        with anyio.fail_after(10):
            while commit.is_available(theirs[0]):
                results = await commit.execute_each([Audit(p) for p in range(PARTITIONS)])
                assert all(isinstance(results[p], Audited) for p in others)
        assert commit.available
        with anyio.fail_after(1):
            await commit.wait_drained()
        for server in own_cluster.servers:
            if server is not victim:
                await anyio.to_thread.run_sync(server.kill9)
        with anyio.fail_after(10):
            while commit.available:
                await commit.execute_each([Audit(p) for p in range(PARTITIONS)])
        assert seen == [False]
        for server in own_cluster.servers:
            await anyio.to_thread.run_sync(server.start)

        async def are_all_back() -> bool:
            return all(commit.is_available(p) for p in range(PARTITIONS))

        await until(are_all_back, 20)
        assert seen == [False, True]
        await commit.execute([Audit(partition) for partition in range(PARTITIONS)])


async def test_a_hung_primary_costs_the_others_no_lease(own_cluster: Cluster, namespace: str) -> None:
    stage = Stage()
    meta = own_cluster.primary_of(slot_of(f"{{{namespace}:meta}}".encode()))
    victim = elsewhere(own_cluster, meta)
    others = [p for p in range(PARTITIONS) if p not in partitions_at(own_cluster, namespace, victim)]
    async with new_system(own_cluster, namespace, Desk.using(stage=stage), drain_timeout_s=0.5) as system:

        def lost() -> int:
            return PARTITIONS - system.statistics().owned_partitions

        os.kill(victim.pid, signal.SIGSTOP)
        try:
            ends_s = anyio.current_time() + 4
            while anyio.current_time() < ends_s:
                for partition in others:
                    with anyio.fail_after(1):
                        await system.ask(desk_in(partition), Write("on"))
            assert lost() == PARTITIONS - len(others)
        finally:
            os.kill(victim.pid, signal.SIGCONT)

        async def is_whole() -> bool:
            return not lost()

        await until(is_whole, 20)


# A replica that takes over.


@pytest.fixture
def replicated_cluster(kind: Kind, tmp_path: Path) -> Generator[Cluster]:
    with start_cluster(kind, tmp_path=tmp_path, replicas=1) as cluster:
        yield cluster


def is_behind(primary: Server, replica: Server) -> bool:
    sent, got = (server.call("INFO", "replication") for server in (primary, replica))
    return int(sent["master_repl_offset"]) > int(got["slave_repl_offset"])


async def test_a_replica_takes_over(replicated_cluster: Cluster, namespace: str) -> None:
    cluster, stage = replicated_cluster, Stage()
    victim, heir = cluster.servers[0], cluster.servers[3]
    theirs = partitions_at(cluster, namespace, victim)
    async with new_system(cluster, namespace, Desk.using(stage=stage), drain_timeout_s=0.5) as system:
        for partition in range(PARTITIONS):
            await system.ask(desk_in(partition), Write("before"))
        await until(lambda: anyio.to_thread.run_sync(lambda: not is_behind(victim, heir)), 10)
        await anyio.to_thread.run_sync(victim.kill9)
        for partition in range(PARTITIONS):
            await ask_until_answered(system, partition, "after")
        assert all(cluster.primary_of(slot_in(namespace, p)) is heir for p in theirs)
        for partition in range(PARTITIONS):
            assert await system.ask(desk_in(partition), Read()) == ["before", "after"]
        assert system.statistics().histories_lost == 0


async def test_a_replica_that_was_behind_takes_over(replicated_cluster: Cluster, namespace: str) -> None:
    cluster, stage = replicated_cluster, Stage()
    victim, heir = cluster.servers[0], cluster.servers[3]
    theirs = partitions_at(cluster, namespace, victim)
    losses: list[HistoryLost] = []
    async with new_system(cluster, namespace, Desk.using(stage=stage), drain_timeout_s=0.5) as system:
        system.listen("history-lost", losses.append)
        for partition in range(PARTITIONS):
            await system.ask(desk_in(partition), Write("before"))
        await until(lambda: anyio.to_thread.run_sync(lambda: not is_behind(victim, heir)), 10)
        os.kill(heir.pid, signal.SIGSTOP)
        assert victim.call("CLIENT", "KILL", "TYPE", "replica") == 1
        for partition in range(PARTITIONS):
            await system.ask(desk_in(partition), Write("lost"))
        await anyio.to_thread.run_sync(victim.kill9)
        os.kill(heir.pid, signal.SIGCONT)
        for partition in range(PARTITIONS):
            await ask_until_answered(system, partition, "after")
        for partition in range(PARTITIONS):
            words = ["before", "after"] if partition in theirs else ["before", "lost", "after"]
            assert await system.ask(desk_in(partition), Read()) == words
        # Noticed and reported, once for each partition of that primary and for no other.
        assert sorted(loss.partition for loss in losses) == theirs


async def test_who_asks_for_slots_while_the_journal_is_left(valkey_cluster: Cluster, namespace: str) -> None:
    journal = journal_at(valkey_cluster, namespace)
    async with journal:
        pass
    with pytest.raises(JournalUnavailable, match="the journal is closing"):
        await journal._nodes._ask_slots(("127.0.0.1", 1))
