"""The actor system: the composition root. Read this file first.

What is made here, from the bottom up, and who talks to whom:

    ActorSystem
    ├─ Store          where messages live: memory, an embedded server, Redis or Valkey   (_store)
    ├─ GroupCommit    gathers steps into batches; outlives an unreachable store          (journal/)
    ├─ Membership     which partitions are ours, and until when; the lease keeper        (_membership)
    ├─ Router         who waits for which message; replies, timeouts, late answers       (_router)
    ├─ Supervisor     partitions and activations: start, wake, passivate                 (_supervisor)
    │  └─ Activation  one entity: its state and its turns                                (_activation)
    ├─ VolatileKinds  entities without a journal                                         (_volatile)
    ├─ Sender         the verbs: checks a call and sends it                              (_sender)
    ├─ DeadLetters    list, show, replay, purge                                          (_dead_letters)
    └─ Sweeper        the one task that watches the clock                                (_timers)

A change to what users call belongs in `_sender` or here; to when an entity lives, in `_supervisor`; to
what happens in a turn, in `_activation` and `_turn`; to what the store does, in `journal/`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import anyio
from anyio.abc import TaskGroup

from atomic_actors._cells import cell_factory, clock_function
from atomic_actors._codec import Codec
from atomic_actors._config import Config
from atomic_actors._dead_letters import DeadLetters
from atomic_actors._envelope import plain_of
from atomic_actors._errors import InvalidConfig, Refused, StoreUnavailable, SystemFailed, SystemNotRunning
from atomic_actors._kinds import Kind, bind_kinds
from atomic_actors._lease_keeper import LeaseKeeper, NodeIdentity
from atomic_actors._membership import Membership
from atomic_actors._messages import Message
from atomic_actors._node import Node
from atomic_actors._operations import AuditReport, KindCounts, Location, Operations, SystemStatistics
from atomic_actors._records import EntityRef, Receipt
from atomic_actors._router import Router
from atomic_actors._sender import OnCancel, Sender
from atomic_actors._store import Store, open_store
from atomic_actors._supervisor import Supervisor
from atomic_actors._telemetry import EventName, Listener, Listeners, logger
from atomic_actors._timers import Sweeper
from atomic_actors._volatile import VolatileKinds
from atomic_actors.journal._group_commit import GroupCommit
from atomic_actors.journal._protocol import Journal, JournalUnavailable

__all__ = ("ActorSystem", "EntityHandle")

R = TypeVar("R")

#: How long the way out may take behind a shield, once nobody is waited for any more.
SETTLE_LIMIT_S: Final = 5.0


def _refusal_classes() -> dict[str, type[Refused]]:
    """Every refusal class of the program by wire name; one of two with the same name is not used."""
    found: dict[str, type[Refused]] = {}
    twice: set[str] = set()
    waiting = list(Refused.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        other = found.setdefault(cls.__name__, cls)
        # A slotted attrs class is made twice; the first one is only its shell.
        if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            twice.add(cls.__name__)
        found[cls.__name__] = cls
    return {name: cls for name, cls in found.items() if name not in twice}


class ActorSystem:
    """The running actors of this process, and the way to reach every entity.

    Use it with `async with`, on asyncio or Trio. Entering starts or joins the store, claims partitions
    and settles what a dead process left behind. Leaving stops taking messages, lets running turns
    finish within `drain_timeout_s`, interrupts the rest, and gives the partitions up.

    An exception of the body leaves as itself. A crash of the system's own parts cancels the body and is
    raised as `SystemFailed`, with its cause.

    Args:
        config: the settings; `Config()` where left out.
        journal: where messages live, instead of what `config.url` names: your own journal, or one that
            several systems of a test share. It is entered and left with the system.

    Raises:
        UsageError: an actor, handler, message, state or setting cannot work (at construction).
        StoreUnavailable, StoreIncompatible, StoreUnsafe, EmbeddedServerError: at entering.
    """

    def __init__(self, config: Config | None = None, *, journal: Journal | None = None) -> None:
        if config is not None and not isinstance(config, Config):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidConfig(f"config: expected a Config, got {type(config).__name__}")
        self.config = config if config is not None else Config()
        self._journal = journal
        self._codec = Codec()
        self._kinds: dict[str, Kind] = bind_kinds(self.config, self._codec)
        self._listeners = Listeners()
        self._refusals: dict[str, type[Refused]] = {}
        self._parts: _Parts | None = None
        self._entered = False
        self._crash: BaseException | None = None
        self._body_scope: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        state = "running" if self._parts is not None else "not running"
        return (
            f"<ActorSystem {self.config.namespace}/{self.config.service} {state}, {len(self._kinds)} kinds>"
        )

    # Sending.

    @overload
    async def ask(
        self,
        entity: EntityRef,
        message: Message[R],
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> R: ...
    @overload
    async def ask(
        self,
        entity: Message[R],
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> R: ...
    async def ask(
        self,
        entity: EntityRef | Message[Any],
        message: Message[Any] | None = None,
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> Any:
        """Send a message and wait for its reply.

        Args:
            entity: who gets it; or, alone, a message that names its entity with `EntityId`.
            message: the command or query.
            timeout_s: how long to wait, and the message's deadline: what has not begun by then does not
                run. `ask_timeout_s` where left out; 0 waits without end.
            key: an idempotency key: the same key and content for the same entity is the same message.
            on_cancel: what to do if the ask is cancelled: withdraw the message if no attempt was made, or
                leave it (`"detach"`).

        Returns:
            The handler's reply, of the type that the message declares.

        Raises:
            NotExecuted: it never ran (`QueueDepthExceeded`, `ActorLimitExceeded`, `StoreUnavailable`,
                `Withdrawn`, `Expired`); sending it again is safe.
            AskTimeout: not known yet; `result(error.message_id)` re-attaches.
            Refused: the handler said no; the same class as it raised.
            HandlerFailed, Interrupted: it ran, wholly or partly; it is a dead letter now.
            AskCycle, TooManyHops: inside a turn: it would deadlock.
            KeyReused: the key was used before with other content.
            UsageError: the call itself is wrong; nothing was sent.
        """
        return await self._running.sender.ask(entity, message, timeout_s, key, on_cancel)

    @overload
    async def tell(
        self,
        entity: EntityRef,
        message: Message[R],
        *,
        key: str | None = None,
        expires_in_s: float | None = None,
    ) -> Receipt[R]: ...
    @overload
    async def tell(
        self, entity: Message[R], *, key: str | None = None, expires_in_s: float | None = None
    ) -> Receipt[R]: ...
    async def tell(
        self,
        entity: EntityRef | Message[Any],
        message: Message[Any] | None = None,
        *,
        key: str | None = None,
        expires_in_s: float | None = None,
    ) -> Receipt[Any]:
        """Send a message; it is accepted, durably, when this returns.

        Args:
            entity: who gets it; or, alone, a message that names its entity with `EntityId`.
            message: the command or query.
            key: an idempotency key, as for `ask`.
            expires_in_s: seconds after which it may no longer begin; never where left out.

        Returns:
            A receipt, for `result` and `withdraw`.

        Raises:
            NotExecuted: it was not accepted; sending it again is safe.
            AcceptanceUnknown: no answer came within `accept_timeout_s`.
            KeyReused, UsageError: as for `ask`.
        """
        return await self._running.sender.tell(entity, message, key, expires_in_s)

    async def tell_many(
        self, messages: Sequence[tuple[EntityRef, Message[Any]] | Message[Any]]
    ) -> list[Receipt[Any]]:
        """Send many messages; in order for each entity, not atomic across entities.

        Where `tell` would raise `ActorLimitExceeded`, this waits for room.

        Returns:
            One receipt for each message, in order.

        Raises:
            AtomicActorsError: the first message that was not accepted says why; a note says how many were
                accepted. All of them are checked before the first is sent.
        """
        return await self._running.sender.tell_many(messages)

    @overload
    async def result(self, message: Receipt[R], timeout_s: float | None = None) -> R: ...
    @overload
    async def result(self, message: str, timeout_s: float | None = None) -> Any: ...
    async def result(self, message: Receipt[Any] | str, timeout_s: float | None = None) -> Any:
        """Wait for the outcome of a message that was sent before, here or elsewhere.

        Args:
            message: the receipt, or a message id (then the reply is plain data).
            timeout_s: how long to wait; `ask_timeout_s` where left out.

        Raises:
            UnknownMessage: the store has no such message.
            ResultExpired: it ended more than `result_ttl_s` ago.
            Otherwise as `ask`.
        """
        return await self._running.sender.result(message, timeout_s)

    async def withdraw(self, message: Receipt[Any] | str) -> bool:
        """Take a message back, if no attempt was made to run it.

        Returns:
            Whether it was withdrawn: then it never runs.
        """
        return await self._running.sender.withdraw(message)

    def entity(self, ref: EntityRef) -> EntityHandle:
        """A handle on one entity, with the same verbs."""
        return EntityHandle(self, ref)

    def listen(self, event: EventName, callback: Listener) -> Callable[[], None]:
        """Call `callback(event)` at each such event of this node.

        Args:
            event: accepted, dispatched, completed, refused, failed, interrupted or dead-lettered.
            callback: called in the event loop; must be quick. One that raises is logged.

        Returns:
            A function that takes the listener off again.
        """
        return self._listeners.add(event, callback)

    # Operating.

    @property
    def dead_letters(self) -> DeadLetters:
        """What failed or was interrupted for good."""
        return self._running.dead_letters

    async def audit(self) -> AuditReport:
        """Check the books of every partition: each accepted message is in exactly one state."""
        return await self._running.operations.audit()

    def statistics(self) -> SystemStatistics:
        """Counters of this node."""
        return self._running.operations.statistics()

    async def where(self, ref: EntityRef) -> Location:
        """Where an entity lives: its partition and owner, and what waits for it."""
        return await self._running.operations.where(ref)

    async def counts(self, kind: str) -> KindCounts:
        """How many entities of a kind are alive, busy, or have work waiting; and its dead letters."""
        return await self._running.operations.counts(kind)

    async def passivate(self, ref: EntityRef) -> bool:
        """Put an entity to sleep now; returns whether it was alive here."""
        return await self._running.operations.passivate(ref)

    async def pause(self, ref: EntityRef) -> bool:
        """Park an entity: what is sent to it waits. Returns whether it was running before."""
        return await self._running.operations.pause(ref)

    async def resume(self, ref: EntityRef) -> bool:
        """Let a parked entity go on; returns whether it was parked."""
        return await self._running.operations.resume(ref)

    # Life.

    @property
    def _running(self) -> _Parts:
        parts = self._parts
        if parts is None:
            raise SystemNotRunning(
                "the actor system is not running; use it inside `async with ActorSystem(...)`"
            )
        return parts

    async def __aenter__(self) -> Self:
        if self._entered:
            raise SystemNotRunning("an ActorSystem is entered once; make a new one")
        self._entered = True
        self._refusals = _refusal_classes()
        async with AsyncExitStack() as stack:
            if self._journal is not None:
                store = Store(self._journal)
            else:
                store = await stack.enter_async_context(open_store(self.config))
            parts = _Parts(self, store)
            try:
                await stack.enter_async_context(parts.journal)
            except JournalUnavailable as error:
                raise StoreUnavailable(f"the store cannot be reached: {error}") from error
            task_group = anyio.create_task_group()
            await task_group.__aenter__()
            try:
                await parts.start(task_group)
            except BaseException as error:
                task_group.cancel_scope.cancel()
                await task_group.__aexit__(None, None, None)
                parts.identity.retire()
                await parts.stop_keeper()
                raise error
            body_scope = anyio.CancelScope()
            body_scope.__enter__()
            self._parts, self._stack = parts, stack.pop_all()
            self._task_group, self._body_scope = task_group, body_scope
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        parts = self._running
        assert self._body_scope is not None
        was_cancelled = exc_value is not None and isinstance(exc_value, anyio.get_cancelled_exc_class())
        swallowed = bool(self._body_scope.__exit__(exc_type, exc_value, traceback))
        leaving: BaseException | None = None
        try:
            await parts.leave(wait=self._crash is None and (swallowed or not was_cancelled))
        except BaseException as error:
            leaving = error
        self._parts = None
        self._task_group.cancel_scope.cancel()
        try:
            await self._task_group.__aexit__(None, None, None)
        finally:
            parts.identity.retire()
            await parts.stop_keeper()
            # Not shielded as a whole: a scope of ours must not be open while older ones are left. Each
            # part that has to wait on its way out bounds and shields that itself.
            await self._stack.aclose()
        if self._crash is not None:
            raise SystemFailed(f"the actor system crashed: {self._crash!r}") from self._crash
        if leaving is not None and exc_value is None:
            raise leaving
        return swallowed

    def _crashed(self, error: BaseException) -> None:
        if self._crash is None:
            self._crash = error
            logger.error("the actor system crashed", exc_info=error)
        self._stop_body()

    def _stop_body(self) -> None:
        if self._body_scope is not None:
            self._body_scope.cancel()

    def _decode_refusal(self, data: bytes) -> Refused:
        plain = plain_of(data)
        error = self._codec.decode_refusal(plain["name"], plain["details"], self._refusals)
        if type(error) is Refused and plain.get("text") and not error.args[0]:
            return Refused(plain["text"], name=plain["name"], details=error.details)
        return error


class _Parts:
    """Everything that lives while the system is entered; wired once, here."""

    def __init__(self, system: ActorSystem, store: Store) -> None:
        config = system.config
        self.system = system
        self.config = config
        self.store = store
        self.new_cell, self.clock = cell_factory(), clock_function()
        self.identity = NodeIdentity.of_this_process()
        self.journal = GroupCommit(
            store.journal,
            config.max_batch_steps,
            config.max_batch_bytes,
            config.max_pending_steps,
            config.store_failure_threshold,
            answer_limit_s=config.accept_timeout_s,
        )
        self.journal.on_crash = system._crashed  # pyright: ignore[reportPrivateUsage]
        self.keeper: LeaseKeeper | None = None
        if store.lease_client is not None:
            self.keeper = LeaseKeeper(
                store.lease_client,
                config.partitions,
                config.lease_renew_interval_s,
                config.loop_stall_limit_s,
            )
        self.membership = Membership(
            self.journal,
            self.identity,
            config.partitions,
            self.keeper,
            config.lease_ttl_s,
            config.lease_margin_s,
            config.same_host_takeover,
            self._claimed,
            self._lost,
        )
        self.router = Router(
            self.journal,
            self.identity.node_id,
            self.new_cell,
            self.clock,
            system._decode_refusal,  # pyright: ignore[reportPrivateUsage]
            store.exchange,
        )
        self.node = Node(
            self.journal,
            self.router,
            self.membership,
            system._codec,  # pyright: ignore[reportPrivateUsage]
            system._listeners,  # pyright: ignore[reportPrivateUsage]
            self.new_cell,
            self.clock,
            config.max_payload_bytes,
            config.max_outbox_messages,
        )
        kinds = system._kinds  # pyright: ignore[reportPrivateUsage]
        self.supervisor = Supervisor(
            self.node, self.journal, self.membership, kinds, config.max_activations, self.new_cell, self.clock
        )
        self.volatile = VolatileKinds(
            self.new_cell,
            self.clock,
            self.membership.is_valid,
            config.max_activations,
            config.max_outbox_messages,
        )
        self.sender = Sender(
            config,
            self.node.codec,
            self.router,
            self.supervisor,
            self.volatile,
            self.node.listeners,
            kinds,
            config.partitions,
        )
        self.dead_letters = DeadLetters(self.journal, self.router.store_now_ms, self.supervisor.wake)
        self.operations = Operations(
            self.journal, self.supervisor, self.volatile, self.membership, self.node, self.sender
        )
        self.sweeper = Sweeper(
            self.clock,
            config.tick_interval_s,
            (
                self.router.tick,
                lambda now_s: self.supervisor.tick(now_s, self.router.store_now_ms()),
                self.volatile.tick,
            ),
        )
        self._wire()

    def _claimed(self, partition: int) -> None:
        self.supervisor.claimed(partition)

    def _lost(self, partition: int, why: str) -> None:
        self.supervisor.lost(partition, why)

    def _wire(self) -> None:
        """Close the circles: parts that need each other."""
        self.node.supervisor = self.supervisor
        self.node.on_crash = self.volatile.on_crash = self.system._crashed  # pyright: ignore[reportPrivateUsage]
        self.node.encode = self.sender.encode
        self.node.ask_with = self.sender.ask_from_turn
        self.volatile.ask_other = lambda entity, message: self.sender.ask(
            entity, message, None, None, "withdraw"
        )
        self.volatile.send_other = self.sender.send_soon
        self.journal.on_answer = self.router.on_answer

    async def start(self, task_group: TaskGroup) -> None:
        """Start the tasks, claim partitions."""
        self.supervisor.start(task_group)
        self.volatile.start(task_group)
        self._task_group = task_group
        await self.operations.check_store()
        self._run(self.sweeper.run)
        exchange = self.store.exchange
        if exchange is not None:
            self._run(partial(exchange.listen_replies, self.identity.node_id, self.router.answered))
            if self.system._kinds:  # pyright: ignore[reportPrivateUsage]
                self._run(partial(exchange.listen_bells, self.supervisor.rung))
        if self.system._kinds:  # pyright: ignore[reportPrivateUsage]
            await self.membership.claim_at_start()
            if self.keeper is not None:
                self.keeper.start(self._keeper_crashed)
            self._run(self.membership.run)
        if self.config.handle_signals:
            self._run(self._watch_signals)

    def _run(self, function: Callable[[], Any]) -> None:
        self._task_group.start_soon(self._guard, function)

    async def _guard(self, function: Callable[[], Any]) -> None:
        """Run one of our own tasks: its crash ends the system, with its cause."""
        try:
            await function()
        except Exception as error:
            self.system._crashed(error)  # pyright: ignore[reportPrivateUsage]

    def _keeper_crashed(self, error: BaseException) -> None:
        """Called in the keeper's thread: leases run out by themselves, and the watchdog sees it."""
        logger.error("the lease keeper crashed; leases are not renewed any more", exc_info=error)

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            count = 0
            async for number in signals:
                count += 1
                if count == 1:
                    logger.warning("%s: leaving; once more does not wait", signal.Signals(number).name)
                    self.system._stop_body()  # pyright: ignore[reportPrivateUsage]
                else:
                    self._hurry.cancel()

    _hurry: anyio.CancelScope

    async def leave(self, *, wait: bool) -> None:
        """Stop taking, let running turns finish, interrupt the rest, give the partitions up."""
        self.sender.running = False
        self._hurry = anyio.CancelScope(deadline=anyio.current_time() + (self.config.drain_timeout_s or 1e9))
        if wait:
            with self._hurry:
                await self.volatile.drain()
                await self.supervisor.drain()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + SETTLE_LIMIT_S) as settling:
            self.supervisor.draining = True
            interrupted = self.supervisor.busy()
            if interrupted:
                logger.warning("%d turns are interrupted by leaving", len(interrupted))
            self.supervisor.cancel_partitions()
            await self.supervisor.wait_ended()
            if self.journal.available:
                await self.journal.wait_drained()
                await self.membership.release_all()
        if settling.cancelled_caught:
            logger.warning("the store did not answer in time; the leases run out by themselves")
        self.router.abandon_all()

    async def stop_keeper(self) -> None:
        """End the lease keeper's thread."""
        if self.keeper is not None:
            with anyio.CancelScope(shield=True):  # bounded by the thread's own limit
                await anyio.to_thread.run_sync(self.keeper.stop, SETTLE_LIMIT_S)


class EntityHandle:
    """One entity of a system, with the system's verbs."""

    __slots__ = ("_system", "ref")

    def __init__(self, system: ActorSystem, ref: EntityRef) -> None:
        self._system = system
        self.ref = ref

    def __repr__(self) -> str:
        return f"<EntityHandle {self.ref}>"

    async def ask(
        self,
        message: Message[R],
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> R:
        """See `ActorSystem.ask`."""
        return await self._system.ask(self.ref, message, timeout_s=timeout_s, key=key, on_cancel=on_cancel)

    async def tell(
        self, message: Message[R], *, key: str | None = None, expires_in_s: float | None = None
    ) -> Receipt[R]:
        """See `ActorSystem.tell`."""
        return await self._system.tell(self.ref, message, key=key, expires_in_s=expires_in_s)

    async def tell_many(self, messages: Sequence[Message[Any]]) -> list[Receipt[Any]]:
        """See `ActorSystem.tell_many`."""
        return await self._system.tell_many([(self.ref, message) for message in messages])

    async def result(self, message: Receipt[R] | str, timeout_s: float | None = None) -> R | Any:
        """See `ActorSystem.result`."""
        return await self._system.result(message, timeout_s)

    async def withdraw(self, message: Receipt[Any] | str) -> bool:
        """See `ActorSystem.withdraw`."""
        return await self._system.withdraw(message)

    async def where(self) -> Location:
        """See `ActorSystem.where`."""
        return await self._system.where(self.ref)

    async def passivate(self) -> bool:
        """See `ActorSystem.passivate`."""
        return await self._system.passivate(self.ref)

    async def pause(self) -> bool:
        """See `ActorSystem.pause`."""
        return await self._system.pause(self.ref)

    async def resume(self) -> bool:
        """See `ActorSystem.resume`."""
        return await self._system.resume(self.ref)
