"""Opens the store that a configuration names, with everything a node needs of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from atomic_actors.base._config import Config
from atomic_actors.base._store_url import StoreScheme
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal
from atomic_actors.journal.memory._kind_registry import MemoryKindRegistry
from atomic_actors.node._store import Store

__all__ = ("open_store",)


@asynccontextmanager
async def open_store(config: Config) -> AsyncGenerator[Store]:
    """Start or reach the store.

    Raises:
        InvalidConfig: a setting does not fit the store.
        EmbeddedServerError: the private server cannot be started or joined.
    """
    if config.location.scheme is StoreScheme.MEMORY:
        memory = MemoryJournal(journal_settings(config))
        yield Store(journal=memory, directory=memory.directory, kinds=MemoryKindRegistry())
        return
    # The clients of Redis take more time to import than everything else, and the memory does without them.
    from atomic_actors.node._redis_store import open_redis_store  # noqa: PLC0415

    async with open_redis_store(config) as store:
        yield store
