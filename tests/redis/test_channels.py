"""Doorbells and pushed replies over a real server, also when it goes away for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from atomic_actors.base._store_url import parse_store_url
from atomic_actors.journal._protocol import Append, JournalSettings, Resume, pack_body
from atomic_actors.journal.redis._channels import RedisChannels
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.node.routing._node_messenger import NodeMessenger
from tests.servers import Server, start_server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


class Heard:
    """What a callback got, and a way to wait for it."""

    def __init__(self) -> None:
        self._in, self._out = anyio.create_memory_object_stream[Any](1000)

    def __call__(self, *arguments: Any) -> None:
        self._in.send_nowait(arguments)

    async def next(self) -> Any:
        with anyio.fail_after(10):
            return await self._out.receive()

    def close(self) -> None:
        self._in.close()
        self._out.close()


def channels_at(server: Server, settings: JournalSettings) -> RedisChannels:
    return RedisChannels(parse_store_url(server.url)[0], settings)


def journal_at(server: Server, settings: JournalSettings) -> RedisJournal:
    return RedisJournal.from_url(server.url, settings, allow_no_persistence=True)


async def test_doorbells_of_the_watched_partitions(store_server: Server, namespace: str) -> None:
    settings, heard = JournalSettings(namespace=namespace), Heard()
    async with (
        journal_at(store_server, settings) as journal,
        channels_at(store_server, settings) as channels,
        anyio.create_task_group() as task_group,
    ):
        task_group.start_soon(channels.listen_doorbells, [3], heard)
        assert await heard.next() == (3, "")
        await journal.execute(
            [Resume(4, "account/unwatched"), Resume(3, "account/ä b"), Resume(3, "account/c")]
        )
        assert [await heard.next(), await heard.next()] == [(3, "account/ä b"), (3, "account/c")]
        channels.watch(4)
        assert await heard.next() == (4, "")
        channels.unwatch(3)
        await journal.execute([Resume(3, "account/unwatched")])
        await journal.execute([Resume(4, "account/d")])
        assert await heard.next() == (4, "account/d")
        task_group.cancel_scope.cancel()
    heard.close()


async def test_append_by_a_stranger_rings(store_server: Server, namespace: str) -> None:
    settings, heard = JournalSettings(namespace=namespace), Heard()
    async with (
        journal_at(store_server, settings) as journal,
        channels_at(store_server, settings) as channels,
        anyio.create_task_group() as task_group,
    ):
        task_group.start_soon(channels.listen_doorbells, [0], heard)
        assert await heard.next() == (0, "")
        now_ms = (await journal.execute([Resume(1, "account/x")])).now_ms
        body = pack_body(name="m", deadline_ms=0, waited_for=False, key="", envelope=b"")
        await journal.execute(
            [Append(partition=0, entity="account/a", uid=f"{now_ms:012x}" + "0" * 20, body=body)]
        )
        assert await heard.next() == (0, "account/a")
        task_group.cancel_scope.cancel()
    heard.close()


async def test_replies_reach_the_node_that_is_named(store_server: Server, namespace: str) -> None:
    settings, heard = JournalSettings(namespace=namespace), Heard()
    async with channels_at(store_server, settings) as channels, anyio.create_task_group() as task_group:
        task_group.start_soon(channels.listen_replies, "node-1", heard)
        # The subscription has no sign of its own: publish until the first one is heard.
        payload: Any = None
        with anyio.fail_after(10):
            while payload is None:
                channels.publish(channels.reply_channel("node-1"), b"first")
                with anyio.move_on_after(0.1):
                    payload = await heard.next()
        channels.publish(channels.reply_channel("node-2"), b"to another one")
        channels.publish(channels.reply_channel("node-1"), b"\x00last\xff")
        while payload == (b"first",):
            payload = await heard.next()
        assert payload == (b"\x00last\xff",)
        assert channels.dropped == 0
        task_group.cancel_scope.cancel()
    heard.close()


async def test_listens_again_after_the_server_was_away(tmp_path: Path) -> None:
    settings, heard = JournalSettings(), Heard()
    with start_server("valkey", tmp_path=tmp_path, tcp=False, appendonly="no") as server:
        async with channels_at(server, settings) as channels, anyio.create_task_group() as task_group:
            task_group.start_soon(channels.listen_doorbells, [0], heard)
            assert await heard.next() == (0, "")
            server.kill9()
            channels.publish(b"lost", b"")
            channels.watch(1)
            server.restart()
            assert {await heard.next(), await heard.next()} == {(0, ""), (1, "")}
            async with journal_at(server, settings) as journal:
                await journal.execute([Resume(1, "account/a")])
            assert await heard.next() == (1, "account/a")
            task_group.cancel_scope.cancel()
    heard.close()


async def test_a_doorbell_that_is_not_for_this_node_is_listened_to_no_more(
    store_server: Server, namespace: str
) -> None:
    settings = JournalSettings(namespace=namespace)
    heard, owned = Heard(), {1, 2}
    async with channels_at(store_server, settings) as channels, anyio.create_task_group() as task_group:
        messenger = NodeMessenger(channels)
        for partition in owned:
            messenger.watch(partition)
        task_group.start_soon(messenger.listen_bells, heard, owned.__contains__)
        assert {await heard.next(), await heard.next()} == {(1, ""), (2, "")}
        owned.remove(2)
        for _ in range(2):
            for partition in (2, 1):
                bell = channels.bell_channel(partition)
                store_server.call("SPUBLISH", bell, "account/a")
            assert await heard.next() == (1, "account/a")
        # Ours has been handled, so the other one, which came before it, has been, too.
        with anyio.fail_after(10):
            # The store tells nobody who stops listening.
            while store_server.call("PUBSUB", "SHARDNUMSUB", channels.bell_channel(2))[1] != 0:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert store_server.call("PUBSUB", "SHARDNUMSUB", channels.bell_channel(1))[1] == 1
        task_group.cancel_scope.cancel()
    heard.close()
