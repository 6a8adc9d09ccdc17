"""Carries outbox messages from one partition to another, of this service or another one: in order, once.

Every pair (source partition, target partition) is a stream with numbers of its own. One batch of a
stream is under way at a time; the target keeps the last number it has, so a batch that is sent again is
recognised, and one that would leave a gap is refused. It runs on callbacks: a stream needs no task.

A source forgets only what the target has taken. So if the target knows of less than what was forgotten, it has
lost history, and what lies between is gone: that is reported, and the stream goes on with what is there.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from attrs import define, field

from atomic_actors.base._telemetry import logger
from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import (
    JournalUnavailable,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayIn,
    RelayPage,
    RelayRead,
    Result,
    Target,
)
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.routing._other_services import ServiceJournals

__all__ = ("GapObserver", "Relay", "Waker")

BATCH_MESSAGES: Final = 100

#: Source and target.
Stream = tuple[int, Target]


class Waker(Protocol):
    """Looks after the entities of this node."""

    def wake(self, number: int, entity: str) -> None:
        """An entity of a partition got something new."""
        ...


class GapObserver(Protocol):
    """Reports that outbox messages are gone."""

    def stream_lost(self, loss: HistoryLoss, source: int) -> None:
        """A target has lost what it had taken from a source partition: the numbers are the stream's."""
        ...


@define(eq=False, kw_only=True)
class Relay:
    """Moves the streams of the partitions that this node owns.

    Args:
        journal: where the streams are.
        claims: the claim id for each partition, "" where it is not owned.
        service_journals: the ways to other services; None where there are none.
        waker: learns which entities got something new.
        observer: learns what is lost.
    """

    journal: CommitQueue
    claims: list[str]
    service_journals: ServiceJournals | None
    waker: Waker
    observer: GapObserver
    #: Streams under way; True where more was added in the meantime.
    _moving: dict[Stream, bool] = field(factory=dict[tuple[int, int | str], bool], init=False)
    moved: int = field(default=0, init=False)
    #: Streams that were logged as blocked.
    _damaged: set[Stream] = field(factory=set[tuple[int, int | str]], init=False)

    def kick(self, source: int, target: Target) -> None:
        """There is something in the stream from `source` to `target`."""
        stream = (source, target)
        if stream in self._moving:
            self._moving[stream] = True
        elif self.claims[source]:
            self._moving[stream] = False
            self._read(stream)

    def _read(self, stream: Stream) -> None:
        source, target = stream
        claim = self.claims[source]

        def on_page(result: Result | JournalUnavailable) -> None:
            if not isinstance(result, RelayPage):
                self._stop(stream, result)
            elif not result.entries:
                self._rest(stream)
            else:
                self._reach(stream, claim, result)

        self.journal.enqueue(RelayRead(source, claim, target, BATCH_MESSAGES), on_page)

    def _reach(self, stream: Stream, claim: str, page: RelayPage) -> None:
        """Send a page: to another partition of this service, or over the way to another one."""
        _, target = stream
        if isinstance(target, int):
            self._send(stream, claim, page, self.journal)
            return
        if self.service_journals is None:
            self._stop(stream, "there is no connection to another service")
            return
        service = target.rpartition("/")[0]
        kind = page.entries[0].entity.partition("/")[0]
        self.service_journals.reach(service, kind, partial(self._send, stream, claim, page))

    def _step_in(self, stream: Stream, page: RelayPage, *, after_loss: bool, empty: bool = False) -> RelayIn:
        """What the target is sent; it knows a source of another service by both names."""
        source, target = stream
        entries = () if empty else page.entries
        if isinstance(target, int):
            return RelayIn(
                partition=target,
                source=source,
                incarnation=page.incarnation,
                entries=entries,
                after_loss=after_loss,
            )
        origin = f"{self.journal.settings.service}/{source}"
        return RelayIn(
            partition=int(target.rpartition("/")[2]),
            source=origin,
            incarnation=page.incarnation,
            entries=entries,
            after_loss=after_loss,
        )

    def _send(
        self,
        stream: Stream,
        claim: str,
        page: RelayPage,
        journal: CommitQueue | None,
        *,
        after_loss: bool = False,
    ) -> None:
        source, target = stream
        if journal is None or self.claims[source] != claim:
            self._stop(stream, page)  # what was read may be a history that is gone
            return

        def on_relayed(result: Result | JournalUnavailable) -> None:
            if isinstance(result, Rejected) and result.code == "stream_gap" and not after_loss:
                self._measure_gap(stream, claim, page, journal)
                return
            if not isinstance(result, Relayed):
                self._stop(stream, result)
                return
            self.moved += len(page.entries)
            self.journal.enqueue(
                RelayAck(
                    partition=source,
                    claim=claim,
                    target=target,
                    last=result.last,
                    incarnation=page.incarnation,
                ),
                on_acked,
            )
            if isinstance(target, int):
                # The owner in another service is notified by its doorbell.
                for entity in result.entities:
                    self.waker.wake(target, entity)

        def on_acked(result: Result | JournalUnavailable) -> None:
            if not isinstance(result, RelayAcked):
                self._stop(stream, result)
            elif result.left or self._moving.get(stream):
                self._moving[stream] = False
                self._read(stream)
            else:
                self._rest(stream)

        journal.enqueue(self._step_in(stream, page, after_loss=after_loss), on_relayed)

    def _measure_gap(self, stream: Stream, claim: str, page: RelayPage, journal: CommitQueue) -> None:
        """Find out what the target still knows, report what it has lost, and go on behind that."""
        source, target = stream

        def on_last(result: Result | JournalUnavailable) -> None:
            if not isinstance(result, Relayed):
                self._stop(stream, result)
                return
            taken = page.entries[0].number - 1
            if result.last < taken:
                number = target if isinstance(target, int) else int(target.rpartition("/")[2])
                self.observer.stream_lost(HistoryLoss(number, taken, result.last), source)
            self._send(stream, claim, page, journal, after_loss=True)

        journal.enqueue(self._step_in(stream, page, after_loss=False, empty=True), on_last)

    def _rest(self, stream: Stream) -> None:
        if self._moving.pop(stream, False):
            self.kick(*stream)

    def _stop(self, stream: Stream, result: object) -> None:
        """The claim is gone, or the store is away: the next sweep of the owner begins again."""
        self._moving.pop(stream, None)
        if isinstance(result, Rejected) and stream not in self._damaged:
            self._damaged.add(stream)
            logger.error(
                "the stream from partition %d to %s is blocked, and its messages wait: %s",
                *stream,
                result.text,
            )
        logger.debug("the stream from partition %d to %s is paused: %r", *stream, result)
