"""The in-memory journal, with every move of every message written into a history."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, Protocol

from atomic_actors.base._lifecycle import Event, InterruptionRules
from atomic_actors.journal._protocol import (
    Append,
    BatchResult,
    ClaimPartition,
    Finish,
    JournalSettings,
    Release,
    Replay,
    Result,
    Step,
)
from atomic_actors.journal.memory._counters import Entity, Message, Partition, Running
from atomic_actors.journal.memory._journal import MemoryJournal
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.testing.checkers._history import (
    Accepted,
    Claimed,
    Committed,
    Ended,
    Freed,
    PutBack,
    Record,
    Sent,
    Taken,
)

__all__ = ("RecordingJournal",)

_SOURCES: Final[dict[type[Any], Literal["sent", "replayed"]]] = {Append: "sent", Replay: "replayed"}


def _digest(state: bytes) -> str:
    return blake2b(state, digest_size=6).hexdigest() if state else ""


class StoreWorld(Protocol):
    """What the store needs of the simulation that it is in."""

    def at_s(self) -> float:
        """The time of records."""
        ...

    def now_ms(self) -> int:
        """The store's time."""
        ...

    def record(self, record: Record) -> None:
        """Write down what happened."""
        ...

    def ring(self, partition: int, entity: str) -> None:
        """A step rings a doorbell."""
        ...


class _RecordingPartition(Partition):
    """Writes down each move as it is made."""

    journal: RecordingJournal
    number: int
    #: The step that is being executed.
    step: Step
    #: By running entity: version and state when its messages were taken.
    taken_from: dict[str, tuple[int, str]]

    def accept(self, entity: Entity, uid: str, body: bytes, *, at_head: bool = False) -> Message:
        message = super().accept(entity, uid, body, at_head=at_head)
        source: Literal["sent", "outbox", "replayed"] = _SOURCES.get(type(self.step), "outbox")
        self._add(
            Accepted(
                at_s=self._at_s(),
                entity=entity.name,
                uid=uid,
                name=message.head.name,
                source=source,
                at_head=at_head,
            )
        )
        return message

    def dispatch(
        self, entity: Entity, messages: tuple[Message, ...], claim: str, stamp: InterruptionRules
    ) -> Running:
        running = super().dispatch(entity, messages, claim, stamp)
        self.taken_from[entity.name] = (entity.version, _digest(entity.state))
        self._add(
            Taken(
                at_s=self._at_s(),
                partition=self.number,
                entity=entity.name,
                node=self.journal.node_of(self.lease.node),
                epoch=self.lease.epoch,
                turn=running.turn,
                uids=running.uids,
                attempts=tuple(message.attempts for message in messages),
            )
        )
        return running

    def put_back(self, entity: Entity, messages: list[Message], event: Event) -> None:
        super().put_back(entity, messages, event)
        uids = tuple(message.uid for message in messages)
        self._add(PutBack(self._at_s(), entity.name, uids, event.value))

    def finalise(self, entity: Entity, message: Message, event: Event, reply: bytes, now_ms: int) -> None:
        super().finalise(entity, message, event, reply, now_ms)
        self._add(
            Ended(at_s=self._at_s(), entity=entity.name, uid=message.uid, event=event.value, reply=reply)
        )

    def end_turn(self, entity: Entity, last: Any) -> None:
        turn = entity.running.turn if entity.running is not None else 0
        super().end_turn(entity, last)
        version, state = self.taken_from.pop(entity.name, (entity.version, _digest(entity.state)))
        self._add(
            Committed(
                at_s=self._at_s(),
                partition=self.number,
                entity=entity.name,
                node=self.journal.node_of(self.lease.node),
                epoch=self.lease.epoch,
                turn=turn,
                version_before=version,
                version_after=entity.version,
                state_before=state,
                state_after=_digest(entity.state),
            )
        )
        step = self.step
        if isinstance(step, Finish) and step.outbox:
            parent = next((each.uid for each in step.verdicts if each.event == Event.COMPLETE.value), "")
            for sent in step.outbox:
                self._add(
                    Sent(
                        at_s=self._at_s(), source=entity.name, parent=parent, target=sent.entity, uid=sent.uid
                    )
                )

    def _at_s(self) -> float:
        return self.journal.world.at_s()

    def _add(self, record: Record) -> None:
        self.journal.world.record(record)


class RecordingJournal(MemoryJournal):
    """A `MemoryJournal` that several nodes share and that writes down what happens in it.

    Args:
        settings: as of `MemoryJournal`.
        world: where it is: has the time, and records what happens.
    """

    def __init__(self, settings: JournalSettings, world: StoreWorld) -> None:
        super().__init__(settings, now_ms=world.now_ms, on_bell=world.ring)
        self.world = world
        #: The nodes' numbers, by node id.
        self.node_numbers: dict[str, int] = {}
        self._numbers_by_record: dict[bytes, int] = {}
        for number in range(settings.partitions):
            partition = _RecordingPartition(settings=settings)
            partition.journal, partition.number, partition.taken_from = self, number, {}
            self._partitions[number] = partition

    def node_of(self, record: bytes) -> int:
        """The number of the node that a lease names; 0 where there is none."""
        number = self._numbers_by_record.get(record)
        if number is None:
            number = self.node_numbers.get(NodeIdentity.id_in(record), 0) if record else 0
            self._numbers_by_record[record] = number
        return number

    def apply(self, steps: Sequence[Step]) -> BatchResult:
        """Execute steps now, without a wait."""
        return self._execute(steps)

    def commit_numbers(self, steps: Sequence[Step]) -> list[tuple[int, int]]:
        """The commit numbers of the partitions that steps are about."""
        return [
            (number, self._partitions[number].commit)
            for number in dict.fromkeys(step.partition for step in steps)
            if number in self._partitions
        ]

    def _execute_one(self, step: Step, now_ms: int) -> Result:
        partition = self._partitions.get(step.partition)
        if not isinstance(partition, _RecordingPartition):
            return super()._execute_one(step, now_ms)
        partition.step = step
        lease = partition.lease
        result = super()._execute_one(step, now_ms)
        if partition.lease is not lease:
            now = partition.lease
            at_s, number = self.world.at_s(), step.partition
            if isinstance(step, ClaimPartition):
                self.world.record(
                    Claimed(
                        at_s=at_s,
                        partition=number,
                        node=self.node_of(now.node),
                        epoch=now.epoch,
                        claim=now.claim,
                    )
                )
            elif isinstance(step, Release):
                self.world.record(Freed(at_s, number, self.node_of(lease.node), lease.epoch))
        return result

    # What the simulation looks at.

    def partitions(self) -> Iterator[Partition]:
        """The books of every partition."""
        yield from self._partitions.values()

    def entities(self) -> Iterator[Entity]:
        """Every entity that the store knows."""
        for partition in self._partitions.values():
            yield from partition.entities.values()

    def snapshot(self) -> Callable[[], None]:
        """Remember everything as it is now; the function that this returns brings it back."""
        kept = {number: self._copy(partition) for number, partition in self._partitions.items()}

        def restore() -> None:
            self._partitions.update({number: self._copy(partition) for number, partition in kept.items()})

        return restore

    def _copy(self, partition: Partition) -> Partition:
        copied = copy.deepcopy(partition)
        if isinstance(partition, _RecordingPartition) and isinstance(copied, _RecordingPartition):
            # A copy has what attrs knows of, and not what a subclass has besides.
            copied.journal, copied.number = self, partition.number
            copied.taken_from = dict(partition.taken_from)
        return copied
