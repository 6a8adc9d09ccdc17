"""The journal in a Redis or Valkey Cluster.

The keys of a partition share one hash slot, so a call concerns one partition and goes to the primary that
has its slot; calls to one primary are pipelined on one connection, and the primaries work side by side. What
one of them cannot do stops none of the others: a call to a primary that is known to be away fails at once, while a
task of its own tries to reach it again.

A slot may move at any time. Who has it now is learnt from the answers: `MOVED` (it has moved), `ASK` and
`TRYAGAIN` (it is moving, key by key). All of these come before the call has done anything, so it is sent
again, with the same content. While a slot moves key by key, a script that deletes a key and then makes it anew
would fail in its middle: the node that hands the slot over takes the key for one that has left already. So
every call of steps declares one key more, which is never there: the nodes then refuse the call as a whole until
the slot has arrived. The lease is one key and needs no such guard; it is renewed also while its slot moves.

Replicas lag behind: one that takes over may have lost what was acknowledged. Commit numbers tell (`_history`),
and for each partition they are compared before anything else is sent over a connection that is new to it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from attrs import define
from coredis.connection import BaseConnection
from coredis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from atomic_actors.base._errors import InvalidConfig
from atomic_actors.base._oneshot import clock_function
from atomic_actors.base._store_url import StoreLocation, StoreScheme, parse_store_url
from atomic_actors.journal._history import CommitHistory, Question
from atomic_actors.journal._protocol import BatchResult, JournalSettings, JournalUnavailable, Result, Step
from atomic_actors.journal.redis._answers import read_results
from atomic_actors.journal.redis._directory import RedisDirectory
from atomic_actors.journal.redis._library import (
    COMMIT,
    REGISTER,
    check_registration,
    is_missing,
    load_library,
    registration,
)
from atomic_actors.journal.redis._link import explain
from atomic_actors.journal.redis._store_checks import SafetyRules, check_names, check_version
from atomic_actors.journal.redis._task_groups import detached_task_group
from atomic_actors.journal.redis._wire import Wire
from atomic_actors.journal.redis.cluster._nodes import ClusterNodes, Shard, name_of
from atomic_actors.journal.redis.cluster._slots import Address, parse_redirect, slot_of

__all__ = ("ClusterJournal",)

#: Pauses before a call is sent again to a slot that is moving.
MOVING_PAUSE_FIRST_S: Final = 0.005
MOVING_PAUSE_MAX_S: Final = 0.1
#: A slot that has just moved is found at once; nodes that send us to and fro are left alone for a while.
REDIRECTS_AT_ONCE: Final = 3
#: Loads of the library for one call; it may be flushed at any time.
LOADS_MAX: Final = 3


@define(eq=False)
class _Partition:
    """What is known of a partition."""

    slot: int
    #: Its own: shards answer side by side, and an answer of one says nothing of another.
    history: CommitHistory
    #: The connection over which its commit number was compared last.
    compared: BaseConnection | None = None


class ClusterJournal(AsyncContextManagerMixin):
    """A journal in a Redis (7.0 or newer) or Valkey Cluster.

    Args:
        location: a `redis+cluster:` location: some of the nodes, and how to sign in at all of them.
        settings: the namespace, the service and its limits.
        timeout_s: how long the answer to a call may take, and how long a moving slot is waited for.
        connect_timeout_s: how long it may take to connect to a node, sign in and check it.
        allow_eviction: accept nodes that may evict keys when their memory is full.
        allow_no_persistence: accept nodes that write no append-only file, or never force it to the disk.
        fixes_partitions: whether this decides how many partitions the service has, where nothing did before.

    Raises:
        InvalidConfig: the location is not a cluster, or a name holds braces or control characters.
    """

    fails_by_partition = True

    def __init__(
        self,
        location: StoreLocation,
        settings: JournalSettings,
        *,
        timeout_s: float = 1.5,
        connect_timeout_s: float = 3.0,
        allow_eviction: bool = False,
        allow_no_persistence: bool = False,
        fixes_partitions: bool = True,
    ) -> None:
        check_names(settings)
        if location.scheme is not StoreScheme.CLUSTER:
            raise InvalidConfig(f"url: {location} is not a cluster")
        self._nodes = ClusterNodes(location, self, connect_timeout_s=connect_timeout_s)
        #: Which primary has which slot.
        self.slots = self._nodes.slots
        #: Passes on that a partition's store went back in time.
        self.history = CommitHistory()
        #: The nodes that use the store.
        self.directory = RedisDirectory(self, settings.namespace)
        self._settings = settings
        self._fixes_partitions = fixes_partitions
        self._wire = Wire(settings)
        self._timeout_s = timeout_s
        self._safety = SafetyRules(allow_eviction=allow_eviction, allow_no_persistence=allow_no_persistence)
        self._partitions: dict[int, _Partition] = {}
        self._task_group: TaskGroup | None = None
        self._now_ms = 0

    @classmethod
    def from_url(cls, url: str, settings: JournalSettings, **options: Any) -> Self:
        """The journal at `redis+cluster://host:port,host:port`; `options` as above.

        Raises:
            InvalidConfig: the URL is none of these.
        """
        return cls(parse_store_url(url)[0], settings, **options)

    def __repr__(self) -> str:
        state = "open" if self._task_group is not None else "closed"
        return (
            f"<ClusterJournal {self._settings.namespace}:{self._settings.service} {state}, "
            f"{len(self.slots.primaries())} primaries>"
        )

    @property
    def settings(self) -> JournalSettings:
        """The settings it was made with."""
        return self._settings

    @property
    def commits(self) -> dict[int, int]:
        """The highest commit number that is known of each partition."""
        return {
            number: found
            for partition in self._partitions.values()
            for number, found in partition.history.numbers.items()
        }

    def lease_key(self, partition: int) -> bytes:
        """The key of a partition's lease, for `aa1_renew` on connections of the lease keeper's own."""
        return self._wire.lease_key(partition)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        """Find the primaries, check each and load the library into it.

        Primaries that are away do not count, as long as one node can say where the others are, and the one
        that holds the namespace's own record is there.

        Raises:
            JournalUnavailable: the cluster cannot be reached.
            StoreIncompatible: a node is too old, does not belong to a cluster, or wants another password; or the service has
                another number of partitions.
            StoreUnsafe: a primary may lose what it accepted.
        """
        self._clock = clock_function()
        async with detached_task_group() as task_group:
            self._task_group = task_group
            try:
                await self._nodes.open(task_group)
                key, arguments = registration(self._settings, fixes_partitions=self._fixes_partitions)
                check_registration(self._settings, await self.call(REGISTER, (key,), arguments))
                yield self
            finally:
                self._task_group = None
                self._nodes.close()

    # Steps.

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """Execute steps, in order within each partition.

        Raises:
            JournalUnavailable: a partition gave no usable answer. The steps may have happened unless `sent` is
                False; where there were several partitions, those of the others may have in any case.
            StoreIncompatible: a node's library or namespace does not fit, or its user may not do this.
            StoreUnsafe: a primary that is new may lose what it accepts.
        """
        if self._task_group is None:
            raise JournalUnavailable("the journal is not open; enter it with `async with` first", sent=False)
        groups: dict[int, list[int]] = {}
        for position, step in enumerate(steps):
            groups.setdefault(step.partition, []).append(position)
        if len(groups) == 1:
            return await self._execute_partition(steps[0].partition, steps)
        if not groups:
            await anyio.lowlevel.checkpoint()
            return BatchResult((), self._now_ms)
        return await self._execute_partitions(steps, groups)

    async def _execute_partitions(self, steps: Sequence[Step], groups: dict[int, list[int]]) -> BatchResult:
        results: dict[int, Result] = {}
        errors: list[Exception] = []
        times: list[int] = []

        async def execute(partition: int, positions: list[int]) -> None:
            try:
                answer = await self._execute_partition(partition, [steps[at] for at in positions])
            except Exception as error:
                errors.append(error)
            else:
                times.append(answer.now_ms)
                results.update(zip(positions, answer.results, strict=True))

        async with anyio.create_task_group() as task_group:
            for partition, positions in groups.items():
                task_group.start_soon(execute, partition, positions)
        for error in errors:
            if not isinstance(error, JournalUnavailable):
                raise error
        unavailable = [error for error in errors if isinstance(error, JournalUnavailable)]
        if unavailable:
            was_sent = bool(times) or any(error.sent for error in unavailable)
            raise JournalUnavailable(str(unavailable[0]), sent=was_sent) from unavailable[0]
        return BatchResult([results[at] for at in range(len(steps))], max(times))

    async def _execute_partition(self, partition: int, steps: Sequence[Step]) -> BatchResult:
        call = self._wire.encode(steps)
        command = (COMMIT, len(call.keys) + 1, *call.keys, self._absent_key(partition), *call.arguments)
        reply, question = await self._deliver(self._partition(partition).slot, command, partition)
        if isinstance(reply, Exception):
            raise explain(reply, sent=True) from reply
        assert question is not None
        self._partition(partition).history.read(question, zip(call.partitions, reply[1], strict=True))
        self._now_ms = int(reply[0])
        return BatchResult(read_results(call.steps, reply[2:]), self._now_ms)

    async def call(self, function: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Call a function of the library that is not a step, at the primary that has its keys' slot.

        Args:
            function: the function's name.
            keys: all the keys that it may touch, of the same slot; at least one.
            arguments: the rest.

        Returns:
            Its answer.

        Raises:
            JournalUnavailable: there was no usable answer.
            StoreIncompatible: the store refused.
        """
        reply, _ = await self._deliver(slot_of(keys[0]), (function, len(keys), *keys, *arguments))
        if isinstance(reply, Exception):
            raise explain(reply, sent=True) from reply
        return reply

    def _absent_key(self, partition: int) -> bytes:
        return self._wire.partition(partition).prefix + b":-"

    def _partition(self, number: int) -> _Partition:
        found = self._partitions.get(number)
        if found is None:
            slot = slot_of(self._wire.lease_key(number))
            found = self._partitions[number] = _Partition(slot, CommitHistory(self.history))
        return found

    # One call.

    async def _deliver(
        self, slot: int, command: Sequence[Any], partition: int | None = None
    ) -> tuple[Any, Question | None]:
        """Send one call to the node that has the slot, until it was not refused for the slot's sake.

        Args:
            slot: of all its keys.
            command: function, number of keys, keys, arguments.
            partition: whose commit number the answer brings.

        Returns:
            The answer or the store's error, and the question that the answer belongs to.

        Raises:
            JournalUnavailable: no node has the slot, its primary is away, the slot moves for too long, or the
                partition has lost history.
        """
        history = None if partition is None else self._partition(partition).history
        losses = history.losses if history is not None else 0
        redirect: Address | None = None
        give_up_s, pause_s = self._clock() + self._timeout_s, MOVING_PAUSE_FIRST_S
        redirects, loads = 0, 0
        while True:
            shard = self._nodes.shard(redirect) if redirect is not None else self._nodes.owner(slot)
            connection = await self._nodes.connection(shard)
            reply: Any = None
            question: Question | None = None
            if partition is not None and history is not None:
                reply = await self._compare(shard, connection, partition)
                if history.losses != losses:
                    # Some of these steps may belong to what was lost: their makers have to look again.
                    raise JournalUnavailable("the store has lost history", sent=False)
                question = history.ask()
            if reply is None:
                reply = await self._ask(shard, connection, command, is_asked=redirect is not None)
            redirect, is_moving = None, False
            if isinstance(reply, MovedError):
                self.slots.move(slot, parse_redirect(str(reply), shard.address))
            elif isinstance(reply, AskError):
                is_moving = True
                # For steps, the node that the slot moves to would refuse as well: a key is missing.
                if partition is None:
                    redirect = parse_redirect(str(reply), shard.address)
            elif is_missing(reply) and loads < LOADS_MAX:
                loads += 1
                await self._load(connection)
            elif isinstance(reply, TryAgainError):
                is_moving = True
            else:
                if isinstance(reply, Exception) and not _is_about_the_call(reply):
                    self.slots.suspect()
                return reply, question
            redirects += 1
            if (is_moving and redirect is None) or redirects > REDIRECTS_AT_ONCE:
                if self._clock() + pause_s >= give_up_s:
                    raise JournalUnavailable(f"slot {slot} of the cluster is moving: {reply}", sent=False)
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 2, MOVING_PAUSE_MAX_S)

    async def _ask(
        self, shard: Shard, connection: BaseConnection, command: Sequence[Any], *, is_asked: bool
    ) -> Any:
        """Send a call on a connection; the answer, or the error that it ended with.

        Raises:
            JournalUnavailable: nothing was sent, or no answer came in time.
        """
        try:
            if is_asked:
                # For the next command only: nothing may come between the two, and nothing can.
                _ = connection.create_request(b"ASKING", decode=False, raise_exceptions=False)
            request = connection.create_request(
                b"FCALL", *command, decode=False, raise_exceptions=False, timeout=self._timeout_s
            )
        except RedisError as error:
            raise explain(error, sent=False) from error
        reply: Any = await request
        if isinstance(reply, TimeoutError):
            connection.invalidate("an answer did not come in time")
            why = f"{name_of(shard.address)} did not answer within {self._timeout_s:g} s"
            self._nodes.went_down(shard, why)
            raise JournalUnavailable(why, sent=True) from reply
        return reply

    async def _compare(self, shard: Shard, connection: BaseConnection, number: int) -> Any:
        """Compare the commit number before anything is sent that would raise it; the error that came instead."""
        partition = self._partition(number)
        history = partition.history
        if number not in history.numbers or partition.compared is connection:
            return None
        call = self._wire.encode((), (number,))
        command = (COMMIT, len(call.keys) + 1, *call.keys, self._absent_key(number), *call.arguments)
        question = history.ask()
        try:
            reply = await self._ask(shard, connection, command, is_asked=False)
        except JournalUnavailable as error:
            raise JournalUnavailable(str(error), sent=False) from error
        if isinstance(reply, ResponseError):
            return reply
        if isinstance(reply, Exception):
            raise explain(reply, sent=False) from reply
        partition.compared = connection
        history.read(question, zip(call.partitions, reply[1], strict=True))
        return None

    async def _load(self, connection: BaseConnection) -> None:
        """Load the library, which was flushed."""
        try:
            with anyio.fail_after(self._timeout_s):
                await load_library(connection)
        except (RedisError, TimeoutError) as error:
            raise explain(error, sent=False) from error

    async def greet(self, connection: BaseConnection) -> None:
        """Check a new connection to a primary, before anything else is sent over it (`Greeter`)."""
        check_version(connection)
        await self._safety.check(connection)
        try:
            await load_library(connection)
        except ResponseError as error:
            # A replica takes no library; it has its primary's. The calls will say where that is.
            if "read only replica" not in str(error):
                raise


def _is_about_the_call(error: Exception) -> bool:
    """Whether an error says nothing of where the slots are."""
    return isinstance(error, ResponseError) and not isinstance(error, ClusterDownError)
