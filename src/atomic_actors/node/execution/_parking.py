"""Parks entities that cannot run: their messages wait until a person resumes them."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalUnavailable, Park, Parked, Result
from atomic_actors.journal.commit._commit_queue import CommitQueue

__all__ = ("Parking",)

#: Entities that are remembered so that each is reported once.
PARKED_MAX: Final = 1_000


@define(eq=False)
class Parking:
    """Parks entities that are damaged in the store."""

    commits: CommitQueue
    #: Those that were reported, while the store has not confirmed that they are parked.
    _reported: set[str] = field(factory=set[str], init=False)

    def park(self, partition: int, entity: str, why: str) -> None:
        """Park an entity, and say why."""
        if entity not in self._reported:
            logger.error("%s is parked: %s", entity, why)
            if len(self._reported) >= PARKED_MAX:
                self._reported.clear()
            self._reported.add(entity)

        def on_parked(result: Result | JournalUnavailable) -> None:
            if isinstance(result, Parked):
                self._reported.discard(entity)  # if a person resumes it too soon, it is reported again
            elif isinstance(result, JournalUnavailable):
                logger.error("%s could not be parked: %s", entity, result)

        self.commits.enqueue(Park(partition, entity), on_parked)
