"""The lease keeper's own client: blocking, on redis-py, used by one thread only.

It does not share the journal's connection: a busy event loop, or a large batch on its way, must not
hold up a renewal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from atomic_actors._errors import StoreIncompatible

__all__ = ("RedisLeaseClient",)


class RedisLeaseClient:
    """Renews leases in one Redis or Valkey server.

    Args:
        url: where the server is, with its credentials.
        lease_key: the key of a partition's lease.
        timeout_s: how long a renewal may take; a later answer does not count.
    """

    def __init__(self, url: str, lease_key: Callable[[int], bytes], *, timeout_s: float) -> None:
        self._lease_key = lease_key
        # No retries: the keeper's next round is the retry, and a late renewal must not be believed.
        self._client: Any = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType] untyped keyword arguments
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )

    def open(self) -> None:
        """Connect ahead of the first renewal.

        Raises:
            redis.RedisError: the store cannot be reached.
        """
        self._client.ping()

    def renew(self, partitions: Sequence[int], claims: Sequence[str]) -> Sequence[bool]:
        """Renew; False for each claim that is not the current one.

        Raises:
            StoreIncompatible: it wants another user or password, or this one may not renew.
            redis.RedisError: the store gave no usable answer.
        """
        keys = [self._lease_key(partition) for partition in partitions]
        try:
            answers: Sequence[int] = self._client.fcall("aa1_renew", len(keys), *keys, *claims)
        except (AuthenticationError, NoPermissionError) as error:
            raise StoreIncompatible(f"the store does not let this user renew leases: {error}") from error
        return [int(answer) >= 0 for answer in answers]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
