"""What is damaged in the store costs what it belongs to, and nothing beside it."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import (
    ClaimPartition,
    JournalSettings,
    Sweep,
    Swept,
)
from tests.redis.test_wire import CLAIM, ENTITY, open_journal, own, send, take_one
from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

DISPATCH = b"9\n%s\ntdc0\n0\n%s\n1\n0"


@pytest.mark.parametrize(
    ("entity", "dispatch"),
    [
        (b"account/d-1", b"damaged"),
        (b"account/\xff", DISPATCH % (CLAIM.encode(), b"unique")),
        (b"account/d-1", DISPATCH % (CLAIM.encode(), b"\xff")),
        (b"account/\xff", DISPATCH % (b"older", b"unique")),
    ],
    ids=["dispatch", "entity", "unique", "another owner's"],
)
async def test_a_damaged_dispatch_leaves_the_sweeps_of_the_others(
    store_server: Server, namespace: str, entity: bytes, dispatch: bytes
) -> None:
    """For the owner and for the next one."""
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        await take_one(journal)
        store_server.call("HSET", f"{{{namespace}:default:0}}:run", entity, dispatch)
        plain = await send(journal, Sweep(0, CLAIM))
        assert isinstance(plain, Swept)
        paged = await send(journal, Sweep(0, CLAIM, own_from=""))
        assert isinstance(paged, Swept)
        assert [found.entity for found in paged.own] == [ENTITY]
        assert not plain.own
        assert not plain.unsettled + paged.unsettled
        store_server.call("DEL", f"{{{namespace}:default:0}}:L")
        await send(journal, ClaimPartition(0, "next", b"node"))
        for step in (Sweep(0, "next"), Sweep(0, "next", own_from="")):
            swept = await send(journal, step)
            assert isinstance(swept, Swept)
            assert ENTITY in [found.entity for found in swept.unsettled]
            assert not swept.own
