"""Frames: what processes that share a store send each other directly, as msgpack.

A frame is an array. Its first item is the tag, which names the kind of frame; the fields follow in the order in
which they stand here. Two releases run side by side: a field is never moved or removed, a new one goes to the end
and has a default, and items behind the known fields are skipped.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from atomic_actors.codec._envelope import plain_of

__all__ = (
    "AskFrame",
    "ClaimFrame",
    "ForgetFrame",
    "Frame",
    "FrameId",
    "MessageFrame",
    "ReplyFrame",
    "ReportFrame",
    "TellFrame",
    "UnknownFrame",
    "decode_frame",
    "encode_frame",
)

#: Names a volatile message while it is under way: its sender's node, a stream of that node, the number in it.
FrameId = tuple[str, int, int]

MAX_TAG_CHARACTERS: Final = 40


class ReplyFrame(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="reply"):
    """A message that the addressed node waits for has ended."""

    entity_key: str
    uid: str
    outcome: bytes


class ClaimFrame(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="claim"):
    """A partition is free, or something else about ownership has changed (-1)."""

    partition: int


class MessageFrame(msgspec.Struct, array_like=True, frozen=True, gc=False, kw_only=True):
    """A volatile message; what `TellFrame` and `AskFrame` have in common."""

    partition: int
    #: The claim under which the addressed node owns the partition, as its sender believes.
    claim: str
    entity_key: str
    #: The message's wire name.
    name: str
    payload: bytes
    sender: str
    stream: int
    number: int

    @property
    def frame_id(self) -> FrameId:
        """What reports about this message, and a `ForgetFrame`, refer to."""
        return self.sender, self.stream, self.number


class TellFrame(MessageFrame, array_like=True, frozen=True, gc=False, kw_only=True, tag="tell"):
    """A volatile message whose sender does not wait for a reply."""


class AskFrame(MessageFrame, array_like=True, frozen=True, gc=False, kw_only=True, tag="ask"):
    """A volatile message whose sender waits for the reply."""

    #: How long it still waits; 0: without limit.
    left_ms: Annotated[int, msgspec.Meta(ge=0)]
    #: The entities that wait for this ask.
    path: tuple[str, ...]


class ForgetFrame(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="forget"):
    """The sender of an `AskFrame` does not wait any more."""

    sender: str
    stream: int
    number: int

    @property
    def frame_id(self) -> FrameId:
        """Of the `AskFrame`."""
        return self.sender, self.stream, self.number


class ReportFrame(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="told"):
    """How a volatile message that the addressed node sent has ended; `volatile/_host` lists the words."""

    stream: int
    number: int
    word: str
    #: Its type depends on the word, and a newer release may have new words: the reader checks it.
    data: Any


Frame = ReplyFrame | ClaimFrame | AskFrame | TellFrame | ForgetFrame | ReportFrame

_TAGS: Final = frozenset({"reply", "claim", "ask", "tell", "forget", "told"})
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Frame)


class UnknownFrame(msgspec.DecodeError):
    """A frame with a tag that this release does not know.

    Args:
        tag: the tag, cut to a length that can be logged.
    """

    def __init__(self, tag: str) -> None:
        super().__init__(f"unknown frame {tag!r}")
        self.tag = tag


def encode_frame(frame: Frame) -> bytes:
    """The bytes of a frame."""
    return _encoder.encode(frame)


def decode_frame(payload: bytes) -> Frame:
    """Read and check a frame.

    Raises:
        UnknownFrame: its tag is not known here.
        msgspec.DecodeError: it is not a frame, or has a field of another type.
    """
    try:
        return _decoder.decode(payload)
    except msgspec.ValidationError:
        match plain_of(payload):
            case [str(tag), *_] if tag not in _TAGS:
                raise UnknownFrame(tag[:MAX_TAG_CHARACTERS]) from None
            case _:
                raise
    except (UnicodeDecodeError, RecursionError, TypeError) as error:
        raise msgspec.DecodeError(f"not readable: {error}") from error
