"""Doorbells and frames between simulated nodes: `RedisChannels` without Redis.

What one node pushes to another stands in the other's inbox until the other's own task reads it, so a node that is
paused reads it afterwards, in order. The network may lose it, deliver it twice or deliver it late, which is out of
order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import trio
from attrs import define, field

from atomic_actors.base._oneshot import OneShot, oneshot_factory
from atomic_actors.testing.simulation._faults import Faults

__all__ = ("Network", "SimulatedChannels")


class Timer(Protocol):
    """What can wait: the simulation."""

    def after(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call a function after so many seconds."""
        ...


@define(eq=False)
class Network:
    """What carries doorbells and frames to the nodes that are there.

    Args:
        faults: what goes wrong on the way.
        timer: lets something happen later.
    """

    faults: Faults
    timer: Timer
    _channels: dict[int, SimulatedChannels] = field(factory=dict[int, "SimulatedChannels"], init=False)

    def join(self, node: int) -> SimulatedChannels:
        """The channels of a new node."""
        channels = self._channels[node] = SimulatedChannels(self, node)
        return channels

    def lose(self, node: int) -> None:
        """A node is gone: its channel has no listener."""
        self._channels.pop(node, None)

    def ring(self, partition: int, entity: str) -> None:
        """A step in the store rings a partition's doorbell."""
        for channels in tuple(self._channels.values()):
            if partition in channels.watched and not channels.is_deaf:
                self._deliver(channels, partial(channels.heard_bell, partition, entity))

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Send a frame; returns how many nodes hear it."""
        heard = 0
        for channels in tuple(self._channels.values()):
            if channel in channels.heard_channels and not channels.is_deaf:
                heard += 1
                self._deliver(channels, partial(channels.heard_frame, payload))
        return heard

    def _deliver(self, channels: SimulatedChannels, what: Callable[[], None]) -> None:
        fault = self.faults.draw_frame(channels.node)
        if fault == "frame lost":
            return
        if fault == "frame late":
            self.timer.after(self.faults.delay_s(), partial(channels.put, what))
            return
        channels.put(what)
        if fault == "frame twice":
            self.timer.after(self.faults.delay_s(), partial(channels.put, what))


@define(eq=False)
class SimulatedChannels:
    """One node's end; see `_node_messenger.Channels`, which it is."""

    network: Network
    node: int
    #: The connection to the network is lost: what comes now is not heard, ever.
    is_deaf: bool = field(default=False, init=False)
    watched: set[int] = field(factory=set[int], init=False)
    heard_channels: set[bytes] = field(factory=set[bytes], init=False)
    _inbox: deque[Callable[[], None]] = field(factory=deque[Callable[[], None]], init=False)
    _waiting: OneShot[None] | None = field(default=None, init=False)
    _on_bell: Callable[[int, str], None] | None = field(default=None, init=False)
    _on_frame: Callable[[bytes], None] | None = field(default=None, init=False)
    _on_heard: Callable[[bool], None] | None = field(default=None, init=False)

    def put(self, what: Callable[[], None]) -> None:
        """Let the node hear something, when it comes to it."""
        self._inbox.append(what)
        if self._waiting is not None:
            self._waiting.set(None)

    def set_deaf(self, is_deaf: bool) -> None:
        """Lose the connection, or have a new one; the node learns of both."""
        self.is_deaf = is_deaf
        self.put(partial(self._notify_heard, not is_deaf))
        if not is_deaf:
            for partition in sorted(self.watched):
                self.put(partial(self.heard_bell, partition, ""))

    def _notify_heard(self, is_heard: bool) -> None:
        if self._on_heard is not None:
            self._on_heard(is_heard)

    def heard_bell(self, partition: int, entity: str) -> None:
        """A doorbell arrives."""
        if self._on_bell is not None and partition in self.watched:
            self._on_bell(partition, entity)

    def heard_frame(self, payload: bytes) -> None:
        """A frame arrives."""
        if self._on_frame is not None:
            self._on_frame(payload)

    # What `NodeMessenger` calls.

    def watch(self, partition: int) -> None:
        """Listen to one doorbell more."""
        if partition not in self.watched:
            self.watched.add(partition)
            if not self.is_deaf:
                self.put(partial(self.heard_bell, partition, ""))

    def unwatch(self, partition: int) -> None:
        """Listen to one doorbell less."""
        self.watched.discard(partition)

    async def listen_doorbells(self, partitions: Iterable[int], callback: Callable[[int, str], None]) -> None:
        """Listen until cancelled."""
        self._on_bell = callback
        for partition in partitions:
            self.watch(partition)
        try:
            await trio.sleep_forever()  # the inbox is read by `listen_replies`
        finally:
            self._on_bell = None

    def reply_channel(self, node: str) -> bytes:
        """The channel on which a node hears frames."""
        return node.encode()

    async def listen_replies(
        self,
        node: str,
        callback: Callable[[bytes], None],
        on_heard: Callable[[bool], None] | None = None,
    ) -> None:
        """Read the inbox until cancelled."""
        new_oneshot = oneshot_factory()
        self._on_frame, self._on_heard = callback, on_heard
        self.heard_channels.add(self.reply_channel(node))
        self._notify_heard(not self.is_deaf)
        try:
            while True:
                while self._inbox:
                    self._inbox.popleft()()
                self._waiting = new_oneshot()
                await self._waiting
        finally:
            self._on_frame = self._on_heard = self._waiting = None

    async def end_replies(self) -> None:
        """Hear nothing more; what was heard so far is handled."""
        self.heard_channels.clear()
        self._notify_heard(False)
        while self._inbox and self._on_frame is not None:
            await trio.lowlevel.checkpoint()

    def publish(
        self, channel: bytes, payload: bytes, on_sent: Callable[[int | None], None] | None = None
    ) -> None:
        """Send a frame, now."""
        heard = None if self.is_deaf else self.network.publish(channel, payload)
        if on_sent is not None:
            self.put(partial(on_sent, heard))
