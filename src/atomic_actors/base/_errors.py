"""Every exception of the library, split by what is known when it is raised.

The question a caller has after an error is never "what broke" but "did it run, and may I send it
again". So the tree is cut along that line: below `NotExecuted` the answer is "it never ran, retrying
is safe"; below `OutcomeUnknown` it is "not known yet, re-attach with `result`"; `Refused`,
`HandlerFailed` and `Interrupted` say what happened to a message that did run; `UsageError` says the
program itself is wrong and is raised at the call site, before anything is sent.

Every class has a stable `code`. The same code travels on the wire, so an outcome that was written by
another process, or another language, comes back as the same class here.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = (
    "AcceptanceUnknown",
    "ActorLimitExceeded",
    "AskCycle",
    "AskLimitExceeded",
    "AskTimeout",
    "AtomicActorsError",
    "EmbeddedServerError",
    "Expired",
    "HandlerFailed",
    "Interrupted",
    "InvalidConfig",
    "InvalidEntityId",
    "InvalidHandler",
    "InvalidKey",
    "InvalidMessageId",
    "InvalidPayload",
    "InvalidReply",
    "InvalidState",
    "KeyReused",
    "KindConflict",
    "NotExecuted",
    "NotSupported",
    "OutboxLimitExceeded",
    "OutcomeUnknown",
    "OwnerUnavailable",
    "PayloadTooLarge",
    "QueryChangedState",
    "QueueDepthExceeded",
    "Refused",
    "ResultExpired",
    "StoreIncompatible",
    "StoreUnavailable",
    "StoreUnsafe",
    "SystemFailed",
    "SystemNotRunning",
    "TooManyHops",
    "UnknownKind",
    "UnknownMessage",
    "UnknownMessageType",
    "UsageError",
    "Withdrawn",
    "error_from_code",
)


class AtomicActorsError(Exception):
    """The root of every error this library raises; catch it to catch them all."""

    #: Stable across releases and the same on the wire.
    code: ClassVar[str] = "error"

    #: The message this is about, where there is one: `kind/id/<uuid7>`. A class default, because attrs
    #: subclasses of `Refused` do not run this constructor.
    message_id: str | None = None

    def __init__(self, message: str = "", *, message_id: str | None = None) -> None:
        super().__init__(message)
        self.message_id = message_id


# It never ran: retrying is safe.


class NotExecuted(AtomicActorsError):
    """The message never ran. Sending it again is safe."""

    code = "not_executed"


class QueueDepthExceeded(NotExecuted):
    """The entity, or its partition, already has as many waiting messages as allowed."""

    code = "queue_depth_exceeded"


class ActorLimitExceeded(NotExecuted):
    """The node already has as many busy activations as it may have; no idle one could make room."""

    code = "actor_limit_exceeded"


class AskLimitExceeded(NotExecuted):
    """As many asks of this node wait for their replies as may at once (`max_inflight_asks`); nothing was sent."""

    code = "ask_limit_exceeded"


class OwnerUnavailable(NotExecuted):
    """A message for a volatile kind found no owner of its entity's partition, or lost it before it began."""

    code = "owner_unavailable"


class StoreUnavailable(NotExecuted):
    """The store cannot be reached; nothing was sent."""

    code = "store_unavailable"


class SystemNotRunning(NotExecuted):
    """The actor system has not been entered yet, or it has been left."""

    code = "system_not_running"


class Withdrawn(NotExecuted):
    """The message was withdrawn before any attempt was made."""

    code = "withdrawn"


class Expired(NotExecuted):
    """The message's deadline passed before any attempt was made."""

    code = "expired"


# Not known yet: re-attach with `result(error.message_id)`.


class OutcomeUnknown(AtomicActorsError):
    """What became of the message is not known yet; `message_id` re-attaches with `result`."""

    code = "outcome_unknown"


class AcceptanceUnknown(OutcomeUnknown):
    """A tell was sent, and no answer came in time: it may or may not have been accepted."""

    code = "acceptance_unknown"


class AskTimeout(OutcomeUnknown, TimeoutError):
    """No reply came within `timeout_s`: the message may still run, be running, or have run."""

    code = "ask_timeout"


# It ran.


class Refused(AtomicActorsError):
    """The handler ran and refused the message. An answer, not a failure.

    Subclass it with attrs (`@define class InsufficientFunds(Refused): balance: int`) and raise it
    from a handler: the message is completed, state is not changed, nothing is retried or
    dead-lettered. The asker gets the same class; where it does not have that class, it gets
    `Refused` itself with `name` and `details`.
    """

    code = "refused"

    #: The wire name: the class name of the refusal as the handler raised it.
    name: str = "Refused"
    #: The refusal's fields as plain data, where the class is not known here.
    details: Any = None

    def __init__(self, message: str = "", *, name: str | None = None, details: Any = None) -> None:
        super().__init__(message)
        if name is not None:
            self.name = name
        self.details = details

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = cls.__name__

    def __str__(self) -> str:
        # attrs subclasses set their fields without calling our constructor.
        text = super().__str__()
        if type(self) is not Refused:
            return text or repr(self)
        return text or f"{self.name}: {self.details!r}"


class HandlerFailed(AtomicActorsError):
    """The handler ran and raised. The message is a dead letter.

    `error_type` and the text name the exception; `traceback` is the handler's, where it is known.
    """

    code = "handler_failed"

    def __init__(
        self,
        message: str = "",
        *,
        message_id: str | None = None,
        error_type: str = "",
        traceback: str = "",
    ) -> None:
        super().__init__(message, message_id=message_id)
        self.error_type = error_type
        self.traceback = traceback


class Interrupted(AtomicActorsError):
    """The handler's process died or lost its lease: it may have run wholly, partly or not at all.

    The message is a dead letter; a person can look and replay it. There is none where the store itself lost
    the message together with its latest history, and none of a volatile kind; the text has the reason.
    """

    code = "interrupted"


class AskCycle(AtomicActorsError):
    """An ask inside a turn came back to an entity that waits for it; `path` names the chain."""

    code = "ask_cycle"

    def __init__(
        self, message: str = "", *, path: tuple[str, ...] = (), message_id: str | None = None
    ) -> None:
        super().__init__(message, message_id=message_id)
        self.path = path


class TooManyHops(AtomicActorsError):
    """A chain of asks inside turns grew longer than `max_hops`; `path` names the chain."""

    code = "too_many_hops"

    def __init__(
        self, message: str = "", *, path: tuple[str, ...] = (), message_id: str | None = None
    ) -> None:
        super().__init__(message, message_id=message_id)
        self.path = path


# The answer is gone, was never there, or belongs to something else.


class ResultExpired(AtomicActorsError):
    """The message was accepted long ago; its outcome is no longer kept (`result_ttl_s`)."""

    code = "result_expired"


class UnknownMessage(AtomicActorsError):
    """The store has no message of this id: never accepted, or too old to tell."""

    code = "unknown_message"


class KeyReused(AtomicActorsError):
    """The idempotency key was used before, with other content."""

    code = "key_reused"


# The program is wrong: raised at the call site, before anything is sent.


class UsageError(AtomicActorsError):
    """A programming mistake; raised at the call site, before anything is sent."""

    code = "usage_error"


class InvalidConfig(UsageError, ValueError):
    """A setting has a value that cannot work; the text names the field and the remedy."""

    code = "invalid_config"


class InvalidEntityId(UsageError, ValueError):
    """An entity's kind or id is empty, too long, or has control characters."""

    code = "invalid_entity_id"


class InvalidMessageId(UsageError, ValueError):
    """The text is not a message id of the form `kind/id/<uuid7>`."""

    code = "invalid_message_id"


class InvalidKey(UsageError, ValueError):
    """An idempotency key is empty, too long, or has control characters."""

    code = "invalid_key"


class InvalidPayload(UsageError, ValueError):
    """A message's content does not fit its type; the text carries the path of the bad field."""

    code = "invalid_payload"


class PayloadTooLarge(InvalidPayload):
    """A message, reply or state is larger than `max_payload_bytes`."""

    code = "payload_too_large"


class InvalidReply(UsageError, ValueError):
    """A handler's reply cannot be encoded as the reply type that its message declares."""

    code = "invalid_reply"


class InvalidState(UsageError, ValueError):
    """A state class is not constructible without arguments, or does not survive encode and decode."""

    code = "invalid_state"


class InvalidHandler(UsageError, TypeError):
    """A handler or an actor class is declared in a way that cannot work."""

    code = "invalid_handler"


class UnknownKind(UsageError, LookupError):
    """No actor of this kind is known: neither on this node, nor was one ever registered in the namespace."""

    code = "unknown_kind"


class KindConflict(UsageError):
    """A kind belongs to another service of this namespace already; a kind's service is fixed for good."""

    code = "kind_conflict"


class UnknownMessageType(UsageError, LookupError):
    """The kind has no handler for this message."""

    code = "unknown_message_type"


class QueryChangedState(UsageError):
    """A query's handler changed the state or added to the outbox; queries change nothing."""

    code = "query_changed_state"


class OutboxLimitExceeded(UsageError):
    """A turn added more messages to its outbox than `max_outbox_messages`."""

    code = "outbox_limit_exceeded"


class NotSupported(UsageError):
    """The call does not apply here, such as `result` for a volatile kind or `ask` in a transactional turn."""

    code = "not_supported"


class UnknownNode(UsageError):
    """There is no node of this name."""

    code = "unknown_node"


# The store or the system itself.


class DrainTimeout(AtomicActorsError, TimeoutError):
    """Nodes that were asked to drain still own partitions; they keep releasing them."""

    code = "drain_timeout"


class StoreIncompatible(AtomicActorsError):
    """The store was made with other settings, another protocol version, or is too old."""

    code = "store_incompatible"


class StoreUnsafe(AtomicActorsError):
    """The store may lose accepted messages (eviction, no persistence) and the user did not allow that."""

    code = "store_unsafe"


class EmbeddedServerError(AtomicActorsError):
    """The private server could not be started, joined or stopped; the text says why and what helps."""

    code = "embedded_server"


class SystemFailed(AtomicActorsError):
    """A part of the system crashed by its own fault; `__cause__` says how."""

    code = "system_failed"


def _collect(cls: type[AtomicActorsError], into: dict[str, type[AtomicActorsError]]) -> None:
    into[cls.code] = cls
    # Runs while this module is imported, so no other code has one of these classes yet.
    for child in cls.__subclasses__():
        _collect(child, into)


_BY_CODE: dict[str, type[AtomicActorsError]] = {}
_collect(AtomicActorsError, _BY_CODE)


def error_from_code(code: str, message: str, *, message_id: str | None = None) -> AtomicActorsError:
    """Make the error a wire code stands for.

    An unknown code (written by a newer version) gives `AtomicActorsError` with the code in its text.
    """
    cls = _BY_CODE.get(code)
    if cls is None:
        return AtomicActorsError(f"{code}: {message}", message_id=message_id)
    if cls is Refused:
        return Refused(message)
    return cls(message, message_id=message_id)
