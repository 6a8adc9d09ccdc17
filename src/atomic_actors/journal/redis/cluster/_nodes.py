"""The nodes of a cluster: one connection to each primary, and the question which slots are where.

A primary that cannot be reached is noted as down: calls to it fail at once, and a task of its own tries to reach
it again. Anything that does not fit, in this or in the slots, makes another task ask the nodes for the slots.
"""

from __future__ import annotations

from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import define
from coredis.connection import BaseConnection
from coredis.exceptions import AuthorizationError, RedisError, ResponseError

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._store_url import StoreLocation
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._link import (
    ACL_RULES,
    CLUSTER_ACL_RULES,
    Greeter,
    Link,
    ask,
    explain,
)
from atomic_actors.journal.redis.cluster._servers import ClusterServers
from atomic_actors.journal.redis.cluster._slots import Address, SlotMap, read_slots

__all__ = ("ClusterNodes", "Shard", "name_of")

#: Between two questions for the slots, at the least.
REFRESH_PAUSE_S: Final = 0.1
#: How long one node may take to say which slots are where.
REFRESH_LIMIT_S: Final = 0.5
REVIVE_PAUSE_FIRST_S: Final = 0.05
REVIVE_PAUSE_MAX_S: Final = 0.5


@define(eq=False)
class Shard:
    """One primary and the connection to it."""

    address: Address
    link: Link
    lock: anyio.Lock
    #: Why calls fail at once; "" while it is reachable as far as is known.
    down: str = ""


def name_of(address: Address) -> str:
    """`host:port`, for people."""
    return f"{address[0]}:{address[1]}"


class ClusterNodes:
    """Connections to the primaries of a cluster, and the map of its slots.

    Args:
        location: a `redis+cluster:` location.
        greeter: looks at each new connection to a primary.
        connect_timeout_s: how long it may take to connect to a node, sign in and greet it.
    """

    def __init__(
        self,
        location: StoreLocation,
        greeter: Greeter,
        *,
        connect_timeout_s: float,
    ) -> None:
        #: Which primary has which slot.
        self.slots = SlotMap(location.hosts)
        self._servers = ClusterServers(location, connect_timeout_s=connect_timeout_s)
        self._greeter = greeter
        self._connect_timeout_s = connect_timeout_s
        self._shards: dict[Address, Shard] = {}
        #: Who was asked for the slots first.
        self._turn = 0
        self._task_group: TaskGroup | None = None

    async def open(self, task_group: TaskGroup) -> None:
        """Find the primaries and connect to them; what it takes to keep them runs in `task_group`.

        Primaries that are away do not count, as long as one node can say where the others are.

        Raises:
            JournalUnavailable: no node answers.
            Otherwise what greeting raises, or that this is not a cluster, or not for this user.
        """
        self._task_group = task_group
        await self._refresh()
        task_group.start_soon(self._keep_slots)
        for address in self.slots.primaries():
            try:
                await self.connection(self.shard(address))
            except JournalUnavailable as error:
                logger.warning("%s", error)

    def close(self) -> None:
        """Close every connection, for good."""
        self._task_group = None
        for shard in self._shards.values():
            shard.link.close_all()

    # The primaries.

    def owner(self, slot: int) -> Shard:
        """The primary that has a slot, as far as is known.

        Raises:
            JournalUnavailable: no node has it.
        """
        owner = self.slots.owner(slot)
        if owner is None:
            self.slots.suspect()
            raise JournalUnavailable(f"no node of the cluster has slot {slot}", sent=False)
        return self.shard(owner)

    def shard(self, address: Address) -> Shard:
        """The primary at an address."""
        shard = self._shards.get(address)
        if shard is None:
            link = Link(
                self._servers.at(address),
                connect_timeout_s=self._connect_timeout_s,
                greeter=self._greeter,
                shielded=True,
            )
            shard = self._shards[address] = Shard(address, link, anyio.Lock())
        return shard

    async def connection(self, shard: Shard) -> BaseConnection:
        """The open connection to a primary.

        Raises:
            JournalUnavailable: it cannot be reached, or could not be lately.
            StoreIncompatible, StoreUnsafe: it can, and it is the wrong one.
        """
        connection = shard.link.usable
        if connection is not None and not shard.lock.locked():
            return connection
        if shard.down:
            raise JournalUnavailable(shard.down, sent=False)
        # Those who wait here are sent in order; none that comes later may overtake.
        async with shard.lock:
            if shard.down:
                raise JournalUnavailable(shard.down, sent=False)
            try:
                return await self._connect_shard(shard)
            except JournalUnavailable as error:
                self.went_down(shard, str(error))
                raise

    async def _connect_shard(self, shard: Shard) -> BaseConnection:
        if self._task_group is None:
            raise JournalUnavailable("the journal is closed", sent=False)
        try:
            return await shard.link.open(self._task_group)
        except JournalUnavailable as error:
            raise JournalUnavailable(f"{name_of(shard.address)}: {error}", sent=False) from error

    def went_down(self, shard: Shard, why: str) -> None:
        """Let calls to a primary fail at once, until it is reached again."""
        self.slots.suspect()
        if not shard.down and self._task_group is not None:
            shard.down = why
            self._task_group.start_soon(self._revive, shard)

    async def _revive(self, shard: Shard) -> None:
        """Try to reach a primary again, while calls to it fail at once."""
        pause_s = REVIVE_PAUSE_FIRST_S
        while True:
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, REVIVE_PAUSE_MAX_S)
            if shard.address not in self.slots.primaries():
                # If it comes back as a primary, it counts as a new one.
                self._shards.pop(shard.address, None)
                return
            self.slots.suspect()
            try:
                async with shard.lock:
                    await self._connect_shard(shard)
            except JournalUnavailable as error:
                shard.down = str(error)
                continue
            except Exception:
                # It is the wrong store, or an unsafe one: the next call meets the same and tells its caller.
                logger.debug("%s was refused", name_of(shard.address), exc_info=True)
            shard.down = ""
            return

    # The slots.

    async def _keep_slots(self) -> None:
        """Ask for the slots whenever something did not fit, but not all the time."""
        while True:
            await self.slots.wait_suspected()
            try:
                await self._refresh()
            except (JournalUnavailable, StoreIncompatible) as error:
                logger.debug("the slots of the cluster could not be read: %s", error)
            await anyio.sleep(REFRESH_PAUSE_S)

    async def _refresh(self) -> None:
        """Take over what one of the nodes knows: those with an open connection first, each in its turn.

        Raises:
            JournalUnavailable: no node answers.
            StoreIncompatible: a node does not belong to a cluster, or wants another user or password.
        """
        self._turn += 1
        is_open = [a for a, shard in self._shards.items() if shard.link.usable is not None and not shard.down]
        turn = self._turn % len(is_open) if is_open else 0
        candidates = dict.fromkeys([*is_open[turn:], *is_open[:turn], *sorted(self.slots.nodes)])
        candidates.update(dict.fromkeys(self.slots.seeds))
        last: Exception | None = None
        for address in candidates:
            try:
                ranges, nodes = read_slots(await self._ask_slots(address), address)
            except (JournalUnavailable, StoreIncompatible) as error:
                if isinstance(error, StoreIncompatible) and not self.slots.nodes:
                    raise
                last = error
                continue
            if ranges:  # else it was put out of the cluster
                self.slots.replace(ranges, nodes)
                return
        raise JournalUnavailable(f"no node of the cluster answered; the last one: {last}", sent=False)

    async def _ask_slots(self, address: Address) -> Any:
        shard = self._shards.get(address)
        connection = shard.link.usable if shard is not None else None
        limit_s = REFRESH_LIMIT_S if self.slots.nodes else self._connect_timeout_s
        own: Link | None = None
        try:
            with anyio.fail_after(limit_s):
                if connection is None:
                    if self._task_group is None:
                        raise JournalUnavailable("the journal is closing", sent=False)
                    own = Link(self._servers.at(address), connect_timeout_s=limit_s)
                    connection = await own.open(self._task_group)
                return await ask(connection, b"CLUSTER SLOTS")
        except AuthorizationError as error:
            raise StoreIncompatible(
                f"the store's user lacks a permission: {error}; it needs {ACL_RULES} {CLUSTER_ACL_RULES}"
            ) from error
        except ResponseError as error:
            if "cluster support disabled" in str(error):
                raise StoreIncompatible(
                    f"{name_of(address)} is not a node of a cluster; use redis:// in the url"
                ) from error
            raise explain(error, sent=False) from error
        except TimeoutError as error:
            raise JournalUnavailable(f"{name_of(address)} did not answer in time", sent=False) from error
        except (RedisError, OSError) as error:
            raise explain(error, sent=False) from error
        finally:
            if own is not None:
                own.close("only a question")
