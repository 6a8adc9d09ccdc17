"""Which entities are alive on this node: starts them, wakes them, puts them to sleep.

It owns the tree of scopes below the system: one task group for each owned partition, one task for
each activation in it. When a partition is lost its scope is cancelled, and with it every turn.

    Supervisor
    └─ partition 17 (task group; ends before the lease does)
       └─ account/a-42 (Activation.run)
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.actors._kinds import Kind
from atomic_actors.base._errors import ActorLimitExceeded, InvalidEntityId
from atomic_actors.base._oneshot import Cell
from atomic_actors.base._records import EntityRef
from atomic_actors.base._telemetry import logger
from atomic_actors.base._timer_wheel import TimerWheel
from atomic_actors.journal._protocol import (
    Expire,
    Expired,
    Interrupt,
    JournalUnavailable,
    Offer,
    Rejected,
    Result,
    SettleLost,
    Sweep,
    Swept,
    Take,
    Unsettled,
)
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.execution._activation import Activation, Services
from atomic_actors.node.execution._deferred import UnhandledMessages
from atomic_actors.node.execution._owned_partition import OwnedPartition
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.routing._relay import Relay

__all__ = ("Supervisor",)

#: How many of the least recently used activations are looked at for one that may go.
EVICTION_LOOK: Final = 64
#: Entities without room that are remembered; the sweeps find the others.
STARVED_MAX: Final = 10_000
#: Entities and dispatches that one sweep of a partition asks for.
SWEEP_LIMIT: Final = 100
#: How often every owned partition is swept: a lost doorbell costs this at the most.
SWEEP_INTERVAL_S: Final = 1.0


class Node(Services, Protocol):
    """What the supervisor needs of the node, beside what its activations need."""

    def settle(self, step: Interrupt, then: Callable[[], None] | None = None) -> None:
        """Settle a dispatch that was cut off and tell its asker; then call `then`."""
        ...

    def expired(self, entity: str, unique: str, body: bytes | None) -> None:
        """A message expired: tell its asker."""
        ...

    def taken(self, activation: Activation, result: Result | JournalUnavailable) -> None:
        """A take is answered: hand over what there is to do."""
        ...

    def crashed(self, error: BaseException) -> None:
        """A part of the node failed by its own fault: the system ends, with this as the cause."""
        ...


@define(eq=False)
class Supervisor:
    """Starts, wakes and passivates activations.

    Args:
        node: what activations need around them.
        journal: where takes and settlements go.
        membership: which partitions are owned.
        kinds: everything this node can run, by name.
        max_activations: entities in memory at once; 0 means unbounded.
    """

    node: Node
    journal: CommitQueue
    membership: Membership
    kinds: dict[str, Kind]
    max_activations: int
    new_cell: Callable[[], Cell[Any]]
    clock: Callable[[], float]
    #: The node is about to leave: it takes nothing more.
    draining: bool = False
    #: Whether nothing more is taken in a partition. Read on the hot path.
    leaving: list[bool] = field(init=False)
    awaited: dict[str, int] = field(factory=dict[str, int], init=False)  #: turns here that wait for each
    #: No partition's scope opens any more.
    _left: bool = field(default=False, init=False)
    relay: Relay = field(init=False)
    _by_entity: dict[str, Activation] = field(factory=dict[str, Activation], init=False)
    #: The same activations by partition.
    _population: list[dict[str, Activation]] = field(init=False)
    #: Those who wait until nobody lives in a partition any more.
    _emptied: dict[int, anyio.Event] = field(factory=dict[int, anyio.Event], init=False)
    #: The same activations by kind, least recently used first.
    _by_use: dict[str, OrderedDict[str, Activation]] = field(
        factory=dict[str, OrderedDict[str, Activation]], init=False
    )
    _closing: int = field(default=0, init=False)
    _partitions: dict[int, OwnedPartition] = field(factory=dict[int, OwnedPartition], init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    #: Heads that wait for their back-off: (store time, entity, partition).
    _due: list[tuple[int, str, int]] = field(factory=list[tuple[int, str, int]], init=False)
    _deadlines: TimerWheel[Activation] = field(factory=TimerWheel[Activation], init=False)
    #: Entities with work and no room, by entity; the longest waiting first.
    _starved: OrderedDict[str, int] = field(factory=OrderedDict[str, int], init=False)
    _idle_waiters: list[Cell[None]] = field(factory=list[Cell[None]], init=False)
    #: What waits here for a handler that only other nodes have.
    unhandled: UnhandledMessages = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.relay = Relay(self.journal, self.membership.claims, self.wake)
        self.unhandled = UnhandledMessages(self.journal, self.clock)
        self._by_use = {name: OrderedDict() for name in self.kinds}
        self.leaving = [False] * self.membership.partitions
        self._population = [{} for _ in self.leaving]

    # Partitions.

    def start(self, task_group: TaskGroup) -> None:
        """Use `task_group` for the partitions."""
        self._task_group = task_group

    def claimed(self, number: int) -> None:
        """A partition is this node's: open its scope, settle what was left behind, find work."""
        assert self._task_group is not None
        before = self._partitions.get(number)
        partition = OwnedPartition(number, self.membership.claims[number])
        self._partitions[number] = partition
        self.leaving[number] = self.draining
        self._task_group.start_soon(self._run_partition, partition, before)

    def lost(self, number: int, why: str) -> None:
        """A partition is not this node's any more: end everything in it."""
        partition = self._partitions.get(number)
        logger.info("partition %d is not owned any more: %s", number, why)
        self.unhandled.lost(number)
        if partition is None:
            return
        for activation in self._population[number].values():
            begun = activation.begun
            if begun is not None:
                partition.cut_off[activation.entity] = (activation, begun)
        if partition.task_group is not None:
            partition.task_group.cancel_scope.cancel()

    def in_doubt(self, number: int, claim: str) -> list[SettleLost]:
        """The steps that settle what ran in a partition when it was lost, should the store not know of it."""
        partition = self._partitions.get(number)
        return partition.in_doubt(claim) if partition is not None else []

    def settled(self, number: int, entity: str) -> None:
        """The store has settled what was cut off."""
        partition = self._partitions.get(number)
        if partition is not None:
            partition.cut_off.pop(entity, None)

    async def _run_partition(self, partition: OwnedPartition, before: OwnedPartition | None) -> None:
        if before is not None:
            await before.ended.wait()
        try:
            is_ours = self.membership.claims[partition.number] == partition.claim
            if self._left or partition.is_closed or not is_ours:
                return
            async with anyio.create_task_group() as task_group:
                partition.task_group = task_group
                for activation in partition.waiting:
                    task_group.start_soon(activation.run)
                partition.waiting.clear()
                self.sweep(partition)
                await anyio.sleep_forever()
        except Exception as error:
            self.node.crashed(error)
        finally:
            partition.is_closed = True
            partition.task_group = None
            waiting, partition.waiting = partition.waiting, []
            for activation in waiting:
                self._spawn(activation)  # it is closed: what it was offered is given back
            partition.ended.set()

    def cancel_partitions(self) -> None:
        """End every scope; turns that are not on their way to the store are interrupted."""
        self._left = True
        for partition in self._partitions.values():
            if partition.task_group is not None:
                partition.task_group.cancel_scope.cancel()

    def sweep(self, partition: OwnedPartition) -> None:
        """Look for due entities, unsettled dispatches and streams at rest. One sweep at a time."""
        if partition.sweeping:
            return
        partition.sweeping = True
        now_s = self.clock()
        partition.next_sweep_s = now_s + SWEEP_INTERVAL_S
        step = partition.new_sweep(now_s, SWEEP_LIMIT)
        self.journal.enqueue(step, lambda result: self._swept(partition, step, result))

    def _swept(self, partition: OwnedPartition, step: Sweep, result: Result | JournalUnavailable) -> None:
        partition.sweeping = False
        if isinstance(result, Rejected):
            self.membership.damaged(partition.number, result.text)
            partition.refused(step, self.clock())
        if not isinstance(result, Swept):
            return
        partition.looked(step, result, self.clock())
        for unsettled in result.unsettled:
            self.settle_old(partition.number, unsettled)
        if len(result.unsettled) >= SWEEP_LIMIT:
            self.sweep(partition)
        if self.leaving[partition.number]:
            return
        for own in result.own:
            if not self._knows(own):
                self.wake(partition.number, own.entity)
        for entity in result.due:
            self.wake(partition.number, entity)
        if len(result.due) >= SWEEP_LIMIT:
            partition.next_sweep_s = self.clock()
            partition.looks_ahead = max(0, partition.looks_ahead - 1)
        if len(result.due) < SWEEP_LIMIT or self.unhandled.entities:
            partition.looks_ahead = 0  # all was seen, or nobody here can run it either
        for target in result.outbound:
            self.relay.kick(partition.number, target)

    def _knows(self, own: Unsettled) -> bool:
        """Whether a dispatch of this claim runs here, is about to, or is being settled."""
        activation = self._by_entity.get(own.entity)
        is_here = activation is not None and activation.knows(own.turn)
        return is_here or self.node.settling.get(own.entity) == own.turn

    def settle_old(self, number: int, unsettled: Unsettled, *, began: bool = True) -> None:
        """Settle a dispatch that nobody runs, then see what the entity has to do."""
        claim = self.membership.claims[number]
        if not claim or self.node.settling.get(unsettled.entity) == unsettled.turn:
            return
        step = Interrupt(number, unsettled.entity, claim, unsettled.turn, unsettled.uniques, began)
        self.node.settle(step, then=lambda: self.wake(number, unsettled.entity))

    # Activations.

    def is_leaving(self, number: int, entity: str) -> bool:
        """Whether no more is taken for an entity: its partition is given up, and no turn here waits for it."""
        return self.leaving[number] and entity not in self.awaited

    def admit(self, kind: Kind, ref: EntityRef, entity: str, number: int) -> Activation | None:
        """The activation that takes a message with its append; None where this node is not to take it.

        Raises:
            ActorLimitExceeded: too many activations are busy, and this entity is not active.
        """
        if self.is_leaving(number, entity) or not self.membership.claims[number]:
            return None
        activation = self._by_entity.get(entity)
        if activation is None:
            if not self.membership.is_valid(number):
                return None
            activation = self._reserve(kind, ref, entity, number)
            if activation is None:
                raise ActorLimitExceeded(
                    f"{entity}: {self.max_activations} activations are busy (max_activations); try again later"
                )
        activation.admitted += 1
        return activation

    def _reserve(self, kind: Kind, ref: EntityRef, entity: str, number: int) -> Activation | None:
        is_full = self.max_activations and len(self._by_entity) - self._closing >= self.max_activations
        if is_full and not self._evict():
            return None
        activation = Activation(
            self.node, kind, ref, entity, number, self.membership.claims[number], used_at_s=self.clock()
        )
        self._by_entity[entity] = self._population[number][entity] = activation
        self._by_use[kind.name][entity] = activation
        return activation

    def _evict(self) -> bool:
        """Ask the least recently used idle activation to passivate; False if there is none."""
        oldest: Activation | None = None
        for by_use in self._by_use.values():
            for activation, _ in zip(by_use.values(), range(EVICTION_LOOK), strict=False):
                if activation.status == "active" and not activation.is_busy:
                    if oldest is None or activation.used_at_s < oldest.used_at_s:
                        oldest = activation
                    break
        if oldest is None:
            return False
        self.close(oldest)
        return True

    def close(self, activation: Activation) -> None:
        """Ask an activation to passivate."""
        if activation.status == "active":
            self._closing += 1
            activation.close()

    def let_go(self, number: int, entity: str) -> None:
        """No turn waits for an entity any more."""
        if self.leaving[number] and (activation := self._by_entity.get(entity)) is not None:
            self.close(activation)

    def used(self, activation: Activation) -> None:
        """An activation ended a turn: it is the most recently used one of its kind."""
        by_use = self._by_use[activation.kind.name]
        if activation.entity in by_use:
            by_use.move_to_end(activation.entity)

    def ended(self, activation: Activation, *, was_closing: bool) -> None:
        """An activation is gone; what it was offered and did not begin goes to its successor."""
        if was_closing:
            self._closing -= 1
        if self._by_entity.get(activation.entity) is activation:
            del self._by_entity[activation.entity]
            del self._population[activation.partition][activation.entity]
            del self._by_use[activation.kind.name][activation.entity]
        offer = activation.take_offer()
        if offer is not None and offer.dispatch is not None:
            self._succeed(activation, offer)
        elif activation.rung:
            self.wake(activation.partition, activation.entity)
        if activation.partition in self._emptied and not self._population[activation.partition]:
            self._emptied.pop(activation.partition).set()
        self.went_idle()

    def follow_up(self, activation: Activation, offer: Offer) -> None:
        """Do what an offer asks for, other than running a turn in an active activation."""
        number, entity = activation.partition, activation.entity
        if offer.dispatch is not None:
            if activation.status == "reserved":
                self._spawn(activation)
            elif activation.status == "ended":
                activation.take_offer()
                self._succeed(activation, offer)
            return
        if offer.expired is not None:
            unique, key = offer.expired
            step = Expire(number, entity, unique, key)
            self.journal.enqueue(step, lambda result: self._expired(number, entity, unique, result))
        elif offer.unsettled is not None:
            self.settle_old(number, offer.unsettled)
        elif offer.more:
            self.take(activation)
            return
        elif offer.not_before_ms:
            heapq.heappush(self._due, (offer.not_before_ms, entity, number))
        if activation.status == "reserved" and not activation.admitted:
            activation.status = "ended"
            self.ended(activation, was_closing=False)

    def _expired(self, number: int, entity: str, unique: str, result: Result | JournalUnavailable) -> None:
        if isinstance(result, Expired):
            if result.expired:
                self.node.expired(entity, unique, result.body)
            self.wake(number, entity)

    def _succeed(self, activation: Activation, offer: Offer) -> None:
        """Hand an offer to the entity's next activation."""
        number, entity = activation.partition, activation.entity
        if self.membership.claims[number] != activation.claim:
            return
        successor = self._by_entity.get(entity)
        if successor is None:
            successor = self._reserve(activation.kind, activation.ref, entity, number)
            if successor is None:
                self._give_back(activation, offer)
                return
        successor.inherit(activation)
        successor.accept(offer)

    def _give_back(self, activation: Activation, offer: Offer) -> None:
        assert offer.dispatch is not None
        uniques = tuple(item.unique for item in offer.dispatch.messages)
        self.node.settle(
            Interrupt(
                activation.partition,
                activation.entity,
                activation.claim,
                offer.dispatch.turn,
                uniques,
                began=False,
            )
        )

    def _spawn(self, activation: Activation) -> None:
        partition = self._partitions.get(activation.partition)
        if partition is None or not partition.is_open or partition.claim != activation.claim:
            offer = activation.take_offer()
            activation.status = "ended"
            self.ended(activation, was_closing=False)
            if offer is not None:
                self._give_back(activation, offer)
            return
        if partition.task_group is None:
            partition.waiting.append(activation)
        else:
            partition.task_group.start_soon(activation.run)

    def wake(self, number: int, entity: str) -> None:
        """Something waits for an entity: take it, unless a turn is on that will find it anyway."""
        if self.is_leaving(number, entity) or not self.membership.claims[number]:
            return
        activation = self._by_entity.get(entity)
        if activation is not None and activation.is_busy:
            activation.rung = True
            return
        if activation is None:
            kind_name, _, entity_id = entity.partition("/")
            kind = self.kinds.get(kind_name)
            if kind is None or not kind.durable:
                self.unhandled.leave(number, entity, self.membership.claims[number])
                return
            try:
                ref = EntityRef(kind_name, entity_id)
            except InvalidEntityId as error:
                logger.warning("something in partition %d is nobody's: %s", number, error)
                return
            activation = self._reserve(kind, ref, entity, number)
            if activation is None:
                # No room: it gets the place of the next one that falls idle, or a later sweep finds it.
                if len(self._starved) < STARVED_MAX:
                    self._starved[entity] = number
                return
        self.take(activation)

    def rung(self, number: int, entity: str) -> None:
        """A doorbell: an entity of a partition has work; without an entity, any of them may."""
        if entity:
            self.wake(number, entity)
        else:
            partition = self._partitions.get(number)
            if partition is not None and self.membership.claims[number]:
                self.sweep(partition)

    def take(self, activation: Activation) -> None:
        """Ask the store for an entity's next work."""
        activation.admitted += 1
        activation.rung = False
        step = Take(
            activation.partition,
            activation.entity,
            activation.claim,
            activation.policy,
            activation.version,
            activation.kind.settings.max_run_length,
        )
        self.journal.enqueue(step, lambda result: self.node.taken(activation, result))

    # What the sweeper does.

    def watch_deadline(self, activation: Activation) -> None:
        """Look at a running turn again when its deadline has passed."""
        deadline_s = activation.deadline_s
        # One place for each activation and not for each message: an earlier look finds out about this turn.
        if not 0 < activation.watched_until_s <= deadline_s:
            activation.watched_until_s = deadline_s
            self._deadlines.add(deadline_s, activation)

    def _look_at_deadline(self, activation: Activation, now_s: float) -> None:
        activation.watched_until_s = 0.0
        activation.cut_if_late(now_s)
        if activation.deadline_s > 0:
            self.watch_deadline(activation)

    def tick(self, now_s: float, store_now_ms: int) -> None:
        """Cut late turns, wake due heads, passivate the idle, sweep what was not swept for long."""
        for activation in self._deadlines.due(now_s):
            if 0 < activation.watched_until_s <= now_s:  # else it has a place further ahead since
                self._look_at_deadline(activation, now_s)
        while self._due and self._due[0][0] <= store_now_ms:
            _, entity, number = heapq.heappop(self._due)
            self.wake(number, entity)
        self._passivate_idle(now_s)
        if self.journal.available:
            for partition in self._partitions.values():
                is_open = partition.task_group is not None and partition.next_sweep_s <= now_s
                if is_open and self.membership.claims[partition.number] == partition.claim:
                    self.sweep(partition)

    def _passivate_idle(self, now_s: float) -> None:
        for name, by_use in self._by_use.items():
            limit_s = self.kinds[name].settings.idle_timeout_s
            if not limit_s:
                continue
            late: list[Activation] = []
            for activation in by_use.values():
                if activation.used_at_s + limit_s > now_s:
                    break
                if activation.status == "active" and not activation.is_busy:
                    late.append(activation)
            for activation in late:
                self.close(activation)

    # What people ask.

    def find(self, entity: str) -> Activation | None:
        """The activation of an entity, if it is alive here."""
        return self._by_entity.get(entity)

    def count(self, kind: str | None = None) -> int:
        """How many entities are alive here."""
        return len(self._by_entity) if kind is None else len(self._by_use.get(kind, ()))

    def busy(self) -> list[Activation]:
        """The activations that run a turn."""
        return [activation for activation in self._by_entity.values() if activation.is_running]

    def _tell_idle(self) -> None:
        waiting, self._idle_waiters = self._idle_waiters, []
        for cell in waiting:
            cell.set(None)

    def went_idle(self) -> None:
        """There may be room now: whoever waits for it gets a chance."""
        if self._idle_waiters:
            self._tell_idle()
        if self._starved and not self._left:
            entity, number = self._starved.popitem(last=False)
            self.wake(number, entity)

    async def wait_for_room(self, limit_s: float) -> None:
        """Wait until an activation has ended or fallen idle, or `limit_s` has passed."""
        cell: Cell[None] = self.new_cell()
        self._idle_waiters.append(cell)
        with anyio.move_on_after(limit_s):
            await cell

    async def wait_ended(self) -> None:
        """Return once every partition's scope has ended, and every activation with it."""
        for partition in list(self._partitions.values()):
            await partition.ended.wait()

    def stop_taking(self) -> None:
        """The node is about to leave: nothing more is taken, in any partition."""
        self.draining = True
        self.leaving[:] = [True] * len(self.leaving)

    async def drain(self) -> None:
        """Stop taking, ask everybody to passivate, return once nobody is left."""
        self.stop_taking()
        for number in range(len(self.leaving)):
            await self.drain_partition(number)

    async def drain_partition(self, number: int) -> None:
        """Stop taking in a partition, ask everybody in it to passivate, return once nobody is left."""
        self.leaving[number] = True
        population = self._population[number]
        for activation in list(population.values()):
            if activation.status == "reserved" and not activation.is_busy:
                activation.status = "ended"
                self.ended(activation, was_closing=False)
            else:
                self.close(activation)
        while population:
            await self._emptied.setdefault(number, anyio.Event()).wait()

    async def end_partition(self, number: int) -> None:
        """End a partition's scope; turns that are not on their way to the store are interrupted."""
        partition = self._partitions.get(number)
        if partition is not None:
            partition.is_closed = True
            if partition.task_group is not None:
                partition.task_group.cancel_scope.cancel()
            await partition.ended.wait()

    def settle_swept(self, number: int, swept: Swept) -> None:
        """Settle what a sweep found, in a partition that is about to be released."""
        for unsettled in swept.unsettled:
            self.settle_old(number, unsettled)
        for own in swept.own:
            # What began here has ended, and was answered in order: no handler has begun with this one.
            self.settle_old(number, own, began=False)
