"""What happens on a node, counted and reported to listeners."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from atomic_actors.base._lifecycle import Event
from atomic_actors.base._records import EntityRef, split_message_id
from atomic_actors.base._telemetry import (
    EventName,
    HistoryLost,
    LifecycleEvent,
    Listeners,
    logger,
)
from atomic_actors.codec._envelope import plain_of
from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import Finish, Verdict, unpack_body
from atomic_actors.node.execution._turn import COMPLETE, Member

__all__ = ("Events", "Statistics")

_EVENT_NAMES: Final[dict[str, tuple[EventName, ...]]] = {
    Event.COMPLETE.value: ("completed",),
    Event.REFUSE.value: ("refused",),
    Event.FAIL.value: ("failed", "dead-lettered"),
    Event.INTERRUPT.value: ("interrupted", "dead-lettered"),
    Event.RETRY.value: ("failed",),
}


@define(eq=False, kw_only=True)
class Statistics:
    """Counters of this node since it started."""

    completed: int = 0
    refused: int = 0
    failed: int = 0
    retried: int = 0
    interrupted: int = 0
    dead_lettered: int = 0
    turns: int = 0
    histories_lost: int = 0


@define(eq=False)
class Events:
    """Counts, and tells listeners. Check `listeners.active` first when running turns: an event is not free."""

    listeners: Listeners
    counts: Statistics = field(factory=Statistics, init=False)

    # Turns.

    def begun(self, entity: EntityRef, member: Member) -> None:
        """A handler is about to run."""
        if self.listeners.wants("dispatched"):
            message_id = f"{entity}/{member.item.uid}"
            self.listeners.emit(
                LifecycleEvent(
                    event="dispatched",
                    message_id=message_id,
                    entity=entity,
                    name=member.body.name,
                    attempt=member.item.attempt,
                )
            )

    def ended(self, entity: EntityRef, member: Member | None, verdict: Verdict) -> None:
        """A message has its verdict, and it is committed."""
        error = ""
        if verdict.event == Event.FAIL.value:
            failure = plain_of(verdict.reply)
            error = f"{failure['error_type']}: {failure['text']}"
        for name in _EVENT_NAMES.get(verdict.event, ()):
            if self.listeners.wants(name):
                self.listeners.emit(
                    LifecycleEvent(
                        event=name,
                        message_id=f"{entity}/{verdict.uid}",
                        entity=entity,
                        name=member.body.name if member is not None else "",
                        attempt=member.item.attempt if member is not None else 0,
                        error=error,
                    )
                )

    def committed(self, step: Finish) -> None:
        """A turn is committed."""
        counts = self.counts
        counts.turns += 1
        for verdict in step.verdicts:
            if verdict.event == COMPLETE:
                counts.completed += 1
            else:
                self._count(verdict.event)
        if step.outbox and self.listeners.active:
            for message in step.outbox:
                self.about(message.entity, message.uid, message.body, "accepted")

    def _count(self, event: str) -> None:
        counts = self.counts
        if event == "refuse":
            counts.refused += 1
        elif event == "retry":
            counts.retried += 1
        elif event == "fail":
            counts.failed += 1
            counts.dead_lettered += 1
        elif event == "interrupt":
            counts.interrupted += 1
            counts.dead_lettered += 1

    # Messages that ended without a turn's commit.

    def count_interrupted(self, messages: int) -> None:
        """Messages were interrupted for good."""
        self.counts.interrupted += messages
        self.counts.dead_lettered += messages

    def buried(self, entity: str, uid: str, body: bytes) -> None:
        """A message whose sender does not wait expired: it is a dead letter now."""
        self.counts.dead_lettered += 1
        if self.listeners.active:
            self.about(entity, uid, body, "dead-lettered")

    def about(self, entity: str, uid: str, body: bytes, *names: EventName) -> None:
        """Report events about a message in its stored form."""
        try:
            ref, _ = split_message_id(f"{entity}/{uid}")
            wire_name = unpack_body(body).name if body else ""
        except ValueError as error:
            logger.warning("%s/%s is damaged, so its events are not reported: %s", entity, uid, error)
            return
        for name in names:
            if self.listeners.wants(name):
                self.listeners.emit(
                    LifecycleEvent(event=name, message_id=f"{entity}/{uid}", entity=ref, name=wire_name)
                )

    # The store.

    def history_lost(self, loss: HistoryLoss) -> None:
        """The store went back in time."""
        logger.error(
            "the store has lost history of partition %d: it is at commit %d, and %d was acknowledged. What was "
            "committed in between is gone or will run again; running turns are settled as interrupted",
            loss.partition,
            loss.found,
            loss.acknowledged,
        )
        self.counts.histories_lost += 1
        if self.listeners.wants("history-lost"):
            self.listeners.emit(
                HistoryLost(partition=loss.partition, acknowledged=loss.acknowledged, found=loss.found)
            )

    def stream_lost(self, loss: HistoryLoss, source: int) -> None:
        """A partition has lost outbox messages of another one, which that one has no more (`GapObserver`)."""
        logger.error(
            "the store has lost history of partition %d: it had taken message %d of the outbox of partition %d, "
            "and now has those up to %d. The ones in between are lost unless they had already run; later ones continue",
            loss.partition,
            loss.acknowledged,
            source,
            loss.found,
        )
        self.counts.histories_lost += 1
        if self.listeners.wants("history-lost"):
            self.listeners.emit(
                HistoryLost(
                    partition=loss.partition, acknowledged=loss.acknowledged, found=loss.found, source=source
                )
            )
