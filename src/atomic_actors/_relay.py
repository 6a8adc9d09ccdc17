"""Carries outbox messages from one partition to another: in order, once.

Every pair (source partition, target partition) is a stream with numbers of its own. One batch of a
stream is under way at a time; the target keeps the last number it has, so a batch that is sent again is
recognised, and one that would leave a gap is refused. It runs on callbacks: a stream needs no task.

A source forgets only what the target has taken. So if the target knows of less than what was forgotten, it has
lost history, and what lies between is gone: that is reported, and the stream goes on with what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, field

from atomic_actors._telemetry import logger
from atomic_actors.journal._group_commit import GroupCommit
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
)

__all__ = ("Relay",)

BATCH_MESSAGES: Final = 100


@define(eq=False)
class Relay:
    """Moves the streams of the partitions that this node owns.

    Args:
        journal: where the streams are.
        claims: the claim id for each partition, "" where it is not owned.
        wake: called with a partition and an entity that got something new.
    """

    journal: GroupCommit
    claims: list[str]
    wake: Callable[[int, str], None]
    #: Called with what a target had taken and has lost, and the source: the numbers are the stream's.
    on_gap: Callable[[HistoryLoss, int], None] | None = field(default=None, init=False)
    #: Streams under way; True where more was added in the meantime.
    _moving: dict[tuple[int, int], bool] = field(factory=dict[tuple[int, int], bool], init=False)
    moved: int = field(default=0, init=False)

    def kick(self, source: int, target: int) -> None:
        """There is something in the stream from `source` to `target`."""
        stream = (source, target)
        if stream in self._moving:
            self._moving[stream] = True
        elif self.claims[source]:
            self._moving[stream] = False
            self._read(stream)

    def _read(self, stream: tuple[int, int]) -> None:
        source, target = stream
        claim = self.claims[source]

        def on_page(result: Result | JournalUnavailable) -> None:
            if not isinstance(result, RelayPage):
                self._stop(stream, result)
            elif not result.entries:
                self._rest(stream)
            else:
                self._send(stream, claim, result)

        self.journal.enqueue(RelayRead(source, claim, target, BATCH_MESSAGES), on_page)

    def _send(
        self, stream: tuple[int, int], claim: str, page: RelayPage, *, after_loss: bool = False
    ) -> None:
        source, target = stream
        if self.claims[source] != claim:
            self._stop(stream, page)  # what was read may be a history that is gone
            return

        def on_relayed(result: Result | JournalUnavailable) -> None:
            if isinstance(result, Rejected) and result.code == "stream_gap" and not after_loss:
                self._measure_gap(stream, claim, page)
                return
            if not isinstance(result, Relayed):
                self._stop(stream, result)
                return
            self.moved += len(page.entries)
            self.journal.enqueue(RelayAck(source, claim, target, result.last, page.incarnation), on_acked)
            for entity in result.entities:
                self.wake(target, entity)

        def on_acked(result: Result | JournalUnavailable) -> None:
            if not isinstance(result, RelayAcked):
                self._stop(stream, result)
            elif result.left or self._moving.get(stream):
                self._moving[stream] = False
                self._read(stream)
            else:
                self._rest(stream)

        step = RelayIn(target, source, page.incarnation, page.entries, after_loss)
        self.journal.enqueue(step, on_relayed)

    def _measure_gap(self, stream: tuple[int, int], claim: str, page: RelayPage) -> None:
        """Find out what the target still knows, report what it has lost, and go on behind that."""
        source, target = stream

        def on_last(result: Result | JournalUnavailable) -> None:
            if not isinstance(result, Relayed):
                self._stop(stream, result)
                return
            taken = page.entries[0].number - 1
            if result.last < taken and self.on_gap is not None:
                self.on_gap(HistoryLoss(target, taken, result.last), source)
            self._send(stream, claim, page, after_loss=True)

        self.journal.enqueue(RelayIn(target, source, page.incarnation, ()), on_last)

    def _rest(self, stream: tuple[int, int]) -> None:
        if self._moving.pop(stream, False):
            self.kick(*stream)

    def _stop(self, stream: tuple[int, int], result: object) -> None:
        """The claim is gone, or the store is away: the next sweep of the owner begins again."""
        self._moving.pop(stream, None)
        logger.debug("the stream from partition %d to %d rests: %r", *stream, result)
