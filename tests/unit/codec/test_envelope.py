"""Stored envelopes: the bytes of the releases before stay, and headers of newer ones are kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.codec._envelope import (
    NO_HEADERS,
    Headers,
    NewerHeaders,
    decode_envelope,
    encode_envelope,
    encode_plain,
    plain_of,
)
from tests.envelopes import envelope_of

PAYLOAD = b"\x81\xa6amount\x05"
NODE = "0123456789abcdef"

#: Written by the release in which headers were a dict.
GOLDEN = [
    (NO_HEADERS, b"\x93\x01\x80\x81\xa6amount\x05"),
    (Headers(sender=NODE), b"\x93\x01\x81\xa1s\xb00123456789abcdef\x81\xa6amount\x05"),
    (
        Headers(sender=NODE, path=("account/a", "account/b")),
        b"\x93\x01\x82\xa1s\xb00123456789abcdef\xa1p\x92\xa9account/a\xa9account/b\x81\xa6amount\x05",
    ),
    (
        NewerHeaders(sender="n", unknown={"new": {"a": [1]}}),
        b"\x93\x01\x82\xa1s\xa1n\xa3new\x81\xa1a\x91\x01\x81\xa6amount\x05",
    ),
]


@pytest.mark.parametrize(("headers", "data"), GOLDEN, ids=str)
def test_the_bytes_of_envelopes_stay(headers: Headers, data: bytes) -> None:
    assert encode_envelope(headers, PAYLOAD) == data
    found = decode_envelope(data)
    assert (found.version, found.headers, bytes(found.payload)) == (1, headers, PAYLOAD)


@pytest.mark.parametrize(
    ("stored", "sender", "path"),
    [
        ({"s": NODE, "p": 7}, NODE, ()),
        ({"s": NODE, "p": None}, NODE, ()),
        ({"s": NODE, "p": "text"}, NODE, ()),
        ({"s": NODE, "p": ["a/b", None]}, NODE, ()),
        ({"s": 9, "p": ["a/b"]}, "", ("a/b",)),
        ({"s": {"p": 1}}, "", ()),
        ({"s": None, "p": {}}, "", ()),
    ],
    ids=str,
)
def test_a_damaged_header_counts_as_left_out(
    stored: dict[str, Any], sender: str, path: tuple[str, ...]
) -> None:
    found = decode_envelope(envelope_of(stored, PAYLOAD))
    assert found.headers == Headers(sender=sender, path=path)
    assert bytes(found.payload) == PAYLOAD


def test_headers_of_a_newer_release_are_kept_beside_damaged_ones() -> None:
    found = decode_envelope(envelope_of({"trace": b"\x01", "s": 9, "p": ["a/b"], "d": [1.5, None]}, PAYLOAD))
    assert found.headers == NewerHeaders(path=("a/b",), unknown={"trace": b"\x01", "d": [1.5, None]})
    assert found.headers.path == ("a/b",)


def test_a_newer_envelope_may_be_longer() -> None:
    found = decode_envelope(encode_plain([9, {"s": NODE}, {"amount": 5}, "more"]))
    assert (found.version, found.headers, bytes(found.payload)) == (9, Headers(sender=NODE), PAYLOAD)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.text(max_size=5),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=3).filter(lambda name: name not in ("s", "p")), plain, max_size=3),
)
def test_everything_is_passed_on(sender: str, path: list[str], unknown: dict[str, Any]) -> None:
    stored = {**({"s": sender} if sender else {}), **({"p": path} if path else {}), **unknown}
    found = decode_envelope(envelope_of(stored, PAYLOAD))
    assert (found.headers.sender, found.headers.path) == (sender, tuple(path))
    assert plain_of(encode_envelope(found.headers, PAYLOAD)) == [1, stored, {"amount": 5}]


DEEP = b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93\x01\x80",
        b"\x93\xa1x\x80\xc0",
        b"\x93\x01\x90\xc0",
        b"\x93\x01\x81\x01\x01\xc0",
        b"\x93\x01\x81\xa1\xff\x01\xc0",
        b"\x93\x01\x81\xa3new" + DEEP + b"\xc0",
        b"\x93\x01\x81\xa1p" + DEEP + b"\xc0",
        b"\x93\x01\x80" + DEEP,
    ],
    ids=["empty", "cut", "version", "no map", "number", "utf-8", "deep header", "deep path", "deep payload"],
)
def test_what_is_no_envelope_is_one_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_envelope(data)
