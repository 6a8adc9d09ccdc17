"""The demo's actor: every aircraft is one, and every flight is a command to it."""

from __future__ import annotations

import hashlib
from typing import Final

from attrs import frozen

from atomic_actors.actors._messages import Command, Query
from atomic_actors.actors._specs import Actor, handler
from atomic_actors.tools.demo._data import Flight
from atomic_actors.tools.demo._logbook import Logbook

__all__ = ("KIND", "Aircraft", "GetLogbook", "RecordFlight")

KIND: Final = "aircraft"


@frozen
class RecordFlight(Command[int]):
    """Enter a flight into the aircraft's logbook; the reply is how many flights it has now.

    `number` is the flight's place in the file, counted from 0.
    """

    number: int
    flight: Flight


@frozen
class GetLogbook(Query[Logbook]):
    """The aircraft's totals and digest after every flight accepted before this query."""


class Aircraft(Actor[Logbook], kind=KIND, on_dead="park"):
    """One aircraft. After an interrupted flight it waits, with its queue, for a person to decide.

    The handler could be `transactional=True`, as it touches nothing but state. It is not, so that a
    turn cut off by the kill is shown to a person and never run again unnoticed.
    """

    @handler
    async def record(self, message: RecordFlight) -> int:
        """Add the flight to the totals and roll the digest on."""
        flight = message.flight
        book = self.state
        book.flights += 1
        book.cancelled += flight.cancelled
        book.miles += 0 if flight.cancelled else flight.distance
        book.minutes_in_air += flight.air_time or 0
        book.minutes_late += max(flight.dep_delay or 0, 0)
        book.digest = hashlib.blake2b((book.digest + flight.line()).encode(), digest_size=16).hexdigest()
        return book.flights

    @handler
    async def logbook(self, message: GetLogbook) -> Logbook:
        """Answer with the state as it is."""
        return self.state
