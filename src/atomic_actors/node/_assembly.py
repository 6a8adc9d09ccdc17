"""The composition root: makes the parts of a running system and wires them, starts them, ends them.

See `_system` for the map. Parts that need each other get each other here, and nowhere else.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from atomic_actors.actors._kinds import Kind
from atomic_actors.base._config import Config
from atomic_actors.base._errors import AtomicActorsError, KindConflict, StoreIncompatible
from atomic_actors.base._oneshot import cell_factory, clock_function
from atomic_actors.base._telemetry import Listeners, logger
from atomic_actors.codec._codec import Codec
from atomic_actors.contracts._contracts import contract_of
from atomic_actors.contracts._remote_kinds import KnownKinds
from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.commit._commit_queue import CommitLimits, StoreEvents
from atomic_actors.journal.commit._commit_queues import CommitQueues
from atomic_actors.journal.commit._health import HealthWatch
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node._sender import Sender
from atomic_actors.node._store import Store
from atomic_actors.node._switchboard import Node
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.execution._ticker import Sweeper
from atomic_actors.node.operations._dead_letters import DeadLetters
from atomic_actors.node.operations._handover import Handover
from atomic_actors.node.operations._operations import Operations
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._lease_keeper import Keeper, LeaseKeeper
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.ownership._peers import NodeRecord, Nodes
from atomic_actors.node.routing._destinations import Calls
from atomic_actors.node.routing._other_services import Outlets
from atomic_actors.node.routing._router import Router
from atomic_actors.node.volatile._activations import VolatileKinds
from atomic_actors.node.volatile._host import VolatileHost
from atomic_actors.node.volatile._routes import VolatileRoutes

__all__ = ("Parts",)

#: How long the way out may take behind a shield, once nobody is waited for any more.
SETTLE_LIMIT_S: Final = 5.0


class Parts:
    """Everything that lives while a system is entered.

    Args:
        decode_refusal: makes the asker's exception of a stored refusal.
        on_crash: told when a part ends by its own fault.
        on_signal: told at the first signal to leave (`handle_signals`).
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        kinds: dict[str, Kind],
        codec: Codec,
        listeners: Listeners,
        *,
        decode_refusal: Callable[[bytes], AtomicActorsError],
        on_crash: Callable[[BaseException], None],
        on_signal: Callable[[], None],
    ) -> None:
        self.config = config
        self.store = store
        self.kinds = kinds
        self._listeners = listeners
        self._codec = codec
        #: The store lost history, and with it perhaps what kinds there are: they are being registered again.
        self._registering = False
        self._on_crash = on_crash
        self._on_signal = on_signal
        self._hurry = anyio.CancelScope()
        self.new_cell, self.clock = cell_factory(), clock_function()
        self.identity = NodeIdentity.of_this_process(config.lease_ttl_s)
        self.store_clock = StoreClock(self.clock)
        self.queues = CommitQueues(limits=self._commit_limits(), store_clock=self.store_clock)
        self.journal = self.queues.around(store.journal, self, StoreEvents(listeners))
        self.keeper, self.membership = self._make_membership()
        self.router = Router(
            node_id=self.identity.node_id,
            new_cell=self.new_cell,
            store_clock=self.store_clock,
            decode_refusal=decode_refusal,
            listeners=listeners,
            remote=store.exchange,
        )
        self.node = Node(
            self.journal,
            self.router,
            self.membership,
            codec,
            listeners,
            self.new_cell,
            self.clock,
            config.max_payload_bytes,
            config.max_outbox_messages,
        )
        self.supervisor = Supervisor(
            self.node, self.journal, self.membership, kinds, config.max_activations, self.new_cell, self.clock
        )
        self.volatile = VolatileKinds(
            self.new_cell,
            self.clock,
            self._runs_volatile,
            config.max_activations,
            config.max_outbox_messages,
        )
        self.known, self.outlets = self._make_outlets()
        self.sender = self._make_sender(codec)
        self.host, self.routes = self._volatile_ends(decode_refusal)
        self.sender.routes = self.routes
        self.dead_letters = DeadLetters(self.journal, self.store_clock, self.supervisor.wake)
        self.handover = self._make_handover()
        self.operations = self._make_operations()
        self.sweeper = Sweeper(
            self.clock, config.tick_interval_s, (self.router.tick, self._tick_supervisor, self._tick_volatile)
        )
        self._wire()

    def _make_sender(self, codec: Codec) -> Sender:
        return Sender(
            config=self.config,
            codec=codec,
            router=self.router,
            store_clock=self.store_clock,
            supervisor=self.supervisor,
            volatile=self.volatile,
            kinds=self.kinds,
            partitions=self.config.partitions,
            calls=Calls(self.config, codec, self.kinds, self.journal, self.known, self.outlets),
        )

    def _make_operations(self) -> Operations:
        return Operations(
            self.journal,
            self.supervisor,
            self.volatile,
            self.membership,
            self.node,
            self.sender,
            self.handover,
        )

    def _commit_limits(self) -> CommitLimits:
        config = self.config
        return CommitLimits(
            max_batch_steps=config.max_batch_steps,
            max_batch_bytes=config.max_batch_bytes,
            max_pending_steps=config.max_pending_steps,
            failure_threshold=config.store_failure_threshold,
            answer_limit_s=config.accept_timeout_s,
            retry_delay_max_s=config.store_ping_interval_s,
        )

    def _make_handover(self) -> Handover:
        return Handover(
            self.journal,
            self.membership,
            self.supervisor,
            self.volatile,
            self.store.exchange,
            self.config.drain_timeout_s,
            self.clock,
        )

    def _make_outlets(self) -> tuple[KnownKinds, Outlets]:
        config, store = self.config, self.store
        known = KnownKinds(store.kinds, config.namespace, tuple(self.kinds), self.clock)
        outlets = Outlets(
            config.namespace,
            config.service,
            store.open_journal,
            self.queues,
            known,
            self._on_crash,
        )
        return known, outlets

    def _make_membership(self) -> tuple[Keeper | None, Membership]:
        config, keeper = self.config, self.store.keeper
        if self.store.lease_client is not None:
            keeper = LeaseKeeper(
                config.partitions,
                config.lease_renew_interval_s,
                self.store.lease_client,
                config.loop_stall_limit_s,
            )
        nodes = Nodes(
            self.store.directory,
            NodeRecord.of_this_node(self.identity, config.service, self.kinds, config.node_weight),
            config.lease_ttl_s,
            config.same_host_takeover,
        )
        membership = Membership(
            self.journal,
            nodes,
            config.partitions,
            keeper,
            config.lease_ttl_s,
            config.lease_margin_s,
            self._claimed,
            self._lost,
            self._settle_lost,
            self._hand_over,
        )
        return keeper, membership

    def _volatile_ends(
        self, decode_refusal: Callable[[bytes], AtomicActorsError]
    ) -> tuple[VolatileHost | None, VolatileRoutes | None]:
        """Both ends of volatile messages between nodes, where there can be other nodes."""
        exchange, membership = self.store.exchange, self.membership
        if exchange is None:
            return None, None

        def claim_of(partition: int) -> str:
            is_ours = self._runs_volatile(partition) and not self.volatile.is_draining(partition)
            return membership.claims[partition] if is_ours else ""

        host = VolatileHost(
            self.volatile,
            self.kinds,
            exchange,
            claim_of,
            self.clock,
            self.node.encode_refusal,
            self.config.max_payload_bytes,
        )
        routes = VolatileRoutes(
            exchange,
            self.identity.node_id,
            NodeIdentity.id_in,
            self.new_cell,
            self.clock,
            decode_refusal,
            self.config.accept_timeout_s,
        )
        return host, routes

    def _runs_volatile(self, partition: int) -> bool:
        return self.membership.is_valid(partition) and partition not in self.handover.releasing

    def _wire(self) -> None:
        """Close the circles: parts that need each other."""
        self.node.supervisor = self.supervisor
        self.node.encode = self.sender.calls.encode
        self.node.look_up_with = self.sender.calls.look_up_outbox
        self.supervisor.relay.outlets = self.outlets
        self.node.ask_with = self.sender.ask_from_turn
        self.node.on_crash = self.volatile.on_crash = self._on_crash
        self.volatile.services = self.node
        self.volatile.send_other = self.sender.send_soon
        self.supervisor.relay.on_gap = self.node.stream_lost
        if self.store.history is not None:
            self.store.history.on_loss = self._history_lost

    def _claimed(self, partition: int) -> None:
        if self.store.exchange is not None:
            self.store.exchange.watch(partition)
        self.supervisor.claimed(partition)

    def _lost(self, partition: int, why: str) -> None:
        self.supervisor.lost(partition, why)
        self.node.partition_lost(partition)
        self.volatile.lost(partition)

    async def _hand_over(self, partition: int) -> None:
        await self.handover.hand_over(partition)

    async def _settle_lost(self, partition: int, claim: str) -> bool:
        return await self.node.settle_lost(partition, claim)

    def _history_lost(self, loss: HistoryLoss) -> None:
        """The store went back in time: nothing of what is known of the partition counts any more."""
        self.node.history_lost(loss)
        # First, so that what was under way is remembered before the steps that belong to it are answered.
        self.membership.lose_history(loss.partition, "the store has lost history")
        self.journal.forsake(loss.partition)
        self.outlets.forsake(loss.partition)
        if not self._registering:
            self._registering = True
            self._run(self._register_again)

    def crashed(self, error: BaseException) -> None:
        """See `CrashSink`: the system ends, with this as the cause."""
        self._on_crash(error)

    def _tick_supervisor(self, now_s: float) -> None:
        self.supervisor.tick(now_s, self.store_clock.now_ms())

    def _tick_volatile(self, now_s: float) -> None:
        self.volatile.tick(now_s)
        if self.routes is not None:
            self.routes.tick(now_s)

    # Life.

    async def start(self, task_group: TaskGroup) -> None:
        """Start the tasks, claim partitions.

        Raises:
            StoreUnavailable, JournalUnavailable: the store gives no answer.
            KindConflict: one of the kinds belongs to another service.
        """
        self.supervisor.start(task_group)
        self.volatile.start(task_group)
        self.outlets.start(task_group)
        self._task_group = task_group
        await self.operations.check_store()
        await self._register_kinds()
        self._run(self.known.keep_fresh)
        self._run(self.sweeper.run)
        self._listen()
        if self.kinds:
            if self.keeper is not None:
                self.keeper.start(self._keeper_crashed)
            await self.membership.look_and_take_over()
        self._run(self.membership.run)
        if self.config.handle_signals:
            self._run(self._watch_signals)

    def _may_claim(self, partition: int) -> None:
        """Another node says that a partition is free, or that something else has changed."""
        self.membership.look_soon()

    def _listen(self) -> None:
        exchange, host, routes = self.store.exchange, self.host, self.routes
        if exchange is None or host is None or routes is None:
            return
        handlers: dict[str, Callable[..., object]] = {
            "reply": self.router.pushed,
            "claim": self._may_claim,
            "ask": host.on_ask,
            "tell": host.on_tell,
            "forget": host.on_forget,
            "told": routes.on_told,
        }
        self._run(HealthWatch(self.journal, self.config.store_ping_interval_s).run)
        self._run(partial(exchange.listen, self.identity.node_id, handlers, routes.heard))
        if self.kinds:
            self._run(partial(exchange.listen_bells, self.supervisor.rung, self.membership.owns))

    async def _register_kinds(self) -> None:
        registry, config = self.store.kinds, self.config
        if registry is None or not self.kinds:
            return
        settings = self.store.journal.settings
        contracts = {name: contract_of(kind, self._codec, settings) for name, kind in self.kinds.items()}
        owners = await registry.register_kinds(config.service, config.partitions, contracts)
        for kind, owner in owners.items():
            if owner != config.service:
                raise KindConflict(
                    f"kind {kind!r} belongs to service {owner!r} of namespace {config.namespace!r}, and this node is "
                    f"of service {config.service!r}; give the kind another name, or set service={owner!r}"
                )

    async def _register_again(self) -> None:
        """The store lost history, and with it perhaps what kinds there are."""
        try:
            while True:
                try:
                    await self._register_kinds()
                    return
                except JournalUnavailable as error:
                    logger.info("the kinds cannot be registered again now: %s", error)
                await anyio.sleep(self.config.store_ping_interval_s)
        except KindConflict as error:
            logger.error("the store lost history, and another service has a kind since: %s", error)
        finally:
            self._registering = False

    def _run(self, function: Callable[[], Any]) -> None:
        self._task_group.start_soon(self._guard, function)

    async def _guard(self, function: Callable[[], Any]) -> None:
        """Run one of our own tasks: its crash ends the system, with its cause."""
        try:
            await function()
        except Exception as error:
            self.node.crashed(error)

    def _keeper_crashed(self, error: BaseException) -> None:
        """Called in the keeper's thread. The watchdog finds the error and ends the system with it."""
        logger.error("leases are not renewed any more: %s: %s", type(error).__name__, error)

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            first = True
            async for number in signals:
                if first:
                    logger.warning("%s: leaving; once more does not wait", signal.Signals(number).name)
                    self._on_signal()
                else:
                    self._hurry.cancel()
                first = False

    async def leave(self, *, wait: bool) -> None:
        """Stop taking, let running turns finish, interrupt the rest, give the partitions up."""
        self.sender.running = False
        self.membership.stop_claiming()
        if self.host is not None:
            self.host.closed = True
        if wait:
            with self._hurry:
                if self.config.drain_timeout_s:
                    self._hurry.deadline = anyio.current_time() + self.config.drain_timeout_s
                self.supervisor.stop_taking()
                await self._say_that_it_leaves()
                await self.handover.hand_over_all()
                await self.volatile.drain()
                await self.supervisor.drain()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + SETTLE_LIMIT_S) as settling:
            self.supervisor.stop_taking()
            interrupted = self.supervisor.busy()
            if interrupted:
                logger.warning("%d turns are interrupted by leaving", len(interrupted))
            self.supervisor.cancel_partitions()
            self.volatile.lost()
            await self.supervisor.wait_ended()
            await self.volatile.wait_ended()
            if self.journal.available:
                await self.journal.wait_drained()
                await self._release()
                if self.store.exchange is not None:
                    await self.store.exchange.leave()
        if settling.cancelled_caught:
            logger.warning("the store did not answer in time; the leases run out by themselves")
        self.router.abandon_all()
        if self.routes is not None:
            self.routes.abandon_all()

    async def _say_that_it_leaves(self) -> None:
        """So that the others take over what is given up one by one."""
        self.membership.nodes.drain()
        if self.journal.available:
            try:
                await self.membership.nodes.announce()
            except (JournalUnavailable, StoreIncompatible) as error:
                logger.info("the other nodes do not know that this one leaves: %s", error)

    async def _release(self) -> None:
        try:
            freed = self.membership.owned()
            await self.membership.release_all(self.supervisor.settle_swept)
            await self.membership.nodes.leave()
            for partition in freed:
                await self.handover.tell_next(partition)
        except (JournalUnavailable, StoreIncompatible) as error:
            logger.warning("the partitions could not be released, their leases run out: %s", error)

    async def stop_keeper(self) -> None:
        """End the lease keeper."""
        if self.keeper is not None:
            await self.keeper.aclose(SETTLE_LIMIT_S)
