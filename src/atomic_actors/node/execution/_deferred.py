"""Messages without a handler on this node: they stay in the log, are logged once, and are checked again later.

While one release of a service replaces another, a node may own an entity whose next message is for a handler
that only the other release has, or whose kind only other nodes offer. That is not a failure of the message: it
keeps its place, and runs when a node with the handler owns the partition. Until then it must cost next to
nothing: sweeps find it only every few seconds, and more rarely the more of them there are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from attrs import define, field

from atomic_actors.base._oneshot import Backend
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import Defer, JournalUnavailable, Result
from atomic_actors.journal.commit._commit_queue import CommitQueue

__all__ = ("LOOK_AHEAD_MS", "DeferredEntities")

#: When an entity is checked again, and the latest where there are many.
LOOK_AGAIN_S: Final = 3.0
LOOK_AGAIN_MAX_S: Final = 60.0
#: The first sweep of an owner finds what was put off for so long: it may have the handler.
LOOK_AHEAD_MS: Final = int(LOOK_AGAIN_MAX_S * 1000)
#: How many of them are checked in a second, at most.
LOOKS_PER_SECOND: Final = 100
#: Entities and names that are remembered; of more, the oldest are forgotten.
REMEMBERED_MAX: Final = 100_000
NAMES_MAX: Final = 1_000


@define(eq=False)
class DeferredEntities:
    """What this node owns and cannot run.

    Args:
        commits: where the entities are put off.
    """

    commits: CommitQueue
    backend: Backend
    #: The entities that were left, with their partitions and when that was; the longest ago first.
    entities: OrderedDict[str, tuple[int, float]] = field(
        factory=OrderedDict[str, tuple[int, float]], init=False
    )
    #: What was logged already.
    _reported: set[str] = field(factory=set[str], init=False)

    def leave(self, partition: int, entity: str, claim: str, name: str = "") -> None:
        """Leave an entity, for now; `name` is that of the message, or "" where its whole kind is unknown."""
        kind = entity.partition("/")[0]
        what = f"{kind}.{name}" if name else kind
        if what not in self._reported and len(self._reported) < NAMES_MAX:
            self._reported.add(what)
            logger.error(
                "messages %r of kind %r have no handler on this node; they stay accepted, and run when a "
                "node with a handler owns the partition",
                name or "of any name",
                kind,
            )
        self.entities[entity] = partition, self.backend.clock()
        self.entities.move_to_end(entity)
        if len(self.entities) > REMEMBERED_MAX:
            self.entities.popitem(last=False)
        delay_s = min(max(LOOK_AGAIN_S, len(self.entities) / LOOKS_PER_SECOND), LOOK_AGAIN_MAX_S)
        self.commits.enqueue(Defer(partition, entity, claim, int(delay_s * 1000)), _ignore)

    def handled(self, entity: str) -> None:
        """A turn of the entity is committed."""
        self.entities.pop(entity, None)

    def lost(self, partition: int) -> None:
        """A partition is not this node's any more."""
        for entity in [entity for entity, (number, _) in self.entities.items() if number == partition]:
            del self.entities[entity]

    def count(self) -> int:
        """How many entities wait. What was not left again since the last look was withdrawn, or has expired."""
        oldest_s = self.backend.clock() - 2 * LOOK_AGAIN_MAX_S
        while self.entities and next(iter(self.entities.values()))[1] < oldest_s:
            self.entities.popitem(last=False)
        return len(self.entities)


def _ignore(_: Result | JournalUnavailable) -> None:
    """If it could not be put off, the next sweep finds it, and it is left again."""
