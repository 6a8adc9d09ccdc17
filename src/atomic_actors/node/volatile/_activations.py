"""Volatile kinds: one copy and ordered messages as for durable kinds, but no journal: in-memory speed.

A volatile entity's mailbox is a deque here, and messages of this node are handed over as they are, not encoded:
they are immutable by convention. What it knows is gone when it passivates, or when its node does not own its
partition any more; an ask is answered at most once.

What other nodes send comes through `_host`, and what goes to them through `_routes`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.actors._declarations import Outbox
from atomic_actors.actors._kinds import BoundHandler, BoundKind
from atomic_actors.actors._messages import RawMessage, message_name
from atomic_actors.base._config import Config
from atomic_actors.base._errors import (
    ActorLimitExceeded,
    AskTimeout,
    HandlerFailed,
    Interrupted,
    NotSupported,
    OwnerUnavailable,
    QueryChangedState,
    QueueDepthExceeded,
    Refused,
    SystemNotRunning,
    UnknownMessageType,
)
from atomic_actors.base._oneshot import Backend, OneShot
from atomic_actors.base._records import EntityRef, Receipt
from atomic_actors.base._telemetry import logger
from atomic_actors.base._timer_wheel import TimerWheel
from atomic_actors.codec._envelope import encode_plain
from atomic_actors.node.execution._body import Body
from atomic_actors.node.execution._entity_state import EntityState
from atomic_actors.node.execution._turn import TurnCalls, TurnContext, current_activation
from atomic_actors.node.execution._turn_scope import Children, TurnScope
from atomic_actors.node.ownership._membership import Membership

__all__ = ("Failed", "VolatileKinds", "Waiting")

#: Messages that may wait for one volatile entity where the kind sets no `max_depth`.
DEFAULT_DEPTH: Final = 10_000


class Answer(Protocol):
    """Where what became of a message goes, once: a one-shot of this node, or a frame to another one."""

    def set(self, value: Any) -> None:
        """Take a reply, or a `Failed`. Must not raise."""
        ...


class Waiting:
    """A message in a mailbox, and the asker who waits for it.

    Args:
        answer: gets what became of it; None where no answer is wanted.
        is_asked: the sender waits for the reply. Otherwise a failure is logged.
    """

    __slots__ = ("answer", "deadline_s", "done", "handler", "is_asked", "message", "path")

    def __init__(
        self,
        message: Any,
        handler: BoundHandler,
        answer: Answer | None,
        deadline_s: float = float("inf"),
        path: tuple[str, ...] = (),
        *,
        is_asked: bool = True,
    ) -> None:
        self.message = message
        self.handler = handler
        self.answer = answer
        self.is_asked = is_asked
        self.deadline_s = deadline_s
        #: The entities that wait for this message.
        self.path = path
        self.done = False

    def release(self) -> None:
        """Drop what only the asker needs: the wheel keeps this until the ask's time is up.

        At full speed it holds hundreds of thousands of them, and the garbage collector walks over all that hangs
        on each.
        """
        self.answer = self.message = None

    def resolve(self, value: object) -> None:
        """Say what became of it; a second time changes nothing."""
        if not self.done:
            self.done = True
            if self.answer is not None:
                self.answer.set(value)


class Failed:
    """An exception on its way to the asker; a bare exception could be a reply."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Mailbox(deque[Waiting]):
    """What waits for one entity, and what the entity's task waits with while nothing does."""

    waiter: OneShot[None] | None = None

    def put(self, waiting: Waiting) -> None:
        self.append(waiting)
        self.wake()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            waiter.set(None)


@define(eq=False, kw_only=True)
class _VolatileActivation:
    owner: VolatileKinds
    kind: BoundKind
    ref: EntityRef
    partition: int
    #: closing: asked to passivate; lost: its node does not own the partition any more, so that it is being
    #: cancelled, and nothing may begin in it.
    status: Literal["active", "closing", "lost"]
    used_at_s: float = field(init=False)
    #: Its `committed` bytes are those after the last turn that ended well: what a failed turn goes back to.
    state: EntityState = field(init=False)
    is_running: bool = field(default=False, init=False)
    mailbox: _Mailbox = field(factory=_Mailbox, init=False)
    turn_scope: TurnScope = field(factory=TurnScope, init=False)
    context: TurnContext = field(init=False)
    _instance: Any = field(default=None, init=False)
    _children: Children = field(init=False)
    _turns: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        backend, config = self.owner.backend, self.owner.config
        self.used_at_s = backend.clock()
        self.state = EntityState(self.kind, str(self.ref), config.max_payload_bytes)
        self.context = TurnContext(self, Outbox(config.max_outbox_messages))
        self._children = Children(backend, None)

    @property
    def calls(self) -> TurnCalls:
        """The sender of its system (`CurrentActivation`)."""
        return self.owner.calls

    def start_child(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Run a task that ends before the turn does (`CurrentActivation`)."""
        if not self.is_running:
            raise NotSupported("context.start_soon: only while the handler runs")
        self._children.start(function, args)

    def end(self) -> None:
        """Cancel what runs: the partition is not owned here any more. What has not begun does not run."""
        self.status = "lost"
        lost = Failed(OwnerUnavailable(f"{self.ref}: its partition was lost before the message began"))
        while self.mailbox:
            self.mailbox.popleft().resolve(lost)
        if self._children.task_group is not None:
            self._children.task_group.cancel_scope.cancel()

    async def run(self) -> None:
        # The task was started by the first asker, whose turn is a different one.
        current_activation.set(self)
        ended_well = False
        try:
            async with anyio.create_task_group() as self._children.task_group:
                if self.status != "lost":
                    await self._start()
                    await self._serve()
                    await self._stop()
            ended_well = True
        except Exception as error:
            self.owner.body.crashed(error)
        finally:
            self.owner.ended(self, ended_well=ended_well)

    async def _serve(self) -> None:
        # One scope covers turn after turn; only after a cut there is a new one.
        while True:
            with anyio.CancelScope() as self.turn_scope.scope:
                await self._work()
            self.is_running, self.turn_scope.deadline_s = False, 0.0
            if self.turn_scope.cut_by is None:
                return
            self.turn_scope.cut_by = None

    async def _work(self) -> None:
        mailbox, owner, partition, turn_scope = self.mailbox, self.owner, self.partition, self.turn_scope
        while True:
            while mailbox:
                if self.status == "lost":
                    return
                waiting = mailbox.popleft()
                if not waiting.done and (owner.owns(partition) or self._give_back(waiting)):
                    self.is_running = True
                    await self._turn(waiting)
                    self.is_running, turn_scope.deadline_s = False, 0.0
                    if turn_scope.cut_by is not None:
                        return
            if self.status != "active":
                return
            mailbox.waiter = owner.backend.new_oneshot()
            await mailbox.waiter

    def _give_back(self, waiting: Waiting) -> bool:
        text = f"{self.ref}: this node did not own its partition when the message was to begin"
        waiting.resolve(Failed(OwnerUnavailable(text)))
        return False

    async def _start(self) -> None:
        state = self.state
        state.value = self.kind.new_state()
        try:
            if self.kind.free:
                self._instance = self.context
            else:
                self._instance = self.kind.spec.make_instance()
                self._instance.context = self.context
                self._instance.outbox = self.context.outbox
                state.hold_in(self._instance)
            if self.kind.state_coder is not None:
                state.committed = self.kind.state_coder.encode(state.value)
            if self.kind.spec.on_activate is not None:
                await self.kind.spec.on_activate(self._instance)
        except Exception as error:
            self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        failure = Failed(_handler_failed(error))
        while self.mailbox:
            self.mailbox.popleft().resolve(failure)
        self.status = "closing"

    async def _stop(self) -> None:
        hook = self.kind.spec.on_passivate
        if self.status == "lost":
            return
        if hook is not None and self._instance is not None:
            try:
                await hook(self._instance)
            except Exception:
                logger.exception("on_passivate of %s raised", self.ref)

    async def _turn(self, waiting: Waiting) -> None:
        spec, limit_s = waiting.handler.spec, self.kind.settings.turn_timeout_s
        self._turns += 1
        message_id = f"{self.ref}/{self._turns:032x}"
        deadline_s = waiting.deadline_s
        if limit_s:
            self.turn_scope.deadline_s = self.owner.backend.clock() + limit_s
            deadline_s = min(deadline_s, self.turn_scope.deadline_s)
        self.context.begin(message_id, 1, deadline_s, waiting.path, transactional=False)
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
            waiting.resolve(Failed(refusal))
        except Exception as error:
            self._roll_back()
            if not waiting.is_asked:
                logger.exception("%s failed in %s", spec.location, self.ref)
            waiting.resolve(Failed(_handler_failed(error)))
        except BaseException:
            if self.turn_scope.cut_by is not None:
                await self._after_cut(waiting)
            else:
                text = (
                    f"{self.ref} was ended while it ran {spec.name}: it may have run wholly, partly or not at all; "
                    "a volatile kind has no dead letters"
                )
                waiting.resolve(Failed(Interrupted(text)))
            raise
        else:
            outbox = self.context.outbox
            if len(outbox):
                entries = list(outbox)
                outbox.clear()
                for entity, message in entries:
                    self.owner.calls.send_soon(entity, message)
            waiting.resolve(reply)
        self.used_at_s = self.owner.backend.clock()

    async def _after_cut(self, waiting: Waiting) -> None:
        """The handler was still running at its deadline: undo what it did, then say so."""
        if self._children.count:
            with anyio.CancelScope(shield=True):
                await self._children.end()
        self._children.take_error()
        self._roll_back()
        failed = HandlerFailed(
            f"DeadlineExceeded: the handler was still running after turn_timeout_s={self.kind.settings.turn_timeout_s:g}",
            error_type="DeadlineExceeded",
        )
        if not waiting.is_asked:
            logger.error("%s failed in %s: %s", waiting.handler.spec.location, self.ref, failed)
        waiting.resolve(Failed(failed))

    def _keep(self, handler: BoundHandler) -> None:
        coder = self.kind.state_coder
        if coder is None:
            return
        after = coder.encode(self.state.value)
        if handler.spec.query and (after != self.state.committed or len(self.context.outbox)):
            raise QueryChangedState(
                f"{handler.spec.location} handles a query but changed the state or added to the outbox; "
                "make its message a Command"
            )
        self.state.committed = after

    def _roll_back(self) -> None:
        self.context.outbox.clear()
        coder = self.kind.state_coder
        if coder is not None:
            self.state.value = coder.decode(self.state.committed)


def _handler_failed(error: Exception) -> HandlerFailed:
    failed = HandlerFailed(f"{type(error).__name__}: {error}", error_type=type(error).__name__)
    failed.__cause__ = error
    return failed


@define(eq=False)
class VolatileKinds:
    """Every volatile entity that is alive on this node.

    Args:
        membership: which partitions this node owns.
        body: ends the system if an activation fails by our own fault.
    """

    config: Config
    backend: Backend
    membership: Membership
    body: Body
    #: Sends what turns send. It hands messages over here, so it comes with `start`: no turn runs before.
    calls: TurnCalls = field(init=False)
    #: Partitions that are being released: nothing begins there any more.
    releasing: set[int] = field(factory=set[int], init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    _by_ref: OrderedDict[EntityRef, _VolatileActivation] = field(
        factory=OrderedDict[EntityRef, _VolatileActivation], init=False
    )
    _ends: TimerWheel[Waiting] = field(factory=TimerWheel[Waiting], init=False)
    _tell_count: int = field(default=0, init=False)
    #: Partitions that are being drained; None stands for all of them.
    _closing: list[int | None] = field(factory=list[int | None], init=False)
    #: Those who wait until something has ended.
    _ended: list[OneShot[None]] = field(factory=list[OneShot[None]], init=False)

    def start(self, task_group: TaskGroup, calls: TurnCalls) -> None:
        """Use `task_group` for the activations, and `calls` for what turns send."""
        self._task_group = task_group
        self.calls = calls

    def owns(self, partition: int) -> bool:
        """Whether this node's lease on a partition certainly holds, and it is not being released."""
        return self.membership.leases.is_valid(partition) and partition not in self.releasing

    def claim_of(self, partition: int) -> str:
        """The claim under which others may send messages here; "" where they are for the next owner."""
        is_ours = self.owns(partition) and not self.is_draining(partition)
        return self.membership.claims[partition] if is_ours else ""

    async def ask(
        self,
        kind: BoundKind,
        ref: EntityRef,
        partition: int,
        message: Any,
        timeout_s: float,
        path: tuple[str, ...] = (),
    ) -> Any:
        """Hand a message over and wait for the reply.

        Raises:
            AskTimeout, HandlerFailed, Interrupted, Refused.
            NotExecuted: `QueueDepthExceeded`, `ActorLimitExceeded`; `OwnerUnavailable` where this node does not own
                the partition, or lost it before the message began.
        """
        deadline_s = self.backend.clock() + timeout_s if timeout_s else float("inf")
        oneshot = self.backend.new_oneshot()
        waiting = Waiting(*self._handler(kind, message), oneshot, deadline_s, path)
        self.hand_over(kind, ref, partition, waiting)
        try:
            reply = await oneshot
        except BaseException:
            waiting.done = True
            raise
        waiting.release()
        if type(reply) is Failed:
            raise reply.error
        return reply

    def hand_over(self, kind: BoundKind, ref: EntityRef, partition: int, waiting: Waiting) -> None:
        """Put a message into an entity's mailbox; wakes the entity where it sleeps.

        Raises:
            NotExecuted: as of `ask`.
        """
        self._activation(kind, ref, partition).mailbox.put(waiting)
        if waiting.deadline_s != float("inf"):
            self._ends.add(waiting.deadline_s, waiting)

    def tell(self, kind: BoundKind, ref: EntityRef, partition: int, message: Any) -> Receipt[Any]:
        """Hand a message over; it is handled at most once."""
        handler_message, handler = self._handler(kind, message)
        self._activation(kind, ref, partition).mailbox.put(
            Waiting(handler_message, handler, None, is_asked=False)
        )
        self._tell_count += 1
        return Receipt(f"{ref}/{self._tell_count:032x}", ref)

    def _handler(self, kind: BoundKind, message: object) -> tuple[Any, BoundHandler]:
        cls: type[Any] = type(message)
        handler = kind.by_type.get(cls)
        if handler is not None:
            return message, handler
        name = message.name if isinstance(message, RawMessage) else message_name(cls)
        handler = kind.handler_for(name)
        if handler is None:
            raise UnknownMessageType(f"kind {kind.name!r} has no handler for {name!r}")
        if isinstance(message, RawMessage) and not handler.spec.raw:
            return handler.payload_coder.decode(encode_plain(message.payload)), handler
        return message, handler

    def _activation(self, kind: BoundKind, ref: EntityRef, partition: int) -> _VolatileActivation:
        activation = self._by_ref.get(ref)
        if activation is None:
            activation = self._start(kind, ref, partition)
        elif not self.owns(partition):
            raise self._not_owned(ref)
        limit = kind.settings.max_depth or DEFAULT_DEPTH
        if len(activation.mailbox) >= limit:
            raise QueueDepthExceeded(f"{ref}: {limit} messages are already waiting (max_depth)")
        return activation

    def _start(self, kind: BoundKind, ref: EntityRef, partition: int) -> _VolatileActivation:
        if self._task_group is None:
            raise SystemNotRunning("the actor system is not running")
        if not self.owns(partition):
            raise self._not_owned(ref)
        limit = self.config.max_activations
        if limit and len(self._by_ref) >= limit and not self._evict():
            raise ActorLimitExceeded(f"{ref}: {limit} activations are busy (max_activations)")
        return self._make(kind, ref, partition)

    def _not_owned(self, ref: EntityRef) -> OwnerUnavailable:
        return OwnerUnavailable(f"{ref}: this node does not own its partition now; nothing was sent")

    def _make(self, kind: BoundKind, ref: EntityRef, partition: int) -> _VolatileActivation:
        assert self._task_group is not None
        status: Literal["active", "closing"] = "closing" if self.is_draining(partition) else "active"
        activation = _VolatileActivation(owner=self, kind=kind, ref=ref, partition=partition, status=status)
        self._by_ref[ref] = activation
        self._task_group.start_soon(activation.run)
        return activation

    def find(self, ref: EntityRef) -> bool:
        """Whether an entity is alive here."""
        return ref in self._by_ref

    def _evict(self) -> bool:
        for activation in self._by_ref.values():
            if not activation.is_running and not activation.mailbox and activation.status != "closing":
                self.close(activation)
                return True
        return False

    def close(self, activation: _VolatileActivation) -> None:
        """Ask an activation to passivate."""
        if activation.status == "active":
            activation.status = "closing"
        activation.mailbox.wake()

    def ended(self, activation: _VolatileActivation, *, ended_well: bool) -> None:
        """An activation is gone; what came while it went to sleep wakes its successor."""
        if self._by_ref.get(activation.ref) is activation:
            del self._by_ref[activation.ref]
        partition = activation.partition
        if activation.mailbox and ended_well and self._task_group is not None and self.owns(partition):
            successor = self._make(activation.kind, activation.ref, partition)
            successor.mailbox.extend(activation.mailbox)
        else:
            gone = Failed(OwnerUnavailable(f"{activation.ref} was ended before the message began"))
            for waiting in activation.mailbox:
                waiting.resolve(gone)
        activation.mailbox.clear()
        for ended in self._ended:
            ended.set(None)
        self._ended.clear()

    def tick(self, now_s: float) -> None:
        """End asks whose time is up, cut handlers that run too long, passivate the idle."""
        for waiting in self._ends.due(now_s):
            if not waiting.done:
                waiting.resolve(Failed(AskTimeout("no reply in time; a volatile kind keeps no result")))
        for activation in list(self._by_ref.values()):
            activation.turn_scope.cut_if_late(now_s)
            limit_s = activation.kind.settings.idle_timeout_s
            idle = not activation.is_running and not activation.mailbox
            if limit_s and idle and activation.used_at_s + limit_s <= now_s:
                self.close(activation)

    def passivate(self, ref: EntityRef) -> bool:
        """Ask an entity to go to sleep; returns whether it was alive."""
        activation = self._by_ref.get(ref)
        if activation is None or activation.status == "closing":
            return False
        self.close(activation)
        return True

    def lost(self, partition: int | None = None) -> None:
        """A partition (all where left out) is not this node's any more: cancel what runs there, at once."""
        for activation in self._alive_in(partition):
            activation.end()

    async def drain(self, partition: int | None = None) -> None:
        """Let the mailboxes of a partition (all where left out) run empty, and passivate their entities.

        What other nodes send has to be kept away meanwhile, or this may take as long as they send.
        """
        self._closing.append(partition)
        try:
            for activation in self._alive_in(partition):
                self.close(activation)
            await self.wait_ended(partition)
        finally:
            self._closing.remove(partition)

    def is_draining(self, partition: int) -> bool:
        """Whether a partition is about to be given up."""
        return None in self._closing or partition in self._closing

    async def wait_ended(self, partition: int | None = None) -> None:
        """Wait until nothing of a partition (of all where left out) is alive here."""
        while self._alive_in(partition):
            ended = self.backend.new_oneshot()
            self._ended.append(ended)
            await ended

    def _alive_in(self, partition: int | None) -> list[_VolatileActivation]:
        return [
            activation
            for activation in self._by_ref.values()
            if partition is None or activation.partition == partition
        ]

    def count(self, kind: str | None = None) -> int:
        """How many volatile entities are alive here."""
        return sum(1 for ref in self._by_ref if kind is None or ref.kind == kind)
