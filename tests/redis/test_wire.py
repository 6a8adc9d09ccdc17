"""The journal over a real server: its library, its keys, its numbers, and what its errors mean."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import anyio
import pytest

from atomic_actors.base._errors import InvalidConfig, StoreIncompatible, StoreUnsafe
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    Defer,
    Expire,
    Finish,
    Finished,
    Interrupt,
    JournalSettings,
    JournalUnavailable,
    ListDeadLetters,
    Outgoing,
    ReadOutcome,
    Rejected,
    RelayAck,
    RelayEntry,
    RelayIn,
    RelayRead,
    Release,
    Released,
    Replay,
    Result,
    SettleLost,
    Stale,
    Step,
    Sweep,
    Take,
    Verdict,
    Withdraw,
    pack_body,
)
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.journal.redis._library import LIBRARY, RENEW, library_source
from atomic_actors.journal.redis._wire import Wire
from tests.servers import KINDS, Kind, Server, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

CLAIM = "claim-1"
POLICY = "\nm=edc3\nt=tdc3\n*=edc3\n"
ENTITY = "account/a-1"


def body(name: str = "m", *, key: str = "", deadline_ms: int = 0) -> bytes:
    return pack_body(
        name=name, deadline_ms=deadline_ms, waited_for=True, key=key, envelope=b"\x00envelope\n\xff"
    )


def uid_at(now_ms: int) -> str:
    return f"{now_ms:012x}{secrets.token_hex(10)}"


def open_journal(server: Server, settings: JournalSettings, **options: Any) -> RedisJournal:
    options.setdefault("allow_no_persistence", True)
    return RedisJournal.from_url(server.url, settings, **options)


async def now_ms(journal: RedisJournal) -> int:
    return (await journal.execute([Audit(0)])).now_ms


async def send(journal: RedisJournal, step: Step) -> Result:
    return (await journal.execute([step])).results[0]


async def own(journal: RedisJournal, partition: int = 0) -> None:
    assert isinstance(
        await send(journal, ClaimPartition(partition=partition, claim=CLAIM, node=b"node")), Claimed
    )


async def take_one(journal: RedisJournal, name: str = "m", entity: str = ENTITY) -> tuple[str, int]:
    uid = uid_at(await now_ms(journal))
    answer = await send(
        journal, Append(partition=0, entity=entity, uid=uid, body=body(name), claim=CLAIM, policy=POLICY)
    )
    assert isinstance(answer, Appended)
    assert answer.offer.dispatch is not None
    return uid, answer.offer.dispatch.turn


# --- the library ---------------------------------------------------------------------------------------


async def test_flushed_library_comes_back_and_the_steps_happen_once(
    store_server: Server, namespace: str
) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        store_server.call("FUNCTION", "FLUSH")
        uid = uid_at(await now_ms(journal))
        store_server.call("FUNCTION", "FLUSH")
        answer = await send(
            journal, Append(partition=0, entity=ENTITY, uid=uid, body=body(), claim=CLAIM, policy=POLICY)
        )
        assert isinstance(answer, Appended)
        assert not answer.duplicate
        audited = await send(journal, Audit(0))
        assert isinstance(audited, Audited)
        assert audited.counts["accepted"] == 1


async def test_flush_while_partitions_are_sent_apart(store_server: Server, namespace: str) -> None:
    settings = JournalSettings(namespace=namespace)
    async with open_journal(store_server, settings, merge_partitions=False) as journal:
        store_server.call("FUNCTION", "FLUSH")
        steps = [
            ClaimPartition(partition=number % 8, claim=f"claim-{number % 8}", node=b"node")
            for number in range(16)
        ]
        results = (await journal.execute(steps)).results
        assert [type(result) for result in results] == [Claimed] * 16


async def test_other_code_under_the_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = f"#!lua name={LIBRARY}\nredis.register_function('aa1_commit', function() return 'other' end)\n"
    with start_server("redis", tmp_path=tmp_path, tcp=False, appendonly="no") as server:
        server.call("FUNCTION", "LOAD", other)
        with pytest.raises(StoreIncompatible, match="FUNCTION DELETE"):
            async with open_journal(server, JournalSettings()):
                pass
        listed = str(server.call("FUNCTION", "LIST", "WITHCODE"))
        assert "other" in listed


async def test_an_older_revision_is_replaced_and_a_newer_one_is_used(tmp_path: Path) -> None:
    source = library_source().decode()
    marker = re.search(r"-- revision: \d+\n", source)
    assert marker is not None

    def with_revision(number: int) -> str:
        return source.replace(marker[0], f"-- revision: {number}\n")

    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="no") as server:
        server.call("FUNCTION", "LOAD", with_revision(9999))
        async with open_journal(server, JournalSettings()) as journal:
            await own(journal)
        assert "revision: 9999" in str(server.call("FUNCTION", "LIST", "WITHCODE"))
        server.call("FUNCTION", "FLUSH")
        server.call("FUNCTION", "LOAD", with_revision(1))
        async with open_journal(server, JournalSettings()) as journal:
            await own(journal)
        assert marker[0].strip() in str(server.call("FUNCTION", "LIST", "WITHCODE"))


async def test_next_version_lives_beside_this_one(tmp_path: Path) -> None:
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="no") as server:
        server.call(
            "FUNCTION",
            "LOAD",
            "#!lua name=atomic_actors_2\nredis.register_function('aa2_commit', function() end)",
        )
        async with open_journal(server, JournalSettings()) as journal:
            await own(journal)
        assert "aa2_commit" in str(server.call("FUNCTION", "LIST"))


def test_library_names_its_own_version() -> None:
    assert library_source().startswith(f"#!lua name={LIBRARY}\n".encode())


async def test_partition_count_is_fixed(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace, partitions=16)):
        pass
    with pytest.raises(StoreIncompatible, match=r"16 partitions.*partitions=32"):
        async with open_journal(store_server, JournalSettings(namespace=namespace, partitions=32)):
            pass
    async with open_journal(store_server, JournalSettings(namespace=namespace, service="b", partitions=32)):
        pass


async def test_renew_of_many_leases(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal, 0)
        await own(journal, 1)
        keys = [journal.lease_key(partition) for partition in (0, 1, 2)]
        answer = store_server.call("FCALL", RENEW, 3, *keys, CLAIM, "stale", CLAIM)
        assert answer == [1, -1, -1]
        assert store_server.call("FCALL", RENEW, 1, keys[0], CLAIM) == [2]
        # A lease that nobody holds is not renewed by who holds none.
        assert await send(journal, Release(1, CLAIM)) == Released()
        assert store_server.call("FCALL", RENEW, 1, keys[1], "") == [-1]


# --- keys and numbers ----------------------------------------------------------------------------------


def all_steps(uid: str) -> list[Step]:
    """One step of each sort that touches keys of its own."""
    verdicts = (Verdict(uid=uid, event="fail", error=b"e"),)
    outbox = (
        Outgoing(partition=0, entity="account/b", uid="a" * 32, body=body()),
        Outgoing(partition=1, entity="account/c", uid="b" * 32, body=body()),
        Outgoing(partition=1, entity="bill/c", uid="c" * 32, body=body(), service="billing"),
    )
    return [
        ClaimPartition(partition=0, claim=CLAIM, node=b"node", new_incarnation=True),
        Append(
            partition=0,
            entity=ENTITY,
            uid=uid,
            body=body(key="k"),
            key="k",
            digest="d",
            claim=CLAIM,
            policy=POLICY,
        ),
        Append(partition=0, entity=ENTITY, uid="0" + uid[1:], body=body()),
        Finish(
            partition=0,
            entity=ENTITY,
            claim=CLAIM,
            turn=1,
            verdicts=verdicts,
            state=b"state",
            expected_version=0,
            outbox=outbox,
            policy=POLICY,
        ),
        Take(partition=0, entity="account/b", claim=CLAIM, policy=POLICY),
        Interrupt(partition=0, entity="account/b", claim=CLAIM, turn=1, uids=("a" * 32,)),
        SettleLost(
            partition=0,
            entity=ENTITY,
            claim=CLAIM,
            uid="0" + uid[1:],
            policy=POLICY,
            attempt=1,
            interruptions=0,
        ),
        Withdraw(0, ENTITY, uid, "k"),
        Expire(0, ENTITY, uid, "k"),
        ReadOutcome(0, ENTITY, uid),
        Replay(partition=0, entity=ENTITY, uid=uid, new_uid="c" * 32, at_head=True),
        Replay(
            partition=0, entity=ENTITY, uid=uid, new_uid="c" * 32, at_head=True, claim=CLAIM, policy=POLICY
        ),
        ListDeadLetters(partition=0),
        Sweep(partition=0, claim=CLAIM),
        Sweep(partition=0, claim=CLAIM, own_from=""),
        Defer(0, ENTITY, CLAIM, 1000),
        RelayRead(0, CLAIM, 1),
        RelayRead(0, CLAIM, "billing/1"),
        RelayAck(partition=0, claim=CLAIM, target="billing/1", last=1),
        RelayIn(
            partition=0,
            source="billing/1",
            incarnation=5,
            entries=(RelayEntry(1, "account/d", "e" * 32, body()),),
        ),
        RelayIn(
            partition=0, source=1, incarnation=5, entries=(RelayEntry(1, "account/d", "d" * 32, body()),)
        ),
        RelayAck(partition=0, claim=CLAIM, target=1, last=1),
        Audit(0),
    ]


def touched_keys(server: Server, prefix: str) -> set[str]:
    return {str(key) for key in server.call("KEYS", prefix.replace("{", "\\{") + "*")}


async def test_every_key_that_is_written_was_declared(store_server: Server, namespace: str) -> None:
    settings = JournalSettings(namespace=namespace)
    wire = Wire(settings)
    declared: set[str] = set()
    async with open_journal(store_server, settings) as journal:
        uid = uid_at(await now_ms(journal))
        steps = all_steps(uid)
        for step in steps:
            declared |= {key.decode() for key in wire.encode([step]).keys}
            result = await send(journal, step)
            assert not isinstance(result, Rejected) or result.code != "bad_step", result
        written = touched_keys(store_server, "{" + namespace + ":default")
        assert len(written) >= 10
        assert written <= declared


async def test_all_keys_of_a_partition_are_in_one_slot(store_server: Server, namespace: str) -> None:
    wire = Wire(JournalSettings(namespace=namespace))
    call = wire.encode(all_steps("0" * 32))
    # The part between the first brace pair is what a cluster hashes; an entity's braces come behind it.
    assert {key.split(b"}")[0] for key in call.keys} == {b"{" + f"{namespace}:default:0".encode()}


@pytest.mark.parametrize("large", [2**53 + 1, 2**60 + 1, 2**63 - 1])
async def test_large_numbers_do_no_harm(store_server: Server, namespace: str, large: int) -> None:
    settings = JournalSettings(namespace=namespace, result_ttl_ms=large, dedupe_ttl_ms=large)
    async with open_journal(store_server, settings) as journal:
        await own(journal)
        uid, turn = await take_one(journal)
        assert await send(
            journal,
            Finish(
                partition=0,
                entity=ENTITY,
                claim=CLAIM,
                turn=large,
                verdicts=(Verdict(uid=uid, event="complete"),),
                state=None,
                expected_version=0,
            ),
        ) == Stale("turn")
        answer = await send(
            journal,
            Finish(
                partition=0,
                entity=ENTITY,
                claim=CLAIM,
                turn=turn,
                verdicts=(Verdict(uid=uid, event="complete"),),
                state=b"s",
                expected_version=large,
            ),
        )
        assert isinstance(answer, Rejected)
        assert answer.code == "version_conflict"
        answer = await send(
            journal,
            Finish(
                partition=0,
                entity=ENTITY,
                claim=CLAIM,
                turn=turn,
                verdicts=(Verdict(uid=uid, event="retry", delay_ms=large),),
                state=None,
                expected_version=0,
            ),
        )
        assert isinstance(answer, Finished)
        assert answer.offer.not_before_ms == 2**53 - 1
        audited = await send(journal, Audit(0))
        assert isinstance(audited, Audited)
        assert audited.counts["enqueued"] == audited.indexed_ready == 1


async def test_time_does_not_go_back(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        # As a primary left it whose clock was an hour ahead of this one's.
        ahead_ms = await now_ms(journal) + 3_600_000
        store_server.call("HSET", f"{{{namespace}:default:0}}:C", "time", ahead_ms)
        uid, turn = await take_one(journal)
        assert int(uid[:12], 16) >= ahead_ms
        verdicts = (Verdict(uid=uid, event="retry", delay_ms=1_000),)
        answer = await send(
            journal,
            Finish(
                partition=0,
                entity=ENTITY,
                claim=CLAIM,
                turn=turn,
                verdicts=verdicts,
                state=None,
                expected_version=0,
            ),
        )
        assert isinstance(answer, Finished)
        assert answer.offer.not_before_ms == ahead_ms + 1_000
        assert await now_ms(journal) == ahead_ms
        assert store_server.call("HGET", f"{{{namespace}:default:0}}:C", "time") == str(ahead_ms)


async def test_counts_above_fourteen_digits_stay_exact(store_server: Server, namespace: str) -> None:
    """`tostring` in Lua would round these, and the next number would be written on top of another."""
    start = 1_234_567_890_123_456
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        prefix = f"{{{namespace}:default:0}}"
        store_server.call("HSET", f"{prefix}:e:{ENTITY}", "t", start, "v", start, "s", "old")
        store_server.call("HSET", f"{prefix}:C", "accepted", start, "completed", start)
        uid, turn = await take_one(journal)
        assert turn == start + 1
        step = Finish(
            partition=0,
            entity=ENTITY,
            claim=CLAIM,
            turn=turn,
            verdicts=(Verdict(uid=uid, event="complete"),),
            state=b"new",
            expected_version=start,
        )
        assert await send(journal, step) == Finished(start + 1, (await send(journal, step)).offer)  # type: ignore[union-attr]
        assert store_server.call("HGET", f"{prefix}:e:{ENTITY}", "v") == str(start + 1)
        assert store_server.call("HGET", f"{prefix}:C", "accepted") == str(start + 1)


async def test_a_foreign_value_fails_its_own_step_only(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        store_server.call("SET", f"{{{namespace}:default:0}}:e:account/broken", "no hash")
        now = await now_ms(journal)
        steps = [
            Append(partition=0, entity=entity, uid=uid_at(now), body=body(), claim=CLAIM, policy=POLICY)
            for entity in ("account/a", "account/broken", "account/c")
        ]
        first, second, third = (await journal.execute(steps)).results
        assert isinstance(first, Appended)
        assert isinstance(second, Rejected)
        assert "WRONGTYPE" in second.text
        assert isinstance(third, Appended)
        audited = await send(journal, Audit(0))
        assert isinstance(audited, Audited)
        assert audited.counts["accepted"] == audited.counts["dispatched"] == audited.indexed_dispatched == 2


@pytest.mark.parametrize("name", ["", "a{b", "a}b", "a\nb"])
def test_names_that_would_break_the_slots_are_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match="namespace"):
        RedisJournal.from_url("redis://localhost", JournalSettings(namespace=name))


# --- order and errors ----------------------------------------------------------------------------------


async def test_calls_in_flight_arrive_in_order(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        now = await now_ms(journal)
        uids = [uid_at(now) for _ in range(40)]

        async def append(uid: str) -> None:
            assert isinstance(
                await send(journal, Append(partition=0, entity=ENTITY, uid=uid, body=body())), Appended
            )

        async with anyio.create_task_group() as task_group:
            for uid in uids:
                task_group.start_soon(append, uid)
                await anyio.lowlevel.checkpoint()
        log = store_server.call("LRANGE", f"{{{namespace}:default:0}}:q:{ENTITY}", 0, -1)
        assert sorted(log) == sorted(uids)
        await own(journal)
        taken = await send(journal, Take(partition=0, entity=ENTITY, claim=CLAIM, policy=POLICY))
        assert taken.offer.dispatch.messages[0].uid == log[0]  # type: ignore[union-attr]


async def test_a_cancelled_call_does_not_shift_the_answers(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        for _ in range(10):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await journal.execute([ListDeadLetters(partition=0)])
            assert isinstance(await send(journal, Audit(0)), Audited)


async def test_server_lost_and_back(tmp_path: Path) -> None:
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="always") as server:
        async with open_journal(server, JournalSettings(), allow_no_persistence=False) as journal:
            await own(journal)
            uid, turn = await take_one(journal)
            run_id = journal.run_id
            assert run_id
            server.kill9()
            with pytest.raises(JournalUnavailable):
                await journal.execute([Audit(0)])
            with pytest.raises(JournalUnavailable) as unreachable:
                await journal.execute([Audit(0)])
            assert unreachable.value.sent is False
            server.restart()
            step = Finish(
                partition=0,
                entity=ENTITY,
                claim=CLAIM,
                turn=turn,
                verdicts=(Verdict(uid=uid, event="complete"),),
                state=b"s",
                expected_version=0,
            )
            assert isinstance(await send(journal, step), Finished)
            assert journal.run_id not in ("", run_id)
            assert journal.commits[0] == 2


async def test_a_stalled_server_is_given_up_in_time(store_server: Server, namespace: str) -> None:
    async with open_journal(store_server, JournalSettings(namespace=namespace), timeout_s=0.1) as journal:
        store_server.call("CLIENT", "PAUSE", 1000, "ALL")
        with pytest.raises(JournalUnavailable) as error:
            await journal.execute([Audit(0)])
        assert error.value.sent
        store_server.call("CLIENT", "UNPAUSE")
        assert isinstance(await send(journal, Audit(0)), Audited)


async def test_a_full_store_refuses_and_nothing_happened(tmp_path: Path) -> None:
    with start_server("redis", tmp_path=tmp_path, tcp=False, appendonly="no") as server:
        async with open_journal(server, JournalSettings()) as journal:
            await own(journal)
            server.call("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(JournalUnavailable, match="OOM") as error:
                await journal.execute([Append(partition=0, entity=ENTITY, uid="0" * 32, body=body())])
            assert error.value.sent is False
            server.call("CONFIG", "SET", "maxmemory", 0)
            audited = await send(journal, Audit(0))
            assert isinstance(audited, Audited)
            assert audited.counts["accepted"] == 0


async def test_a_replica_takes_no_writes(tmp_path: Path) -> None:
    with start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="no") as server:
        async with open_journal(server, JournalSettings()) as journal:
            server.call("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(JournalUnavailable) as error:
                await journal.execute([Append(partition=0, entity=ENTITY, uid="0" * 32, body=body())])
            assert error.value.sent is False


# --- stores that are refused ---------------------------------------------------------------------------


async def refuse(server: Server, expected: type[Exception], match: str, **options: Any) -> None:
    with pytest.raises(expected, match=match):
        async with RedisJournal.from_url(server.url, JournalSettings(), **options):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_unsafe_stores_are_refused_with_the_remedy(kind: Kind, tmp_path: Path) -> None:
    with start_server(kind, tmp_path=tmp_path, tcp=False, appendonly="no") as server:
        await refuse(server, StoreUnsafe, "CONFIG SET appendonly yes")
        server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await refuse(server, StoreUnsafe, "maxmemory-policy noeviction", allow_no_persistence=True)
        async with open_journal(server, JournalSettings(), allow_eviction=True) as journal:
            await own(journal)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_is_never_forced_to_the_disk_is_refused(kind: Kind, tmp_path: Path) -> None:
    with start_server(kind, tmp_path=tmp_path, tcp=False, appendonly="everysec") as server:
        server.call("CONFIG", "SET", "appendfsync", "no")
        await refuse(
            server, StoreUnsafe, "appendfsync is no.*CONFIG SET appendfsync always.*allow_no_persistence"
        )
        await refuse(server, StoreUnsafe, "appendfsync is no", allow_eviction=True)
        async with open_journal(server, JournalSettings(), allow_no_persistence=True) as journal:
            await own(journal)
        for policy in ("everysec", "always"):
            server.call("CONFIG", "SET", "appendfsync", policy)
            async with open_journal(server, JournalSettings(), allow_no_persistence=False) as journal:
                await send(journal, Audit(0))


async def test_safety_is_seen_without_the_right_to_config(tmp_path: Path) -> None:
    with start_server("redis", tmp_path=tmp_path, tcp=True, appendonly="always") as server:
        server.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config")
        url = f"redis://app:secret@127.0.0.1:{server.port}"
        async with RedisJournal.from_url(url, JournalSettings()) as journal:
            await own(journal)


async def test_a_password_that_is_missing_or_wrong(tmp_path: Path) -> None:
    with start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="no") as server:
        server.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
        wrong = f"redis://app:wrong@127.0.0.1:{server.port}"
        with pytest.raises(StoreIncompatible, match="username and password"):
            async with RedisJournal.from_url(wrong, JournalSettings()):
                pass
        server.call("ACL", "SETUSER", "default", "off")
        await refuse(server, StoreIncompatible, "username and password")
        right = f"redis://app:secret@127.0.0.1:{server.port}"
        async with RedisJournal.from_url(right, JournalSettings(), allow_no_persistence=True) as journal:
            await own(journal)


async def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailable) as error:
        async with RedisJournal.from_url(f"unix://{tmp_path}/none", JournalSettings()):
            pass
    assert error.value.sent is False
    assert "FileNotFoundError" in str(error.value)
