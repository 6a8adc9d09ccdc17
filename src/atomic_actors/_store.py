"""Opens the store that a configuration names, with everything a node needs of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from attrs import frozen
from coredis.connection import BaseConnection

from atomic_actors._config import Config
from atomic_actors._envelope import encode_plain, plain_of
from atomic_actors._errors import EmbeddedServerError, NotSupported
from atomic_actors._lease_keeper import LeaseClient
from atomic_actors._store_url import StoreLocation, StoreScheme
from atomic_actors._telemetry import logger
from atomic_actors.journal._channels import RedisChannels
from atomic_actors.journal._embedded import (
    EmbeddedLocation,
    embedded_directory,
    embedded_server,
    ensure_running,
)
from atomic_actors.journal._history import CommitHistory
from atomic_actors.journal._lease_client import RedisLeaseClient
from atomic_actors.journal._memory import MemoryJournal
from atomic_actors.journal._protocol import Journal, JournalSettings, JournalUnavailable
from atomic_actors.journal._redis import RedisJournal
from atomic_actors.journal._redis_link import Connect, connector, redis_url

__all__ = ("Exchange", "Store", "journal_settings", "open_store")

#: How many calls' time it may take to connect, sign in and look at the store; and no less than this.
CONNECT_CALLS: Final = 2
CONNECT_TIMEOUT_MIN_S: Final = 1.0


class Exchange:
    """Doorbells and replies between the processes that share a store (`Remote`).

    All of it is hints: what is lost costs a sweep of the owner, or a look into the store by the asker.
    """

    def __init__(self, channels: RedisChannels, partitions: int) -> None:
        self._channels = channels
        self._partitions = partitions

    def push(self, node_id: str, entity: str, unique: str, outcome: bytes) -> None:
        """Queue an answer for a node."""
        self._channels.publish(self._channels.reply_channel(node_id), encode_plain([entity, unique, outcome]))

    async def listen_bells(self, on_bell: Callable[[int, str], None]) -> None:
        """Call `on_bell(partition, entity)` until cancelled; an empty entity means: sweep."""
        await self._channels.listen_doorbells(range(self._partitions), on_bell)

    async def listen_replies(self, node_id: str, on_reply: Callable[[str, str, bytes], object]) -> None:
        """Call `on_reply(entity, unique, outcome)` for what others push to this node, until cancelled."""

        def on_payload(payload: bytes) -> None:
            try:
                entity, unique, outcome = plain_of(payload)
            except (ValueError, TypeError) as error:
                logger.warning("a pushed reply does not decode, the store will be asked: %s", error)
                return
            on_reply(entity, unique, outcome)

        await self._channels.listen_replies(node_id, on_payload)


@frozen(eq=False)
class Store:
    """An open store."""

    journal: Journal
    #: Renews leases from a thread; None where the store lives in this process.
    lease_client: LeaseClient | None = None
    #: None where no other process can share the store.
    exchange: Exchange | None = None
    #: Notices that the store went back in time; None where it cannot.
    history: CommitHistory | None = None


def journal_settings(config: Config) -> JournalSettings:
    """What a journal has to know of the configuration."""

    def share(total: int) -> int:
        return -(-total // config.partitions) if total else 0

    return JournalSettings(
        namespace=config.namespace,
        service=config.service,
        partitions=config.partitions,
        result_ttl_ms=int(config.result_ttl_s * 1000),
        dedupe_ttl_ms=int(config.dedupe_ttl_s * 1000),
        partition_depth_limit=share(config.max_total_depth),
        partition_dead_letter_limit=share(config.max_dead_letters),
        dead_letter_ttl_ms=int(config.dead_letter_ttl_s * 1000),
    )


@asynccontextmanager
async def open_store(config: Config) -> AsyncGenerator[Store]:
    """Start or reach the store.

    Raises:
        NotSupported: the URL names a store that this version cannot use yet.
        EmbeddedServerError: the private server cannot be started or joined.
    """
    location = config.location
    if location.scheme is StoreScheme.MEMORY:
        yield Store(MemoryJournal(journal_settings(config)))
    elif location.scheme is StoreScheme.EMBEDDED:
        directory = embedded_directory(config.url)
        async with embedded_server(directory, binary=config.server_binary) as server:
            socket = StoreLocation(StoreScheme.UNIX, path=str(server.socket_path))
            async with _redis_store(config, socket, before_connect=partial(_keep_running, server)) as store:
                yield store
    elif location.scheme in (StoreScheme.REDIS, StoreScheme.REDISS, StoreScheme.UNIX):
        async with _redis_store(config, location) as store:
            yield store
    else:
        raise NotSupported(
            f"url: {location.scheme} is understood, but Sentinel and Cluster are not supported yet; use redis://, "
            "rediss:// or unix://"
        )


async def _keep_running(server: EmbeddedLocation) -> None:
    """Start the private server again if it has died; a reconnect then finds it."""
    try:
        await ensure_running(server)
    except EmbeddedServerError as error:
        raise JournalUnavailable(str(error), sent=False) from error


@asynccontextmanager
async def _redis_store(
    config: Config, location: StoreLocation, before_connect: Callable[[], Awaitable[None]] | None = None
) -> AsyncGenerator[Store]:
    connect_timeout_s = max(CONNECT_CALLS * config.store_timeout_s, CONNECT_TIMEOUT_MIN_S)
    connect = connector(location, connect_timeout_s=connect_timeout_s)
    if before_connect is not None:
        connect = _after(before_connect, connect)
    settings = journal_settings(config)
    journal = RedisJournal(
        connect,
        settings,
        timeout_s=config.store_timeout_s,
        connect_timeout_s=connect_timeout_s,
        allow_eviction=config.allow_eviction,
        allow_no_persistence=config.allow_no_persistence,
    )
    lease_timeout_s = max(config.lease_ttl_s - config.lease_margin_s - config.lease_renew_interval_s, 0.1)
    lease_client = RedisLeaseClient(redis_url(location), journal.lease_key, timeout_s=lease_timeout_s)
    # Not the connect function above: only the journal brings a dead server back to life.
    async with RedisChannels(
        location,
        settings,
        connect_timeout_s=connect_timeout_s,
        answer_timeout_s=config.store_timeout_s,
    ) as channels:
        yield Store(journal, lease_client, Exchange(channels, config.partitions), journal.history)


def _after(first: Callable[[], Awaitable[None]], connect: Connect) -> Connect:
    async def connect_after() -> BaseConnection:
        await first()
        return await connect()

    return connect_after
