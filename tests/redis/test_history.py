"""A store that comes back with an older history: noticed before anything is sent to it."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audit,
    Audited,
    JournalSettings,
    JournalUnavailable,
    ReadOutcome,
    Sweep,
)
from atomic_actors.journal.redis._journal import RedisJournal
from tests.journals import Losses
from tests.redis.test_wire import (
    CLAIM,
    ENTITY,
    POLICY,
    body,
    now_ms,
    open_journal,
    own,
    send,
    take_one,
    uid_at,
)
from tests.servers import Server, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="always") as server:
        yield server


def losses_of(journal: RedisJournal) -> list[HistoryLoss]:
    losses = Losses()
    journal.history.watch(losses)
    return losses


async def lose(server: Server, journal: RedisJournal, commits: int) -> None:
    """Make the store forget so many commits of partition 0."""
    data, copy = server.directory / "appendonlydir", server.directory / "copy"
    shutil.copytree(data, copy)
    for number in range(commits):
        await take_one(journal, entity=f"account/{number}")
    server.kill9()
    with pytest.raises(JournalUnavailable):
        await journal.execute([Audit(0)])
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    server.start()


@pytest.mark.parametrize("commits", [1, 3])
@pytest.mark.parametrize("merged", [True, False])
async def test_noticed_before_anything_is_sent(server: Server, commits: int, merged: bool) -> None:
    async with open_journal(server, JournalSettings(), merge_partitions=merged) as journal:
        losses = losses_of(journal)
        await own(journal)
        await own(journal, 1)
        await take_one(journal)
        uid = uid_at(await now_ms(journal))
        await lose(server, journal, commits)
        # The same number of commits as were lost would hide the loss, if they came first.
        step = Append(partition=0, entity="account/new", uid=uid, body=body(), claim=CLAIM, policy=POLICY)
        with pytest.raises(JournalUnavailable, match="lost history") as error:
            await journal.execute([step])
        assert error.value.sent is False
        assert losses == [HistoryLoss(0, 1 + commits, 1)]
        audited = await send(journal, Audit(0))
        assert isinstance(audited, Audited)
        assert (audited.counts["accepted"], audited.commit) == (1, 1)
        # From now on it goes on as it is.
        assert isinstance(await send(journal, step), Appended)
        assert len(losses) == 1
        assert journal.commits[0] == 2


async def test_noticed_in_an_answer(server: Server) -> None:
    async with open_journal(server, JournalSettings()) as journal:
        losses = losses_of(journal)
        await own(journal)
        await take_one(journal)
        server.call("FLUSHALL")
        await send(journal, Sweep(partition=0, claim=CLAIM))
        assert losses == [HistoryLoss(0, 1, 0)]
        await send(journal, Sweep(partition=0, claim=CLAIM))
        assert len(losses) == 1


async def test_a_restart_with_everything_is_no_loss(server: Server) -> None:
    async with open_journal(server, JournalSettings()) as journal:
        losses = losses_of(journal)
        await own(journal)
        for number in range(3):
            uid, _ = await take_one(journal, entity=f"{ENTITY}-{number}")
            server.kill9()
            server.start()
            with pytest.raises(JournalUnavailable):
                await journal.execute([Audit(0)])
            assert await now_ms(journal) > 0
            await send(journal, ReadOutcome(0, ENTITY, uid))
        assert losses == []
        assert journal.commits[0] == 3
