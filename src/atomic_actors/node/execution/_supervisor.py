"""The partitions of this node: finds the work in them, and starts, wakes and ends the entities that do it.

It owns the tree of scopes below the system: one task group for each owned partition, one task for
each activation in it. When a partition is lost its scope is cancelled, and with it every turn.

    Supervisor
    └─ partition 17 (task group; ends before the lease does)
       └─ account/a-42 (Activation.run)

Who is alive is in the `Catalog`; what becomes due, in the `Schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._errors import ActorLimitExceeded, InvalidEntityId
from atomic_actors.base._records import EntityRef
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import (
    NOTHING,
    Expire,
    Expired,
    Finish,
    Interrupt,
    JournalUnavailable,
    Offer,
    Rejected,
    Result,
    Sweep,
    Swept,
    Take,
    Taken,
    Unsettled,
)
from atomic_actors.node.execution._activation import Activation
from atomic_actors.node.execution._body import Body
from atomic_actors.node.execution._catalog import Catalog
from atomic_actors.node.execution._owned_partition import OwnedPartition
from atomic_actors.node.execution._turn import TurnCalls
from atomic_actors.node.execution._turn_runner import NodeParts
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.routing._other_services import ServiceJournals
from atomic_actors.node.routing._relay import Relay

__all__ = ("Supervisor",)

#: Entities and dispatches that one sweep of a partition asks for.
SWEEP_LIMIT: Final = 100
#: How often every owned partition is swept: a lost doorbell costs this at the most.
SWEEP_INTERVAL_S: Final = 1.0


@define(eq=False, kw_only=True)
class Supervisor:
    """Opens and ends the scopes of partitions, and brings entities and their work together.

    Args:
        node: what activations work with.
        membership: which partitions are owned.
        kinds: everything this node can run, by name.
        service_journals: the ways to other services, for the relay.
        body: ends the system if a part of it fails.
    """

    node: NodeParts
    membership: Membership
    kinds: Mapping[str, BoundKind]
    service_journals: ServiceJournals
    body: Body
    catalog: Catalog = field(init=False)
    relay: Relay = field(init=False)
    #: Sends what turns ask. It admits its messages here, so it comes with `start`: no turn runs before.
    calls: TurnCalls = field(init=False)
    #: The turns here that wait for each entity.
    awaited: dict[str, int] = field(factory=dict[str, int], init=False)
    #: The node is about to leave: it takes nothing more.
    draining: bool = field(default=False, init=False)
    #: No partition's scope opens any more.
    _left: bool = field(default=False, init=False)
    #: The last claim of each partition.
    _partitions: dict[int, OwnedPartition] = field(factory=dict[int, OwnedPartition], init=False)
    #: Activations to start as soon as their partition has a task group.
    _unstarted: dict[OwnedPartition, list[Activation]] = field(
        factory=dict[OwnedPartition, list[Activation]], init=False
    )
    _task_group: TaskGroup | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        node = self.node
        self.catalog = Catalog(
            self.kinds, node.config.max_activations, self.membership.partitions, node.backend
        )
        self.relay = Relay(
            journal=node.commits,
            claims=self.membership.claims,
            service_journals=self.service_journals,
            waker=self,
            observer=node.events,
        )

    # Partitions.

    def start(self, task_group: TaskGroup, calls: TurnCalls) -> None:
        """Use `task_group` for the partitions, and `calls` for what turns ask."""
        self._task_group = task_group
        self.calls = calls

    def claimed(self, number: int) -> None:
        """A partition is this node's: open its scope, settle what was left behind, find work."""
        assert self._task_group is not None
        before = self._partitions.get(number)
        membership = self.membership
        partition = OwnedPartition(
            number=number,
            claim=membership.claims[number],
            epoch=membership.epochs[number],
            membership=membership,
            is_leaving=self.draining,
        )
        self._partitions[number] = partition
        self.node.settlements.claimed(number)
        self._task_group.start_soon(self._run_partition, partition, before)

    def lost(self, number: int, why: str) -> None:
        """A partition is not this node's any more: end everything in it."""
        partition = self._partitions.get(number)
        logger.info("partition %d is not owned any more: %s", number, why)
        self.node.deferred.lost(number)
        if partition is not None:
            for activation in self.catalog.population(number):
                begun = activation.begun
                if begun is not None:
                    self.node.settlements.cut_off(number, activation.entity, activation.kind.policy, begun)
            partition.cancel()
        self.node.settlements.lost(number)

    def partition(self, number: int) -> OwnedPartition | None:
        """A partition that this node owns now."""
        partition = self._partitions.get(number)
        return partition if partition is not None and self.membership.claims[number] else None

    async def _run_partition(self, partition: OwnedPartition, before: OwnedPartition | None) -> None:
        if before is not None:
            await before.ended.wait()
        try:
            if self._left or partition.is_closed or not partition.is_owned:
                return
            async with anyio.create_task_group() as task_group:
                partition.task_group = task_group
                for activation in self._unstarted.pop(partition, ()):
                    task_group.start_soon(activation.run)
                self.sweep(partition)
                await anyio.sleep_forever()
        except Exception as error:
            self.body.crashed(error)
        finally:
            partition.is_closed = True
            partition.task_group = None
            for activation in self._unstarted.pop(partition, ()):
                self._spawn(activation)  # it is closed: what it was offered is given back
            partition.ended.set()

    def cancel_partitions(self) -> None:
        """End every scope; turns that are not on their way to the store are interrupted."""
        self._left = True
        for partition in self._partitions.values():
            partition.cancel()

    def sweep(self, partition: OwnedPartition) -> None:
        """Look for due entities, unsettled dispatches and streams at rest. One sweep at a time."""
        sweeps = partition.sweeps
        if sweeps.is_sweeping:
            return
        sweeps.is_sweeping = True
        now_s = self.node.backend.clock()
        sweeps.next_sweep_s = now_s + SWEEP_INTERVAL_S
        step = sweeps.next_step(partition.number, partition.claim, now_s, SWEEP_LIMIT)
        self.node.commits.enqueue(step, lambda result: self._swept(partition, step, result))

    def _swept(self, partition: OwnedPartition, step: Sweep, result: Result | JournalUnavailable) -> None:
        sweeps, number, now_s = partition.sweeps, partition.number, self.node.backend.clock()
        sweeps.is_sweeping = False
        if isinstance(result, Rejected):
            self.membership.damaged(number, result.text)
            sweeps.rejected(step, now_s)
        if not isinstance(result, Swept):
            return
        sweeps.answered(step, result, now_s)
        for unsettled in result.unsettled:
            self.settle_old(number, unsettled)
        if len(result.unsettled) >= SWEEP_LIMIT:
            self.sweep(partition)
        if self._partitions[number].is_leaving:
            return
        for own in result.own:
            if not self._knows(own):
                self.wake(number, own.entity)
        for entity in result.due:
            self.wake(number, entity)
        if len(result.due) >= SWEEP_LIMIT:
            sweeps.next_sweep_s = now_s
            sweeps.looks_ahead = max(0, sweeps.looks_ahead - 1)
        if len(result.due) < SWEEP_LIMIT or self.node.deferred.entities:
            sweeps.looks_ahead = 0  # all was seen, or it cannot run here either
        for target in result.outbound:
            self.relay.kick(number, target)

    def _knows(self, own: Unsettled) -> bool:
        """Whether a dispatch of this claim runs here, is about to, or is being settled."""
        activation = self.catalog.by_entity.get(own.entity)
        is_here = activation is not None and activation.knows(own.turn)
        return is_here or self.node.settlements.is_settling(own.entity, own.turn)

    def settle_old(self, number: int, unsettled: Unsettled, *, began: bool = True) -> None:
        """Settle a dispatch that is not running, then see what the entity has to do."""
        claim, settlements = self.membership.claims[number], self.node.settlements
        if not claim or settlements.is_settling(unsettled.entity, unsettled.turn):
            return
        step = Interrupt(
            partition=number,
            entity=unsettled.entity,
            claim=claim,
            turn=unsettled.turn,
            uids=unsettled.uids,
            began=began,
        )
        settlements.settle(step, self)

    def settle_swept(self, number: int, swept: Swept) -> None:
        """Settle what a sweep found, in a partition that is about to be released."""
        for unsettled in swept.unsettled:
            self.settle_old(number, unsettled)
        for own in swept.own:
            # What began here has ended, and was answered in order: no handler has begun with this one.
            self.settle_old(number, own, began=False)

    # Activations.

    def admit(self, kind: BoundKind, ref: EntityRef, entity: str, number: int) -> Activation | None:
        """The activation that takes a message with its append; None where this node is not to take it.

        Raises:
            ActorLimitExceeded: too many activations are busy, and this entity is not active.
        """
        partition = self._takes(number, entity)
        if partition is None:
            return None
        activation = self.catalog.by_entity.get(entity)
        if activation is None:
            if not partition.is_valid():
                return None
            activation = self._reserve(kind, ref, entity, partition)
            if activation is None:
                limit = self.catalog.max_activations
                raise ActorLimitExceeded(
                    f"{entity}: {limit} activations are busy (max_activations); try again later"
                )
        activation.mailbox.admitted += 1
        return activation

    def _takes(self, number: int, entity: str) -> OwnedPartition | None:
        """The partition of an entity, if it is owned and takes something for it."""
        if not self.membership.claims[number]:
            return None
        partition = self._partitions[number]
        return None if partition.is_leaving and entity not in self.awaited else partition

    def _reserve(
        self, kind: BoundKind, ref: EntityRef, entity: str, partition: OwnedPartition
    ) -> Activation | None:
        if not self.catalog.has_room():
            return None
        activation = Activation(
            host=self, node=self.node, kind=kind, ref=ref, entity=entity, partition=partition
        )
        self.catalog.add(activation)
        return activation

    def await_entity(self, entity: str) -> None:
        """A turn waits for an entity: it is taken for, though its partition may be given up."""
        self.awaited[entity] = self.awaited.get(entity, 0) + 1

    def let_go(self, number: int, entity: str) -> None:
        """A turn does not wait for an entity any more; where none does, it may go."""
        self.awaited[entity] -= 1
        if self.awaited[entity]:
            return
        del self.awaited[entity]
        partition, activation = self._partitions.get(number), self.catalog.by_entity.get(entity)
        if partition is not None and partition.is_leaving and activation is not None:
            self.catalog.close(activation)

    def committed(self, activation: Activation, step: Finish) -> None:
        """A turn is committed: wake the targets of its outbox."""
        self.catalog.used(activation)
        if self.node.deferred.entities:
            self.node.deferred.handled(activation.entity)
        number = step.partition
        for message in step.outbox:
            target = message.target
            if target == number:
                self.wake(message.partition, message.entity)
            else:
                self.relay.kick(number, target)

    def ended(self, activation: Activation, *, was_closing: bool) -> None:
        """An activation is gone; what it was offered and did not begin goes to its successor."""
        self.catalog.remove(activation, was_closing=was_closing)
        number = activation.partition.number
        offer = activation.take_offer()
        if offer is not None and offer.dispatch is not None:
            self._succeed(activation, offer)
        elif activation.mailbox.recheck_due:
            self.wake(number, activation.entity)
        self.catalog.emptied(number)
        self.went_idle()

    def _end(self, activation: Activation) -> None:
        """End an activation whose task has not begun."""
        activation.status = "ended"
        self.ended(activation, was_closing=False)

    def went_idle(self) -> None:
        """There may be room now: retry those that wait for it."""
        catalog = self.catalog
        if catalog.waiting:
            catalog.wake_senders()
        if catalog.starved and not self._left:
            self.wake(*catalog.take_starved())

    def follow_up(self, activation: Activation, offer: Offer) -> None:
        """Do what an offer asks for, other than running a turn in an active activation."""
        number, entity = activation.partition.number, activation.entity
        if offer.dispatch is not None:
            if activation.status == "reserved":
                self._spawn(activation)
            elif activation.status == "ended":
                activation.take_offer()
                self._succeed(activation, offer)
            return
        if offer.expired is not None:
            uid, key = offer.expired
            step = Expire(number, entity, uid, key)
            self.node.commits.enqueue(step, lambda result: self._expired(step, result))
        elif offer.unsettled is not None:
            self.settle_old(number, offer.unsettled)
        elif offer.more:
            self.take(activation)
            return
        elif offer.not_before_ms:
            self.node.schedule.retry_at(offer.not_before_ms, number, entity)
        if activation.status == "reserved" and not activation.mailbox.admitted:
            self._end(activation)

    def _expired(self, step: Expire, result: Result | JournalUnavailable) -> None:
        if isinstance(result, Expired):
            if result.expired:
                self.node.settlements.expired(step.entity, step.uid, result.body)
            self.wake(step.partition, step.entity)

    def _succeed(self, activation: Activation, offer: Offer) -> None:
        """Hand an offer to the entity's next activation."""
        partition, entity = activation.partition, activation.entity
        if not partition.is_owned:
            return
        successor = self.catalog.by_entity.get(entity)
        if successor is None:
            successor = self._reserve(activation.kind, activation.ref, entity, partition)
            if successor is None:
                self._give_back(activation, offer)
                return
        successor.inherit(activation)
        successor.accept(offer)

    def _give_back(self, activation: Activation, offer: Offer) -> None:
        dispatch, partition = offer.dispatch, activation.partition
        assert dispatch is not None
        uids = tuple(item.uid for item in dispatch.messages)
        step = Interrupt(
            partition=partition.number,
            entity=activation.entity,
            claim=partition.claim,
            turn=dispatch.turn,
            uids=uids,
            began=False,
        )
        self.node.settlements.settle(step)

    def _spawn(self, activation: Activation) -> None:
        partition = activation.partition
        if not partition.is_open or self._partitions.get(partition.number) is not partition:
            offer = activation.take_offer()
            self._end(activation)
            if offer is not None:
                self._give_back(activation, offer)
            return
        if partition.task_group is None:
            self._unstarted.setdefault(partition, []).append(activation)
        else:
            partition.task_group.start_soon(activation.run)

    def wake(self, number: int, entity: str) -> None:
        """Something waits for an entity: take it, unless a turn is on that will find it anyway."""
        partition = self._takes(number, entity)
        if partition is None:
            return
        activation = self.catalog.by_entity.get(entity)
        if activation is not None and activation.is_busy:
            activation.mailbox.recheck_due = True
            return
        if activation is None:
            kind_name, _, entity_id = entity.partition("/")
            kind = self.kinds.get(kind_name)
            if kind is None or not kind.durable:
                self.node.deferred.leave(number, entity, partition.claim)
                return
            try:
                ref = EntityRef(kind_name, entity_id)
            except InvalidEntityId as error:
                logger.warning("an entity in partition %d cannot be parsed: %s", number, error)
                return
            activation = self._reserve(kind, ref, entity, partition)
            if activation is None:
                self.catalog.starve(number, entity)  # or a later sweep finds it
                return
        self.take(activation)

    def doorbell_rang(self, number: int, entity: str) -> None:
        """A doorbell: an entity of a partition has work; without an entity, any of them may."""
        partition = self.partition(number)
        if entity:
            self.wake(number, entity)
        elif partition is not None:
            self.sweep(partition)

    def take(self, activation: Activation) -> None:
        """Ask the store for an entity's next work."""
        activation.mailbox.admitted += 1
        activation.mailbox.recheck_due = False
        step = Take(
            partition=activation.partition.number,
            entity=activation.entity,
            claim=activation.partition.claim,
            policy=activation.kind.policy,
            held_version=activation.state.version,
            run_limit=activation.kind.settings.max_run_length,
        )
        self.node.commits.enqueue(step, lambda result: self._taken(activation, result))

    def _taken(self, activation: Activation, result: Result | JournalUnavailable) -> None:
        """A take is answered. Where the store cannot read what is next, the entity waits for a person."""
        if isinstance(result, Rejected):
            why = f"the store cannot read what is next: {result.text}"
            self.node.parking.park(activation.partition.number, activation.entity, why)
        activation.offered(result.offer if isinstance(result, Taken) else NOTHING)

    # Time.

    def tick(self, now_s: float) -> None:
        """Cut late turns, wake due heads, passivate the idle, sweep what was not swept for long."""
        node = self.node
        node.schedule.cut_late(now_s)
        for number, entity in node.schedule.take_retries(node.store_clock.now_ms()):
            self.wake(number, entity)
        self.catalog.close_idle(now_s)
        if node.commits.available:
            for partition in self._partitions.values():
                is_open = partition.task_group is not None and partition.sweeps.next_sweep_s <= now_s
                if is_open and partition.is_owned:
                    self.sweep(partition)

    # The end.

    async def wait_ended(self) -> None:
        """Return once every partition's scope has ended, and every activation with it."""
        for partition in list(self._partitions.values()):
            await partition.ended.wait()

    def stop_taking(self) -> None:
        """The node is about to leave: nothing more is taken, in any partition."""
        self.draining = True
        for partition in self._partitions.values():
            partition.is_leaving = True

    def stop_taking_in(self, number: int) -> None:
        """A partition is given up: nothing more is taken in it."""
        partition = self._partitions.get(number)
        if partition is not None:
            partition.is_leaving = True

    async def drain(self) -> None:
        """Stop taking, ask every activation to passivate, return once none is left."""
        self.stop_taking()
        for number in range(self.membership.partitions):
            await self.drain_partition(number)

    async def drain_partition(self, number: int) -> None:
        """Stop taking in a partition, ask its activations to passivate, return once none is left."""
        self.stop_taking_in(number)
        for activation in self.catalog.population(number):
            if activation.status == "reserved" and not activation.is_busy:
                self._end(activation)
            else:
                self.catalog.close(activation)
        await self.catalog.wait_emptied(number)

    async def end_partition(self, number: int) -> None:
        """End a partition's scope; turns that are not on their way to the store are interrupted."""
        partition = self._partitions.get(number)
        if partition is not None:
            partition.is_closed = True
            partition.cancel()
            await partition.ended.wait()
