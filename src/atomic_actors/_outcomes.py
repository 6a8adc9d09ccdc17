"""What a sender learns of its message, as exceptions: from outcomes, refused appends, and silence.

The actor system's router and the blocking client both come here, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import define, field

from atomic_actors._codec import Codec
from atomic_actors._envelope import Failure, plain_of
from atomic_actors._errors import (
    AcceptanceUnknown,
    AskTimeout,
    AtomicActorsError,
    Expired,
    HandlerFailed,
    Interrupted,
    KeyReused,
    QueueDepthExceeded,
    Refused,
    ResultExpired,
    SystemFailed,
    UnknownMessage,
    Withdrawn,
    error_from_code,
)
from atomic_actors._refusals import RefusalClasses
from atomic_actors.journal._protocol import Rejected, Result

__all__ = (
    "RefusalDecoder",
    "RefusalReader",
    "Waiting",
    "error_of_outcome",
    "refusal_of_append",
    "silence_error",
    "unknown_error",
)

#: What a sender waits for.
Waiting = Literal["ask", "tell", "result"]
RefusalDecoder = Callable[[bytes], AtomicActorsError]


@define(eq=False)
class RefusalReader:
    """Makes the asker's exception of a stored refusal: the class that was raised, where it is known here."""

    codec: Codec
    _classes: RefusalClasses = field(factory=RefusalClasses, init=False)

    def read(self, data: bytes) -> Refused:
        """The refusal in the opaque part of a `refused` outcome."""
        plain = plain_of(data)
        cls = self._classes.find(plain["name"], plain.get("home", ""))
        classes = {} if cls is None else {plain["name"]: cls}
        error = self.codec.decode_refusal(plain["name"], plain["details"], classes)
        if type(error) is Refused and plain.get("text") and not error.args[0]:
            return Refused(plain["text"], name=plain["name"], details=error.details)
        return error


def error_of_outcome(
    word: str, rest: bytes, message_id: str, decode_refusal: RefusalDecoder
) -> AtomicActorsError:
    """The exception that an outcome other than `completed` stands for.

    Args:
        word: the state word of the outcome.
        rest: what follows it.
        message_id: whose outcome it is.
        decode_refusal: makes the exception of a `refused` one.
    """
    if word == "refused":
        error = decode_refusal(rest)
        error.message_id = message_id
        return error
    if word == "failed":
        plain: dict[str, Any] = plain_of(rest) if rest else {}
        failure = Failure(plain.get("error_type", ""), plain.get("text", ""))
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
    if result.code == "unknown_message":
        return UnknownMessage(
            f"{message_id} is too old to be accepted: it may have run already", message_id=message_id
        )
    return error_from_code(result.code, result.text, message_id=message_id)


def unknown_error(message_id: str, now_ms: int, result_ttl_ms: int, *, accepted: bool) -> AtomicActorsError:
    """The exception for a message that the store does not know (any more).

    Args:
        message_id: the message; its unique part begins with its birth.
        now_ms: the store's time.
        result_ttl_ms: how long outcomes are kept; 0 means without end.
        accepted: whether the store accepted it, as far as this sender knows.
    """
    age_ms = now_ms - int(message_id.rpartition("/")[2][:12], 16)
    if 0 < result_ttl_ms <= age_ms:
        return ResultExpired(
            f"the outcome of {message_id} is not kept any more (result_ttl_s)", message_id=message_id
        )
    if accepted:
        return Interrupted(
            f"the store has lost history, and {message_id} with it: it may have run wholly, partly or not "
            "at all; it is no dead letter",
            message_id=message_id,
        )
    return UnknownMessage(f"the store has no message {message_id}", message_id=message_id)


def silence_error(waiting: Waiting, message_id: str) -> AtomicActorsError:
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
