"""Volatile kinds: one copy and order as ever, no journal, in-memory speed.

A volatile entity's mailbox is a deque here, and its messages are handed over as they are, not encoded:
they are immutable by convention. What it knows is gone when it passivates or its process ends; an ask is
answered at most once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVarTuple

from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors._cells import Cell
from atomic_actors._declarations import Context, Outbox
from atomic_actors._envelope import encode_plain
from atomic_actors._errors import (
    ActorLimitExceeded,
    AskTimeout,
    HandlerFailed,
    NotSupported,
    QueryChangedState,
    QueueDepthExceeded,
    Refused,
    StoreUnavailable,
    SystemNotRunning,
    UnknownMessageType,
)
from atomic_actors._kinds import BoundHandler, Kind
from atomic_actors._messages import Message, RawMessage, message_name
from atomic_actors._records import EntityRef, Receipt
from atomic_actors._telemetry import logger
from atomic_actors._turn import current_activation

__all__ = ("VolatileKinds",)

BUCKET_S: Final = 0.05
#: Messages that may wait for one volatile entity where the kind sets no `max_depth`.
DEFAULT_DEPTH: Final = 10_000

Ts = TypeVarTuple("Ts")

AskOther = Callable[[EntityRef, Message[Any]], Any]


class _Waiting:
    """A message in a mailbox, and the asker who waits for it (`cell` None for a tell)."""

    __slots__ = ("cell", "done", "handler", "message")

    def __init__(self, message: Any, handler: BoundHandler, cell: Cell[Any] | None) -> None:
        self.message = message
        self.handler = handler
        self.cell = cell
        self.done = False

    def resolve(self, value: object) -> None:
        if not self.done:
            self.done = True
            if self.cell is not None:
                self.cell.set(value)


class _Failure:
    """An exception on its way to the asker; a bare exception could be a reply."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _VolatileContext(Context[Any]):
    __slots__ = (
        "_activation",
        "attempt",
        "deadline",
        "entity",
        "fencing_token",
        "idempotency_key",
        "message_id",
        "outbox",
    )

    def __init__(self, activation: _VolatileActivation, limit: int) -> None:
        self._activation = activation
        self.entity = activation.ref
        self.outbox = Outbox(limit)
        self.message_id = ""
        self.attempt = 1
        self.deadline = float("inf")
        self.fencing_token = 0
        self.idempotency_key = ""

    @property
    def state(self) -> Any:
        return self._activation.state

    @state.setter
    def state(self, value: Any) -> None:
        self._activation.state = value

    async def ask(self, entity: EntityRef, message: Message[Any]) -> Any:
        return await self._activation.owner.ask_other(entity, message)

    def start_soon(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        raise NotSupported("context.start_soon: a volatile kind has no commit to wait for its children")


@define(eq=False)
class _VolatileActivation:
    owner: VolatileKinds
    kind: Kind
    ref: EntityRef
    partition: int
    used_at_s: float
    state: Any = None
    #: The state's bytes after the last turn that ended well: what a failed turn goes back to.
    committed: bytes = b""
    closing: bool = False
    running: bool = False
    mailbox: deque[_Waiting] = field(factory=deque, init=False)
    idle: Cell[None] | None = field(default=None, init=False)
    _instance: Any = field(default=None, init=False)
    _context: _VolatileContext = field(init=False)

    def put(self, waiting: _Waiting) -> None:
        self.mailbox.append(waiting)
        idle = self.idle
        if idle is not None:
            self.idle = None
            idle.set(None)

    def wake(self) -> None:
        idle = self.idle
        if idle is not None:
            self.idle = None
            idle.set(None)

    async def run(self) -> None:
        # The task was started by whoever asked first; that asker's turn is none of ours.
        current_activation.set(None)
        try:
            await self._start()
            mailbox, new_cell = self.mailbox, self.owner.new_cell
            while True:
                while mailbox:
                    waiting = mailbox.popleft()
                    if not waiting.done:
                        self.running = True
                        await self._turn(waiting)
                        self.running = False
                if self.closing:
                    break
                self.idle = new_cell()
                await self.idle
            await self._stop()
        except Exception as error:
            self.owner.on_crash(error)
        finally:
            self.owner.ended(self)

    async def _start(self) -> None:
        self._context = _VolatileContext(self, self.owner.max_outbox_messages)
        self.state = self.kind.new_state()
        try:
            if self.kind.free:
                self._instance = self._context
            else:
                self._instance = self.kind.spec.make_instance()
                self._instance.context = self._context
                self._instance.outbox = self._context.outbox
                self._instance.state = self.state
            if self.kind.encode_state is not None:
                self.committed = self.kind.encode_state(self.state)
            if self.kind.spec.on_activate is not None:
                await self.kind.spec.on_activate(self._instance)
        except Exception as error:
            self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        failure = _Failure(_handler_failed(error))
        while self.mailbox:
            self.mailbox.popleft().resolve(failure)
        self.closing = True

    async def _stop(self) -> None:
        hook = self.kind.spec.on_passivate
        if hook is not None and self._instance is not None:
            try:
                await hook(self._instance)
            except Exception:
                logger.exception("on_passivate of %s raised", self.ref)

    async def _turn(self, waiting: _Waiting) -> None:
        spec = waiting.handler.spec
        try:
            reply = await spec.function(self._instance, waiting.message)
            self._keep(waiting.handler)
        except Refused as refusal:
            self._roll_back()
            waiting.resolve(_Failure(refusal))
        except Exception as error:
            self._roll_back()
            if waiting.cell is None:
                logger.exception("%s failed in %s", spec.location, self.ref)
            waiting.resolve(_Failure(_handler_failed(error)))
        except BaseException:
            interrupted = StoreUnavailable(f"{self.ref} was ended while it ran {spec.name}")
            waiting.resolve(_Failure(interrupted))
            raise
        else:
            outbox = self._context.outbox
            if len(outbox):
                entries = list(outbox)
                outbox.clear()
                for entity, message in entries:
                    self.owner.send_other(entity, message)
            waiting.resolve(reply)
        self.used_at_s = self.owner.clock()

    def _keep(self, handler: BoundHandler) -> None:
        encode = self.kind.encode_state
        if encode is None:
            return
        state = self.state if self._instance is self._context else self._instance.state
        after = encode(state)
        if handler.spec.query and (after != self.committed or len(self._context.outbox)):
            raise QueryChangedState(
                f"{handler.spec.location} handles a query but changed the state or added to the outbox; "
                "make its message a Command"
            )
        self.committed = after

    def _roll_back(self) -> None:
        self._context.outbox.clear()
        decode = self.kind.decode_state
        if decode is not None:
            self.state = decode(self.committed)
            if self._instance is not self._context:
                self._instance.state = self.state


def _handler_failed(error: Exception) -> HandlerFailed:
    failed = HandlerFailed(f"{type(error).__name__}: {error}", error_type=type(error).__name__)
    failed.__cause__ = error
    return failed


@define(eq=False)
class VolatileKinds:
    """Every volatile entity that is alive on this node.

    Args:
        owns: whether this node's lease on a partition certainly holds.

    `ask_other` (an ask of a turn), `send_other` (an outbox message) and `on_crash` are set by the
    composition root, since they need the system themselves.
    """

    new_cell: Callable[[], Cell[Any]]
    clock: Callable[[], float]
    owns: Callable[[int], bool]
    max_activations: int
    max_outbox_messages: int
    ask_other: AskOther = field(init=False)
    send_other: Callable[[EntityRef, Message[Any]], None] = field(init=False)
    on_crash: Callable[[BaseException], None] = field(init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    _by_ref: OrderedDict[EntityRef, _VolatileActivation] = field(factory=OrderedDict, init=False)
    _ends: dict[int, list[_Waiting]] = field(factory=dict, init=False)
    _next_bucket: int = field(default=0, init=False)
    _told: int = field(default=0, init=False)
    _all_gone: Cell[None] | None = field(default=None, init=False)

    def start(self, task_group: TaskGroup) -> None:
        """Use `task_group` for the activations."""
        self._task_group = task_group
        self._next_bucket = int(self.clock() / BUCKET_S)

    async def ask(self, kind: Kind, ref: EntityRef, partition: int, message: Any, timeout_s: float) -> Any:
        """Hand a message over and wait for the reply.

        Raises:
            AskTimeout, HandlerFailed, Refused, ActorLimitExceeded, StoreUnavailable.
        """
        waiting = _Waiting(*self._handler(kind, message), self.new_cell())
        self._activation(kind, ref, partition).put(waiting)
        if timeout_s:
            bucket = int((self.clock() + timeout_s) / BUCKET_S) + 1
            self._ends.setdefault(bucket, []).append(waiting)
        assert waiting.cell is not None
        try:
            reply = await waiting.cell
        except BaseException:
            waiting.done = True
            raise
        if type(reply) is _Failure:
            raise reply.error
        return reply

    def tell(self, kind: Kind, ref: EntityRef, partition: int, message: Any) -> Receipt[Any]:
        """Hand a message over; it is handled at most once."""
        handler_message, handler = self._handler(kind, message)
        self._activation(kind, ref, partition).put(_Waiting(handler_message, handler, None))
        self._told += 1
        return Receipt(f"{ref}/{self._told:032x}", ref)

    def _handler(self, kind: Kind, message: Any) -> tuple[Any, BoundHandler]:
        handler = kind.by_type.get(type(message))
        if handler is not None:
            return message, handler
        name = message.name if isinstance(message, RawMessage) else message_name(type(message))
        handler = kind.handler_for(name)
        if handler is None:
            raise UnknownMessageType(f"kind {kind.name!r} has no handler for {name!r}")
        if isinstance(message, RawMessage) and not handler.spec.raw:
            return handler.decode_payload(handler_bytes(message)), handler
        return message, handler

    def _activation(self, kind: Kind, ref: EntityRef, partition: int) -> _VolatileActivation:
        activation = self._by_ref.get(ref)
        if activation is None or activation.closing:
            activation = self._start(kind, ref, partition)
        elif not self.owns(partition):
            raise StoreUnavailable(f"{ref}: this node does not own its partition now; nothing was sent")
        limit = kind.settings.max_depth or DEFAULT_DEPTH
        if len(activation.mailbox) >= limit:
            raise QueueDepthExceeded(f"{ref}: {limit} messages wait already (max_depth)")
        return activation

    def _start(self, kind: Kind, ref: EntityRef, partition: int) -> _VolatileActivation:
        if self._task_group is None:
            raise SystemNotRunning("the actor system is not running")
        if not self.owns(partition):
            raise StoreUnavailable(f"{ref}: this node does not own its partition now; nothing was sent")
        if self.max_activations and len(self._by_ref) >= self.max_activations and not self._evict():
            raise ActorLimitExceeded(f"{ref}: {self.max_activations} activations are busy (max_activations)")
        activation = _VolatileActivation(self, kind, ref, partition, self.clock())
        self._by_ref[ref] = activation
        self._task_group.start_soon(activation.run)
        return activation

    def _evict(self) -> bool:
        for activation in self._by_ref.values():
            if not activation.running and not activation.mailbox and not activation.closing:
                self.close(activation)
                return True
        return False

    def close(self, activation: _VolatileActivation) -> None:
        """Ask an activation to passivate."""
        activation.closing = True
        activation.wake()

    def ended(self, activation: _VolatileActivation) -> None:
        """An activation is gone."""
        if self._by_ref.get(activation.ref) is activation:
            del self._by_ref[activation.ref]
        if not self._by_ref and self._all_gone is not None:
            self._all_gone.set(None)
        gone = _Failure(StoreUnavailable(f"{activation.ref} was ended before the message began"))
        while activation.mailbox:
            activation.mailbox.popleft().resolve(gone)

    def tick(self, now_s: float) -> None:
        """End asks whose time is up, passivate the idle, end what this node does not own any more."""
        bucket = int(now_s / BUCKET_S)
        while self._next_bucket <= bucket:
            for waiting in self._ends.pop(self._next_bucket, ()):
                if not waiting.done:
                    waiting.resolve(_Failure(AskTimeout("no reply in time; a volatile kind keeps no result")))
            self._next_bucket += 1
        for activation in list(self._by_ref.values()):
            limit_s = activation.kind.settings.idle_timeout_s
            idle = not activation.running and not activation.mailbox
            if limit_s and idle and activation.used_at_s + limit_s <= now_s:
                self.close(activation)

    def passivate(self, ref: EntityRef) -> bool:
        """Ask an entity to go to sleep; returns whether it was alive."""
        activation = self._by_ref.get(ref)
        if activation is None or activation.closing:
            return False
        self.close(activation)
        return True

    async def drain(self) -> None:
        """Let every mailbox run empty."""
        for activation in list(self._by_ref.values()):
            self.close(activation)
        while self._by_ref:
            self._all_gone = self.new_cell()
            await self._all_gone

    def count(self, kind: str | None = None) -> int:
        """How many volatile entities are alive here."""
        return sum(1 for ref in self._by_ref if kind is None or ref.kind == kind)


def handler_bytes(message: RawMessage) -> bytes:
    """A raw message's payload, encoded, for a handler that wants it structured."""
    return encode_plain(message.payload)
