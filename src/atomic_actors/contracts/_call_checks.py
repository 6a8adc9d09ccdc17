"""Checks of a call, before anything is sent: who is meant, what message it is, how large, how long.

The actor system's sender and the blocking client both come here, so that both refuse the same.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from attrs import define, field, frozen

from atomic_actors.actors._messages import Message, message_spec, target_of
from atomic_actors.base._errors import (
    InvalidConfig,
    InvalidEntityId,
    InvalidMessageId,
    PayloadTooLarge,
    UnknownMessageType,
)
from atomic_actors.base._records import EntityRef, Receipt, split_message_id
from atomic_actors.codec._codec import Codec, Coder

__all__ = (
    "ForeignClass",
    "ForeignMessages",
    "OnCancel",
    "check_on_cancel",
    "check_seconds",
    "check_size",
    "locate_message",
    "resolve_target",
    "split_pair",
)

#: What to do with the message of an ask that is cancelled.
OnCancel = Literal["withdraw", "detach"]


@frozen(eq=False, slots=True)
class ForeignClass:
    """What is known of a message class whose kind is not here."""

    name: str
    coder: Coder
    reply_coder: Coder
    reply_type: Any


@define(eq=False)
class ForeignMessages:
    """The message classes of kinds that are not here, read once each."""

    codec: Codec
    _classes: dict[type[Any], ForeignClass] = field(factory=dict[type[Any], ForeignClass], init=False)

    def class_of(self, message: object) -> ForeignClass:
        """What is known of a message's class.

        Raises:
            UnknownMessageType: it is not a message.
            UsageError: its class, or a type that it names, cannot be stored.
        """
        cls: type[Any] = type(message)
        if not isinstance(message, Message):
            raise UnknownMessageType(
                f"{message!r} is not a message: expected an instance of a Command, a Query or a RawMessage"
            )
        foreign = self._classes.get(cls)
        if foreign is None:
            spec = message_spec(cls)
            foreign = ForeignClass(
                spec.name, self.codec.coder(cls), self.codec.coder(spec.reply_type), spec.reply_type
            )
            self._classes[cls] = foreign
        return foreign


def resolve_target(target: object, message: object) -> tuple[EntityRef, object]:
    """The entity and the message of a call: `(entity, message)`, or a message that names its entity.

    Raises:
        InvalidEntityId: no entity is named.
    """
    if message is None and isinstance(target, Message):
        named = cast("Message[object]", target)
        message, target = named, target_of(named)
    if not isinstance(target, EntityRef):
        raise InvalidEntityId(
            f"entity: expected an EntityRef such as Account.ref('a-42'), got {type(target).__name__}"
        )
    return target, message


def split_pair(pair: object) -> tuple[object, object]:
    """One item of `tell_many`, as the two arguments of `resolve_target`.

    Raises:
        UnknownMessageType: it is neither a pair nor a message.
    """
    if isinstance(pair, Message):
        return cast("object", pair), None
    if isinstance(pair, tuple):
        parts = cast("tuple[object, ...]", pair)
        if len(parts) == 2:
            return parts[0], parts[1]
    raise UnknownMessageType(f"tell_many: expected (entity, message) pairs, got {pair!r}")


def check_size(name: str, ref: EntityRef, payload: bytes, limit_bytes: int) -> None:
    """Raise `PayloadTooLarge` for more than `limit_bytes` (0: no limit)."""
    if limit_bytes and len(payload) > limit_bytes:
        raise PayloadTooLarge(
            f"{name} for {ref}: {len(payload)} bytes are more than max_payload_bytes={limit_bytes}; send a "
            "reference to where the data is, or raise the limit"
        )


def check_on_cancel(value: object) -> None:
    """Raise `InvalidConfig` unless `value` is an `OnCancel`."""
    if value not in ("withdraw", "detach"):
        raise InvalidConfig(f"on_cancel: expected 'withdraw' or 'detach', got {value!r}")


def check_seconds(name: str, value: object, default: float) -> float:
    """The seconds of an argument; `default` for None.

    Raises:
        InvalidConfig: it is not a number of seconds, negative, or infinite.
    """
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidConfig(f"{name}: expected seconds, got {value!r}")
    if not 0 <= value < float("inf"):
        raise InvalidConfig(f"{name}: expected 0 (unbounded) or more seconds, got {value!r}")
    return float(value)


def locate_message(message: object) -> tuple[EntityRef, str, Any]:
    """The entity, the unique part and the reply type of a receipt or a message id.

    Raises:
        InvalidMessageId: it is neither.
    """
    if isinstance(message, Receipt):
        receipt = cast("Receipt[object]", message)
        return *split_message_id(receipt.message_id), receipt.reply_type
    if isinstance(message, str):
        return *split_message_id(message), Any
    raise InvalidMessageId(f"expected a Receipt or a message id, got {type(message).__name__}")
