"""Notices that a store has lost history: that it answers as it was some time ago.

Every batch in which a partition's owner changes something raises the partition's commit number, and every
answer brings it. So the number in an answer is never lower than one that was known before the question was
sent. If it is, the store went back in time: the machine lost what was not on its disk, a backup was put in
its place, a replica took over that was behind, or it was emptied. A store that restarts with all its
data goes on where it was, and batches that were never answered make a number only higher.

Answers may be read in another order than the store gave them, and those of a connection that is lost may be
read after the next one is open. Each question is therefore numbered: an answer that is read behind a
younger one, or behind the notice of a loss, says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from attrs import define, field, frozen

__all__ = ("CommitHistory", "HistoryLoss", "LossObserver", "Question")

#: How many losses had been noticed when it was sent, and its number.
Question = tuple[int, int]


@frozen
class HistoryLoss:
    """A partition's store went back in time."""

    partition: int
    #: The highest commit number that was known.
    acknowledged: int
    #: The one that the store has now.
    found: int


class LossObserver(Protocol):
    """Is notified of each loss before the answer that revealed it is used."""

    def history_lost(self, loss: HistoryLoss) -> None:
        """A partition's store went back in time. Must not raise."""
        ...


@define(eq=False)
class CommitHistory:
    """The highest commit number that is known of each partition."""

    #: It comes with `watch`, where it can only be made around what has this history.
    _observer: LossObserver | None = None
    numbers: dict[int, int] = field(factory=dict[int, int], init=False)
    #: How often a loss was noticed; one that hits many partitions at once counts once.
    losses: int = field(default=0, init=False)
    _asked: int = field(default=0, init=False)
    _read: int = field(default=0, init=False)

    def watch(self, observer: LossObserver) -> None:
        """Tell `observer` of each loss from now on."""
        self._observer = observer

    def history_lost(self, loss: HistoryLoss) -> None:
        """Tell the observer of a loss. So the history of a part can have that of the whole as its observer."""
        if self._observer is not None:
            self._observer.history_lost(loss)

    def ask(self) -> Question:
        """A question is about to be sent."""
        self._asked += 1
        return self.losses, self._asked

    def read(self, question: Question, answer: Iterable[tuple[int, int]]) -> None:
        """Take in the partitions and commit numbers of an answer, and tell of what was lost."""
        losses, number = question
        if losses != self.losses:
            return
        in_order = number >= self._read
        if in_order:
            self._read = number
        numbers = self.numbers
        lost: list[HistoryLoss] = []
        for partition, found in answer:
            known = numbers.get(partition, 0)
            if found >= known:
                numbers[partition] = found
            elif in_order:
                lost.append(HistoryLoss(partition, known, found))
                numbers[partition] = found
        if lost:
            self.losses += 1
            for loss in lost:
                self.history_lost(loss)
