"""Opens the store that a configuration names, with everything a node needs of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Protocol

from anyio.abc import TaskGroup
from attrs import frozen
from coredis.connection import BaseConnection

from atomic_actors._config import Config
from atomic_actors._errors import EmbeddedServerError, NotSupported
from atomic_actors._lease_keeper import LeaseClient
from atomic_actors._router import Remote
from atomic_actors._store_url import StoreLocation, StoreScheme
from atomic_actors.journal._embedded import (
    EmbeddedLocation,
    embedded_directory,
    embedded_server,
    ensure_running,
)
from atomic_actors.journal._lease_client import RedisLeaseClient
from atomic_actors.journal._memory import MemoryJournal
from atomic_actors.journal._protocol import Journal, JournalSettings, JournalUnavailable
from atomic_actors.journal._redis import RedisJournal
from atomic_actors.journal._redis_link import Connect, connector, redis_url

__all__ = ("Channels", "Store", "journal_settings", "open_store")

CONNECT_TIMEOUT_S: Final = 3.0


class Channels(Protocol):
    """Doorbells and replies between the processes that share a store."""

    def start(
        self,
        task_group: TaskGroup,
        node_id: str,
        on_bell: Callable[[int, str], None],
        on_reply: Callable[[str, str, bytes], object],
    ) -> Awaitable[None]:
        """Listen in `task_group`; returns once the subscriptions are asked for."""
        ...


@frozen(eq=False)
class Store:
    """An open store."""

    journal: Journal
    #: Renews leases from a thread; None where the store lives in this process.
    lease_client: LeaseClient | None = None
    channels: Channels | None = None
    replies: Remote | None = None


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
async def open_store(config: Config) -> AsyncIterator[Store]:
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
            yield _redis_store(config, socket, before_connect=partial(_keep_running, server))
    elif location.scheme in (StoreScheme.REDIS, StoreScheme.REDISS, StoreScheme.UNIX):
        yield _redis_store(config, location)
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


def _redis_store(
    config: Config, location: StoreLocation, before_connect: Callable[[], Awaitable[None]] | None = None
) -> Store:
    connect = connector(location, connect_timeout_s=CONNECT_TIMEOUT_S)
    if before_connect is not None:
        connect = _after(before_connect, connect)
    journal = RedisJournal(
        connect,
        journal_settings(config),
        timeout_s=config.store_timeout_s,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        allow_eviction=config.allow_eviction,
        allow_no_persistence=config.allow_no_persistence,
    )
    lease_timeout_s = max(config.lease_ttl_s - config.lease_margin_s - config.lease_renew_interval_s, 0.1)
    lease_client = RedisLeaseClient(redis_url(location), journal.lease_key, timeout_s=lease_timeout_s)
    return Store(journal, lease_client)


def _after(first: Callable[[], Awaitable[None]], connect: Connect) -> Connect:
    async def connect_after() -> BaseConnection:
        await first()
        return await connect()

    return connect_after
