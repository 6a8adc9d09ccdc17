"""What is damaged in the store costs what it belongs to, and nothing beside it."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import (
    Append,
    Claimed,
    ClaimPartition,
    JournalSettings,
    Rejected,
    Sweep,
    Swept,
    Take,
    Taken,
)
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
        plain = await send(journal, Sweep(partition=0, claim=CLAIM))
        assert isinstance(plain, Swept)
        paged = await send(journal, Sweep(partition=0, claim=CLAIM, own_from=""))
        assert isinstance(paged, Swept)
        assert [found.entity for found in paged.own] == [ENTITY]
        assert not plain.own
        assert not plain.unsettled + paged.unsettled
        store_server.call("DEL", f"{{{namespace}:default:0}}:L")
        await send(journal, ClaimPartition(partition=0, claim="next", node=b"node"))
        for step in (Sweep(partition=0, claim="next"), Sweep(partition=0, claim="next", own_from="")):
            swept = await send(journal, step)
            assert isinstance(swept, Swept)
            assert ENTITY in [found.entity for found in swept.unsettled]
            assert not swept.own


async def test_a_body_that_is_gone_is_offered_as_an_empty_one(store_server: Server, namespace: str) -> None:
    """To those who have to read it, an empty one is as damaged as any other."""
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        await own(journal)
        at_ms = await now_ms(journal)
        uids = [uid_at(at_ms + number) for number in range(2)]
        for uid in uids:
            await send(journal, Append(partition=0, entity=ENTITY, uid=uid, body=body("t")))
        take = Take(partition=0, entity=ENTITY, claim=CLAIM, policy=POLICY, run_limit=2)
        assert isinstance(await send(journal, take), Taken)
        store_server.call("HDEL", f"{{{namespace}:default:0}}:e:{ENTITY}", f"m:{uids[1]}")
        again = await send(journal, take)
        assert isinstance(again, Taken)
        assert again.offer.dispatch is not None
        assert [message.body for message in again.offer.dispatch.messages] == [body("t"), b""]


async def test_a_lease_of_another_type_leaves_the_other_partitions(
    store_server: Server, namespace: str
) -> None:
    """Whose books have no copy of the claim yet."""
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        store_server.call("SET", f"{{{namespace}:default:0}}:L", "damaged")
        damaged, healthy = (
            await journal.execute(
                [
                    Append(partition=0, entity=ENTITY, uid=uid_at(1), body=body()),
                    ClaimPartition(partition=1, claim=CLAIM, node=b"node"),
                ]
            )
        ).results
        assert isinstance(damaged, Rejected)
        assert "WRONGTYPE" in damaged.text
        assert isinstance(healthy, Claimed)
