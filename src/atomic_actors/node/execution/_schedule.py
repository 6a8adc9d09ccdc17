"""What becomes due on a node: the deadlines of running handlers, and heads that wait for their back-off. Pure."""

from __future__ import annotations

import heapq

from attrs import define, field

from atomic_actors.base._timer_wheel import TimerWheel
from atomic_actors.node.execution._turn_scope import TurnScope

__all__ = ("Schedule",)


@define(eq=False)
class Schedule:
    """Deadlines on the backend's clock, and retries on the store's."""

    _deadlines: TimerWheel[TurnScope] = field(factory=TimerWheel[TurnScope], init=False)
    #: Store time, entity and partition.
    _retries: list[tuple[int, str, int]] = field(factory=list[tuple[int, str, int]], init=False)

    def watch(self, turn: TurnScope) -> None:
        """Look at a running handler when its deadline has passed."""
        deadline_s = turn.deadline_s
        # One place for each activation and not for each message: an earlier look finds out about this turn.
        if not 0 < turn.watched_until_s <= deadline_s:
            turn.watched_until_s = deadline_s
            self._deadlines.add(deadline_s, turn)

    def cut_late(self, now_s: float) -> None:
        """Cut the handlers whose deadlines have passed."""
        for turn in self._deadlines.due(now_s):
            if 0 < turn.watched_until_s <= now_s:  # else it has a place further ahead since
                turn.watched_until_s = 0.0
                turn.cut_if_late(now_s)
                if turn.deadline_s > 0:
                    self.watch(turn)

    def retry_at(self, store_ms: int, partition: int, entity: str) -> None:
        """The head of an entity may run at a time of the store's."""
        heapq.heappush(self._retries, (store_ms, entity, partition))

    def take_retries(self, store_now_ms: int) -> list[tuple[int, str]]:
        """The partitions and entities whose heads may run now, each once."""
        due: list[tuple[int, str]] = []
        while self._retries and self._retries[0][0] <= store_now_ms:
            _, entity, partition = heapq.heappop(self._retries)
            due.append((partition, entity))
        return due
