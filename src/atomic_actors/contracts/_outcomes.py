"""What a sender learns of its message, as exceptions: from outcomes, refused appends, and silence.

The actor system's router and the blocking client both come here, so that both say the same.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import msgspec
from attrs import define, field

from atomic_actors.base._errors import (
    AcceptanceUnknown,
    AskTimeout,
    AtomicActorsError,
    Expired,
    HandlerFailed,
    Interrupted,
    KeyReused,
    OutcomeUnknown,
    QueueDepthExceeded,
    Refused,
    ResultExpired,
    SystemFailed,
    UnknownMessage,
    Withdrawn,
    error_from_code,
)
from atomic_actors.codec._codec import Codec, Coder
from atomic_actors.codec._envelope import Failure, plain_of
from atomic_actors.codec._refusals import RefusalClasses
from atomic_actors.journal._protocol import Rejected, Result, split_outcome

__all__ = (
    "RefusalReader",
    "Refusals",
    "Waiting",
    "error_of_outcome",
    "missing_message_error",
    "read_failure",
    "read_outcome",
    "refusal_of_append",
    "timeout_error",
)

#: What a sender waits for.
Waiting = Literal["ask", "tell", "result"]


class Refusals(Protocol):
    """Makes the asker's exceptions of stored refusals."""

    def read_refusal(self, data: bytes) -> AtomicActorsError:
        """The exception in the opaque part of a `refused` outcome."""
        ...


@define(eq=False)
class RefusalReader:
    """Makes the asker's exception of a stored refusal: the class that was raised, where it is known here."""

    codec: Codec
    _classes: RefusalClasses = field(factory=RefusalClasses, init=False)

    def read_refusal(self, data: bytes) -> Refused:
        """The refusal in the opaque part of a `refused` outcome; a bare `Refused` where that cannot be read."""
        try:
            plain: object = plain_of(data)
        except msgspec.DecodeError as error:
            return Refused(f"the stored refusal cannot be read: {error}")
        if not isinstance(plain, dict):
            return Refused("the stored refusal cannot be read: it is not a map")
        fields = cast("dict[object, Any]", plain)
        name, home, text = _text_of(fields, "name"), _text_of(fields, "home"), _text_of(fields, "text")
        cls = self._classes.find(name, home)
        refusal = self.codec.decode_refusal(name, fields.get("details"), {} if cls is None else {name: cls})
        if type(refusal) is Refused and text and not refusal.args[0]:
            return Refused(text, name=name, details=refusal.details)
        return refusal


def _text_of(plain: dict[object, Any], name: str) -> str:
    """A text of something that was stored; "" where there is none."""
    value = plain.get(name)
    return value if isinstance(value, str) else ""


def read_failure(data: bytes) -> Failure:
    """The stored form of a handler's exception; where that cannot be read, one with that reason."""
    try:
        plain: object = plain_of(data) if data else {}
    except msgspec.DecodeError as error:
        return Failure("Unreadable", f"the stored failure cannot be read: {error}")
    if not isinstance(plain, dict):
        return Failure("Unreadable", "the stored failure cannot be read: it is not a map")
    fields = cast("dict[object, Any]", plain)
    return Failure(_text_of(fields, "error_type"), _text_of(fields, "text"), _text_of(fields, "traceback"))


def read_outcome(outcome: bytes, message_id: str, reply_coder: Coder, refusals: Refusals) -> Any:
    """The reply in a completed outcome; otherwise the exception that the outcome stands for.

    Args:
        outcome: as the store has it.
        message_id: whose outcome it is.
        reply_coder: makes the reply.
        refusals: makes the exception of a refusal.

    Raises:
        AtomicActorsError: the message was refused, failed, was interrupted, withdrawn or expired.
        InvalidPayload: it is completed, and the reply is none of the type that is expected.
        OutcomeUnknown: the message has ended, and what the store has of that cannot be read.
    """
    try:
        word, rest = split_outcome(outcome)
    except ValueError as error:
        raise OutcomeUnknown(
            f"{message_id} has ended, and its outcome cannot be read: {error}", message_id=message_id
        ) from error
    if word == "completed":
        return reply_coder.decode(rest)
    raise error_of_outcome(word, rest, message_id, refusals)


def error_of_outcome(word: str, rest: bytes, message_id: str, refusals: Refusals) -> AtomicActorsError:
    """The exception that an outcome other than `completed` stands for.

    Args:
        word: the state word of the outcome.
        rest: what follows it.
        message_id: whose outcome it is.
        refusals: makes the exception of a `refused` one.
    """
    if word == "refused":
        error = refusals.read_refusal(rest)
        error.message_id = message_id
        return error
    if word == "failed":
        failure = read_failure(rest)
        return HandlerFailed(
            f"{failure.error_type}: {failure.text} (dead letter {message_id})",
            message_id=message_id,
            error_type=failure.error_type,
        )
    if word == "interrupted":
        return Interrupted(
            f"{message_id} was interrupted: it may have run wholly, partly or not at all; it is a dead "
            "letter now",
            message_id=message_id,
        )
    if word == "withdrawn":
        return Withdrawn(f"{message_id} was withdrawn before it ran", message_id=message_id)
    if word == "expired":
        return Expired(f"{message_id}: its deadline passed before it ran", message_id=message_id)
    return error_from_code(word, "unknown outcome", message_id=message_id)


def refusal_of_append(result: Result, entity: str, message_id: str) -> AtomicActorsError:
    """The exception for an append that the store refused."""
    if not isinstance(result, Rejected):
        return SystemFailed(f"the journal answered an append with {result!r}")
    if result.code == "queue_depth_exceeded":
        return QueueDepthExceeded(f"{entity}: {result.text}", message_id=message_id)
    if result.code == "key_reused":
        return KeyReused(f"{entity}: the key was used before with other content", message_id=message_id)
    if result.code == "unreadable":
        return OutcomeUnknown(f"{message_id} may be accepted: {result.text}", message_id=message_id)
    if result.code == "unknown_message":
        return UnknownMessage(
            f"{message_id} is too old to be accepted: it may have run already", message_id=message_id
        )
    return error_from_code(result.code, result.text, message_id=message_id)


def missing_message_error(
    message_id: str, now_ms: int, result_ttl_ms: int, *, accepted: bool
) -> AtomicActorsError:
    """The exception for a message that the store does not know (any more).

    Args:
        message_id: the message; its unique part begins with its birth.
        now_ms: the store's time.
        result_ttl_ms: how long outcomes are kept; 0 means without end.
        accepted: whether the store accepted it, as far as this sender knows.
    """
    age_ms = now_ms - int(message_id.rpartition("/")[2][:12], 16)
    if 0 < result_ttl_ms <= age_ms:
        return ResultExpired(f"the outcome of {message_id} has expired (result_ttl_s)", message_id=message_id)
    if accepted:
        return Interrupted(
            f"the store has lost history, and {message_id} with it: it may have run wholly, partly or not "
            "at all; it did not become a dead letter",
            message_id=message_id,
        )
    return UnknownMessage(f"the store has no message {message_id}", message_id=message_id)


def timeout_error(waiting: Waiting, message_id: str) -> AtomicActorsError:
    """The exception for an answer that did not come in time."""
    if waiting == "tell":
        return AcceptanceUnknown(
            f"no answer whether {message_id} was accepted; ask again with result(message_id)",
            message_id=message_id,
        )
    return AskTimeout(
        f"no reply to {message_id} in time; it may still run: result(message_id) re-attaches",
        message_id=message_id,
    )
