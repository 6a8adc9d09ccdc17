"""The journal in a Redis or Valkey server.

The work is done by the Lua library in `lua/`, inside the store. This side encodes the steps, keeps one connection
for them so that they arrive in the order of the calls, and says what a missing answer means. Several
calls may be in flight at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, Final, Self, cast

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from attrs import define
from coredis.connection import BaseConnection
from coredis.exceptions import AuthorizationError, ReadOnlyError, RedisError

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._oneshot import OneShot, clock_function, oneshot_factory
from atomic_actors.base._store_url import StoreLocation, parse_store_url
from atomic_actors.journal._history import CommitHistory, Question
from atomic_actors.journal._protocol import (
    Append,
    BatchResult,
    Finish,
    JournalSettings,
    JournalUnavailable,
    Result,
    Step,
)
from atomic_actors.journal.redis._answers import read_results
from atomic_actors.journal.redis._direct_connection import Command, DirectConnection, OnReply, ignore_reply
from atomic_actors.journal.redis._directory import RedisDirectory
from atomic_actors.journal.redis._library import COMMIT, is_missing, load_library, register_service
from atomic_actors.journal.redis._link import Connector, Link, RedisServer, ask, explain, request_all
from atomic_actors.journal.redis._replication import Replication
from atomic_actors.journal.redis._store_checks import (
    SafetyRules,
    check_names,
    check_version,
    read_information,
)
from atomic_actors.journal.redis._task_groups import detached_task_group
from atomic_actors.journal.redis._wire import Call, Wire

__all__ = ("RedisJournal",)

#: An answer that is late may have come while the loop was busy: the reader gets a last turn.
GRACE_S: Final = 0.05
#: In larger batches it does not matter who is written to first.
FEW_STEPS: Final = 2

#: At the end of a round the store writes to its clients, those first whose answer began last: to the caller, and
#: only then to those whom the call pushed something to, though they are waited for. One that has an answer before
#: the call comes last. With one client and three processes on two cores, an ask of another node took a fifth less.
_WRITE_OTHERS_FIRST: Final[tuple[Command, OnReply]] = ((b"PING",), ignore_reply)


class _AnswerWatch:
    """Gives up a connection on which the answer to a call does not come in time. Made inside the event loop."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._clock = clock_function()
        self.new_oneshot = oneshot_factory()
        #: When each call that waits for its answer went out, oldest first; answers come in that order.
        self.sent_s: deque[float] = deque()
        #: The task waits here while nothing is on its way.
        self._resting: OneShot[None] | None = None
        self._scope = anyio.CancelScope(shield=True)

    def watched(self, on_reply: OnReply) -> OnReply:
        """Note that a call goes out now; returns what has to get its answer instead."""

        def answer_to(reply: Any) -> None:
            self.sent_s.popleft()
            on_reply(reply)

        self.sent_s.append(self._clock())
        if self._resting is not None:
            self._resting.set(None)
        return answer_to

    async def run(self) -> None:
        """Watch until stopped; a cancel from outside does not end it."""
        with self._scope:
            while True:
                if not self.sent_s:
                    self._resting = self.new_oneshot()
                    await self._resting
                    self._resting = None
                oldest_s = self.sent_s[0] if self.sent_s else self._clock()
                await anyio.sleep(max(0.0, oldest_s + self._timeout_s - self._clock()))
                if not self.sent_s or self._clock() < self.sent_s[0] + self._timeout_s:
                    continue
                late_s = self.sent_s[0]
                await anyio.sleep(GRACE_S)
                if self.sent_s and self.sent_s[0] == late_s:
                    self._link.close(f"no answer within {self._timeout_s:g} s")

    def stop(self) -> None:
        """Let `run` end."""
        self._scope.cancel()


@define(eq=False, kw_only=True)
class _Greeting:
    """What each new connection is checked for, and the store once for each run of its server."""

    settings: JournalSettings
    safety: SafetyRules
    replication: Replication | None
    fixes_partitions: bool
    #: The server's run id at the last connect: another one means that it was restarted or replaced.
    run_id: str = ""

    async def greet(self, connection: BaseConnection) -> None:
        check_version(connection)
        run_id = await _read_run_id(connection)
        if not run_id or run_id != self.run_id:
            await self.safety.check(connection)
            await load_library(connection)
            await register_service(connection, self.settings, fixes_partitions=self.fixes_partitions)
            if self.replication is not None:
                await self.replication.check(connection)
            self.run_id = run_id


class RedisJournal(AsyncContextManagerMixin):
    """A journal in one Redis (7.0 or newer) or Valkey server.

    Args:
        location: where the server is, or what makes connections to it.
        settings: the namespace, the service and its limits.
        merge_partitions: whether the steps of several partitions may share a call; not in a cluster.
        timeout_s: how long the answer to a call may take before the connection is given up.
        connect_timeout_s: how long it may take to connect, sign in and check the store.
        allow_eviction: accept a store that may evict keys when its memory is full.
        allow_no_persistence: accept a store that writes no append-only file, or never forces it to the disk.
        fixes_partitions: whether this decides how many partitions the service has, where nothing did before.
        replication: what replicas must have before an answer counts; None for nothing.

    Raises:
        InvalidConfig: the location is not a single server, or a name holds braces or control characters.
    """

    def __init__(
        self,
        location: StoreLocation | Connector,
        settings: JournalSettings,
        *,
        merge_partitions: bool = True,
        timeout_s: float = 1.5,
        connect_timeout_s: float = 3.0,
        allow_eviction: bool = False,
        allow_no_persistence: bool = False,
        fixes_partitions: bool = True,
        replication: Replication | None = None,
    ) -> None:
        check_names(settings)
        connector = (
            RedisServer(location, connect_timeout_s=connect_timeout_s)
            if isinstance(location, StoreLocation)
            else location
        )
        #: Notices that the store went back in time.
        self.history = CommitHistory()
        #: The nodes that use the store.
        self.directory = RedisDirectory(self, settings.namespace)
        self._settings = settings
        self._wire = Wire(settings)
        self._merge_partitions = merge_partitions
        self._replication = replication
        # Two batches may be on their way, and the second one's answer waits for the first one's replicas.
        self._timeout_s = timeout_s + (2 * replication.timeout_s if replication is not None else 0.0)
        self._greeting = _Greeting(
            settings=settings,
            safety=SafetyRules(allow_eviction=allow_eviction, allow_no_persistence=allow_no_persistence),
            replication=replication,
            fixes_partitions=fixes_partitions,
        )
        self._link = Link(connector, connect_timeout_s=connect_timeout_s, greeter=self, shielded=True)
        self._task_group: TaskGroup | None = None
        self._now_ms = 0

    @classmethod
    def from_url(cls, url: str, settings: JournalSettings, **options: Any) -> Self:
        """The journal at `redis://host:port/db`, `rediss://...` or `unix:///path`; `options` as above.

        Raises:
            InvalidConfig: the URL is none of these.
        """
        return cls(parse_store_url(url)[0], settings, **options)

    def __repr__(self) -> str:
        state = "open" if self._link.usable is not None else "closed"
        return f"<RedisJournal {self._settings.namespace}:{self._settings.service} {state}>"

    @property
    def settings(self) -> JournalSettings:
        """The settings it was made with."""
        return self._settings

    @property
    def run_id(self) -> str:
        """The server's run id at the last connect."""
        return self._greeting.run_id

    @property
    def commits(self) -> dict[int, int]:
        """The highest commit number that is known of each partition."""
        return self.history.numbers

    def lease_key(self, partition: int) -> bytes:
        """The key of a partition's lease, for `aa1_renew` on a connection of the lease keeper's own."""
        return self._wire.lease_key(partition)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        """Connect, check the store, and load the library.

        Raises:
            JournalUnavailable: the store cannot be reached.
            StoreIncompatible: it is too old, has another number of partitions, or wants another password.
            StoreUnsafe: it may lose what it accepted.
        """
        self._lock = anyio.Lock()
        self._answers = _AnswerWatch(self._link, self._timeout_s)
        async with detached_task_group() as task_group:
            self._task_group = task_group
            try:
                await self._link.open(task_group)
                task_group.start_soon(self._answers.run)
                yield self
            finally:
                self._task_group = None
                self._link.close_all()
                self._answers.stop()

    # Steps.

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """Execute steps, in order within each partition.

        Raises:
            JournalUnavailable: no usable answer; the steps may have happened unless `sent` is False.
            StoreIncompatible: the store's library or namespace does not fit, or its user may not do this.
        """
        if self._task_group is None:
            raise JournalUnavailable("the journal is not open; enter it with `async with` first", sent=False)
        if not steps:
            await anyio.lowlevel.checkpoint()
            return BatchResult((), self._now_ms)
        calls, positions = self._encode(steps)
        losses = self.history.losses
        connection = self._link.usable
        if connection is None or self._lock.locked():
            # Those who wait here are sent in order; none that comes later may overtake.
            async with self._lock:
                connection = await self._link.open(self._task_group)
                if self.history.losses != losses:
                    # Some of these steps may belong to what was lost: their makers have to look again.
                    raise JournalUnavailable("the store has lost history", sent=False)
                question = self.history.ask()
                pending = self._send(connection, calls)
        else:
            question = self.history.ask()
            pending = self._send(connection, calls)
        replies = await self._receive(connection, pending)
        if any(is_missing(reply) for reply in replies):
            replies = await self._send_again(calls, replies)
        elif not any(isinstance(reply, Exception) for reply in replies):
            # Those that had to be sent again were not answered in the order of the questions.
            self._read_commits(question, calls, replies)
        return self._read(calls, positions, replies, len(steps))

    async def call(self, function: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Call a function of the library that is not a step, with at least one key, and return what it answers.

        Raises:
            JournalUnavailable: no usable answer; it may have been called unless `sent` is False.
            StoreIncompatible: as `execute`.
        """
        if self._task_group is None:
            raise JournalUnavailable("the journal is not open; enter it with `async with` first", sent=False)
        command: list[Sequence[bytes | int]] = [(function, len(keys), *keys, *arguments)]
        connection = self._link.usable
        if connection is None or self._lock.locked():
            async with self._lock:
                connection = await self._link.open(self._task_group)
                pending = self._request(connection, command, keys[0] + b":ack")
        else:
            pending = self._request(connection, command, keys[0] + b":ack")
        replies = await self._receive(connection, pending)
        if is_missing(replies[0]):
            async with self._lock:
                connection = await self._link.open(self._task_group)
                try:
                    with anyio.fail_after(self._timeout_s):
                        await load_library(connection)
                except (RedisError, TimeoutError) as error:
                    raise explain(error, sent=False) from error
                pending = self._request(connection, command, keys[0] + b":ack")
            replies = await self._receive(connection, pending)
        if isinstance(replies[0], Exception):
            if isinstance(replies[0], ReadOnlyError):
                self._link.close("it is not a primary any more")
            raise explain(replies[0], sent=True) from replies[0]
        return replies[0]

    def send(self, steps: Sequence[Step], on_answer: Callable[[BatchResult | Exception], None]) -> bool:
        """Send steps at once, without waiting; `on_answer` gets what `execute` returns or raises.

        Returns:
            False if that is not possible now, and nothing was sent: use `execute`.
        """
        connection = self._link.usable
        if (
            not self._merge_partitions
            or self._task_group is None
            or self._lock.locked()
            or not isinstance(connection, DirectConnection)
            or not connection.sends_now
        ):
            return False
        call = self._wire.encode(steps)

        def on_reply(reply: Any) -> None:
            try:
                if is_missing(reply):
                    # `execute` loads it.
                    raise JournalUnavailable("the store lost the library", sent=False)
                if not isinstance(reply, Exception):
                    self._read_commits(question, (call,), (reply,))
                answer = self._read((call,), (range(len(steps)),), (reply,), len(steps))
            except Exception as error:
                on_answer(error)
            else:
                on_answer(answer)

        question, answer_to = self.history.ask(), self._answers.watched(on_reply)
        command: Command = (b"FCALL", COMMIT, b"%d" % len(call.keys), *call.keys, *call.arguments)
        commands: list[tuple[Command, OnReply]] = [(command, answer_to)]
        if self._replication is not None:
            commands = self._replication.around(command, self._ack_key([call]), answer_to)
        if len(steps) <= FEW_STEPS and any(map(_notifies_others, steps)):
            commands.insert(0, _WRITE_OTHERS_FIRST)
        connection.send_now(*commands)
        return True

    def _encode(self, steps: Sequence[Step]) -> tuple[list[Call], list[Sequence[int]]]:
        """The calls, and the positions of each one's steps."""
        if self._merge_partitions:
            return [self._wire.encode(steps)], [range(len(steps))]
        groups: dict[int, list[int]] = {}
        for position, step in enumerate(steps):
            groups.setdefault(step.partition, []).append(position)
        positions: list[Sequence[int]] = list(groups.values())
        return [self._wire.encode([steps[at] for at in group]) for group in positions], positions

    def _send(self, connection: BaseConnection, calls: Sequence[Call]) -> list[Any]:
        commands: list[Sequence[bytes | int]] = [
            (COMMIT, len(call.keys), *call.keys, *call.arguments) for call in calls
        ]
        return self._request(connection, commands, self._ack_key(calls))

    def _request(
        self, connection: BaseConnection, commands: Sequence[Sequence[bytes | int]], ack_key: bytes
    ) -> list[Any]:
        if self._replication is None and isinstance(connection, DirectConnection) and connection.sends_now:
            # Not by the driver's writer: as long as that has something to do, no batch can be sent directly.
            oneshots: list[OneShot[Any]] = [self._answers.new_oneshot() for _ in commands]
            connection.send_now(
                *(
                    (_function_call(command), self._answers.watched(oneshot.set))
                    for command, oneshot in zip(commands, oneshots, strict=True)
                )
            )
            return list(oneshots)
        try:
            pending = request_all(connection, commands, self._timeout_s)
            if self._replication is not None:
                pending.append(self._replication.request(connection, ack_key, self._timeout_s))
            return pending
        except RedisError as error:
            raise explain(error, sent=False) from error

    async def _receive(self, connection: BaseConnection, pending: Sequence[Any]) -> list[Any]:
        # The driver's own limit for each answer: a scope of ours around them would be one more.
        replies: list[Any] = []
        for request in pending:
            reply = await request
            if isinstance(reply, TimeoutError):
                connection.invalidate("an answer did not come in time")
                raise JournalUnavailable(
                    f"the store did not answer within {self._timeout_s:g} s", sent=True
                ) from reply
            replies.append(reply)
        if self._replication is not None:
            refusal = self._replication.refusal(replies.pop())
            if refusal is not None:
                replies = [reply if isinstance(reply, Exception) else refusal for reply in replies]
        return replies

    def _ack_key(self, calls: Sequence[Call]) -> bytes:
        """What is written behind these calls, to wait for it."""
        return self._wire.partition(next(reversed(calls[-1].partitions))).prefix + b":ack"

    async def _send_again(self, calls: Sequence[Call], replies: Sequence[Any]) -> list[Any]:
        """Load the library, which was flushed, and repeat the calls that missed it."""
        assert self._task_group is not None
        missed = [position for position, reply in enumerate(replies) if is_missing(reply)]
        async with self._lock:
            connection = await self._link.open(self._task_group)
            try:
                with anyio.fail_after(self._timeout_s):
                    await load_library(connection)
            except (RedisError, TimeoutError) as error:
                raise explain(error, sent=len(missed) < len(calls)) from error
            pending = self._send(connection, [calls[position] for position in missed])
        result = list(replies)
        for position, reply in zip(missed, await self._receive(connection, pending), strict=True):
            result[position] = reply
        return result

    def _read(
        self, calls: Sequence[Call], positions: Sequence[Sequence[int]], replies: Sequence[Any], count: int
    ) -> BatchResult:
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if errors:
            if any(isinstance(error, ReadOnlyError) for error in errors):
                # Another server is the primary now: the next connection finds out which.
                self._link.close("the store has become a replica")
            meanings = [explain(error, sent=True) for error in errors]
            refused = 0
            for meaning in meanings:
                if isinstance(meaning, StoreIncompatible):
                    raise meaning from errors[0]
                refused += not meaning.sent
            raise JournalUnavailable(str(meanings[0]), sent=refused < len(calls)) from errors[0]
        results: list[Result | None] = [None] * count
        now_ms = 0
        for call, group, reply in zip(calls, positions, replies, strict=True):
            now_ms = max(now_ms, int(reply[0]))
            answers = read_results(call.steps, reply[2:])
            if len(calls) == 1:
                self._now_ms = now_ms
                return BatchResult(answers, now_ms)
            for position, result in zip(group, answers, strict=True):
                results[position] = result
        self._now_ms = now_ms
        return BatchResult(cast("list[Result]", results), now_ms)

    def _read_commits(self, question: Question, calls: Sequence[Call], replies: Sequence[Any]) -> None:
        numbers = [
            zip(call.partitions, reply[1], strict=True) for call, reply in zip(calls, replies, strict=True)
        ]
        # A partition whose books are damaged has none.
        known = [
            (partition, number) for partition, number in chain.from_iterable(numbers) if number is not None
        ]
        self.history.read(question, known)

    # A new connection.

    async def greet(self, connection: BaseConnection) -> None:
        """Check a new connection, before anything else is sent over it (`Greeter`)."""
        await self._greeting.greet(connection)
        await self._look_back(connection)

    async def _look_back(self, connection: BaseConnection) -> None:
        """Compare the commit numbers before anything is sent that would raise them."""
        partitions = tuple(self.commits)
        if not partitions:
            return
        groups = [partitions] if self._merge_partitions else [(number,) for number in partitions]
        calls = [self._wire.encode((), group) for group in groups]
        question = self.history.ask()
        try:
            replies = await self._receive(connection, self._send(connection, calls))
        except JournalUnavailable as error:
            raise JournalUnavailable(str(error), sent=False) from error
        for reply in replies:
            if is_missing(reply):
                return  # the library was flushed: the answers to come tell it, too
            if isinstance(reply, JournalUnavailable):
                raise JournalUnavailable(str(reply), sent=False)
            if isinstance(reply, Exception):
                raise reply
        self._read_commits(question, calls, replies)


def _function_call(command: Sequence[bytes | int]) -> Command:
    return (b"FCALL", *(b"%d" % word if isinstance(word, int) else word for word in command))


def _notifies_others(step: Step) -> bool:
    """Whether a step pushes something that is waited for to another connection: a doorbell, or replies."""
    if isinstance(step, Append):
        return not step.claim
    return isinstance(step, Finish) and bool(step.pushes)


async def _read_run_id(connection: BaseConnection) -> str:
    try:
        information = read_information(await ask(connection, b"INFO", b"server"))
    except AuthorizationError:
        return ""
    return information.get("run_id", "")
