"""Opens the store that a configuration names, with everything a node needs of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from anyio.abc import TaskGroup
from attrs import frozen

from atomic_actors._config import Config
from atomic_actors._errors import NotSupported
from atomic_actors._lease_keeper import LeaseClient
from atomic_actors._router import Remote
from atomic_actors._store_url import StoreScheme
from atomic_actors.journal._memory import MemoryJournal
from atomic_actors.journal._protocol import Journal, JournalSettings

__all__ = ("Channels", "Store", "journal_settings", "open_store")


class Channels(Protocol):
    """Doorbells and replies between the processes that share a store."""

    def start(
        self,
        task_group: TaskGroup,
        node_id: str,
        on_bell: Callable[[int, str], None],
        on_reply: Callable[[str, bytes], object],
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
    settings = journal_settings(config)
    if location.scheme is StoreScheme.MEMORY:
        yield Store(MemoryJournal(settings))
        return
    raise NotSupported(str(location))
