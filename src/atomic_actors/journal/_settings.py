"""The part of the configuration that a journal needs."""

from __future__ import annotations

from typing import Final

from atomic_actors.base._config import Config
from atomic_actors.journal._protocol import JournalSettings

__all__ = (
    "CONNECT_CALLS",
    "CONNECT_TIMEOUT_MIN_S",
    "CONNECT_TIMEOUT_S",
    "connect_timeout_of",
    "journal_settings",
)

#: How long it may take to connect, sign in and look at the store: so many calls' time, within these bounds.
CONNECT_CALLS: Final = 2
CONNECT_TIMEOUT_MIN_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 3.0


def journal_settings(config: Config) -> JournalSettings:
    """The part of the configuration that a journal needs."""

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


def connect_timeout_of(config: Config) -> float:
    """How long it may take to connect, sign in and check the store: some calls, one after the other."""
    return min(max(CONNECT_CALLS * config.store_timeout_s, CONNECT_TIMEOUT_MIN_S), CONNECT_TIMEOUT_S)
