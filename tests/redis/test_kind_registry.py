"""Kinds and services: the registry in a store, and the one in memory, mean the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from atomic_actors.journal._kind_registry import DEPLOY_S, KindRecord, KindRegistry
from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal.memory._kind_registry import MemoryKindRegistry
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.journal.redis._kind_registry import RedisKindRegistry
from atomic_actors.journal.redis._library import library_source
from tests.servers import KINDS, Server

pytestmark = pytest.mark.anyio

#: Opens one registry; those of one test share what they know.
Open = Callable[[str, int], AbstractAsyncContextManager[KindRegistry]]


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.redis) for kind in KINDS)])
def open_registry(request: pytest.FixtureRequest, namespace: str) -> Open:
    memory = MemoryKindRegistry()

    @asynccontextmanager
    async def open_it(service: str, partitions: int) -> AsyncGenerator[KindRegistry]:
        if request.param == "memory":
            yield memory
            return
        server: Server = request.getfixturevalue(f"{request.param}_server")
        settings = JournalSettings(namespace=namespace, service=service, partitions=partitions)
        async with RedisJournal.from_url(server.url, settings, allow_no_persistence=True) as journal:
            yield RedisKindRegistry(journal, namespace)

    return open_it


async def test_what_was_registered_is_found(open_registry: Open) -> None:
    async with open_registry("billing", 8) as billing, open_registry("stock", 16) as stock:
        assert await billing.find_kinds(["invoice"]) == {}
        assert await billing.register_kinds("billing", 8, {"invoice": b"i", "refund": b"r\n\x00"}) == {
            "invoice": "billing",
            "refund": "billing",
        }
        assert await stock.register_kinds("stock", 16, {"item": b"t"}) == {"item": "stock"}
        assert await stock.find_kinds(["refund", "nobody", "item"]) == {
            "refund": KindRecord("billing", 8, (b"r\n\x00",)),
            "item": KindRecord("stock", 16, (b"t",)),
        }
        assert await billing.list_kinds() == {"invoice": "billing", "refund": "billing", "item": "stock"}
        assert await stock.find_kinds([]) == {}
        assert await stock.register_kinds("stock", 16, {}) == {}


async def test_a_kind_keeps_its_service(open_registry: Open) -> None:
    async with open_registry("billing", 8) as billing, open_registry("stock", 16) as stock:
        await billing.register_kinds("billing", 8, {"invoice": b"i"})
        owners = await stock.register_kinds("stock", 16, {"item": b"t", "invoice": b"other"})
        assert owners == {"item": "stock", "invoice": "billing"}
        # All or nothing: the node that asked for this is not there.
        assert await stock.find_kinds(["item", "invoice"]) == {"invoice": KindRecord("billing", 8, (b"i",))}


async def test_two_releases_count_side_by_side(open_registry: Open) -> None:
    async with open_registry("billing", 8) as registry:

        async def contracts(new: bytes) -> tuple[bytes, ...]:
            await registry.register_kinds("billing", 8, {"invoice": new})
            return (await registry.find_kinds(["invoice"]))["invoice"].contracts

        assert await contracts(b"1") == (b"1",)
        assert await contracts(b"1") == (b"1",)
        assert await contracts(b"2") == (b"2", b"1")
        assert await contracts(b"2") == (b"2", b"1")
        # A node of the old release starts once more, then the deploy goes on.
        assert await contracts(b"1") == (b"1", b"2")
        assert await contracts(b"2") == (b"2", b"1")
        assert await contracts(b"3") == (b"3", b"2")


async def test_the_release_before_counts_for_a_while() -> None:
    now_s = 0.0
    registry = MemoryKindRegistry(lambda: now_s)
    await registry.register_kinds("billing", 8, {"invoice": b"1"})
    await registry.register_kinds("billing", 8, {"invoice": b"2"})
    now_s = DEPLOY_S
    assert (await registry.find_kinds(["invoice"]))["invoice"].contracts == (b"2", b"1")
    now_s = DEPLOY_S + 1
    assert (await registry.find_kinds(["invoice"]))["invoice"].contracts == (b"2",)


def test_the_library_keeps_the_release_before_as_long() -> None:
    assert f"local DEPLOY_MS = {DEPLOY_S * 1000:.0f}\n".encode() in library_source()


@pytest.mark.redis
async def test_the_release_before_is_forgotten_in_a_store(store_server: Server, namespace: str) -> None:
    settings = JournalSettings(namespace=namespace, service="billing", partitions=8)
    async with RedisJournal.from_url(store_server.url, settings, allow_no_persistence=True) as journal:
        registry = RedisKindRegistry(journal, namespace)
        await registry.register_kinds("billing", 8, {"invoice": b"1"})
        await registry.register_kinds("billing", 8, {"invoice": b"2"})
        store_server.call("HSET", f"{{{namespace}:meta}}:before", "invoice", "1000\n1")
        assert (await registry.find_kinds(["invoice"]))["invoice"].contracts == (b"2",)


@pytest.mark.redis
async def test_the_library_comes_back(store_server: Server, namespace: str) -> None:
    settings = JournalSettings(namespace=namespace, service="billing", partitions=8)
    async with RedisJournal.from_url(store_server.url, settings, allow_no_persistence=True) as journal:
        registry = RedisKindRegistry(journal, namespace)
        await registry.register_kinds("billing", 8, {"invoice": b"1"})
        store_server.call("FUNCTION", "FLUSH")
        assert await registry.list_kinds() == {"invoice": "billing"}
