"""What the runtime reports while it works: lifecycle events for listeners, counters for statistics.

The dispatcher reports, journals do not (after Oban: instrument the dispatcher, not the engines).
With no listener an event costs one truth test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

from attrs import define, field, frozen

from atomic_actors.base._errors import InvalidConfig
from atomic_actors.base._records import EntityRef

__all__ = (
    "EVENT_NAMES",
    "EventName",
    "HistoryLost",
    "LifecycleEvent",
    "Listener",
    "Listeners",
    "StoreHealth",
    "logger",
)

logger: Final = logging.getLogger("atomic_actors")

EventName = Literal[
    "accepted",
    "dispatched",
    "completed",
    "refused",
    "failed",
    "interrupted",
    "dead-lettered",
    "history-lost",
    "store-lost",
    "store-back",
]
EVENT_NAMES: Final[tuple[EventName, ...]] = get_args(EventName)


@frozen(kw_only=True)
class LifecycleEvent:
    """Something that happened to a message: every event but `history-lost`, `store-lost` and `store-back`.

    Payloads are not in here, and never in logs: they may hold personal data.
    """

    event: EventName
    message_id: str
    entity: EntityRef
    #: The message's wire name.
    name: str
    #: Takes so far; 0 for `accepted`.
    attempt: int = 0
    #: For failures: the exception's type and text.
    error: str = ""


@frozen(kw_only=True)
class HistoryLost:
    """The store went back in time: it forgot commits of a partition that it had acknowledged."""

    partition: int
    #: The highest commit number that this node had seen, and the one that the store has now.
    acknowledged: int
    found: int
    #: None; or the partition whose outbox messages are gone that `partition` had taken. Then the two numbers are
    #: those of the last message that was taken, and of the last one that `partition` still knows.
    source: int | None = field(default=None, kw_only=True)
    event: Literal["history-lost"] = "history-lost"


@frozen
class StoreHealth:
    """The store counts as unavailable from now on, and new work is refused; or it answers again."""

    event: Literal["store-lost", "store-back"]
    #: The last error; "" for `store-back`.
    reason: str = ""


#: What it is called with follows from the event that it listens to.
Listener = Callable[[Any], object]


@define(eq=False)
class Listeners:
    """The listeners of each event. A listener that raises is logged; the others still run."""

    _by_event: dict[str, list[Listener]] = field(factory=dict[str, list[Listener]])
    #: False while there is no listener at all: the hot path asks only this.
    active: bool = False

    def add(self, event: EventName, listener: Listener) -> Callable[[], None]:
        """Register a listener; returns a function that takes it off again.

        Raises:
            InvalidConfig: no such event, or the listener is not callable.
        """
        if event not in EVENT_NAMES:
            raise InvalidConfig(f"event: {event!r} is not one of {', '.join(EVENT_NAMES)}")
        if not callable(listener):
            raise InvalidConfig(f"callback: {listener!r} is not callable")
        self._by_event.setdefault(event, []).append(listener)
        self.active = True

        def remove() -> None:
            listeners = self._by_event.get(event, [])
            if listener in listeners:
                listeners.remove(listener)
            self.active = any(self._by_event.values())

        return remove

    def wants(self, event: EventName) -> bool:
        """Whether this event has listeners."""
        return self.active and bool(self._by_event.get(event))

    def emit(self, event: LifecycleEvent | HistoryLost | StoreHealth) -> None:
        """Call this event's listeners, in the order of registration."""
        for listener in tuple(self._by_event.get(event.event, ())):
            try:
                listener(event)
            except Exception:
                logger.exception("a listener for %r raised", event.event)
