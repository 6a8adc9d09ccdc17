"""Everything that reads bytes or texts which somebody else wrote, with good inputs and the errors it may raise."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
from attrs import define, frozen

from atomic_actors.base._config import Config, environment_variable
from atomic_actors.base._errors import (
    AtomicActorsError,
    InvalidConfig,
    InvalidEntityId,
    InvalidKey,
    InvalidMessageId,
    InvalidPayload,
    Refused,
)
from atomic_actors.base._lifecycle import InterruptionRules
from atomic_actors.base._records import DeadLetter, EntityRef, check_key, split_message_id
from atomic_actors.base._store_url import parse_store_url, url_for_display
from atomic_actors.client._replies import read_reply
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import (
    NO_HEADERS,
    Failure,
    Headers,
    NewerHeaders,
    Refusal,
    decode_envelope,
    encode_envelope,
    encode_plain,
    plain_of,
)
from atomic_actors.codec._frames import (
    AskFrame,
    ClaimFrame,
    ForgetFrame,
    ReplyFrame,
    ReportFrame,
    TellFrame,
    decode_frame,
    encode_frame,
)
from atomic_actors.contracts._contracts import read_record
from atomic_actors.contracts._outcomes import RefusalReader, error_of_outcome, read_outcome
from atomic_actors.journal._kind_registry import KindRecord
from atomic_actors.journal._protocol import StoredLetter, pack_body, split_outcome, unpack_body
from atomic_actors.journal.memory._counters import read_policy
from atomic_actors.node.operations._dead_letters import read_letter
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._peers import NodeRecord
from tests.fuzz.corrupter import corrupt, corrupt_text
from tests.fuzz.effort import Broken, Target

__all__ = ("DECODERS", "Decoder", "codec_types", "decoder_targets")

UNIQUE: Final = "0190b3f4c5d67a8b9c0d1e2f3a4b5c6d"
INPUTS: Final = 1_000
SECRET: Final = "open-sesame"


@frozen
class Decoder:
    """One reader.

    Args:
        name: for people and seeds.
        decode: the reader; returns, or raises one of `errors`.
        samples: good inputs.
        errors: what its docstring says that it raises.
    """

    name: str
    decode: Callable[[Any], object]
    samples: Sequence[bytes] | Sequence[str]
    errors: tuple[type[Exception], ...] = ()

    def attempt(self, random: Random) -> None:
        """Try one damaged input."""
        self.check(self.draw(random))

    def draw(self, random: Random) -> bytes | str:
        """A damaged input."""
        samples = self.samples
        texts = [sample for sample in samples if isinstance(sample, str)]
        if texts:
            return corrupt_text(random, texts)
        return corrupt(random, [sample for sample in samples if isinstance(sample, bytes)])

    def check(self, data: bytes | str) -> None:
        """Decode; whatever escapes that is not documented breaks the rule."""
        try:
            self.decode(data)
        except self.errors:
            pass
        except Exception as error:
            raise Broken(f"{self.name} let something else escape", data, error) from error


# Values of many types.


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Address(TypedDict):
    street: str
    number: int


@define
class Item:
    name: str = ""
    price: Decimal = Decimal(0)
    tags: frozenset[str] = frozenset()


@define
class Tree:
    """Contains itself, so that depth is up to the bytes."""

    value: int = 0
    children: list[Tree] = attrs.field(factory=list["Tree"])


@define
class Short(Refused):
    balance: int
    at: datetime.datetime | None = None


VALUES: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("none", None, None),
    ("int", int, 5),
    ("float", float, 5.5),
    ("str", str, "five"),
    ("bytes", bytes, b"five"),
    ("any", Any, {"a": [1, None, "x", b"y"]}),
    ("datetime", datetime.datetime, datetime.datetime(2024, 2, 29, 12, 30, 1, 5, datetime.UTC)),
    ("date", datetime.date, datetime.date(2024, 2, 29)),
    ("time", datetime.time, datetime.time(1, 2, 3)),
    ("timedelta", datetime.timedelta, datetime.timedelta(days=3, microseconds=1)),
    ("decimal", Decimal, Decimal("1.5e3")),
    ("uuid", UUID, UUID(UNIQUE)),
    ("path", Path, Path("a/b")),
    ("enum", Colour, Colour.RED),
    ("literal", Literal["a", 1], "a"),
    ("optional", int | None, 3),
    ("union", Item | Tree | None, Item("a")),
    ("named-tuple", Point, Point(1, 2.0)),
    ("typed-dict", Address, Address(street="a", number=1)),
    ("tuple", tuple[int, str], (1, "a")),
    ("list", list[Item], [Item("a", Decimal("1.25"), frozenset({"x"})), Item()]),
    ("dict", dict[tuple[int, str], Decimal], {(1, "a"): Decimal(1)}),
    ("set", set[tuple[int, int]], {(1, 2)}),
    ("tree", Tree, Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
)


def codec_types() -> list[Decoder]:
    """A decoder for each type."""
    codec = Codec()
    everything = [codec.coder(type_).encode(value) for _, type_, value in VALUES]
    return [
        Decoder(
            f"codec-{name}", codec.coder(type_).decode, [everything[at]] * 8 + everything, (InvalidPayload,)
        )
        for at, (name, type_, _) in enumerate(VALUES)
    ]


# Records, outcomes and letters.


ENVELOPES: Final = (
    encode_envelope(
        Headers(sender="0123456789abcdef", path=("account/a", "account/b")), b"\x81\xa6amount\x05"
    ),
    encode_envelope(NO_HEADERS, b"\xc0"),
    encode_envelope(NewerHeaders(sender="n", unknown={"new": {"a": [1]}}), b"\x93\x01\x02\x03"),
)
BODIES: Final = tuple(
    pack_body(name=name, deadline_ms=deadline_ms, waited_for=waited_for, key=key, envelope=envelope)
    for name, deadline_ms, waited_for, key, envelope in (
        ("Deposit", 0, True, "", ENVELOPES[0]),
        ("Deposit", 1_900_000_000_000, False, "order-1", ENVELOPES[1]),
        ("Größe", 5, True, "ü", ENVELOPES[2]),
    )
)
FAILURE: Final = encode_plain(Failure("ValueError", "no", "Traceback ..."))
REFUSAL: Final = encode_plain(Refusal("Short", {"balance": 5, "at": None}, "", f"{__name__}.Short"))
OUTCOMES: Final = (
    b"completed\n\x05",
    b"refused\n" + REFUSAL,
    b"failed\n" + encode_plain({"error_type": "ValueError", "text": "no"}),
    *(b"interrupted\n", b"withdrawn\n", b"expired\n"),
)
FRAMES: Final = tuple(
    encode_frame(frame)
    for frame in (
        ReplyFrame("a/b", UNIQUE, OUTCOMES[0]),
        ReplyFrame("a/b", UNIQUE, OUTCOMES[1]),
        ClaimFrame(-1),
        AskFrame(
            partition=3,
            claim="3:12",
            entity_key="ear/e",
            name="Hear",
            payload=b"\xc0",
            sender="0123456789abcdef",
            stream=7,
            number=1,
            left_ms=3_000,
            path=("a/b", "c/d"),
        ),
        TellFrame(
            partition=3,
            claim="3:12",
            entity_key="ear/e",
            name="Hear",
            payload=b"\xc0",
            sender="0123456789abcdef",
            stream=7,
            number=2,
        ),
        ForgetFrame("0123456789abcdef", 7, 1),
        ReportFrame(7, 1, "completed", b"\xc0"),
        ReportFrame(7, 1, "failed", ["ValueError", "no"]),
        ReportFrame(7, 1, "moved", None),
    )
)
IDENTITY: Final = NodeIdentity(
    node_id="0123456789abcdef",
    boot_id="boot",
    pid_namespace="pid:[4026531836]",
    pid=4_000_000,
    start_time="123456",
    lease_ttl_s=2.0,
)
NODE: Final = NodeRecord(
    identity=IDENTITY,
    host="host",
    service="default",
    kinds=frozenset({"account", "order"}),
    weight=1.5,
)
CONTRACT: Final = (
    b'{"contract":1,"durable":true,"max_depth":0,"fallback":false,"messages":{"Deposit":{"query":false}},'
    b'"limits":{"result_ttl_ms":60000,"dedupe_ttl_ms":1,"partition_depth_limit":0,'
    b'"partition_dead_letter_limit":0,"dead_letter_ttl_ms":0}}'
)

_codec: Final = Codec()
_refusals: Final = RefusalReader(_codec)
_int_coder: Final = _codec.coder(int)


def _envelope(data: bytes) -> None:
    """What could be read is passed on whole, and its known headers are what they say they are."""
    found = decode_envelope(data)
    assert isinstance(found.headers.sender, str)
    assert all(isinstance(entity, str) for entity in found.headers.path)
    stored = encode_envelope(found.headers, bytes(found.payload))
    again = decode_envelope(stored)
    assert encode_envelope(again.headers, bytes(again.payload)) == stored


def _frame(data: bytes) -> None:
    sent = encode_frame(decode_frame(data))
    assert encode_frame(decode_frame(sent)) == sent


def _read_refusal(data: bytes) -> None:
    error = _refusals.read_refusal(data)
    assert isinstance(error, Refused)
    assert str(error) is not None


def _error_of_outcome(data: bytes) -> None:
    for word in ("refused", "failed", "interrupted", "withdrawn", "expired", "new_word", ""):
        assert isinstance(error_of_outcome(word, data, f"a/b/{UNIQUE}", _refusals), AtomicActorsError)


def _read_outcome(data: bytes) -> None:
    read_outcome(data, f"a/b/{UNIQUE}", _int_coder, _refusals)


def _node_identity(data: bytes) -> None:
    found = NodeIdentity.decode(data)
    if found is not None:
        assert isinstance(IDENTITY.knows_dead(found), bool)
        assert isinstance(NodeIdentity.id_in(data), str)
        assert NodeIdentity.decode(found.encode()) is not None


def _node_record(data: bytes) -> None:
    found = NodeRecord.decode(data)
    if found is not None:
        assert found.weight > 0
        assert isinstance(IDENTITY.knows_dead(found.identity), bool)
        assert NodeRecord.decode(found.encode()) == found


def _contract(data: bytes) -> None:
    found = read_record("account", KindRecord("default", 4, (data,)))
    assert isinstance(found.takes("Deposit"), bool)


def _stored_letter(error: bytes, body: bytes, message_id: str = f"a/b/{UNIQUE}") -> None:
    letter = read_letter(
        StoredLetter(
            message_id=message_id,
            reason="failed",
            attempts=1,
            interruptions=0,
            died_ms=5,
            replayed_as=UNIQUE,
            error=error,
            body=body,
        )
    )
    assert isinstance(letter, DeadLetter)
    assert letter.message_id == message_id


def _stamp(text: str) -> None:
    stamp = InterruptionRules.decode(text)
    assert InterruptionRules.decode(stamp.encode()) == stamp


def _store_url(text: str) -> None:
    shown = url_for_display(text)
    assert isinstance(shown, str)
    location, _ = parse_store_url(text)
    assert isinstance(str(location), str)


def _secret_url(text: str) -> None:
    """What stands behind the password is damaged: no text, of the location or of the refusal, may have it."""
    url = f"redis://user:{SECRET}@{text}"
    try:
        location, _ = parse_store_url(url)
        said = f"{location} {location!r}"
    except InvalidConfig as error:
        said = str(error)
    assert SECRET not in said + url_for_display(url)


SETTINGS: Final = sorted(
    attribute.name for attribute in attrs.fields(Config) if attribute.name not in ("actors", "kinds")
)


def _setting(text: str) -> None:
    """`name=text`, as an environment variable."""
    name, _, value = text.partition("=")
    config = Config.from_env(environ={environment_variable(name): value, "PATH": value})
    assert isinstance(repr(config), str)
    assert config.location is not None


_ERRORS_OF_BYTES: Final = (msgspec.DecodeError,)

BYTE_DECODERS: Final = (
    Decoder("plain", plain_of, (*ENVELOPES, FAILURE, REFUSAL), _ERRORS_OF_BYTES),
    Decoder("envelope", _envelope, ENVELOPES, _ERRORS_OF_BYTES),
    Decoder("frame", _frame, FRAMES, _ERRORS_OF_BYTES),
    Decoder("body", unpack_body, BODIES, (ValueError,)),
    Decoder("outcome", split_outcome, OUTCOMES, (ValueError,)),
    Decoder("outcome-value", _read_outcome, OUTCOMES, (AtomicActorsError,)),
    Decoder("outcome-error", _error_of_outcome, (REFUSAL, FAILURE, b"")),
    Decoder("refusal", _read_refusal, (REFUSAL, encode_plain(Refusal("Other", {"a": 1}, "no")))),
    Decoder("pushed-reply", read_reply, FRAMES[:2], (ValueError,)),
    Decoder("node-identity", _node_identity, (IDENTITY.encode(),)),
    Decoder("node-record", _node_record, (NODE.encode(),)),
    Decoder("contract", _contract, (CONTRACT,), (ValueError,)),
    Decoder("letter-error", lambda data: _stored_letter(data, BODIES[0]), (FAILURE, b"")),
    Decoder("letter-body", lambda data: _stored_letter(FAILURE, data), BODIES),
)
TEXT_DECODERS: Final = (
    Decoder("stamp", _stamp, ("edc3", "trp0", "emc12"), (ValueError,)),
    Decoder("policy", read_policy, ("\nDeposit=tdc3\n*=edc3\n", "", "\na=erp0\n"), (ValueError,)),
    Decoder(
        "message-id", split_message_id, (f"account/a-1/{UNIQUE}", f"a/b/c/{UNIQUE}"), (InvalidMessageId,)
    ),
    Decoder("entity", EntityRef.parse, ("account/a-42", "account:a/b", "order/ü{}"), (InvalidEntityId,)),
    Decoder("key", check_key, ("order-1", "ü" * 100), (InvalidKey,)),
    Decoder(
        "store-url",
        _store_url,
        (
            *("embedded:", "embedded:some/dir", "embedded:///abs/dir", "memory:", "redis://h:6379/0"),
            *("rediss://user:p%40ss@h:6379/3?ssl_cert_reqs=none", "unix://u:p@/path/s.sock?db=2"),
            *("redis+sentinel://h:26379,[::1]:26380/name/1?tls=yes", "redis+cluster://a:1,b:2"),
        ),
        (InvalidConfig,),
    ),
    Decoder("secret-url", _secret_url, ("h:6379/0?db=1", "h/3", "[::1]:6379", "a:1,b:2/x#y")),
    Decoder(
        "setting",
        _setting,
        (
            *(f"{name}=5" for name in SETTINGS),
            *("lease_ttl_s=1e3", "url=redis://h", "handle_signals=yes", "on_dead=park", "namespace=a b"),
            *("partitions=0", "result_ttl_s=nan", "backoff=fixed", "password=geheim", "replication=fsynced"),
        ),
        (InvalidConfig,),
    ),
)


DECODERS: Final = (*BYTE_DECODERS, *TEXT_DECODERS, *codec_types())


def decoder_targets() -> list[Target]:
    """Each of them, as a target."""
    return [
        Target(decoder.name, decoder.attempt, 300 if decoder.name == "setting" else INPUTS)
        for decoder in DECODERS
    ]
