"""The owner's side of volatile messages from other nodes: what may run here, and what is said back.

A frame names the claim that its sender believes in, a *stream* of that sender, and its number in it. What is
taken of a stream is exactly its beginning, in order: a number that is not the next one is refused, and so is
everything behind it, until the sender begins a new stream with what is left. So a frame that was lost, or was
refused because the partition is not ours, changes no order; and one that comes twice runs once.

What became of a message goes back as one frame `told`, with one of these words:

    moved        not taken, and nothing behind it either: look the owner up and send it again
    dropped      it was taken, and its partition was lost before it began: send it again
    completed    with the encoded reply
    refused      with the stored form of the refusal
    failed       with the type and the text of the handler's exception
    error        with the code and the text of any other error

A message that nobody waits for is only told of where it did not run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from attrs import define, field

from atomic_actors.actors._kinds import BoundHandler, Kind
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
from atomic_actors.base._records import EntityRef
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._envelope import Refusal, encode_plain
from atomic_actors.codec._refusals import home_of
from atomic_actors.node.volatile._activations import Failed, VolatileKinds, Waiting

__all__ = ("VolatileHost",)

#: So many streams are remembered; the ones that were silent longest are forgotten.
STREAMS_MAX: Final = 20_000
MAX_ERROR_CHARACTERS: Final = 2_000

#: A sender's node, its stream, and the number in it: names a message while it is here.
Frame = tuple[str, int, int]


class Pusher(Protocol):
    """Sends frames to other nodes."""

    def push(self, node_id: str, frame: Sequence[Any]) -> None:
        """Queue a frame for a node."""
        ...


class _RemoteAnswer:
    """Sends what became of a message to the node that it came from (`Answer`)."""

    __slots__ = ("frame", "handler", "host", "is_asked")

    def __init__(self, host: VolatileHost, frame: Frame, handler: BoundHandler, *, is_asked: bool) -> None:
        self.host = host
        self.frame = frame
        self.handler = handler
        self.is_asked = is_asked

    def set(self, value: Any) -> None:
        """See `Answer.set`."""
        host = self.host
        host.asked.pop(self.frame, None)
        if type(value) is Failed:
            error = value.error
            if self.is_asked or isinstance(error, NotExecuted):
                host.tell_error(self.frame, error)
        elif self.is_asked:
            self._send_reply(value)

    def _send_reply(self, reply: Any) -> None:
        host, limit = self.host, self.host.max_payload_bytes
        try:
            data = self.handler.encode_reply(reply)
            if limit and len(data) > limit:
                raise PayloadTooLarge(
                    f"the reply of {self.handler.spec.location} has {len(data)} bytes, more than "
                    f"max_payload_bytes={limit}"
                )
        except UsageError as error:
            logger.error("%s ran, and its reply cannot be sent: %s", self.handler.spec.location, error)
            host.tell_error(self.frame, error)
        else:
            host.tell(self.frame, "completed", data)


@define(eq=False)
class VolatileHost:
    """Takes volatile messages that other nodes send, where this node owns their partition.

    Args:
        volatile: runs them.
        kinds: what there are handlers for.
        exchange: how answers go back.
        claim_of: the claim under which this node certainly owns a partition now; "" where it does not, or is
            about to give it up.
        clock: seconds, the backend's clock.
        encode_refusal: the wire name and the plain fields of a refusal.
        max_payload_bytes: the largest reply; 0 means unbounded.
    """

    volatile: VolatileKinds
    kinds: dict[str, Kind]
    exchange: Pusher
    claim_of: Callable[[int], str]
    clock: Callable[[], float]
    encode_refusal: Callable[[Refused], tuple[str, Any]]
    max_payload_bytes: int
    #: Nothing more is taken: the node is about to leave.
    closed: bool = field(default=False, init=False)
    #: What was taken and is not answered yet, for senders that stop waiting.
    asked: dict[Frame, Waiting] = field(factory=dict[Frame, Waiting], init=False)
    #: The last frame that was taken, as `(stream, number)`, of each sender and partition.
    _last: OrderedDict[tuple[str, int], tuple[int, int]] = field(
        factory=OrderedDict[tuple[str, int], tuple[int, int]], init=False
    )

    def close(self) -> None:
        """Take nothing more: the node is about to leave."""
        self.closed = True

    def on_ask(
        self,
        partition: int,
        claim: str,
        entity: str,
        name: str,
        payload: bytes,
        sender: str,
        stream: int,
        number: int,
        left_ms: int,
        path: list[str],
        *_: object,
    ) -> None:
        """A frame `ask`: somebody waits `left_ms` milliseconds more for the reply (0: without end)."""
        if not left_ms >= 0:
            raise ValueError(f"left_ms: {left_ms!r} is no time")
        if self._accept(partition, claim, sender, stream, number):
            deadline_s = self.clock() + left_ms / 1000 if left_ms else float("inf")
            self._take(partition, entity, name, payload, (sender, stream, number), deadline_s, tuple(path))

    def on_tell(
        self,
        partition: int,
        claim: str,
        entity: str,
        name: str,
        payload: bytes,
        sender: str,
        stream: int,
        number: int,
        *_: object,
    ) -> None:
        """A frame `tell`."""
        if self._accept(partition, claim, sender, stream, number):
            self._take(partition, entity, name, payload, (sender, stream, number), None, ())

    def on_forget(self, sender: str, stream: int, number: int, *_: object) -> None:
        """A frame `forget`: nobody waits for that ask any more; what has not begun does not run."""
        waiting = self.asked.pop((sender, stream, number), None)
        if waiting is not None:
            waiting.done = True

    def _accept(self, partition: int, claim: str, sender: str, stream: int, number: int) -> bool:
        place = (sender, partition)
        last_stream, last_number = self._last.get(place, (0, 0))
        if (stream, number) <= (last_stream, last_number):
            # Taken before, or overtaken by a newer stream: what became of it is not said twice.
            logger.debug("frame %d of stream %d from node %s came before", number, stream, sender)
            return False
        expected = last_number + 1 if stream == last_stream else 1
        is_ours = not self.closed and claim == self.claim_of(partition)
        if not claim or not is_ours or number != expected:
            self.tell((sender, stream, number), "moved")
            return False
        self._last[place] = (stream, number)
        self._last.move_to_end(place)
        if len(self._last) > STREAMS_MAX:
            self._last.popitem(last=False)
        return True

    def _take(
        self,
        partition: int,
        entity: str,
        name: str,
        payload: bytes,
        frame: Frame,
        deadline_s: float | None,
        path: tuple[str, ...],
    ) -> None:
        is_asked = deadline_s is not None
        try:
            ref = EntityRef.parse(entity)
            kind, handler = self._find(ref, name)
            content = handler.decode_payload(payload)
            message = RawMessage(name, content) if handler.spec.raw else content
            answer = _RemoteAnswer(self, frame, handler, is_asked=is_asked)
            waiting = Waiting(
                message,
                handler,
                answer,
                deadline_s if deadline_s is not None else float("inf"),
                path,
                is_asked=is_asked,
            )
            self.volatile.hand_over(kind, ref, partition, waiting)
        except AtomicActorsError as error:
            self.tell_error(frame, error)
        else:
            if is_asked and not waiting.done:
                self.asked[frame] = waiting

    def _find(self, ref: EntityRef, name: str) -> tuple[Kind, BoundHandler]:
        kind = self.kinds.get(ref.kind)
        if kind is None or kind.durable:
            raise UnknownKind(f"kind {ref.kind!r} is no volatile kind of the node that owns {ref}")
        handler = kind.handler_for(name)
        if handler is None:
            raise UnknownMessageType(
                f"kind {ref.kind!r} has no handler for {name!r} on the node that owns {ref}"
            )
        return kind, handler

    # Telling.

    def tell(self, frame: Frame, word: str, data: Any = None) -> None:
        """Say what became of a message."""
        sender, stream, number = frame
        self.exchange.push(sender, ("told", stream, number, word, data))

    def tell_error(self, frame: Frame, error: BaseException) -> None:
        """Say that a message did not end well."""
        if isinstance(error, AskTimeout):
            return  # the asker's own clock says so
        if isinstance(error, OwnerUnavailable):
            self.tell(frame, "dropped")
        elif isinstance(error, Refused):
            name, details = self.encode_refusal(error)
            text = str(error) if type(error) is Refused else ""
            self.tell(frame, "refused", encode_plain(Refusal(name, details, text, home_of(type(error)))))
        elif isinstance(error, HandlerFailed):
            self.tell(frame, "failed", [error.error_type, str(error)[:MAX_ERROR_CHARACTERS]])
        else:
            code = error.code if isinstance(error, AtomicActorsError) else AtomicActorsError.code
            self.tell(frame, "error", [code, str(error)[:MAX_ERROR_CHARACTERS]])
