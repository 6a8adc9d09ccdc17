"""The owner's side of volatile messages from other nodes: what may run here, and what is answered.

A frame names the claim that its sender believes in, a *stream* of that sender, and its number in it. What is
taken of a stream is exactly its beginning, in order: a number that is not the next one is refused, and so is
everything behind it, until the sender begins a new stream with what is left. So a frame that was lost, or was
refused because the partition is not ours, changes no order; and one that comes twice runs once.

What became of a message goes back as one `ReportFrame`, with one of these words:

    moved        not taken, and nothing behind it either: look the owner up and send it again
    dropped      it was taken, and its partition was lost before it began: send it again
    completed    with the encoded reply
    refused      with the stored form of the refusal
    failed       with the type and the text of the handler's exception
    error        with the code and the text of any other error

A message whose sender does not wait is reported only where it did not run.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from attrs import define, field

from atomic_actors.actors._kinds import BoundHandler, BoundKind
from atomic_actors.actors._messages import RawMessage
from atomic_actors.base._errors import (
    AskTimeout,
    AtomicActorsError,
    HandlerFailed,
    NotExecuted,
    OwnerUnavailable,
    PayloadTooLarge,
    Refused,
    UnknownKind,
    UnknownMessageType,
    UsageError,
)
from atomic_actors.base._oneshot import Backend
from atomic_actors.base._records import EntityRef
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import Refusal, encode_plain
from atomic_actors.codec._frames import AskFrame, ForgetFrame, FrameId, MessageFrame, ReportFrame, TellFrame
from atomic_actors.codec._refusals import home_of
from atomic_actors.node.execution._turn import encode_refusal
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.node.volatile._activations import Failed, VolatileKinds, Waiting

__all__ = ("VolatileHost",)

#: So many streams are remembered; the ones that were silent longest are forgotten.
STREAMS_MAX: Final = 20_000
MAX_ERROR_CHARACTERS: Final = 2_000


class _RemoteAnswer:
    """Sends what became of a message to the node that it came from (`Answer`)."""

    __slots__ = ("frame_id", "handler", "host", "is_asked")

    def __init__(
        self, host: VolatileHost, frame_id: FrameId, handler: BoundHandler, *, is_asked: bool
    ) -> None:
        self.host = host
        self.frame_id = frame_id
        self.handler = handler
        self.is_asked = is_asked

    def set(self, value: Any) -> None:
        """See `Answer.set`."""
        host = self.host
        host.asked.pop(self.frame_id, None)
        if type(value) is Failed:
            error = value.error
            if self.is_asked or isinstance(error, NotExecuted):
                host.report_error(self.frame_id, error)
        elif self.is_asked:
            self._send_reply(value)

    def _send_reply(self, reply: Any) -> None:
        host, limit = self.host, self.host.max_payload_bytes
        try:
            data = self.handler.reply_coder.encode(reply)
            if limit and len(data) > limit:
                raise PayloadTooLarge(
                    f"the reply of {self.handler.spec.location} has {len(data)} bytes, more than "
                    f"max_payload_bytes={limit}"
                )
        except UsageError as error:
            logger.error("%s ran, and its reply cannot be sent: %s", self.handler.spec.location, error)
            host.report_error(self.frame_id, error)
        else:
            host.report(self.frame_id, "completed", data)


@define(eq=False, kw_only=True)
class VolatileHost:
    """Takes volatile messages that other nodes send, where this node owns their partition.

    Args:
        volatile: runs them, and knows which partitions they are taken for.
        kinds: what there are handlers for.
        messenger: how answers go back.
        codec: encodes refusals.
        max_payload_bytes: the largest reply; 0 means unbounded.
    """

    volatile: VolatileKinds
    kinds: dict[str, BoundKind]
    messenger: NodeMessenger
    backend: Backend
    codec: Codec
    max_payload_bytes: int
    #: Nothing more is taken: the node is about to leave.
    closed: bool = field(default=False, init=False)
    #: What was taken and is not answered yet, for senders that stop waiting.
    asked: dict[FrameId, Waiting] = field(factory=dict[FrameId, Waiting], init=False)
    #: The last frame that was taken, as `(stream, number)`, of each sender and partition.
    _last: OrderedDict[tuple[str, int], tuple[int, int]] = field(
        factory=OrderedDict[tuple[str, int], tuple[int, int]], init=False
    )

    def close(self) -> None:
        """Take nothing more: the node is about to leave."""
        self.closed = True

    def on_ask(self, frame: AskFrame) -> None:
        """A message whose sender waits for the reply."""
        if self._accept(frame):
            deadline_s = self.backend.clock() + frame.left_ms / 1000 if frame.left_ms else float("inf")
            self._take(frame, deadline_s, frame.path, is_asked=True)

    def on_tell(self, frame: TellFrame) -> None:
        """A message whose sender does not wait for a reply."""
        if self._accept(frame):
            self._take(frame, float("inf"), (), is_asked=False)

    def on_forget(self, frame: ForgetFrame) -> None:
        """The sender of an ask does not wait any more; what has not begun does not run."""
        waiting = self.asked.pop(frame.frame_id, None)
        if waiting is not None:
            waiting.done = True

    def _accept(self, frame: MessageFrame) -> bool:
        stream, number = frame.stream, frame.number
        place = (frame.sender, frame.partition)
        last_stream, last_number = self._last.get(place, (0, 0))
        if (stream, number) <= (last_stream, last_number):
            # Taken before, or overtaken by a newer stream: what became of it is not reported twice.
            logger.debug("frame %d of stream %d from node %s is a duplicate", number, stream, frame.sender)
            return False
        expected = last_number + 1 if stream == last_stream else 1
        is_ours = not self.closed and frame.claim == self.volatile.claim_of(frame.partition)
        if not frame.claim or not is_ours or number != expected:
            self.report(frame.frame_id, "moved")
            return False
        self._last[place] = (stream, number)
        self._last.move_to_end(place)
        if len(self._last) > STREAMS_MAX:
            self._last.popitem(last=False)
        return True

    def _take(self, frame: MessageFrame, deadline_s: float, path: tuple[str, ...], *, is_asked: bool) -> None:
        frame_id = frame.frame_id
        try:
            ref = EntityRef.parse(frame.entity_key)
            kind, handler = self._find(ref, frame.name)
            content = handler.payload_coder.decode(frame.payload)
            message = RawMessage(frame.name, content) if handler.spec.raw else content
            answer = _RemoteAnswer(self, frame_id, handler, is_asked=is_asked)
            waiting = Waiting(message, handler, answer, deadline_s, path, is_asked=is_asked)
            self.volatile.hand_over(kind, ref, frame.partition, waiting)
        except AtomicActorsError as error:
            self.report_error(frame_id, error)
        else:
            if is_asked and not waiting.done:
                self.asked[frame_id] = waiting

    def _find(self, ref: EntityRef, name: str) -> tuple[BoundKind, BoundHandler]:
        kind = self.kinds.get(ref.kind)
        if kind is None or kind.durable:
            raise UnknownKind(f"kind {ref.kind!r} is not a volatile kind of the node that owns {ref}")
        handler = kind.handler_for(name)
        if handler is None:
            raise UnknownMessageType(
                f"kind {ref.kind!r} has no handler for {name!r} on the node that owns {ref}"
            )
        return kind, handler

    # Reporting.

    def report(self, frame_id: FrameId, word: str, data: Any = None) -> None:
        """Report what became of a message."""
        sender, stream, number = frame_id
        self.messenger.push(sender, ReportFrame(stream, number, word, data))

    def report_error(self, frame_id: FrameId, error: BaseException) -> None:
        """Report that a message did not end well."""
        if isinstance(error, AskTimeout):
            return  # by the asker's own clock
        if isinstance(error, OwnerUnavailable):
            self.report(frame_id, "dropped")
        elif isinstance(error, Refused):
            name, details = encode_refusal(self.codec, error)
            text = str(error) if type(error) is Refused else ""
            self.report(frame_id, "refused", encode_plain(Refusal(name, details, text, home_of(type(error)))))
        elif isinstance(error, HandlerFailed):
            self.report(frame_id, "failed", [error.error_type, str(error)[:MAX_ERROR_CHARACTERS]])
        else:
            code = error.code if isinstance(error, AtomicActorsError) else AtomicActorsError.code
            self.report(frame_id, "error", [code, str(error)[:MAX_ERROR_CHARACTERS]])
