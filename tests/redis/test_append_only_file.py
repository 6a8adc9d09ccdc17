"""The end of the append-only file is torn off, as a power loss may do: a step is there as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from atomic_actors.journal._protocol import (
    Audit,
    Audited,
    Finish,
    Finished,
    JournalSettings,
    JournalUnavailable,
    Outgoing,
    Verdict,
)
from tests.redis.test_history import losses_of
from tests.redis.test_wire import CLAIM, ENTITY, POLICY, body, open_journal, own, send, take_one
from tests.servers import AppendOnly, Kind, Server, start_server

pytestmark = pytest.mark.redis

#: Each byte of a commit is a restart; `AA_TESTS_ALL_MODES=1`, as `nox -s tests_all` sets it, leaves none out.
STEP_BYTES = 1 if os.environ.get("AA_TESTS_ALL_MODES") == "1" else 29
KINDS = ("valkey", "redis") if STEP_BYTES == 1 else ("valkey",)
MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"

#: How to read a key of each type; what a key's bytes look like inside the server may differ after a restart.
READERS: dict[bytes, Callable[[Any, bytes], Any]] = {
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    b"string": lambda client, key: client.get(key),
}


def contents(server: Server) -> dict[bytes, Any]:
    """All that the server has, and what of it expires."""
    with server.client() as client:
        found: dict[bytes, Any] = {}
        for key in cast("list[bytes]", client.keys()):
            kind = cast("bytes", client.type(key))
            if kind != b"none":  # else it has expired meanwhile
                found[key] = READERS[kind](client, key), cast("int", client.ttl(key)) >= 0
        return found


def log_of(server: Server) -> Path:
    (log,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    return log


def tear_off(server: Server, data: bytes) -> None:
    """Kill the server, and start it again with a file that ends early."""
    if server.process is not None:
        server.kill9()
    log_of(server).write_bytes(data)
    server.start()


async def commit_a_turn(server: Server) -> tuple[dict[bytes, Any], int]:
    """A commit that writes to many keys; returns what was there before it, and how long the file was."""
    # Nothing expires while the test lasts.
    async with open_journal(server, JournalSettings(partitions=2, result_ttl_ms=3_600_000)) as journal:
        await own(journal)
        uid, turn = await take_one(journal)
        before, length = contents(server), len(log_of(server).read_bytes())
        outbox = (
            Outgoing(partition=0, entity="account/b", uid="a" * 32, body=body()),
            Outgoing(partition=1, entity="account/c", uid="b" * 32, body=body()),
        )
        verdicts = (Verdict(uid=uid, event="fail", error=b"e"),)
        step = Finish(
            partition=0,
            entity=ENTITY,
            claim=CLAIM,
            turn=turn,
            verdicts=verdicts,
            state=b"state",
            expected_version=0,
            outbox=outbox,
            policy=POLICY,
        )
        assert isinstance(await send(journal, step), Finished)
    return before, length


def cuts(torn: bytes) -> list[int]:
    """Where to cut; in its first and its last command, everywhere."""
    edges = [*range(len(MULTI) + 1), *range(len(torn) - len(EXEC), len(torn))]
    return sorted({*edges, *range(0, len(torn), STEP_BYTES)})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_cut_at_every_byte_of_a_commit(kind: Kind, tmp_path: Path) -> None:
    with start_server(kind, tmp_path=tmp_path, tcp=False, appendonly="always") as server:
        before, length = anyio.run(commit_a_turn, server)
        after, data = contents(server), log_of(server).read_bytes()
        assert len(set(after) - set(before)) >= 4
        torn = data[length:]
        print(f"\n{len(cuts(torn))} of {len(torn)} bytes")
        assert torn.startswith(MULTI)
        assert torn.endswith(EXEC)
        assert torn.count(b"MULTI") == 1
        for end in cuts(torn):
            tear_off(server, data[: length + end])
            assert contents(server) == before, torn[:end]
        tear_off(server, data)
        assert contents(server) == after


@pytest.mark.anyio
@pytest.mark.parametrize("appendonly", ["everysec", "always"])
async def test_the_last_commits_are_lost(appendonly: AppendOnly, tmp_path: Path) -> None:
    """Who was told of them learns that they are gone, before anything else is sent."""
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly=appendonly) as server:
        async with open_journal(server, JournalSettings()) as journal:
            losses = losses_of(journal)
            await own(journal)
            await take_one(journal, entity="account/kept")
            kept = log_of(server).read_bytes()
            for number in range(3):
                await take_one(journal, entity=f"account/{number}")
            data = log_of(server).read_bytes()
            assert data.startswith(kept)
            # In the middle of the first commit that the disk did not get.
            tear_off(server, data[: len(kept) + 100])
            with pytest.raises(JournalUnavailable):
                await journal.execute([Audit(0)])
            with pytest.raises(JournalUnavailable, match="lost history"):
                await journal.execute([Audit(0)])
            assert [(loss.acknowledged, loss.found) for loss in losses] == [(4, 1)]
            audited = await send(journal, Audit(0))
            assert isinstance(audited, Audited)
            assert audited.counts["accepted"] == audited.counts["dispatched"] == 1
