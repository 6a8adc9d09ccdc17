"""One turn: what a handler sees while it runs, and how its end becomes a verdict.

A turn runs one message, or a run of transactional ones from the head of the log. Each message ends in
a `Verdict`; all of them, with state and outbox, become one `Finish`. Nothing here talks to the store.
"""

from __future__ import annotations

import random
import traceback as traceback_module
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, cast

from attrs import define, field

from atomic_actors.actors._declarations import Context, Outbox
from atomic_actors.actors._kinds import BoundHandler, BoundKind
from atomic_actors.actors._messages import Message
from atomic_actors.base._errors import AtomicActorsError, NotSupported, Refused
from atomic_actors.base._lifecycle import Event, decide_failure
from atomic_actors.base._records import EntityRef
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import Envelope, Failure, Refusal, encode_plain
from atomic_actors.codec._refusals import home_of
from atomic_actors.journal._protocol import Body, Dispatch, Dispatched, Outgoing, Verdict
from atomic_actors.node.execution._entity_state import EntityState

__all__ = (
    "COMPLETE",
    "CurrentActivation",
    "Member",
    "Turn",
    "TurnCalls",
    "TurnContext",
    "current_activation",
    "encode_refusal",
    "failure_of",
    "failure_verdict",
    "refusal_verdict",
)


class TurnCalls(Protocol):
    """Sends what a turn sends while it runs; the node's `Sender`."""

    async def ask_from_turn(
        self, context: TurnContext, entity: EntityRef, message: Message[Any], ordinal: int
    ) -> Any:
        """Send an ask on behalf of a running turn."""
        ...

    def send_soon(self, entity: EntityRef, message: Message[Any]) -> None:
        """Send without waiting: what the outbox of a volatile turn does."""
        ...


class CurrentActivation(Protocol):
    """The activation around a handler, of a durable or a volatile kind."""

    ref: EntityRef
    state: EntityState

    @property
    def calls(self) -> TurnCalls:
        """The sender of the activation's own system."""
        ...

    @property
    def context(self) -> TurnContext:
        """What the running handler sees."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether a turn is in a handler or on its way to the store."""
        ...

    def start_child(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Run a task that ends before the commit."""
        ...


#: The activation whose handler the running task belongs to; set once for each activation's task, and
#: inherited by what the handler starts.
current_activation: ContextVar[CurrentActivation | None] = ContextVar("current_activation", default=None)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

#: How nearly every message ends; reading an enumeration's value takes a while.
COMPLETE: Final = Event.COMPLETE.value

MAX_TRACEBACK_CHARACTERS: Final = 16_000
MAX_ERROR_CHARACTERS: Final = 2_000


@define(eq=False, kw_only=True)
class Member:
    """One message of a turn, decoded as far as it could be."""

    item: Dispatched
    body: Body
    envelope: Envelope
    handler: BoundHandler
    message: Any

    @property
    def sender(self) -> str:
        """The node that waits for the answer, or "": how a tell ended is not reported."""
        return self.envelope.headers.sender if self.body.waited_for else ""


@define(eq=False, kw_only=True)
class Turn:
    """A dispatch while it is worked on.

    Invariant: `verdicts` covers exactly the messages before `position`.
    """

    dispatch: Dispatch
    position: int = 0
    # One per turn: a plain `list` is made faster than a `list[Verdict]`.
    verdicts: list[Verdict] = field(factory=cast("Callable[[], list[Verdict]]", list))
    #: What is known of each message that was begun, for answers and events.
    members: list[Member | None] = field(factory=cast("Callable[[], list[Member | None]]", list))
    outbox: list[Outgoing] = field(factory=cast("Callable[[], list[Outgoing]]", list))
    #: The rest of the run is given back: a retry, or the entity parks.
    ended: bool = False
    park: bool = False
    #: Set once the `Finish` is queued: from then on a cancel settles nothing.
    committing: bool = False
    #: The messages whose askers on other nodes the commit itself tells.
    notified: set[str] = field(factory=cast("Callable[[], set[str]]", set))
    #: Whether any handler began: if none did, an interruption counts nothing.
    began: bool = False


class TurnContext(Context[Any]):
    """The turn's face to the handler. One for each activation, filled in anew for every message."""

    __slots__ = (
        "_activation",
        "_ordinal",
        "_transactional",
        "attempt",
        "deadline",
        "entity",
        "fencing_token",
        "idempotency_key",
        "message_id",
        "outbox",
        "path",
    )

    def __init__(self, activation: CurrentActivation, outbox: Outbox) -> None:
        self._activation = activation
        self._ordinal = 0
        self._transactional = False
        self.entity = activation.ref
        self.outbox = outbox
        self.message_id = ""
        self.attempt = 0
        self.deadline = float("inf")
        self.fencing_token = 0
        self.idempotency_key = ""
        #: The entities that wait for this turn, the first asker first.
        self.path: tuple[str, ...] = ()

    def begin(
        self, message_id: str, attempt: int, deadline: float, path: tuple[str, ...], *, transactional: bool
    ) -> None:
        """Fill in what the next message brings."""
        self.message_id = message_id
        self.idempotency_key = message_id
        self.attempt = attempt
        self.deadline = deadline
        self.path = path
        self._transactional = transactional
        self._ordinal = 0

    @property
    def state(self) -> Any:
        """The entity's state."""
        return self._activation.state.value

    @state.setter
    def state(self, value: Any) -> None:
        self._activation.state.value = value

    async def ask(self, entity: EntityRef, message: Message[R]) -> R:
        """See `Context.ask`."""
        self.refuse_in_transaction()
        self._ordinal += 1
        reply: R = await self._activation.calls.ask_from_turn(self, entity, message, self._ordinal)
        return reply

    def refuse_in_transaction(self) -> None:
        """Raise `NotSupported` if the handler that runs is transactional: then nothing may be asked."""
        if self._transactional:
            raise NotSupported(
                "ask: a transactional turn may change only its state and outbox; use self.outbox.add(...), or "
                "make the handler effectful (without transactional=True)"
            )

    def start_soon(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """See `Context.start_soon`."""
        self._activation.start_child(function, args)


def failure_of(error: BaseException) -> Failure:
    """The stored form of a handler's exception, bounded in size."""
    trace = "".join(traceback_module.format_exception(error))
    if len(trace) > MAX_TRACEBACK_CHARACTERS:
        half = MAX_TRACEBACK_CHARACTERS // 2
        trace = f"{trace[:half]}\n... cut ...\n{trace[-half:]}"
    return Failure(type(error).__name__, str(error)[:MAX_ERROR_CHARACTERS], trace)


def failure_verdict(kind: BoundKind, item: Dispatched, failure: Failure, max_attempts: int) -> Verdict:
    """RETRY with its back-off, or FAIL with a dead letter."""
    event = decide_failure(item.attempt, item.interruptions, max_attempts)
    if event is Event.RETRY:
        return Verdict(
            uid=item.uid, event=event.value, delay_ms=backoff_ms(kind, item.attempt - item.interruptions)
        )
    told = encode_plain({"error_type": failure.error_type, "text": failure.text})
    return Verdict(uid=item.uid, event=event.value, reply=told, error=encode_plain(failure))


def backoff_ms(kind: BoundKind, failures: int) -> int:
    """How long a head waits after its nth failure, with jitter."""
    settings = kind.settings
    delay_s = settings.backoff_initial_s
    if settings.backoff == "exponential":
        # Capped before it is raised to the power: 2 ** failures grows without end.
        delay_s *= 2.0 ** min(failures - 1, 40)
    delay_s = min(delay_s, settings.backoff_max_s)
    return int(delay_s * (1 + settings.backoff_jitter * random.uniform(-1, 1)) * 1000)


def encode_refusal(codec: Codec, refusal: Refused) -> tuple[str, Any]:
    """The wire name and the plain fields of a refusal; its name alone where they do not encode."""
    try:
        return codec.encode_refusal(refusal)
    except AtomicActorsError as error:
        logger.error("the fields of %s do not encode: %s", type(refusal).__name__, error)
        return type(refusal).__name__, None


def refusal_verdict(codec: Codec, item: Dispatched, refusal: Refused) -> Verdict:
    """COMPLETED with a refusal as the answer."""
    name, details = encode_refusal(codec, refusal)
    text = str(refusal) if type(refusal) is Refused else ""
    told = encode_plain(Refusal(name, details, text, home_of(type(refusal))))
    return Verdict(uid=item.uid, event=Event.REFUSE.value, reply=told)
