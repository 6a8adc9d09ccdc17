"""What travels with a message and with its outcome: headers, ids, and the plain forms of errors.

The envelope is versioned, and headers it does not know are kept: a newer node's headers pass through an
older one. Nothing here reads a clock or makes random numbers; both are arguments.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

__all__ = (
    "Envelope",
    "Failure",
    "Refusal",
    "decode_envelope",
    "derive_unique",
    "digest_of",
    "encode_envelope",
    "encode_plain",
    "make_unique",
    "plain_of",
)

ENVELOPE_VERSION: Final = 1

#: Header names. Short, because every message carries them.
SENDER: Final = "s"
PATH: Final = "p"

_UUID7_VERSION: Final = 0x7 << 76
_UUID7_VARIANT: Final = 0b10 << 62
_RANDOM_MASK: Final = (0xFFF << 64) | ((1 << 62) - 1)


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message as stored, behind the lines that the store itself reads."""

    version: int
    headers: dict[str, Any]
    #: The message's content, as the codec encoded it.
    payload: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    """The stored form of a handler's exception. The traceback is in dead letters only."""

    error_type: str
    text: str
    traceback: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """The stored form of a `Refused`."""

    name: str
    details: Any
    text: str = ""
    #: `module.Class` of the class that was raised, for askers that have it.
    home: str = ""


_encoder: Final = msgspec.msgpack.Encoder()
_envelope_decoder: Final = msgspec.msgpack.Decoder(Envelope)
_plain_decoder: Final = msgspec.msgpack.Decoder()


def encode_plain(value: Any) -> bytes:
    """msgpack of plain data, `Failure` or `Refusal`."""
    return _encoder.encode(value)


#: What the decoder raises beside its own error: for bad UTF-8, for data nested too deeply, for odd keys.
_UNREADABLE: Final = (UnicodeDecodeError, RecursionError, TypeError)


def plain_of(data: bytes | msgspec.Raw) -> Any:
    """Plain data from msgpack.

    Raises:
        msgspec.DecodeError: the bytes are no msgpack, or nested too deeply.
    """
    try:
        return _plain_decoder.decode(data)
    except _UNREADABLE as error:
        raise msgspec.DecodeError(f"not readable: {error}") from error


def encode_envelope(headers: dict[str, Any], payload: bytes) -> bytes:
    """The stored form of headers and an encoded payload."""
    return _encoder.encode(Envelope(ENVELOPE_VERSION, headers, msgspec.Raw(payload)))


def decode_envelope(data: bytes) -> Envelope:
    """Read a stored envelope, of this version or a newer one.

    Raises:
        msgspec.DecodeError: the bytes are no envelope, or nested too deeply.
    """
    try:
        return _envelope_decoder.decode(data)
    except _UNREADABLE as error:
        raise msgspec.DecodeError(f"not readable: {error}") from error


def make_unique(now_ms: int, random_bits: int) -> str:
    """A UUID of version 7 (RFC 9562) as 32 hex digits: 48 bits of milliseconds, 74 of `random_bits`.

    Args:
        now_ms: the store's time.
        random_bits: at least 76 random bits; the bits at version and variant are ignored.
    """
    bits = (now_ms << 80) | _UUID7_VERSION | _UUID7_VARIANT | (random_bits & _RANDOM_MASK)
    return f"{bits:032x}"


def derive_unique(now_ms: int, *parts: object) -> str:
    """A UUID of version 7 whose random part is a digest of `parts`: the same parts, the same id."""
    text = "\n".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).digest()
    return make_unique(now_ms, int.from_bytes(digest, "big"))


def digest_of(name: str, payload: bytes) -> str:
    """A digest of a message's content, compared where an idempotency key is used again."""
    return hashlib.blake2b(name.encode() + b"\n" + payload, digest_size=16).hexdigest()
