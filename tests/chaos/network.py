"""The network between one node and the store, as bad as a test wants it, and better again when it says so.

It reads the protocol only as far as it must (see `proxy`): requests are passed on whole, so that each can be
doubled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Literal

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import define, field

from tests.chaos.proxy import Frames

__all__ = ("Network", "Weather", "run_network")

#: Everything gets through; nobody gets a connection; connections stay and nothing gets through, ever; replies
#: come after `delay_s`; each call arrives twice, and the second answer counts.
Weather = Literal["fair", "cut", "silent", "slow", "doubled"]


@define(eq=False)
class _Connection:
    client: SocketStream
    server: SocketStream
    #: For each reply that is still to come, whether it is dropped. Replies come in the order of the requests.
    dropped: list[bool] = field(factory=list)
    #: Its other end is gone, and it does not know.
    gone: bool = False
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)


@define(eq=False)
class Network:
    """Listens on a free port and passes to the port `upstream`. Its methods may be called from any thread."""

    upstream: int
    portal: BlockingPortal
    delay_s: float = 2.0
    weather: Weather = "fair"
    port: int = 0
    #: Connections that were asked for, and what the weather did: `lost`, `late` or `doubled` frames.
    opened: int = 0
    felt: Counter[str] = field(factory=Counter)
    _connections: set[_Connection] = field(factory=set, init=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def change(self, weather: Weather) -> None:
        """From now on."""
        self.portal.call(self._change, weather)

    def forget_connections(self) -> None:
        """Those that are open never hear anything again; new ones are as the weather is."""
        self.portal.call(self._forget)

    def _change(self, weather: Weather) -> None:
        self.weather = weather
        if weather == "cut":
            for connection in self._connections:
                connection.scope.cancel()

    def _forget(self) -> None:
        for connection in self._connections:
            connection.gone = True

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(SocketAttribute.local_port)
        async with listener:
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, client: SocketStream) -> None:
        async with client:
            self.opened += 1
            if self.weather == "cut":
                return
            try:
                server = await anyio.connect_tcp("127.0.0.1", self.upstream)
            except OSError:
                return  # the store is away, too
            async with server:
                connection = _Connection(client, server)
                self._connections.add(connection)
                try:
                    with connection.scope:
                        async with anyio.create_task_group() as group:
                            group.start_soon(self._pass, connection, self._requests)
                            group.start_soon(self._pass, connection, self._replies)
                finally:
                    self._connections.discard(connection)

    async def _pass(
        self, connection: _Connection, direction: Callable[[_Connection], Awaitable[None]]
    ) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await direction(connection)
        connection.scope.cancel()

    def _is_lost(self, connection: _Connection) -> bool:
        connection.gone = connection.gone or self.weather == "silent"
        self.felt["lost"] += connection.gone
        return connection.gone

    async def _requests(self, connection: _Connection) -> None:
        frames = Frames(connection.client)
        while (frame := await frames.receive()) is not None:
            if self._is_lost(connection):
                continue
            if self.weather == "doubled" and b"FCALL" in frame[:20]:
                self.felt["doubled"] += 1
                connection.dropped.append(True)
                await connection.server.send(frame)
            connection.dropped.append(False)
            await connection.server.send(frame)

    async def _replies(self, connection: _Connection) -> None:
        frames = Frames(connection.server)
        while (frame := await frames.receive()) is not None:
            # A push answers nobody.
            dropped = not frame.startswith(b">") and connection.dropped.pop(0)
            if self.weather == "slow":
                self.felt["late"] += 1
                await anyio.sleep(self.delay_s)
            if not dropped and not self._is_lost(connection):
                await connection.client.send(frame)


@contextmanager
def run_network(upstream: int) -> Generator[Network]:
    """A network of its own thread, in which workers and the test meet."""
    with start_blocking_portal() as portal:
        network = Network(upstream, portal)
        task, _ = portal.start_task(network.run)
        try:
            yield network
        finally:
            task.cancel()
