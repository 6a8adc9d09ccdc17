"""The composition root: makes the parts of a running system from the bottom up, and starts them.

See `_system` for the map. Each part is given those that it needs when it is made. Two circles are left, and `start`
closes them before anything runs: the sender admits its messages at the supervisor, whose turns send by the sender; the
supervisor asks the membership for leases, and the membership reports to `PartitionEvents`, which has the supervisor.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup
from attrs import define

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._config import Config
from atomic_actors.base._oneshot import Backend
from atomic_actors.base._telemetry import Listeners, logger
from atomic_actors.codec._codec import Codec
from atomic_actors.contracts._outcomes import RefusalReader
from atomic_actors.contracts._remote_kinds import RemoteKinds
from atomic_actors.journal.commit._commit_queue import CommitLimits, CommitQueue, StoreEvents
from atomic_actors.journal.commit._commit_queues import CommitQueues
from atomic_actors.journal.commit._health import HealthWatch
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node._inbox import NodeInbox
from atomic_actors.node._leaving import SETTLE_LIMIT_S, Leaving
from atomic_actors.node._partition_events import PartitionEvents
from atomic_actors.node._registration import KindRegistration
from atomic_actors.node._sender import Sender
from atomic_actors.node._store import Store
from atomic_actors.node.execution._body import Body
from atomic_actors.node.execution._deferred import DeferredEntities
from atomic_actors.node.execution._events import Events
from atomic_actors.node.execution._parking import Parking
from atomic_actors.node.execution._schedule import Schedule
from atomic_actors.node.execution._settlements import Settlements
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.execution._ticker import Ticker, Ticking
from atomic_actors.node.execution._turn_runner import NodeParts
from atomic_actors.node.operations._dead_letters import DeadLetters
from atomic_actors.node.operations._handover import Handover
from atomic_actors.node.operations._operations import Operations
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._lease_keeper import LeaseKeeper
from atomic_actors.node.ownership._leases import LeaseTimes, OwnLeases
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.ownership._peers import NodeRecord, Peers
from atomic_actors.node.routing._destinations import CallChecker
from atomic_actors.node.routing._other_services import ServiceJournals
from atomic_actors.node.routing._router import Router
from atomic_actors.node.volatile._activations import VolatileKinds
from atomic_actors.node.volatile._host import VolatileHost
from atomic_actors.node.volatile._routes import VolatileRoutes

__all__ = ("Parts", "assemble")


@define(eq=False)
class _Tasks:
    """The system's own tasks: the crash of one ends the system, with its cause."""

    task_group: TaskGroup
    body: Body

    def run(self, function: Callable[[], Awaitable[object]]) -> None:
        self.task_group.start_soon(self._guard, function)

    async def _guard(self, function: Callable[[], Awaitable[object]]) -> None:
        try:
            await function()
        except Exception as error:
            self.body.crashed(error)


@define(eq=False, kw_only=True)
class Parts:
    """The parts of a running system; a part without a use in its config is None."""

    config: Config
    store: Store
    body: Body
    journal: CommitQueue
    membership: Membership
    supervisor: Supervisor
    sender: Sender
    host: VolatileHost | None
    operations: Operations
    dead_letters: DeadLetters
    registration: KindRegistration
    sweeper: Ticker
    partition_events: PartitionEvents
    leaving: Leaving

    async def start(self, task_group: TaskGroup) -> None:
        """Start the tasks, claim partitions.

        Raises:
            StoreUnavailable, JournalUnavailable: the store gives no answer.
            KindConflict: one of the kinds belongs to another service.
        """
        tasks, membership, calls = _Tasks(task_group, self.body), self.membership, self.sender.call_checker
        self.supervisor.start(task_group, self.sender)
        self.sender.volatile.start(task_group, self.sender)
        calls.service_journals.start(task_group)
        membership.start(self.partition_events)
        await self.operations.check_store()
        await self.registration.register()
        tasks.run(self.registration.run)
        tasks.run(calls.remote_kinds.keep_fresh)
        tasks.run(self.sweeper.run)
        self._listen(tasks)
        if self.supervisor.kinds:
            if membership.leases.keeper is not None:
                membership.leases.keeper.start()
            await membership.refresh_and_take_over()
        tasks.run(membership.run)
        if self.config.handle_signals:
            tasks.run(self._watch_signals)

    def _listen(self, tasks: _Tasks) -> None:
        """Hear what other nodes send."""
        messenger, host, routes = self.store.messenger, self.host, self.sender.routes
        if messenger is None or host is None or routes is None:
            return
        router, membership = self.sender.router, self.membership
        inbox = NodeInbox(router, membership, host, routes)
        tasks.run(HealthWatch(self.journal, self.config.store_ping_interval_s).run)
        tasks.run(partial(messenger.listen, router.node_id, inbox))
        if self.supervisor.kinds:
            tasks.run(partial(messenger.listen_bells, self.supervisor.doorbell_rang, membership.owns))

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            first = True
            async for number in signals:
                if first:
                    logger.warning(
                        "%s: shutting down; signal again to skip waiting for running turns",
                        signal.Signals(number).name,
                    )
                    self.body.stop()
                else:
                    self.leaving.hurry()
                first = False

    async def stop_keeper(self) -> None:
        """End the lease keeper."""
        if self.membership.leases.keeper is not None:
            await self.membership.leases.keeper.aclose(SETTLE_LIMIT_S)


# Construction, from the bottom up.


def assemble(
    config: Config,
    store: Store,
    kinds: dict[str, BoundKind],
    *,
    codec: Codec,
    listeners: Listeners,
    refusals: RefusalReader,
    body: Body,
) -> Parts:
    """Make the parts of a system.

    Args:
        config: the settings.
        store: where messages live.
        kinds: everything this node can run, by name.
        codec: for everything that is sent or stored.
        listeners: receive events.
        refusals: makes askers' exceptions of stored refusals.
        body: ends the system if a part of it fails.
    """
    backend = Backend.current()
    store_clock = StoreClock(backend.clock)
    queues = CommitQueues(limits=_commit_limits(config), store_clock=store_clock)
    journal = queues.around(store.journal, body, StoreEvents(listeners))
    membership = _membership(config, store, kinds, journal)
    router = Router(
        node_id=membership.nodes.node_id,
        backend=backend,
        store_clock=store_clock,
        refusals=refusals,
        listeners=listeners,
        remote=store.messenger,
    )
    events = Events(listeners)
    destinations = _destinations(config, store, kinds, codec, journal=journal, queues=queues, body=body)
    node = NodeParts(
        config=config,
        backend=backend,
        codec=codec,
        commits=journal,
        replies=router,
        store_clock=store_clock,
        call_checker=destinations,
        events=events,
        schedule=Schedule(),
        settlements=Settlements(journal, router, events),
        parking=Parking(journal),
        deferred=DeferredEntities(journal, backend),
    )
    supervisor = Supervisor(
        node=node,
        membership=membership,
        kinds=kinds,
        service_journals=destinations.service_journals,
        body=body,
    )
    volatile = VolatileKinds(config, backend, membership, body)
    host, routes = _volatile_ends(node, store, volatile, refusals, kinds=kinds)
    sender = Sender(
        config=config,
        codec=codec,
        router=router,
        store_clock=store_clock,
        supervisor=supervisor,
        volatile=volatile,
        call_checker=destinations,
        routes=routes,
    )
    return _finish(store, sender, membership, body, host=host)


def _finish(
    store: Store, sender: Sender, membership: Membership, body: Body, *, host: VolatileHost | None
) -> Parts:
    """The parts above the sender: operators' calls, coming and going, the clock."""
    config, supervisor, volatile, router = sender.config, sender.supervisor, sender.volatile, sender.router
    node, messenger = supervisor.node, store.messenger
    journal = node.commits
    handover = Handover(
        journal=journal,
        membership=membership,
        supervisor=supervisor,
        volatile=volatile,
        messenger=messenger,
        drain_timeout_s=config.drain_timeout_s,
    )
    registration = KindRegistration(
        config=config,
        codec=sender.codec,
        kinds=supervisor.kinds,
        registry=store.kinds,
        settings=store.journal.settings,
    )
    partition_events = PartitionEvents(
        journal=journal,
        messenger=messenger,
        service_journals=sender.call_checker.service_journals,
        supervisor=supervisor,
        volatile=volatile,
        handover=handover,
        registration=registration,
    )
    if store.history is not None:
        # The one late link downwards: the store is there first, and reports to those above.
        store.history.watch(partition_events)
    ticking: list[Ticking] = [router, supervisor, volatile]
    if sender.routes is not None:
        ticking.append(sender.routes)
    return Parts(
        config=config,
        store=store,
        body=body,
        journal=journal,
        membership=membership,
        supervisor=supervisor,
        sender=sender,
        host=host,
        operations=Operations(
            journal=journal,
            supervisor=supervisor,
            volatile=volatile,
            membership=membership,
            events=node.events,
            sender=sender,
            handover=handover,
        ),
        dead_letters=DeadLetters(journal, node.store_clock, supervisor),
        registration=registration,
        sweeper=Ticker(node.backend, config.tick_interval_s, ticking),
        partition_events=partition_events,
        leaving=Leaving(
            journal=journal,
            membership=membership,
            supervisor=supervisor,
            volatile=volatile,
            handover=handover,
            sender=sender,
            host=host,
            messenger=messenger,
        ),
    )


def _commit_limits(config: Config) -> CommitLimits:
    return CommitLimits(
        max_batch_steps=config.max_batch_steps,
        max_batch_bytes=config.max_batch_bytes,
        max_pending_steps=config.max_pending_steps,
        failure_threshold=config.store_failure_threshold,
        answer_limit_s=config.accept_timeout_s,
        retry_delay_max_s=config.store_ping_interval_s,
    )


def _membership(
    config: Config, store: Store, kinds: dict[str, BoundKind], journal: CommitQueue
) -> Membership:
    keeper = store.keeper
    if store.lease_client is not None:
        keeper = LeaseKeeper(
            partitions=config.partitions,
            interval_s=config.lease_renew_interval_s,
            client=store.lease_client,
            loop_stall_limit_s=config.loop_stall_limit_s,
        )
    identity = NodeIdentity.of_this_process(config.lease_ttl_s)
    nodes = Peers(
        store.directory,
        NodeRecord.of_this_node(identity, config.service, kinds, config.node_weight),
        config.lease_ttl_s,
        config.same_host_takeover,
    )
    times = LeaseTimes(ttl_s=config.lease_ttl_s, margin_s=config.lease_margin_s)
    return Membership(journal=journal, nodes=nodes, leases=OwnLeases(config.partitions, keeper, times))


def _destinations(
    config: Config,
    store: Store,
    kinds: dict[str, BoundKind],
    codec: Codec,
    *,
    journal: CommitQueue,
    queues: CommitQueues,
    body: Body,
) -> CallChecker:
    service_journals = ServiceJournals(
        namespace=config.namespace,
        service=config.service,
        known=RemoteKinds(store.kinds, config.namespace, tuple(kinds)),
        journals=store.journals,
        queues=queues,
        crashes=body,
    )
    return CallChecker(
        config=config,
        codec=codec,
        kinds=kinds,
        journal=journal,
        remote_kinds=service_journals.known,
        service_journals=service_journals,
    )


def _volatile_ends(
    node: NodeParts,
    store: Store,
    volatile: VolatileKinds,
    refusals: RefusalReader,
    *,
    kinds: dict[str, BoundKind],
) -> tuple[VolatileHost | None, VolatileRoutes | None]:
    """Both ends of volatile messages between nodes, where there can be other nodes."""
    messenger = store.messenger
    if messenger is None:
        return None, None
    host = VolatileHost(
        volatile=volatile,
        kinds=kinds,
        messenger=messenger,
        backend=node.backend,
        codec=node.codec,
        max_payload_bytes=node.config.max_payload_bytes,
    )
    routes = VolatileRoutes(
        messenger=messenger,
        node_id=node.replies.node_id,
        backend=node.backend,
        refusals=refusals,
        accept_timeout_s=node.config.accept_timeout_s,
    )
    return host, routes
