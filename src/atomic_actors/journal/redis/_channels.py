"""Messages between processes that bypass the log: doorbells of partitions, and frames to a node's channel.

For what the store keeps, nothing here is needed for correctness. A doorbell that is lost costs the time until
the owner's next sweep, a reply that is lost costs the asker a look into the store. So everything is sent once,
nothing is waited for, and a broken connection is opened again with a growing delay. Who sends what the store
does not keep can learn whether it was heard.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any, Final, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from coredis.connection import BaseConnection
from coredis.exceptions import AuthorizationError, RedisError

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._store_url import StoreLocation
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalSettings, JournalUnavailable
from atomic_actors.journal.redis._direct_connection import DirectConnection
from atomic_actors.journal.redis._link import Connector, Link, RedisServer, ask, explain
from atomic_actors.journal.redis._publisher import OnSent, Publisher
from atomic_actors.journal.redis._task_groups import detached_task_group
from atomic_actors.journal.redis._wire import Wire

__all__ = ("OnSent", "RedisChannels")

RECONNECT_DELAY_FIRST_S: Final = 0.05
RECONNECT_DELAY_MAX_S: Final = 1.0
#: After a refusal: the next answer does not change until the user's rights are changed.
REFUSED_DELAY_S: Final = 5.0
#: A connection that is silent for so long is asked whether it is still there.
HEARTBEAT_S: Final = 5.0


class RedisChannels(AsyncContextManagerMixin):
    """Doorbells and replies over one Redis or Valkey server.

    Enter it with `async with`, then run `listen_doorbells` and `listen_replies` in tasks of your own.

    Args:
        location: where the server is, or what makes connections to it.
        settings: the namespace and service; the channels' names begin with them.
        connect_timeout_s: how long it may take to connect and sign in.
        answer_timeout_s: how long a connection may leave a question unanswered before it is given up.
        counts_all: whether a server counts all that hear a message, and not only those that listen at it.

    Raises:
        InvalidConfig: the location is not a single server.
    """

    def __init__(
        self,
        location: StoreLocation | Connector,
        settings: JournalSettings,
        *,
        connect_timeout_s: float = 3.0,
        answer_timeout_s: float = 1.5,
        counts_all: bool = True,
    ) -> None:
        self._connector = (
            RedisServer(location, connect_timeout_s=connect_timeout_s)
            if isinstance(location, StoreLocation)
            else location
        )
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._counts_all = counts_all
        self._namespace = settings.namespace
        self._wire = Wire(settings)
        #: The doorbells that are wanted, by channel.
        self._bells: dict[bytes, int] = {}
        self._bell_link: Link | None = None
        #: The reply channels that are wanted, and the link on which they are heard.
        self._replies: dict[bytes, int] = {}
        self._reply_link: Link | None = None
        self._deaf: anyio.Event | None = None
        self._task_group: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<RedisChannels {self._namespace}: {len(self._bells)} doorbells>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._publisher = Publisher(
            self._new_link(), answer_timeout_s=self._answer_timeout_s, counts_all=self._counts_all
        )
        with closing(self._publisher):
            async with detached_task_group() as task_group:
                self._task_group = task_group
                task_group.start_soon(self._publisher.run, task_group)
                try:
                    yield self
                finally:
                    self._task_group = None

    @property
    def dropped(self) -> int:
        """Messages to publish that were dropped: too many waited, or the store was away."""
        return self._publisher.dropped

    # Doorbells.

    def bell_channel(self, partition: int) -> bytes:
        """The sharded channel of a partition's doorbell."""
        return f"{self._wire.prefix(partition)}:bell".encode()

    def watch(self, partition: int) -> None:
        """Listen to one doorbell more. Once it is heard, the callback gets `(partition, "")`."""
        channel = self.bell_channel(partition)
        if channel not in self._bells:
            self._bells[channel] = partition
            self._send_bell_command(b"SSUBSCRIBE", channel)

    def unwatch(self, partition: int) -> None:
        """Listen to one doorbell less."""
        channel = self.bell_channel(partition)
        if self._bells.pop(channel, None) is not None:
            self._send_bell_command(b"SUNSUBSCRIBE", channel)

    def _send_bell_command(self, command: bytes, channel: bytes) -> None:
        # Without a connection there is nothing to do: a new one subscribes to all that are wanted.
        connection = self._bell_link.usable if self._bell_link is not None else None
        if connection is not None:
            connection.send_command(command, channel)

    async def listen_doorbells(self, partitions: Iterable[int], callback: Callable[[int, str], None]) -> None:
        """Listen until cancelled; one task only.

        Args:
            partitions: the first ones to `watch`.
            callback: gets the partition and the entity that has work. An empty entity means that the
                doorbell is heard from now on and rings may have been missed: sweep. It must not raise.
        """
        for partition in partitions:
            self._bells[self.bell_channel(partition)] = partition

        def on_push(kind: bytes, message: list[Any]) -> None:
            partition = self._bells.get(message[1])
            if partition is None:
                return
            if kind == b"ssubscribe":
                callback(partition, "")
            elif kind == b"smessage":
                for entity in message[2].split(b"\n"):
                    # A name that cannot be decoded must not end the listener.
                    callback(partition, entity.decode("utf-8", "replace"))

        link = self._bell_link = self._new_link()
        try:
            await self._listen_forever(link, _subscriber(b"SSUBSCRIBE", self._bells), on_push)
        finally:
            self._bell_link = None
            link.close("nothing listens any more")

    # Replies.

    def reply_channel(self, node: str) -> bytes:
        """The channel on which a node hears replies."""
        return f"{self._namespace}:reply:{node}".encode()

    async def listen_replies(
        self,
        node: str,
        callback: Callable[[bytes], None],
        on_heard: Callable[[bool], None] | None = None,
    ) -> None:
        """Listen on a node's reply channel until cancelled; neither callback may raise.

        Args:
            node: whose channel it is.
            callback: gets each payload.
            on_heard: called with True when the channel is heard, and with False when it is not any more.
        """

        def on_push(kind: bytes, message: list[Any]) -> None:
            if kind == b"message":
                callback(message[2])
            elif kind == b"subscribe" and on_heard is not None:
                on_heard(True)
            elif kind == b"unsubscribe":
                on_lost()
                if self._deaf is not None:
                    self._deaf.set()

        def on_lost() -> None:
            if on_heard is not None:
                on_heard(False)

        self._replies[self.reply_channel(node)] = 0
        link = self._reply_link = self._new_link()
        try:
            subscribe = _subscriber(b"SUBSCRIBE", self._replies)
            await self._listen_forever(link, subscribe, on_push, on_lost)
        finally:
            self._reply_link = None
            link.close("nothing listens any more")

    async def end_replies(self) -> None:
        """Hear nothing more: what was heard so far is handled, and what is published later is heard by no one.

        Then waits until the store has what was published here. Both take at most the answer's time limit.
        """
        connection = self._reply_link.usable if self._reply_link is not None else None
        channels, sent = list(self._replies), anyio.Event()
        self._replies.clear()
        with anyio.move_on_after(self._answer_timeout_s):
            if connection is not None and channels:
                self._deaf = anyio.Event()
                connection.send_command(b"UNSUBSCRIBE", *channels)
                await self._deaf.wait()
            if channels:
                self.publish(channels[0], b"", lambda _: sent.set())  # behind everything else
                await sent.wait()

    def publish(self, channel: bytes, payload: bytes, on_sent: OnSent | None = None) -> None:
        """Send to a channel, soon and once; does not wait, and drops it where too much is waiting already.

        What is published here goes out in this order, over one connection at a time.

        Args:
            channel: where to.
            payload: what.
            on_sent: called once with how many heard it, unless the channels are left before; must not raise.
        """
        if not self._publisher.send_now(channel, payload, on_sent):
            self._publisher.queue(channel, payload, on_sent)

    # Connections.

    def _new_link(self) -> Link:
        return Link(self._connector, connect_timeout_s=self._connect_timeout_s)

    async def _listen_forever(
        self,
        link: Link,
        subscribe: Callable[[BaseConnection], None],
        on_push: Callable[[bytes, list[Any]], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        assert self._task_group is not None, "enter the channels with `async with` first"
        delay_s = RECONNECT_DELAY_FIRST_S
        refused = False
        while True:
            error: Exception | None = None
            try:
                connection = await link.open(self._task_group)
                if isinstance(connection, DirectConnection):
                    connection.hear_pushes(lambda message: on_push(message[0], message))
                subscribe(connection)
                # An error to the subscription has no request of its own, so it becomes the answer to this.
                await self._check(connection)
                delay_s, refused = RECONNECT_DELAY_FIRST_S, False
                await self._read_pushes(connection, on_push)
            except AuthorizationError as denied:
                error = explain(denied, sent=True)
            except (RedisError, JournalUnavailable, StoreIncompatible, TimeoutError) as ended:
                error = ended
            if isinstance(error, StoreIncompatible) and not refused:
                refused = True  # once, however often it is tried
                logger.warning("cannot listen to the store; replies and doorbells will be late: %s", error)
            elif error is not None:
                logger.debug("a listening connection to the store ended: %s", error)
            link.close("it failed")
            on_end()
            await anyio.sleep(REFUSED_DELAY_S if refused else delay_s)
            delay_s = min(delay_s * 2, RECONNECT_DELAY_MAX_S)

    async def _check(self, connection: BaseConnection) -> None:
        with anyio.fail_after(self._answer_timeout_s):
            await ask(connection, b"PING")

    async def _read_pushes(
        self, connection: BaseConnection, on_push: Callable[[bytes, list[Any]], None]
    ) -> None:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._keep_checking, connection)
            try:
                # Those of a direct connection are heard already: it only tells when it ends.
                async for message in connection.push_messages:
                    push: list[Any] = list(message)
                    on_push(push[0], push)
            except RedisError as error:
                logger.debug("a listening connection to the store is lost: %s", error)
            task_group.cancel_scope.cancel()

    async def _keep_checking(self, connection: BaseConnection) -> None:
        while True:
            await anyio.sleep(HEARTBEAT_S)
            try:
                await self._check(connection)
            except (RedisError, TimeoutError):
                connection.invalidate("it does not answer")
                return


def _subscriber(command: bytes, channels: Mapping[bytes, int]) -> Callable[[BaseConnection], None]:
    """What subscribes to all channels that are wanted when it is called."""

    def subscribe(connection: BaseConnection) -> None:
        if channels:
            connection.send_command(command, *channels)

    return subscribe
