"""Who lives, as somebody sees it who looks for the first time and shows nothing of itself."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from attrs import evolve

from atomic_actors.journal.memory._directory import MemoryDirectory
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._peers import NodeRecord, Peers

pytestmark = pytest.mark.anyio

LEASE_S = 0.5


def nodes_of(directory: MemoryDirectory, *, host: str = "here") -> Peers:
    # A strange boot id: whether it lives can only be told by its announcements.
    identity = evolve(NodeIdentity.of_this_process(), boot_id=host)
    record = NodeRecord(identity=identity, host=host, service="default", kinds=frozenset({"a"}))
    return Peers(directory, record, LEASE_S, True)


async def test_a_bystander_waits_until_it_knows_who_lives() -> None:
    directory = MemoryDirectory()
    live, gone, bystander = (nodes_of(directory, host=name) for name in ("live", "gone", "bystander"))
    await gone.announce()

    async def announce() -> None:
        while True:
            await live.announce()
            await anyio.sleep(LEASE_S / 20)

    async with anyio.create_task_group() as group:
        group.start_soon(announce)
        entries = await bystander.read()
        seen = {peer.node_id: bystander.is_live(peer) for peer in bystander.peers()}
        assert seen == {live.node_id: True, gone.node_id: False}
        # It showed nothing of itself.
        assert {entry.node_id for entry in entries} == {live.node_id, gone.node_id}
        group.cancel_scope.cancel()


async def test_a_bystander_does_not_wait_longer_than_it_must() -> None:
    directory = MemoryDirectory()
    live, bystander = nodes_of(directory, host="live"), nodes_of(directory, host="bystander")
    bystander.lease_ttl_s = LEASE_S * 20
    await live.announce()

    async def announce() -> None:
        while True:
            await live.announce()
            await anyio.sleep(0.01)

    await live.announce()  # the task below may begin after the bystander has looked
    async with anyio.create_task_group() as group:
        group.start_soon(announce)
        with anyio.fail_after(LEASE_S * 15):
            await bystander.read()
        assert [bystander.is_live(peer) for peer in bystander.peers()] == [True]
        group.cancel_scope.cancel()


async def test_a_node_that_announces_itself_reads_at_once() -> None:
    directory = MemoryDirectory()
    gone, node = nodes_of(directory, host="gone"), nodes_of(directory)
    await gone.announce()
    node.lease_ttl_s = 1000.0
    await node.announce()
    with anyio.fail_after(LEASE_S * 20):
        assert len(await node.read()) == 2


async def test_who_has_left_does_not_come_back_by_a_late_look() -> None:
    directory = MemoryDirectory()
    node = nodes_of(directory)
    await node.announce()
    await node.leave()
    await node.announce()
    assert await directory.read() == ()


async def test_who_has_not_looked_for_long_takes_nobody_for_dead() -> None:
    directory = MemoryDirectory()
    live, node = nodes_of(directory, host="live"), nodes_of(directory)
    await live.announce()
    await node.announce()
    await live.announce()
    await node.announce()
    node.suspect(live.node_id)
    assert [node.is_live(peer) for peer in node.peers()] == [True]


async def test_a_record_that_makes_no_sense_counts_for_nothing() -> None:
    directory = MemoryDirectory()
    strange, node = nodes_of(directory, host="strange"), nodes_of(directory)
    strange.record = evolve(strange.record, weight=float("inf"))
    await strange.announce()
    await node.announce()
    assert set(await node.placement(4)) == {node.node_id}


@pytest.mark.parametrize(
    "strange",
    [
        {"weight": float("inf")},
        {"weight": 10**400},
        {"protocol": float("inf")},
        {"identity": {"pid": float("inf")}},
    ],
)
def test_records_of_other_versions(strange: dict[str, Any]) -> None:
    """They are no candidates; least of all may one of them leave every partition to nobody."""
    record = NodeRecord.of_this_node(NodeIdentity.of_this_process(), "default", [], 1.0)
    plain = json.loads(record.encode())
    assert NodeRecord.decode(json.dumps(plain).encode()) == record
    identity = {**plain["identity"], **strange.pop("identity", {})}
    assert NodeRecord.decode(json.dumps({**plain, **strange, "identity": identity}).encode()) is None
