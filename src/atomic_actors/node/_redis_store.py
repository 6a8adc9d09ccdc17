"""Opens a store that is a server: an embedded one, Redis or Valkey, behind Sentinel, or a cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from attrs import frozen
from coredis.connection import BaseConnection

from atomic_actors.base._config import Config
from atomic_actors.base._errors import EmbeddedServerError, InvalidConfig
from atomic_actors.base._store_url import StoreLocation, StoreScheme
from atomic_actors.journal._protocol import JournalSettings, JournalUnavailable
from atomic_actors.journal._settings import connect_timeout_of, journal_settings
from atomic_actors.journal.embedded._embedded import (
    EmbeddedLocation,
    embedded_directory,
    embedded_server,
    ensure_running,
)
from atomic_actors.journal.redis._channels import RedisChannels
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.journal.redis._kind_registry import RedisKindRegistry
from atomic_actors.journal.redis._lease_client import RedisLeaseClient
from atomic_actors.journal.redis._link import Connector, RedisServer
from atomic_actors.journal.redis._replication import Replication, replication_of
from atomic_actors.journal.redis._sentinel import Primary
from atomic_actors.journal.redis.cluster._channels import ClusterChannels
from atomic_actors.journal.redis.cluster._journal import ClusterJournal
from atomic_actors.journal.redis.cluster._leases import ClusterLeaseClient
from atomic_actors.node._store import Store
from atomic_actors.node.routing._node_messenger import NodeMessenger

__all__ = ("open_redis_store",)


@asynccontextmanager
async def open_redis_store(config: Config) -> AsyncGenerator[Store]:
    """Start or reach the server.

    Raises:
        InvalidConfig: a setting does not fit the store.
        EmbeddedServerError: the private server cannot be started or joined.
    """
    location = config.location
    if location.scheme is StoreScheme.EMBEDDED:
        directory = embedded_directory(config.url)
        async with embedded_server(directory, binary=config.server_binary) as server:
            socket = StoreLocation(scheme=StoreScheme.UNIX, path=str(server.socket_path))
            async with _redis_store(config, socket, embedded=server) as store:
                yield store
    elif location.scheme in (StoreScheme.REDIS, StoreScheme.REDISS, StoreScheme.UNIX):
        async with _redis_store(config, location) as store:
            yield store
    elif location.scheme is StoreScheme.CLUSTER:
        async with _cluster_store(config, location) as store:
            yield store
    else:
        primary = Primary(
            location,
            connect_timeout_s=connect_timeout_of(config),
            warn_asynchronous=config.replication == "none",
        )
        async with primary, _redis_store(config, primary) as store:
            yield store


@frozen(eq=False)
class _EmbeddedServer:
    """Makes connections to the private server (`Connector`), and starts it again if it has died."""

    location: EmbeddedLocation
    connector: Connector

    async def connect(self) -> BaseConnection:
        try:
            await ensure_running(self.location)
        except EmbeddedServerError as error:
            raise JournalUnavailable(str(error), sent=False) from error
        return await self.connector.connect()


@frozen(eq=False, kw_only=True)
class _RedisJournals:
    """Makes journals on one server."""

    connector: Connector
    config: Config
    replication: Replication | None

    def make_journal(self, settings: JournalSettings, *, offers_kinds: bool = False) -> RedisJournal:
        config = self.config
        return RedisJournal(
            self.connector,
            settings,
            timeout_s=config.store_timeout_s,
            connect_timeout_s=connect_timeout_of(config),
            allow_eviction=config.allow_eviction,
            allow_no_persistence=config.allow_no_persistence,
            fixes_partitions=offers_kinds,
            replication=self.replication,
        )


@frozen(eq=False, kw_only=True)
class _ClusterJournals:
    """Makes journals in one cluster."""

    location: StoreLocation
    config: Config

    def make_journal(self, settings: JournalSettings, *, offers_kinds: bool = False) -> ClusterJournal:
        config = self.config
        return ClusterJournal(
            self.location,
            settings,
            timeout_s=config.store_timeout_s,
            connect_timeout_s=connect_timeout_of(config),
            allow_eviction=config.allow_eviction,
            allow_no_persistence=config.allow_no_persistence,
            fixes_partitions=offers_kinds,
        )


@asynccontextmanager
async def _redis_store(
    config: Config, place: StoreLocation | Primary, embedded: EmbeddedLocation | None = None
) -> AsyncGenerator[Store]:
    connect_timeout_s, replication = connect_timeout_of(config), replication_of(config)
    server = place if isinstance(place, Primary) else RedisServer(place, connect_timeout_s=connect_timeout_s)
    settings = journal_settings(config)
    journals = _RedisJournals(
        # Only the journal brings a dead server back to life.
        connector=server if embedded is None else _EmbeddedServer(embedded, server),
        config=config,
        replication=replication,
    )
    # Who only sends does not decide how many partitions a service has.
    journal = journals.make_journal(settings, offers_kinds=bool(config.actors))
    lease_client = RedisLeaseClient(
        server, journal, timeout_s=_lease_timeout_s(config), replication=replication
    )
    async with RedisChannels(
        server, settings, connect_timeout_s=connect_timeout_s, answer_timeout_s=config.store_timeout_s
    ) as channels:
        yield Store(
            journal=journal,
            lease_client=lease_client,
            messenger=NodeMessenger(channels, commits_publish=replication is None),
            history=journal.history,
            directory=journal.directory,
            kinds=RedisKindRegistry(journal, config.namespace),
            journals=journals,
        )


def _lease_timeout_s(config: Config) -> float:
    """How long a renewal may take, so that another one fits into the lease."""
    return max(config.lease_ttl_s - config.lease_margin_s - config.lease_renew_interval_s, 0.1)


@asynccontextmanager
async def _cluster_store(config: Config, location: StoreLocation) -> AsyncGenerator[Store]:
    if config.replication != "none":
        raise InvalidConfig(
            f"replication: {config.replication!r} is not supported with redis+cluster:// yet; use redis+sentinel:// or "
            'replication="none"'
        )
    settings, connect_timeout_s = journal_settings(config), connect_timeout_of(config)

    journals = _ClusterJournals(location=location, config=config)
    journal = journals.make_journal(settings, offers_kinds=bool(config.actors))
    lease_client = ClusterLeaseClient(location, journal, timeout_s=_lease_timeout_s(config))
    async with ClusterChannels(
        location,
        settings,
        journal.slots,
        connect_timeout_s=connect_timeout_s,
        answer_timeout_s=config.store_timeout_s,
    ) as channels:
        yield Store(
            journal=journal,
            lease_client=lease_client,
            messenger=NodeMessenger(channels),
            history=journal.history,
            directory=journal.directory,
            kinds=RedisKindRegistry(journal, config.namespace),
            journals=journals,
        )
