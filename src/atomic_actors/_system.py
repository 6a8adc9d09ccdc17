"""The actor system: what users hold. Read this file first: it says where everything is.

What lives while a system is entered, from the bottom up, and the module of each part. `node/_assembly` makes the
parts and starts them.

    ActorSystem
    ├─ Store               where messages live: memory, embedded, Redis, Valkey   node/_open_store
    ├─ CommitQueue         gathers steps; outlives an unreachable store           journal/commit/_commit_queue
    │  └─ GroupCommit      one for the store; in a cluster, one per partition     journal/commit/_group_commit
    ├─ Membership          which partitions are ours, and until when              node/ownership/_membership
    │  ├─ Peers            the other nodes, and who should own what               node/ownership/_peers
    │  └─ OwnLeases        our leases; the LeaseKeeper renews them                node/ownership/_leases
    ├─ Router              who waits for which message; replies, timeouts         node/routing/_router
    ├─ CallChecker         is a call right, and where does it go                  node/routing/_destinations
    │  └─ ServiceJournals  the ways to other services                             node/routing/_other_services
    ├─ NodeMessenger       doorbells, and frames between nodes                    node/routing/_node_messenger
    ├─ Supervisor          our partitions, and the work in them                   node/execution/_supervisor
    │  ├─ Catalog          which entities are alive, and which may go             node/execution/_catalog
    │  ├─ Relay            carries the outbox to other partitions                 node/routing/_relay
    │  └─ Activation       one entity: offer, turn, commit                        node/execution/_activation
    │     ├─ OwnedPartition  the lease, claim and scope that it lives in          node/execution/_owned_partition
    │     ├─ TurnRunner      its actor: message in, verdict out                   node/execution/_turn_runner
    │     └─ NodeParts       what all of them share: Schedule, Events, Settlements, Parking, DeferredEntities
    ├─ VolatileKinds       entities without a journal                             node/volatile/_activations
    │  ├─ VolatileHost     their messages from other nodes                        node/volatile/_host
    │  └─ VolatileRoutes   their messages to other nodes                          node/volatile/_routes
    ├─ Sender              the verbs: checks a call and sends it                  node/_sender
    ├─ Operations          what operators call; DeadLetters                       node/operations/_operations
    ├─ Handover            gives a partition to the next node                     node/operations/_handover
    ├─ PartitionEvents     what each part does when a partition comes or goes     node/_partition_events
    ├─ Ticker              the one task that watches the clock                    node/execution/_ticker
    └─ Leaving             the way out                                            node/_leaving

Where a change belongs:

    what users call               here; `node/_sender` for the verbs, `node/operations` for the rest
    what users declare            `actors`; settings in `base/_config`, errors in `base/_errors`
    checks of a call, contracts   `contracts`, `node/routing/_destinations`
    bytes of values and headers   `codec`
    what the store does           `journal/_steps`; then `journal/memory`, `journal/redis/_forms` and its Lua
    when and how steps are sent   `journal/commit/_batches`
    connections to a store        `journal/redis`, `journal/redis/cluster`, `journal/embedded`
    who owns a partition          `node/ownership`
    when an entity lives          `node/execution/_catalog`, `node/execution/_supervisor`
    what happens in a turn        `node/execution/_turn_runner`; its commit, `node/execution/_activation`
    replies and late answers      `node/routing/_router`
    sending without a loop        `client`
    what users test with          `testing`
    commands, workers, the demo   `tools`

docs/architecture.md explains how these work together, and CONTRIBUTING.md has recipes for the usual changes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import anyio
from anyio.abc import TaskGroup

from atomic_actors.actors._kinds import BoundKind, bind_kinds
from atomic_actors.actors._messages import Message
from atomic_actors.base._config import Config
from atomic_actors.base._errors import InvalidConfig, StoreUnavailable, SystemFailed, SystemNotRunning
from atomic_actors.base._records import EntityRef, Receipt
from atomic_actors.base._telemetry import (
    EventName,
    HistoryLost,
    LifecycleEvent,
    Listener,
    Listeners,
    StoreHealth,
)
from atomic_actors.codec._codec import Codec
from atomic_actors.contracts._call_checks import OnCancel
from atomic_actors.contracts._outcomes import RefusalReader
from atomic_actors.journal._protocol import Journal, JournalUnavailable
from atomic_actors.node.execution._body import Body
from atomic_actors.node.operations._reports import (
    AuditReport,
    KindCounts,
    Location,
    NodeInfo,
    PartitionInfo,
    SystemStatistics,
)

if TYPE_CHECKING:
    from atomic_actors.node._assembly import Parts
    from atomic_actors.node.operations._dead_letters import DeadLetters

__all__ = ("ActorSystem", "EntityHandle")

R = TypeVar("R")


@asynccontextmanager
async def _background() -> AsyncGenerator[TaskGroup]:
    """A task group whose tasks are cancelled when it is left."""
    async with anyio.create_task_group() as task_group:
        yield task_group
        task_group.cancel_scope.cancel()


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
        self._kinds: dict[str, BoundKind] = bind_kinds(self.config, self._codec)
        self._listeners = Listeners()
        self._refusals = RefusalReader(self._codec)
        self._parts: Parts | None = None
        self._entered = False

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
            NotExecuted: it never ran (`QueueDepthExceeded`, `ActorLimitExceeded`, `AskLimitExceeded`,
                `StoreUnavailable`, `OwnerUnavailable`, `Withdrawn`, `Expired`); sending it again is safe.
            AskTimeout: not known yet; `result(error.message_id)` re-attaches.
            Refused: the handler refused the message; the same class that it raised.
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

        For a volatile kind (`durable=False`) it has been handed to the owner, or is on its way to it.

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

    @overload
    def listen(
        self, event: Literal["history-lost"], callback: Callable[[HistoryLost], object]
    ) -> Callable[[], None]: ...
    @overload
    def listen(
        self,
        event: Literal["store-lost", "store-back"],
        callback: Callable[[StoreHealth], object],
    ) -> Callable[[], None]: ...
    @overload
    def listen(
        self, event: EventName, callback: Callable[[LifecycleEvent], object]
    ) -> Callable[[], None]: ...
    def listen(self, event: EventName, callback: Listener) -> Callable[[], None]:
        """Call `callback(event)` at each such event of this node.

        Args:
            event: accepted, dispatched, completed, refused, failed, interrupted or dead-lettered, about a
                message; or history-lost, about a partition (`HistoryLost`); or store-lost and store-back
                (`StoreHealth`).
            callback: called in the thread of the event loop, not always in a task; must be quick and cannot
                wait. One that raises is logged.

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
        """Resume a parked entity; returns whether it was parked."""
        return await self._running.operations.resume(ref)

    async def nodes(self) -> list[NodeInfo]:
        """The nodes of this namespace, of all services, as far as this one has seen them.

        Raises:
            StoreUnavailable: the store gave no answer.
        """
        return await self._running.operations.nodes()

    async def partitions(self) -> list[PartitionInfo]:
        """Who owns each partition of this system's service.

        Raises:
            StoreUnavailable: the store gave no answer.
        """
        return await self._running.operations.owners()

    async def drain(self, node: str, timeout_s: float = 30.0) -> None:
        """Ask a node to give up what it owns, and wait until it has: before it is stopped or replaced.

        It stops taking, lets its running turns end, and its partitions go to the other nodes one by one. It
        goes on sending, and takes nothing again; a new process, which is another node, does.

        Args:
            node: the id of a node, this one or another, as `nodes()` shows it.
            timeout_s: how long to wait, in seconds; 0 without end.

        Raises:
            UnknownNode: there is no such node.
            DrainTimeout: it still owns partitions; it keeps releasing them.
            StoreUnavailable: the store gave no answer.
        """
        await self._running.operations.drain(node, timeout_s)

    async def drain_all(self, timeout_s: float = 30.0) -> None:
        """Ask every node that is there now to give up what it owns, and wait until all have.

        As `drain` for each of them. What is sent then waits for the next node that starts.

        Args:
            timeout_s: how long to wait, in seconds; 0 without end.

        Raises:
            DrainTimeout: one of them still owns partitions; it keeps releasing them.
            StoreUnavailable: the store gave no answer.
        """
        await self._running.operations.drain_all(timeout_s)

    # Life.

    @property
    def _running(self) -> Parts:
        parts = self._parts
        if parts is None:
            raise SystemNotRunning(
                "the actor system is not running; use it inside `async with ActorSystem(...)`"
            )
        return parts

    async def __aenter__(self) -> Self:
        if self._entered:
            raise SystemNotRunning("an ActorSystem can be entered only once; create a new one")
        self._entered = True
        # Here and not in `__init__`: the simulation copies systems, and each copy has a body of its own.
        self._body = Body()
        stack = AsyncExitStack()
        try:
            parts = await self._open(stack)
        except BaseException as error:
            # The stack is unwound normally: the error leaves as itself, in no group.
            await stack.__aexit__(None, None, None)
            self._raise_crash()
            if isinstance(error, JournalUnavailable):
                raise StoreUnavailable(f"the store cannot be reached: {error}") from error
            raise
        self._body.enter()
        self._parts, self._stack = parts, stack
        return self

    async def _open(self, stack: AsyncExitStack) -> Parts:
        # What runs a node is most of the package, and who only declares actors, or is a client, needs none of it.
        from atomic_actors.node._assembly import assemble  # noqa: PLC0415
        from atomic_actors.node._open_store import open_store  # noqa: PLC0415
        from atomic_actors.node._store import store_around  # noqa: PLC0415

        if self._journal is not None:
            store = store_around(self._journal)
        else:
            store = await stack.enter_async_context(open_store(self.config))
        parts = assemble(
            self.config,
            store,
            self._kinds,
            codec=self._codec,
            listeners=self._listeners,
            refusals=self._refusals,
            body=self._body,
        )
        stack.callback(parts.membership.nodes.record.identity.retire)
        await stack.enter_async_context(parts.journal)
        stack.push_async_callback(parts.stop_keeper)
        await parts.start(await stack.enter_async_context(_background()))
        return parts

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        parts, body = self._running, self._body
        was_cancelled = exc_value is not None and isinstance(exc_value, anyio.get_cancelled_exc_class())
        swallowed = body.exit(exc_type, exc_value, traceback)
        leaving: BaseException | None = None
        try:
            await parts.leaving.leave(wait=body.crash is None and (swallowed or not was_cancelled))
        except BaseException as error:
            leaving = error
        self._parts = None
        # Not shielded as a whole: a scope of ours must not be open while older ones are left. Each part
        # that has to wait on its way out bounds and shields that itself.
        await self._stack.__aexit__(None, None, None)
        self._raise_crash()
        if leaving is not None and exc_value is None:
            raise leaving
        return swallowed

    def _raise_crash(self) -> None:
        crash = self._body.crash
        if crash is not None:
            raise SystemFailed(f"the actor system crashed: {crash!r}") from crash


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

    @overload
    async def result(self, message: Receipt[R], timeout_s: float | None = None) -> R: ...
    @overload
    async def result(self, message: str, timeout_s: float | None = None) -> Any: ...
    async def result(self, message: Receipt[Any] | str, timeout_s: float | None = None) -> Any:
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
