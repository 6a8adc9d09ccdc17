"""Which entities of durable kinds are alive on this node, and which of them is passivated when there is no room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import anyio
from attrs import define, field

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._oneshot import Backend, OneShot
from atomic_actors.node.execution._activation import Activation

__all__ = ("Catalog",)

#: How many of the least recently used activations are looked at for one that may go.
EVICTION_LOOK: Final = 64
#: Entities without room that are remembered; the sweeps find the others.
STARVED_MAX: Final = 10_000


@define(eq=False)
class Catalog:
    """The activations of a node: by entity, by partition, and by kind in the order of use.

    Args:
        kinds: everything this node can run, by name.
        max_activations: entities in memory at once; 0 means unbounded.
        partitions: how many the service has.
    """

    kinds: Mapping[str, BoundKind]
    max_activations: int
    partitions: int
    backend: Backend
    by_entity: dict[str, Activation] = field(factory=dict[str, Activation], init=False)
    #: The same activations by partition.
    _by_partition: list[dict[str, Activation]] = field(init=False)
    #: The same activations by kind, least recently used first.
    _by_use: dict[str, OrderedDict[str, Activation]] = field(init=False)
    #: How many of them were asked to passivate.
    _closing: int = field(default=0, init=False)
    #: Set when no entity of a partition is active any more.
    _emptied: dict[int, anyio.Event] = field(factory=dict[int, anyio.Event], init=False)
    #: Entities with work and no room, with their partitions; the longest waiting first.
    starved: OrderedDict[str, int] = field(factory=OrderedDict[str, int], init=False)
    #: Senders that wait for room.
    waiting: list[OneShot[None]] = field(factory=list[OneShot[None]], init=False)

    def __attrs_post_init__(self) -> None:
        self._by_partition = [{} for _ in range(self.partitions)]
        self._by_use = {name: OrderedDict() for name in self.kinds}

    # Who is alive.

    def find(self, entity: str) -> Activation | None:
        """The activation of an entity, if it is alive here."""
        return self.by_entity.get(entity)

    def count(self, kind: str | None = None) -> int:
        """How many entities are alive here."""
        return len(self.by_entity) if kind is None else len(self._by_use.get(kind, ()))

    def running(self) -> list[Activation]:
        """The activations that run a turn."""
        return [activation for activation in self.by_entity.values() if activation.is_running]

    def population(self, partition: int) -> list[Activation]:
        """The activations of a partition."""
        return list(self._by_partition[partition].values())

    def add(self, activation: Activation) -> None:
        """Take in an activation, whose entity has none yet."""
        entity = activation.entity
        self.by_entity[entity] = self._by_partition[activation.partition.number][entity] = activation
        self._by_use[activation.kind.name][entity] = activation

    def used(self, activation: Activation) -> None:
        """An activation ended a turn: it is the most recently used one of its kind."""
        by_use = self._by_use[activation.kind.name]
        if activation.entity in by_use:
            by_use.move_to_end(activation.entity)

    def close(self, activation: Activation) -> None:
        """Ask an activation to passivate."""
        if activation.status == "active":
            self._closing += 1
            activation.close()

    def remove(self, activation: Activation, *, was_closing: bool) -> None:
        """An activation is gone."""
        entity, partition = activation.entity, activation.partition.number
        if was_closing:
            self._closing -= 1
        if self.by_entity.get(entity) is activation:
            del self.by_entity[entity]
            del self._by_partition[partition][entity]
            del self._by_use[activation.kind.name][entity]

    # Room.

    def has_room(self) -> bool:
        """Whether one more entity may come alive; where it is full, an idle one is asked to go."""
        is_full = self.max_activations and len(self.by_entity) - self._closing >= self.max_activations
        return not is_full or self._evict()

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

    def close_idle(self, now_s: float) -> None:
        """Ask those to passivate that were idle for as long as their kind allows."""
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

    def starve(self, partition: int, entity: str) -> None:
        """An entity has work and no room: it gets the place of the next one that falls idle."""
        if len(self.starved) < STARVED_MAX:
            self.starved[entity] = partition

    def take_starved(self) -> tuple[int, str]:
        """The partition and the entity that has waited longest for room; it waits no more."""
        entity, partition = self.starved.popitem(last=False)
        return partition, entity

    def wake_senders(self) -> None:
        """There may be room now, for those who send."""
        waiting, self.waiting = self.waiting, []
        for oneshot in waiting:
            oneshot.set(None)

    async def wait_for_room(self, limit_s: float) -> None:
        """Wait until an activation has ended or fallen idle, or `limit_s` has passed."""
        oneshot: OneShot[None] = self.backend.new_oneshot()
        self.waiting.append(oneshot)
        with anyio.move_on_after(limit_s):
            await oneshot

    def emptied(self, partition: int) -> None:
        """Wake those that wait until a partition has no active entity, if it has none now."""
        if partition in self._emptied and not self._by_partition[partition]:
            self._emptied.pop(partition).set()

    async def wait_emptied(self, partition: int) -> None:
        """Return once a partition has no active entity."""
        while self._by_partition[partition]:
            await self._emptied.setdefault(partition, anyio.Event()).wait()
