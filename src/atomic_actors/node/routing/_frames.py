"""Frames between nodes: each has a channel of its own in the store, and hears there what others send it.

A frame is a list of plain data, msgpack on the wire. Its first item says what it is; the rest are the
arguments of whoever handles such frames:

    reply    entity, unique, outcome                   a message that the node waits for has ended
    claim    partition                                 it is free, or something else changed (_membership)
    ask      partition, claim, entity, name, ...       a volatile message and its asker     (volatile/_routes)
    tell     partition, claim, entity, name, ...       the same, nobody waits for its reply (volatile/_routes)
    forget   sender, stream, number                    the asker of an ask is gone          (volatile/_routes)
    told     stream, number, word, data                what became of an ask or a tell      (volatile/_host)

A frame is sent once and may be lost. What is said of one by the store comes from the log in any case, but a
volatile message is only a frame: its sender can learn whether anybody heard it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from atomic_actors.base._telemetry import logger
from atomic_actors.codec._envelope import encode_plain, plain_of
from atomic_actors.journal.redis._channels import OnSent

__all__ = ("Channels", "Exchange")

Handlers = Mapping[str, Callable[..., object]]


class Channels(Protocol):
    """What carries doorbells and frames: see `RedisChannels`, which says what each of these does."""

    def watch(self, partition: int) -> None: ...
    def unwatch(self, partition: int) -> None: ...
    async def listen_doorbells(
        self, partitions: Iterable[int], callback: Callable[[int, str], None]
    ) -> None: ...
    def reply_channel(self, node: str) -> bytes: ...
    async def listen_replies(
        self, node: str, callback: Callable[[bytes], None], on_heard: Callable[[bool], None] | None = None
    ) -> None: ...
    async def end_replies(self) -> None: ...
    def publish(self, channel: bytes, payload: bytes, on_sent: OnSent | None = None) -> None: ...


class Exchange:
    """Doorbells and frames between the processes that share a store (`Remote`).

    Args:
        channels: what carries them.
        commits_publish: whether a commit may publish its answers by itself. Not where a commit counts only
            once replicas have it, too.
    """

    def __init__(self, channels: Channels, *, commits_publish: bool = True) -> None:
        self._channels = channels
        self._commits_publish = commits_publish
        self._node_id = ""
        self._handlers: Handlers = {}
        self._strange: set[str] = set()
        #: Whether what others send to this node arrives now.
        self.is_heard = False

    def packed(self, node_id: str, entity: str, unique: str, outcome: bytes) -> tuple[bytes, bytes] | None:
        """An answer for a node as channel and payload, for the commit to publish; None where it may not."""
        if not self._commits_publish:
            return None
        frame = encode_plain(["reply", entity, unique, outcome])
        return self._channels.reply_channel(node_id), frame

    def push(self, node_id: str, frame: Sequence[Any], on_sent: OnSent | None = None) -> None:
        """Queue a frame for a node; frames leave in order. One for this very node is handled at once.

        Args:
            node_id: whose channel it goes to.
            frame: what it is, and the arguments.
            on_sent: called once with how many nodes heard it: 0 means surely nobody, now or later; less that the
                store has passed it on, to how many it does not say; None that nothing is known. Must not raise.
        """
        if node_id == self._node_id:
            if on_sent is not None:
                on_sent(1)
            self._handle(list(frame))
            return
        self._channels.publish(self._channels.reply_channel(node_id), encode_plain(list(frame)), on_sent)

    def watch(self, partition: int) -> None:
        """Listen to the doorbell of a partition that is this node's now."""
        self._channels.watch(partition)

    async def listen_bells(self, on_bell: Callable[[int, str], None], owns: Callable[[int], bool]) -> None:
        """Call `on_bell(partition, entity)` until cancelled; an empty entity means: sweep.

        Args:
            on_bell: called for the partitions that are watched.
            owns: says whether a partition is still this node's. The doorbell of one that is not is listened to
                no more: every bell wakes each process that hears it.
        """

        def on_any_bell(partition: int, entity: str) -> None:
            if owns(partition):
                on_bell(partition, entity)
            else:
                self._channels.unwatch(partition)

        await self._channels.listen_doorbells((), on_any_bell)

    async def listen(
        self, node_id: str, handlers: Handlers, on_heard: Callable[[], None] | None = None
    ) -> None:
        """Handle what others push to this node, until cancelled.

        Args:
            node_id: this node.
            handlers: what to call for each first item, with the others as arguments.
            on_heard: called when the node's channel is heard, for the first time or again.
        """
        self._node_id, self._handlers = node_id, handlers

        def on_change(is_heard: bool) -> None:
            self.is_heard = is_heard
            if is_heard and on_heard is not None:
                on_heard()

        await self._channels.listen_replies(node_id, self._on_payload, on_change)

    async def leave(self) -> None:
        """Hear nothing more, and let what was pushed get out; bounded by the store's time limit."""
        await self._channels.end_replies()

    def _on_payload(self, payload: bytes) -> None:
        try:
            frame = plain_of(payload)
        except ValueError as error:
            logger.warning("a frame from another node does not decode, and is dropped: %s", error)
            return
        self._handle(frame)

    def _handle(self, frame: Any) -> None:
        items = cast("list[object]", frame) if isinstance(frame, list) and frame else [None]
        what, *arguments = items
        handler = self._handlers.get(what) if isinstance(what, str) else None
        if handler is None:
            name = str(what)[:40]
            if name not in self._strange:
                self._strange.add(name)
                logger.warning("frames of the kind %r, from another node, are not known here: dropped", name)
            return
        try:
            handler(*arguments)
        except Exception:
            # It comes from outside: another version may mean something else by it. Whoever sent it sees that no
            # answer comes; to end the listener, and the node with it, would hurt everybody.
            logger.exception("a frame %r of another node could not be handled", what)
