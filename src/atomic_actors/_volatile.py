"""Volatile kinds: one copy and order as ever, no journal, in-memory speed.

A volatile entity's mailbox is a deque here, and its messages are handed over as they are, not encoded:
they are immutable by convention. What it knows is gone when it passivates or its process ends; an ask is
answered at most once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVarTuple

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors._cells import Cell
from atomic_actors._children import Children
from atomic_actors._declarations import Outbox
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
from atomic_actors._turn import TurnContext, TurnServices, current_activation

__all__ = ("VolatileKinds",)

BUCKET_S: Final = 0.05
#: Messages that may wait for one volatile entity where the kind sets no `max_depth`.
DEFAULT_DEPTH: Final = 10_000

Ts = TypeVarTuple("Ts")


class _Waiting:
    """A message in a mailbox, and the asker who waits for it (`cell` None for a tell)."""

    __slots__ = ("cell", "deadline_s", "done", "handler", "message", "path")

    def __init__(
        self,
        message: Any,
        handler: BoundHandler,
        cell: Cell[Any] | None,
        deadline_s: float = float("inf"),
        path: tuple[str, ...] = (),
    ) -> None:
        self.message = message
        self.handler = handler
        self.cell = cell
        self.deadline_s = deadline_s
        #: The entities that wait for this message.
        self.path = path
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
    #: When the handler that runs now is cut off, on the backend's clock; 0 while none runs or nothing limits it.
    deadline_s: float = field(default=0.0, init=False)
    mailbox: deque[_Waiting] = field(factory=deque[_Waiting], init=False)
    idle: Cell[None] | None = field(default=None, init=False)
    _instance: Any = field(default=None, init=False)
    _context: TurnContext = field(init=False)
    _children: Children = field(init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    _turns: int = field(default=0, init=False)
    _limit_s: float = field(init=False)
    _scope: anyio.CancelScope | None = field(default=None, init=False)
    #: The scope was cancelled for a deadline; whatever becomes of the turn, nothing more may run in it.
    _is_cut: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._limit_s = self.kind.settings.turn_timeout_s
        self._context = TurnContext(self, Outbox(self.owner.max_outbox_messages))
        self._children = Children(self.owner.new_cell, lambda: None)

    @property
    def services(self) -> TurnServices:
        """The node (`TurnHost`)."""
        return self.owner.services

    @property
    def context(self) -> TurnContext:
        """What the running handler sees (`TurnHost`)."""
        return self._context

    @property
    def is_running(self) -> bool:
        """Whether a handler runs (`TurnHost`)."""
        return self.running

    def get_state(self) -> Any:
        """The state, wherever the handler's code put it (`TurnHost`)."""
        holder = self._instance
        return (
            self.state if holder is None or holder is self._context or not self._has_state else holder.state
        )

    def set_state(self, state: Any) -> None:
        """Replace the state (`TurnHost`)."""
        self.state = state
        if self._instance is not None and self._instance is not self._context:
            self._instance.state = state

    @property
    def _has_state(self) -> bool:
        return self.kind.decode_state is not None

    def start_child(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Run a task that ends before the turn does (`TurnHost`)."""
        if self._task_group is None or not self.running:
            raise NotSupported("context.start_soon: only while the handler runs")
        self._children.start(self._task_group, function, args)

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

    def cut_if_late(self, now_s: float) -> None:
        """Cut the running handler if its time is up; called by the sweeper."""
        if 0 < self.deadline_s <= now_s and self._scope is not None:
            self.deadline_s = 0.0
            self._is_cut = True
            self._scope.cancel()

    async def run(self) -> None:
        # The task was started by whoever asked first; that asker's turn is none of ours.
        current_activation.set(self)
        ended_well = False
        try:
            async with anyio.create_task_group() as self._task_group:
                await self._start()
                await self._serve()
                await self._stop()
            ended_well = True
        except Exception as error:
            self.owner.on_crash(error)
        finally:
            self.owner.ended(self, ended_well=ended_well)

    async def _serve(self) -> None:
        # One scope covers turn after turn; only after a cut there is a new one.
        while True:
            with anyio.CancelScope() as self._scope:
                await self._work()
            self.running, self.deadline_s = False, 0.0
            if not self._is_cut:
                return
            self._is_cut = False

    async def _work(self) -> None:
        mailbox, new_cell = self.mailbox, self.owner.new_cell
        while True:
            while mailbox:
                waiting = mailbox.popleft()
                if not waiting.done:
                    self.running = True
                    await self._turn(waiting)
                    self.running, self.deadline_s = False, 0.0
                    if self._is_cut:
                        return
            if self.closing:
                return
            self.idle = new_cell()
            await self.idle

    async def _start(self) -> None:
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
        self._turns += 1
        message_id = f"{self.ref}/{self._turns:032x}"
        deadline_s = waiting.deadline_s
        if self._limit_s:
            self.deadline_s = self.owner.clock() + self._limit_s
            deadline_s = min(deadline_s, self.deadline_s)
        self._context.begin(message_id, 1, deadline_s, waiting.path, transactional=False)
        try:
            try:
                reply = await spec.function(self._instance, waiting.message)
            finally:
                if self._children.count:
                    await self._children.wait()
            child_error = self._children.take_error()
            if child_error is not None:
                raise child_error
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
            if self._is_cut:
                await self._after_cut(waiting)
            else:
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

    async def _after_cut(self, waiting: _Waiting) -> None:
        """The handler was still running at its deadline: undo what it did, then say so."""
        if self._children.count:
            with anyio.CancelScope(shield=True):
                await self._children.end()
        self._children.take_error()
        self._roll_back()
        failed = HandlerFailed(
            f"DeadlineExceeded: the handler was still running after turn_timeout_s={self._limit_s:g}",
            error_type="DeadlineExceeded",
        )
        if waiting.cell is None:
            logger.error("%s failed in %s: %s", waiting.handler.spec.location, self.ref, failed)
        waiting.resolve(_Failure(failed))

    def _keep(self, handler: BoundHandler) -> None:
        encode = self.kind.encode_state
        if encode is None:
            return
        after = encode(self.get_state())
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
            self.set_state(decode(self.committed))


def _handler_failed(error: Exception) -> HandlerFailed:
    failed = HandlerFailed(f"{type(error).__name__}: {error}", error_type=type(error).__name__)
    failed.__cause__ = error
    return failed


@define(eq=False)
class VolatileKinds:
    """Every volatile entity that is alive on this node.

    Args:
        owns: whether this node's lease on a partition certainly holds.

    `services` (the node), `send_other` (an outbox message) and `on_crash` are set by the composition
    root, since they need the system themselves.
    """

    new_cell: Callable[[], Cell[Any]]
    clock: Callable[[], float]
    owns: Callable[[int], bool]
    max_activations: int
    max_outbox_messages: int
    services: TurnServices = field(init=False)
    send_other: Callable[[EntityRef, Message[Any]], None] = field(init=False)
    on_crash: Callable[[BaseException], None] = field(init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    _by_ref: OrderedDict[EntityRef, _VolatileActivation] = field(
        factory=OrderedDict[EntityRef, _VolatileActivation], init=False
    )
    _ends: dict[int, list[_Waiting]] = field(factory=dict[int, list[_Waiting]], init=False)
    _next_bucket: int = field(default=0, init=False)
    _told: int = field(default=0, init=False)
    #: An activation has ended since somebody put it here.
    _ended: anyio.Event = field(factory=anyio.Event, init=False)

    def start(self, task_group: TaskGroup) -> None:
        """Use `task_group` for the activations."""
        self._task_group = task_group
        self._next_bucket = int(self.clock() / BUCKET_S)

    async def ask(
        self,
        kind: Kind,
        ref: EntityRef,
        partition: int,
        message: Any,
        timeout_s: float,
        path: tuple[str, ...] = (),
    ) -> Any:
        """Hand a message over and wait for the reply.

        Raises:
            AskTimeout, HandlerFailed, Refused, ActorLimitExceeded, StoreUnavailable.
        """
        deadline_s = self.clock() + timeout_s if timeout_s else float("inf")
        waiting = _Waiting(*self._handler(kind, message), self.new_cell(), deadline_s, path)
        self._activation(kind, ref, partition).put(waiting)
        if timeout_s:
            bucket = int(deadline_s / BUCKET_S) + 1
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

    def _handler(self, kind: Kind, message: object) -> tuple[Any, BoundHandler]:
        cls: type[Any] = type(message)
        handler = kind.by_type.get(cls)
        if handler is not None:
            return message, handler
        name = message.name if isinstance(message, RawMessage) else message_name(cls)
        handler = kind.handler_for(name)
        if handler is None:
            raise UnknownMessageType(f"kind {kind.name!r} has no handler for {name!r}")
        if isinstance(message, RawMessage) and not handler.spec.raw:
            return handler.decode_payload(handler_bytes(message)), handler
        return message, handler

    def _activation(self, kind: Kind, ref: EntityRef, partition: int) -> _VolatileActivation:
        activation = self._by_ref.get(ref)
        if activation is None:
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
        return self._make(kind, ref, partition)

    def _make(self, kind: Kind, ref: EntityRef, partition: int) -> _VolatileActivation:
        assert self._task_group is not None
        activation = _VolatileActivation(self, kind, ref, partition, self.clock())
        self._by_ref[ref] = activation
        self._task_group.start_soon(activation.run)
        return activation

    def find(self, ref: EntityRef) -> bool:
        """Whether an entity is alive here."""
        return ref in self._by_ref

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

    def ended(self, activation: _VolatileActivation, *, ended_well: bool) -> None:
        """An activation is gone; what came while it went to sleep wakes its successor."""
        if self._by_ref.get(activation.ref) is activation:
            del self._by_ref[activation.ref]
        if activation.mailbox and ended_well and self._task_group is not None:
            successor = self._make(activation.kind, activation.ref, activation.partition)
            successor.mailbox.extend(activation.mailbox)
        else:
            gone = _Failure(StoreUnavailable(f"{activation.ref} was ended before the message began"))
            for waiting in activation.mailbox:
                waiting.resolve(gone)
        activation.mailbox.clear()
        self._ended.set()

    def tick(self, now_s: float) -> None:
        """End asks whose time is up, cut handlers that run too long, passivate the idle."""
        bucket = int(now_s / BUCKET_S)
        while self._next_bucket <= bucket:
            for waiting in self._ends.pop(self._next_bucket, ()):
                if not waiting.done:
                    waiting.resolve(_Failure(AskTimeout("no reply in time; a volatile kind keeps no result")))
            self._next_bucket += 1
        for activation in list(self._by_ref.values()):
            activation.cut_if_late(now_s)
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

    async def drain_partition(self, number: int) -> None:
        """Let the mailboxes of a partition run empty."""
        while mine := [activation for activation in self._by_ref.values() if activation.partition == number]:
            for activation in mine:
                self.close(activation)
            await self._next_end()

    async def drain(self) -> None:
        """Let every mailbox run empty."""
        for activation in list(self._by_ref.values()):
            self.close(activation)
        while self._by_ref:
            await self._next_end()

    async def _next_end(self) -> None:
        if self._ended.is_set():
            self._ended = anyio.Event()
        await self._ended.wait()

    def count(self, kind: str | None = None) -> int:
        """How many volatile entities are alive here."""
        return sum(1 for ref in self._by_ref if kind is None or ref.kind == kind)


def handler_bytes(message: RawMessage) -> bytes:
    """A raw message's payload, encoded, for a handler that wants it structured."""
    return encode_plain(message.payload)
