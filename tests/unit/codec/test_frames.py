"""Frames on the wire: the bytes of the releases before stay, in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.codec import _frames
from atomic_actors.codec._envelope import encode_plain, plain_of
from atomic_actors.codec._frames import (
    AskFrame,
    ClaimFrame,
    ForgetFrame,
    Frame,
    ReplyFrame,
    ReportFrame,
    TellFrame,
    UnknownFrame,
    decode_frame,
    encode_frame,
)

NODE = "0123456789abcdef"
UID = "0190b3f4c5d67a8b9c0d1e2f3a4b5c6d"
PAYLOAD = b"\x81\xa6amount\x05"
REFUSAL = b"\x84\xa4name\xa5Short\xa7details\x81\xa7balance\x01\xa4text\xa0\xa4home\xa7m.Short"


def ask(left_ms: int, path: tuple[str, ...]) -> AskFrame:
    return AskFrame(
        partition=3,
        claim="3:12",
        entity_key="ear/e",
        name="Hear",
        payload=PAYLOAD,
        sender=NODE,
        stream=7,
        number=1,
        left_ms=left_ms,
        path=path,
    )


TELL = TellFrame(
    partition=3,
    claim="3:12",
    entity_key="ear/e",
    name="Hear",
    payload=PAYLOAD,
    sender=NODE,
    stream=7,
    number=2,
)

#: Written by the release in which frames were lists.
GOLDEN: list[tuple[Frame, bytes]] = [
    (
        ReplyFrame("account/a", UID, b"completed\n\x05"),
        b"\x94\xa5reply\xa9account/a\xd9 0190b3f4c5d67a8b9c0d1e2f3a4b5c6d\xc4\x0bcompleted\n\x05",
    ),
    (ClaimFrame(7), b"\x92\xa5claim\x07"),
    (ClaimFrame(-1), b"\x92\xa5claim\xff"),
    (
        ask(3_000, ("a/b", "c/d")),
        b"\x9b\xa3ask\x03\xa43:12\xa5ear/e\xa4Hear\xc4\t\x81\xa6amount\x05\xb00123456789abcdef\x07\x01\xcd\x0b\xb8"
        b"\x92\xa3a/b\xa3c/d",
    ),
    (
        ask(0, ()),
        b"\x9b\xa3ask\x03\xa43:12\xa5ear/e\xa4Hear\xc4\t\x81\xa6amount\x05\xb00123456789abcdef\x07\x01\x00\x90",
    ),
    (
        TELL,
        b"\x99\xa4tell\x03\xa43:12\xa5ear/e\xa4Hear\xc4\t\x81\xa6amount\x05\xb00123456789abcdef\x07\x02",
    ),
    (ForgetFrame(NODE, 7, 1), b"\x94\xa6forget\xb00123456789abcdef\x07\x01"),
    (
        ReportFrame(7, 1, "completed", PAYLOAD),
        b"\x95\xa4told\x07\x01\xa9completed\xc4\t\x81\xa6amount\x05",
    ),
    (ReportFrame(7, 2, "refused", REFUSAL), b"\x95\xa4told\x07\x02\xa7refused\xc41" + REFUSAL),
    (
        ReportFrame(7, 1, "failed", ["ValueError", "no"]),
        b"\x95\xa4told\x07\x01\xa6failed\x92\xaaValueError\xa2no",
    ),
    (
        ReportFrame(7, 1, "error", ["invalid_reply", "no"]),
        b"\x95\xa4told\x07\x01\xa5error\x92\xadinvalid_reply\xa2no",
    ),
    (ReportFrame(7, 1, "moved", None), b"\x95\xa4told\x07\x01\xa5moved\xc0"),
    (ReportFrame(7, 1, "dropped", None), b"\x95\xa4told\x07\x01\xa7dropped\xc0"),
]


@pytest.mark.parametrize(("frame", "data"), GOLDEN, ids=str)
def test_the_bytes_of_frames_stay(frame: Frame, data: bytes) -> None:
    assert encode_frame(frame) == data
    assert decode_frame(data) == frame


@pytest.mark.parametrize(("frame", "data"), GOLDEN, ids=str)
def test_fields_of_a_newer_release_are_skipped(frame: Frame, data: bytes) -> None:
    newer = encode_plain([*plain_of(data), {"new": [1, b"x"]}, None])
    assert decode_frame(newer) == frame


@pytest.mark.parametrize(("frame", "data"), GOLDEN, ids=str)
def test_every_field_is_needed_and_checked(frame: Frame, data: bytes) -> None:
    tag, *fields = plain_of(data)
    for at in range(len(fields)):
        with pytest.raises(msgspec.DecodeError):
            decode_frame(encode_plain([tag, *fields[:at]]))
        if isinstance(frame, ReportFrame) and at == len(fields) - 1:
            continue  # whoever reads it checks the data of a report
        with pytest.raises(msgspec.DecodeError) as raised:
            decode_frame(encode_plain([tag, *fields[:at], {"no": "field"}, *fields[at + 1 :]]))
        assert not isinstance(raised.value, UnknownFrame)


def test_a_wait_is_not_negative() -> None:
    with pytest.raises(msgspec.ValidationError, match=">= 0"):
        decode_frame(encode_frame(ask(-1, ())))


def test_the_tags_are_those_of_the_structs() -> None:
    tags = {plain_of(data)[0] for _, data in GOLDEN}
    assert tags == _frames._TAGS  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("tag", ["of a newer release", "", "Reply", "x" * 1_000])
def test_an_unknown_tag(tag: str) -> None:
    with pytest.raises(UnknownFrame) as raised:
        decode_frame(encode_plain([tag, 1, ["x"]]))
    assert raised.value.tag == tag[:40]


NO_FRAMES: Sequence[Any] = [
    None,
    7,
    "reply",
    {},
    {"type": "reply"},
    [],
    [None],
    [7],
    [b"claim", 7],
    [["claim"], 7],
]


@pytest.mark.parametrize("plain", NO_FRAMES, ids=str)
def test_what_is_no_frame(plain: Any) -> None:
    with pytest.raises(msgspec.DecodeError) as raised:
        decode_frame(encode_plain(plain))
    assert not isinstance(raised.value, UnknownFrame)


DEEP = b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        DEEP,
        b"\x93\xa5claim\x07" + DEEP,
        b"\x95\xa4told\x07\x01\xa5moved" + DEEP,
        b"\x95\xa4told\x07\x01\xa5moved\x81\x81\xa1a\x01\x01",
        b"\x92\xa1\xff\x07",
        b"\x92\xa5claim\x07\x07",
    ],
    ids=["empty", "opcode", "deep", "deep behind", "deep data", "key", "utf-8", "too long"],
)
def test_what_cannot_be_decoded_is_one_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_frame(data)


@given(st.binary(max_size=60))
def test_nothing_but_decode_errors(data: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        decode_frame(data)
