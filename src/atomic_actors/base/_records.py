"""Frozen records that cross the parts: who an entity is, what a receipt and a dead letter hold.

Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any, Final, Generic, Literal, TypeVar

from attrs import field, frozen

from atomic_actors.base._errors import InvalidEntityId, InvalidKey, InvalidMessageId

__all__ = (
    "Completed",
    "DeadLetter",
    "EntityRef",
    "Park",
    "Receipt",
    "Retry",
    "check_key",
    "message_id_of",
    "partition_of",
    "split_message_id",
)

R = TypeVar("R")
ReplyT_co = TypeVar("ReplyT_co", covariant=True)

MAX_ID_BYTES: Final = 512
MAX_KIND_BYTES: Final = 64
MAX_KEY_BYTES: Final = 256
_KIND_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def _has_control_characters(text: str) -> bool:
    return any(character < " " or character == "\x7f" for character in text)


def check_kind(kind: object) -> None:
    """Raise `InvalidEntityId` unless `kind` is 1 to 64 letters, digits, `_`, `.` or `-`."""
    if not isinstance(kind, str):
        raise InvalidEntityId(f"kind: expected str, got {type(kind).__name__}")
    if not kind:
        raise InvalidEntityId("kind: must not be empty")
    if len(kind) > MAX_KIND_BYTES:
        raise InvalidEntityId(f"kind: {kind[:20]!r}... is longer than {MAX_KIND_BYTES} characters")
    if not _KIND_CHARACTERS.issuperset(kind):
        raise InvalidEntityId(f"kind: {kind!r} may hold only letters, digits, '_', '.' and '-'")


def check_id(entity_id: object) -> None:
    """Raise `InvalidEntityId` unless `entity_id` is 1 to 512 bytes of text without control characters."""
    if not isinstance(entity_id, str):
        raise InvalidEntityId(
            f"id: expected str, got {type(entity_id).__name__}; write str({entity_id!r}) if that is meant"
        )
    if not entity_id:
        raise InvalidEntityId("id: must not be empty")
    if _has_control_characters(entity_id):
        raise InvalidEntityId(f"id: {entity_id[:40]!r} has control characters")
    try:
        size = len(entity_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidEntityId(f"id: {entity_id[:40]!r} is not valid Unicode text") from error
    if size > MAX_ID_BYTES:
        raise InvalidEntityId(
            f"id: {entity_id[:20]!r}... has {size} bytes, more than {MAX_ID_BYTES}; use a digest of it"
        )


def check_key(key: object) -> None:
    """Raise `InvalidKey` unless `key` is 1 to 256 bytes of text without control characters."""
    if not isinstance(key, str):
        raise InvalidKey(f"key: expected str, got {type(key).__name__}")
    if not key:
        raise InvalidKey("key: must not be empty; leave it out to send without one")
    if _has_control_characters(key):
        raise InvalidKey(f"key: {key[:40]!r} has control characters")
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidKey(f"key: {key[:20]!r}... is longer than {MAX_KEY_BYTES} bytes; use a digest of it")


@frozen(cache_hash=True)
class EntityRef:
    """The address of one entity: its kind and its id. Needs no running system.

    Args:
        kind: 1 to 64 letters, digits, `_`, `.` or `-`.
        id: 1 to 512 bytes of UTF-8 without control characters; `/`, spaces and braces are fine.

    Raises:
        InvalidEntityId: the kind or the id is not of that form.
    """

    kind: str
    id: str

    def __attrs_post_init__(self) -> None:
        check_kind(self.kind)
        check_id(self.id)

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> EntityRef:
        """Read `kind/id` or `kind:id`, as people type it.

        Raises:
            InvalidEntityId: the text has neither form.
        """
        for position, character in enumerate(text):
            if character in "/:":
                return cls(text[:position], text[position + 1 :])
        raise InvalidEntityId(f"{text!r}: expected kind/id, for example account/a-42")


def partition_of(entity: str, partitions: int) -> int:
    """The partition of an entity `kind/id`: CRC16 (XMODEM, the one Redis Cluster uses) modulo P."""
    return crc_hqx(entity.encode(), 0) % partitions


def message_id_of(entity: str, uid: str) -> str:
    """`kind/id/<uuid7>`: an id that names its entity, so that `result` knows where to look."""
    return f"{entity}/{uid}"


def split_message_id(message_id: object) -> tuple[EntityRef, str]:
    """Split `kind/id/<32 hex digits>` into the entity and the unique part.

    Raises:
        InvalidMessageId: the text is not of that form.
    """
    if isinstance(message_id, str):
        entity, slash, uid = message_id.rpartition("/")
        kind, second_slash, entity_id = entity.partition("/")
        if slash and second_slash and len(uid) == 32 and set(uid) <= set("0123456789abcdef"):
            try:
                return EntityRef(kind, entity_id), uid
            except InvalidEntityId as error:
                raise InvalidMessageId(f"{message_id!r}: {error}") from error
    raise InvalidMessageId(f"{message_id!r}: expected kind/id/<32 hex digits>")


@frozen
class Receipt(Generic[ReplyT_co]):
    """Proof that a message was accepted: it survives what the store survives.

    `await system.result(receipt)` waits for the reply.
    """

    message_id: str
    entity: EntityRef
    #: What `result` decodes the reply as.
    reply_type: Any = field(default=Any, repr=False, eq=False, kw_only=True)


@frozen(kw_only=True)
class DeadLetter:
    """A message that failed or was interrupted for good, kept until a person decides.

    `message` is the payload as plain data. `reason` is `failed`, `interrupted` or `expired`.
    Times are seconds since 1970 on the store's clock.
    """

    message_id: str
    entity: EntityRef
    name: str
    message: Any = field(repr=False)
    reason: Literal["failed", "interrupted", "expired"]
    error: str
    error_type: str
    traceback: str = field(repr=False)
    attempts: int
    interruptions: int
    accepted_at_s: float
    died_at_s: float
    #: The id of the new message that a replay made, or None while it was not replayed.
    replayed_as: str | None = None


# What an `on_interrupted` method may answer, after it has looked at the outside world.


@frozen
class Completed(Generic[R]):
    """The interrupted turn did finish its work: complete the message with this reply."""

    reply: R


@frozen
class Retry:
    """The interrupted turn did nothing: run the message again, as its next attempt."""


@frozen
class Park:
    """The outcome is unknown: dead-letter the message as interrupted and park the entity for a person."""
