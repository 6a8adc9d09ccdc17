"""Doorbells and frames between the nodes that share a store: each node has its own channel.

`codec/_frames` says what frames there are. A frame is sent once and may be lost. What one says of a stored message
stands in the log in any case, but a volatile message is only a frame: its sender can learn whether any node
received it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec

from atomic_actors.base._telemetry import logger
from atomic_actors.codec._frames import Frame, ReplyFrame, UnknownFrame, decode_frame, encode_frame

if TYPE_CHECKING:
    from atomic_actors.journal.redis._channels import OnSent

__all__ = ("Channels", "FrameReceiver", "NodeMessenger")


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


class FrameReceiver(Protocol):
    """Where frames for this node go: see `NodeInbox`."""

    def receive(self, frame: Frame) -> None:
        """Handle one frame."""
        ...

    def channel_opened(self) -> None:
        """From now on this node receives frames, for the first time or again."""
        ...


class NodeMessenger:
    """Doorbells and frames between the processes that share a store.

    Args:
        channels: what carries them.
        commits_publish: whether a commit may publish its answers by itself. Not where a commit counts only
            once replicas have it, too.
    """

    def __init__(self, channels: Channels, *, commits_publish: bool = True) -> None:
        self._channels = channels
        self._commits_publish = commits_publish
        self._node_id = ""
        self._receiver: FrameReceiver | None = None
        #: Tags that are not known here and have been logged.
        self._unknown_tags: set[str] = set()
        #: Whether this node receives now what others push to it.
        self.is_heard = False

    def packed(self, node_id: str, entity_key: str, uid: str, outcome: bytes) -> tuple[bytes, bytes] | None:
        """An answer for a node as channel and payload, for the commit to publish; None where it may not."""
        if not self._commits_publish:
            return None
        frame = encode_frame(ReplyFrame(entity_key, uid, outcome))
        return self._channels.reply_channel(node_id), frame

    def push(self, node_id: str, frame: Frame, on_sent: OnSent | None = None) -> None:
        """Queue a frame for a node; frames leave in order. One for this very node is handled at once.

        Args:
            node_id: whose channel it goes to.
            frame: what to send.
            on_sent: called once with how many nodes heard it: 0 means surely none, now or later; less that the
                store has passed it on, to how many it does not say; None that nothing is known. Must not raise.
        """
        if node_id == self._node_id:
            if on_sent is not None:
                on_sent(1)
            self._receive(frame)
            return
        self._channels.publish(self._channels.reply_channel(node_id), encode_frame(frame), on_sent)

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

    async def listen(self, node_id: str, receiver: FrameReceiver) -> None:
        """Receive what others push to this node, until cancelled.

        Args:
            node_id: this node.
            receiver: gets the frames.
        """
        self._node_id, self._receiver = node_id, receiver

        def on_change(is_heard: bool) -> None:
            self.is_heard = is_heard
            if is_heard:
                receiver.channel_opened()

        await self._channels.listen_replies(node_id, self._on_payload, on_change)

    async def leave(self) -> None:
        """Hear nothing more, and let what was pushed get out; bounded by the store's time limit."""
        await self._channels.end_replies()

    def _on_payload(self, payload: bytes) -> None:
        try:
            frame = decode_frame(payload)
        except UnknownFrame as unknown:
            if unknown.tag not in self._unknown_tags:
                self._unknown_tags.add(unknown.tag)
                logger.warning("frames %r of other nodes are not known here and are dropped", unknown.tag)
        except msgspec.DecodeError as error:
            logger.warning("a frame of another node cannot be decoded and is dropped: %s", error)
        else:
            self._receive(frame)

    def _receive(self, frame: Frame) -> None:
        if self._receiver is None:
            return
        try:
            self._receiver.receive(frame)
        except Exception:
            # The frame comes from outside, perhaps from another release. Its sender sees that no answer comes;
            # an error here would end the listener, and the node with it.
            logger.exception("a %s of another node could not be handled", type(frame).__name__)
