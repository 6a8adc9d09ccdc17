"""Envelopes as damage, or another release, leaves them in the store."""

from __future__ import annotations

import msgspec

from atomic_actors.codec._envelope import ENVELOPE_VERSION, encode_plain

__all__ = ("envelope_of",)


def envelope_of(headers: object, payload: bytes) -> bytes:
    """A stored envelope with any headers."""
    return encode_plain([ENVELOPE_VERSION, headers, msgspec.Raw(payload)])
