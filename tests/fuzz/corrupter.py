"""Damages bytes, by a seed: what a bad disk, a wrong program, another release or an enemy may leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

__all__ = ("EXTREME_NUMBERS", "corrupt", "corrupt_text", "plain_value")

#: Sizes beyond which nothing is repeated: long enough to matter, short enough to try many.
REPEATED_MAX: Final = 20_000
PIECES_MAX: Final = 4

EXTREME_NUMBERS: Final[tuple[int, ...]] = (
    *(0, 1, -1, 127, 128, 255, 256, 65_535, 65_536),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1),
)

#: Bytes that mean something to one of the formats: MessagePack heads, UTF-8 that is none, separators.
_TELLING: Final[tuple[bytes, ...]] = (
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\xc9\xff\xff\xff\xff\x05", b"\xd6\xff\xff\xff\xff\xff", b"\xc1", b"\xc0", b"\x90", b"\x80", b"\xa0"),
    *(
        b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\xcf" + b"\xff" * 8,
    ),
    *(b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x82", b"\x00", b"\xef\xbb\xbf"),
    *(b"\n", b"\n\n\n\n\n", b"/", b":", b"=", b"{", b"}", b"[", b"]", b'"', b"\\u0000", b"\\ud800", b"\r\n"),
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"null",
        b"true",
        b"1_000",
        b" 1",
        b"\xd9\xa3",
        b"%00",
        b"@",
    ),
)
_NESTED: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"\x91", b"\xc0"),
    (b"\x81\xa1a", b"\xc0"),
    (b"\x81", b"\xc0" * 3),
    (b"[", b""),
    (b'{"a":', b"1"),
)


def _place(random: Random, data: bytes) -> int:
    return random.randint(0, len(data))


def _flip(random: Random, data: bytes) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]


def _replace_byte(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + random.randbytes(1) + data[at + 1 :]


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: _place(random, data)]


def _behead(random: Random, data: bytes) -> bytes:
    return data[_place(random, data) :]


def _remove(random: Random, data: bytes) -> bytes:
    first, last = sorted((_place(random, data), _place(random, data)))
    return data[:first] + data[last:]


def _insert(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + random.randbytes(random.choice((1, 2, 5, 40))) + data[at:]


def _insert_telling(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    after = at + random.choice((0, 0, 1, 5))
    return data[:at] + random.choice(_TELLING) + data[after:]


def _number(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    digits = random.choice((*map(str, EXTREME_NUMBERS), "9" * 400, "9" * 5_000)).encode()
    after = at
    while after < len(data) and data[after : after + 1].isdigit():
        after += 1
    return data[:at] + digits + data[after:]


def _swap(random: Random, data: bytes) -> bytes:
    places = sorted(_place(random, data) for _ in range(4))
    a, b, c, d = places
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeat(random: Random, data: bytes) -> bytes:
    first, last = sorted((_place(random, data), _place(random, data)))
    piece = data[first:last] or b"\x00"
    return data[:last] + piece * min(random.choice((1, 2, 100, 10_000)), REPEATED_MAX // len(piece) + 1)


def _nest(random: Random, data: bytes) -> bytes:
    opening, middle = random.choice(_NESTED)
    at = _place(random, data)
    return data[:at] + opening * random.choice((10, 500, 5_000)) + middle + data[at:]


_WAYS: Final[tuple[Callable[[Random, bytes], bytes], ...]] = (
    *(_flip, _flip, _replace_byte, _truncate, _behead, _remove, _insert, _insert_telling, _insert_telling),
    *(_number, _swap, _repeat, _nest),
)


def corrupt(random: Random, samples: Sequence[bytes]) -> bytes:
    """One of the samples, damaged; now and then two of them spliced, one as it was, or plain noise."""
    data = random.choice(samples)
    form = random.randrange(20)
    if form == 0:
        return data
    if form == 1:
        return random.randbytes(random.choice((0, 1, 3, 16, 200)))
    if form <= 4:
        other = random.choice(samples)
        data = data[: _place(random, data)] + other[_place(random, other) :]
    for _ in range(random.randint(1, PIECES_MAX)):
        data = random.choice(_WAYS)(random, data)
    return data


def corrupt_text(random: Random, samples: Sequence[str]) -> str:
    """A damaged text: some with lone surrogates, as file names and variables may have them."""
    data = corrupt(random, [sample.encode("utf-8", "surrogateescape") for sample in samples])
    return data.decode("utf-8", random.choice(("surrogateescape", "replace", "ignore")))


def plain_value(random: Random, depth: int = 3) -> object:
    """Any plain data: what a peer of another release, or an enemy, may put into a frame."""
    leaves: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: random.choice((True, False)),
        lambda: random.choice([number for number in EXTREME_NUMBERS if -(2**63) <= number < 2**64]),
        lambda: random.choice((0.0, -0.5, float("inf"), float("-inf"), float("nan"), 1e308)),
        lambda: random.choice(("", "a", "a/b", "reply", "ask", "0" * 32, "\0", "x" * 3_000)),
        lambda: random.choice((b"", b"\xff", b"completed\n\xc0", random.randbytes(9))),
    )
    form = random.randrange(8) if depth else 0
    if form == 6:
        return [plain_value(random, depth - 1) for _ in range(random.randrange(4))]
    if form == 7:
        return {f"k{j}": plain_value(random, depth - 1) for j in range(random.randrange(3))}
    return random.choice(leaves)()
