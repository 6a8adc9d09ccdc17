"""The forms in which messages and outcomes are stored, and the records of the journal's protocol."""

from __future__ import annotations

import inspect
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.journal import _protocol
from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Body,
    JournalUnavailable,
    Offer,
    pack_body,
    split_outcome,
    unpack_body,
)

lines = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), max_size=20)


@given(
    name=lines,
    deadline_ms=st.integers(0, 2**63),
    waited_for=st.booleans(),
    key=lines,
    envelope=st.binary(max_size=200),
)
def test_body_round_trip(name: str, deadline_ms: int, waited_for: bool, key: str, envelope: bytes) -> None:
    packed = pack_body(name=name, deadline_ms=deadline_ms, waited_for=waited_for, key=key, envelope=envelope)
    assert unpack_body(packed) == Body(
        name=name, deadline_ms=deadline_ms, waited_for=waited_for, key=key, envelope=envelope
    )


def test_body_bytes() -> None:
    packed = pack_body(name="Deposit", deadline_ms=17, waited_for=True, key="k", envelope=b"\n\x00")
    assert packed == b"17\na\nDeposit\nk\n\n\x00"
    packed = pack_body(name="Überweisung", deadline_ms=0, waited_for=False, key="", envelope=b"")
    assert packed == "0\nt\nÜberweisung\n\n".encode()


@pytest.mark.parametrize(
    "body",
    [b"", b"17", b"17\na\nname\nkey", b"17\nx\nname\nkey\n", b"soon\na\nname\nkey\n", b"17\n\nname\nkey\n"],
)
def test_what_is_no_body(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a stored message|invalid literal"):
        unpack_body(body)


@given(st.binary(max_size=60))
def test_unpack_raises_nothing_but_value_errors(body: bytes) -> None:
    try:
        unpacked = unpack_body(body)
    except ValueError:
        return
    assert unpacked.envelope == body.split(b"\n", 4)[4]


@given(st.sampled_from(["completed", "failed"]), st.binary(max_size=60))
def test_outcome_round_trip(word: str, rest: bytes) -> None:
    assert split_outcome(word.encode() + b"\n" + rest) == (word, rest)


def test_what_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="not a stored outcome"):
        split_outcome(b"completed")


def test_steps_and_results_are_frozen() -> None:
    for union in (_protocol.Step, _protocol.Result):
        for record in typing.get_args(union):
            assert issubclass(record, msgspec.Struct)
            assert record.__struct_config__.frozen, record
    assert Offer() == NOTHING
    with pytest.raises(AttributeError):
        NOTHING.more = True  # type: ignore[misc]


def test_every_step_names_its_partition_first() -> None:
    for record in typing.get_args(_protocol.Step):
        assert record.__struct_fields__[0] == "partition", record


def test_no_record_is_a_step_and_a_result() -> None:
    steps, results = (set(typing.get_args(union)) for union in (_protocol.Step, _protocol.Result))
    assert not steps & results


def test_public_names_exist_and_say_what_they_are() -> None:
    for name in _protocol.__all__:
        thing = getattr(_protocol, name)
        if inspect.isclass(thing):
            assert inspect.getdoc(thing), name


def test_defaults_of_an_append() -> None:
    step = Append(partition=0, entity="account/a", uid="0" * 32, body=b"")
    assert (step.key, step.digest, step.claim, step.policy) == ("", "", "", "")
    assert (step.depth_limit, step.held_version) == (0, -1)


def test_unavailable_says_whether_it_was_sent() -> None:
    error = JournalUnavailable("refused", sent=False)
    assert (str(error), error.sent) == ("refused", False)
