"""The lease keeper's own client: blocking, on redis-py, used by one thread only.

It does not share the journal's connection: a busy event loop, or a large batch on its way, must not
hold up a renewal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.journal.redis._replication import Replication

__all__ = ("Addressed", "LeaseKeys", "RedisLeaseClient")


class Addressed(Protocol):
    """A server that knows where it is."""

    def url(self) -> str:
        """Its URL with the password, as of now; never log it. Called in the keeper's thread.

        Raises:
            ConnectionError: that is not known yet.
        """
        ...


class LeaseKeys(Protocol):
    """Knows the keys of leases: a journal does."""

    def lease_key(self, partition: int) -> bytes:
        """The key of a partition's lease."""
        ...


class RedisLeaseClient:
    """Renews leases in one Redis or Valkey server.

    Args:
        server: which server; behind Sentinel it is another one after a failover.
        keys: the keys of the leases.
        timeout_s: how long a renewal may take; a later answer does not count.
        replication: what replicas must have before a renewal counts; None for nothing.
    """

    def __init__(
        self,
        server: Addressed,
        keys: LeaseKeys,
        *,
        timeout_s: float,
        replication: Replication | None = None,
    ) -> None:
        self._server = server
        self._keys = keys
        self._timeout_s = timeout_s
        self._replication = replication
        self._url = ""
        self._client: Any = None

    def _connect(self) -> Any:
        url = self._server.url()
        if self._client is None or url != self._url:
            self.close()
            # No retries: the keeper's next round is the retry, and a late renewal must not be believed.
            self._client = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType] untyped keyword arguments
                url,
                socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
            self._url = url
        return self._client

    def open(self) -> None:
        """Connect ahead of the first renewal.

        Raises:
            redis.RedisError: the store cannot be reached.
        """
        self._connect().ping()

    def renew(self, partitions: Sequence[int], claims: Sequence[str]) -> Sequence[bool]:
        """Renew; False for each claim that is not the current one.

        Raises:
            StoreIncompatible: it wants another user or password, or this one may not renew.
            redis.RedisError: the store gave no usable answer, or none that counts.
        """
        keys = [self._keys.lease_key(partition) for partition in partitions]
        client = self._connect()
        try:
            answers = self._ask(client, "aa1_renew", len(keys), *keys, *claims)
        except redis.ReadOnlyError:
            # Another server is the primary now, perhaps under the same name.
            self.close()
            raise
        except (AuthenticationError, NoPermissionError) as error:
            raise StoreIncompatible(f"the store does not let this user renew leases: {error}") from error
        if self._server.url() != self._url:
            raise redis.ConnectionError("the primary changed after the renewal was sent")
        return [int(answer) >= 0 for answer in answers]

    def _ask(self, client: Any, *function: Any) -> Sequence[int]:
        if self._replication is None:
            return cast("Sequence[int]", client.fcall(*function))
        replicas = self._replication.replicas_min
        # Not on their disks: who takes over waits for a lease to pass, whatever it finds.
        timeout_s = min(self._replication.timeout_s, self._timeout_s / 2)
        pipeline = client.pipeline(transaction=False)
        pipeline.fcall(*function)
        pipeline.execute_command("WAIT", replicas, max(int(timeout_s * 1000), 1))
        answers, count = pipeline.execute()
        if count < replicas:
            raise redis.TimeoutError(f"{count} of {replicas} replicas have the renewal after {timeout_s:g} s")
        return cast("Sequence[int]", answers)

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
