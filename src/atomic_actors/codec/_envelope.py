"""What travels with a message and with its outcome: headers, ids, and the plain forms of errors.

The envelope is versioned, and headers that are not known here are kept: a newer node's headers pass through an
older one. Nothing here reads a clock or makes random numbers; both are arguments.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

__all__ = (
    "NO_HEADERS",
    "Envelope",
    "Failure",
    "Headers",
    "NewerHeaders",
    "Refusal",
    "decode_envelope",
    "derive_uid",
    "digest_of",
    "encode_envelope",
    "encode_plain",
    "make_uid",
    "plain_of",
)

ENVELOPE_VERSION: Final = 1

_UUID7_VERSION: Final = 0x7 << 76
_UUID7_VARIANT: Final = 0b10 << 62
_RANDOM_MASK: Final = (0xFFF << 64) | ((1 << 62) - 1)


class Headers(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What travels with a message beside its content. Their stored names are short: every message carries them.

    A known header of another type, as only damage makes it, counts as left out.
    """

    #: The node, or client, that sent the message.
    sender: str = msgspec.field(default="", name="s")
    #: The entities that wait for the message, outermost first.
    path: tuple[str, ...] = msgspec.field(default=(), name="p")


class NewerHeaders(Headers, frozen=True, gc=False, kw_only=True):
    """Headers among which are some that this release does not know."""

    unknown: dict[str, Any]


NO_HEADERS: Final = Headers()


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message as stored, behind the lines that the store itself reads."""

    version: int
    headers: Headers
    #: The message's content, as the codec encoded it.
    payload: msgspec.Raw


class _AnyEnvelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An envelope whose headers may be damaged, or those of a newer release."""

    version: int
    headers: dict[str, Any]
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
_any_envelope_decoder: Final = msgspec.msgpack.Decoder(_AnyEnvelope)
_plain_decoder: Final = msgspec.msgpack.Decoder()


def encode_plain(value: Any) -> bytes:
    """msgpack of plain data, `Failure` or `Refusal`."""
    return _encoder.encode(value)


#: What the decoder raises beside its own error: for bad UTF-8, for data nested too deeply, for odd keys.
_UNREADABLE: Final = (UnicodeDecodeError, RecursionError, TypeError)


def plain_of(data: bytes | msgspec.Raw) -> Any:
    """Plain data from msgpack.

    Raises:
        msgspec.DecodeError: the bytes are not msgpack, or nested too deeply.
    """
    try:
        return _plain_decoder.decode(data)
    except _UNREADABLE as error:
        raise msgspec.DecodeError(f"not readable: {error}") from error


def encode_envelope(headers: Headers, payload: bytes) -> bytes:
    """The stored form of headers and an encoded payload."""
    wire_headers = headers if type(headers) is Headers else _map_of(headers)
    return _encoder.encode((ENVELOPE_VERSION, wire_headers, msgspec.Raw(payload)))


def _map_of(headers: Headers) -> dict[str, Any]:
    unknown = headers.unknown if isinstance(headers, NewerHeaders) else {}
    known = Headers(sender=headers.sender, path=headers.path)
    return {**msgspec.to_builtins(known), **unknown}


def decode_envelope(data: bytes) -> Envelope:
    """Read a stored envelope, of this version or a newer one.

    Raises:
        msgspec.DecodeError: the bytes are not an envelope, or nested too deeply.
    """
    try:
        return _envelope_decoder.decode(data)
    except msgspec.ValidationError:
        # Rare, and so not paid for by the others: a damaged header, or one of a newer release.
        return _decode_any_envelope(data)
    except _UNREADABLE as error:
        raise msgspec.DecodeError(f"not readable: {error}") from error


def _decode_any_envelope(data: bytes) -> Envelope:
    try:
        found = _any_envelope_decoder.decode(data)
    except _UNREADABLE as error:
        raise msgspec.DecodeError(f"not readable: {error}") from error
    unknown = dict(found.headers)
    sender, path = unknown.pop("s", None), unknown.pop("p", None)
    headers = Headers(sender=sender if isinstance(sender, str) else "", path=_path_of(path))
    if unknown:
        headers = NewerHeaders(sender=headers.sender, path=headers.path, unknown=unknown)
    return Envelope(found.version, headers, found.payload)


def _path_of(header: Any) -> tuple[str, ...]:
    """The entities in a path header; none where it is damaged: then only a cycle is found later."""
    match header:
        case [*path] if all(isinstance(each, str) for each in path):
            return tuple(path)
        case _:
            return ()


def make_uid(now_ms: int, random_bits: int) -> str:
    """A UUID of version 7 (RFC 9562) as 32 hex digits: 48 bits of milliseconds, 74 of `random_bits`.

    Args:
        now_ms: the store's time.
        random_bits: at least 76 random bits; the bits at version and variant are ignored.
    """
    bits = (now_ms << 80) | _UUID7_VERSION | _UUID7_VARIANT | (random_bits & _RANDOM_MASK)
    return f"{bits:032x}"


def derive_uid(now_ms: int, *parts: object) -> str:
    """A UUID of version 7 whose random part is a digest of `parts`: the same parts, the same id."""
    text = "\n".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).digest()
    return make_uid(now_ms, int.from_bytes(digest, "big"))


def digest_of(name: str, payload: bytes) -> str:
    """A digest of a message's content, compared where an idempotency key is used again."""
    return hashlib.blake2b(name.encode() + b"\n" + payload, digest_size=16).hexdigest()
