"""Decoders, frames, answers and the command line, under damaged input."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from tests.fuzz.corrupter import corrupt
from tests.fuzz.decoders import BYTE_DECODERS, TEXT_DECODERS, VALUES, Decoder, codec_types
from tests.fuzz.effort import Broken, Target, explore, fuzz, run_seeds, soak_s
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.timeout(60 + 2 * soak_s())

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
#: MessagePack that is well-formed, and says anything.
PACKED = PLAIN.map(msgspec.msgpack.encode)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_input(target: Target) -> None:
    assert fuzz(target) > 0


@pytest.mark.parametrize("decoder", [*BYTE_DECODERS, *codec_types()], ids=lambda decoder: decoder.name)
def test_made_up_bytes(decoder: Decoder) -> None:
    bytes_: st.SearchStrategy[Any] = PACKED | st.binary(max_size=200)
    assert explore(decoder.name, bytes_, decoder.check, 50) > 0


@pytest.mark.parametrize("decoder", TEXT_DECODERS, ids=lambda decoder: decoder.name)
def test_made_up_texts(decoder: Decoder) -> None:
    texts = st.text(max_size=100) | st.sampled_from([str(sample) for sample in decoder.samples])
    assert explore(decoder.name, texts, decoder.check, 80) > 0


@pytest.mark.parametrize("decoder", [*BYTE_DECODERS, *TEXT_DECODERS], ids=lambda decoder: decoder.name)
def test_the_samples_are_good(decoder: Decoder) -> None:
    """Else only refusals would be tried."""
    if decoder.name in ("outcome-value", "setting", "plain"):
        pytest.skip("its samples are meant to be refused, too")
    for sample in decoder.samples:
        decoder.decode(sample)


@pytest.mark.parametrize("decoder", codec_types(), ids=lambda decoder: decoder.name)
def test_the_first_sample_of_a_type_is_good(decoder: Decoder) -> None:
    at = [f"codec-{name}" for name, _, _ in VALUES].index(decoder.name)
    assert decoder.decode(decoder.samples[0]) == VALUES[at][2]


# That fuzzing finds something.


def _raises(error: Exception) -> Callable[[Any], object]:
    def decode(_: Any) -> object:
        raise error

    return decode


def test_an_error_that_is_not_documented_is_found() -> None:
    decoder = Decoder("sample", _raises(KeyError("x")), (b"abc",), (ValueError,))
    with pytest.raises(AssertionError, match=r"KeyError(.|\n)*--target sample --seed 0 --inputs 1"):
        run_seeds(Target("sample", decoder.attempt, 1), range(1))


def test_a_documented_error_is_none() -> None:
    decoder = Decoder("sample", _raises(ValueError("x")), (b"abc",), (ValueError,))
    assert run_seeds(Target("sample", decoder.attempt, 1), range(3)) == 3


def test_a_slow_input_is_found() -> None:
    with pytest.raises(AssertionError, match="one input took"):
        run_seeds(Target("slow", lambda _: sum(range(100_000)), 1), range(1), input_limit_s=1e-6)


def test_a_seed_gives_the_same_input_again() -> None:
    samples = [b"\x81\xa6amount\x05", b"0\na\nDeposit\n\n"]
    first = [corrupt(Random(number), samples) for number in range(200)]
    assert first == [corrupt(Random(number), samples) for number in range(200)]
    assert len(set(first)) > 150


def test_what_breaks_is_shown_within_bounds() -> None:
    assert len(str(Broken("it broke", b"x" * 100_000))) < 2_000
