"""The demo's child process: runs the actor system, sends the flights, and may be killed at any moment.

Started by `run_demo` as `python -m atomic_actors.tools.demo.worker`; see `_events` for what goes through the
pipes. It has no memory of its own: what it must know after a kill is in the store, and in the parent's
`Job`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import perf_counter
from typing import Final

import anyio

from atomic_actors._system import ActorSystem
from atomic_actors.base._config import Config
from atomic_actors.base._records import DeadLetter
from atomic_actors.base._telemetry import EventName
from atomic_actors.tools.demo._aircraft import KIND, Aircraft, GetLogbook, RecordFlight
from atomic_actors.tools.demo._data import Flight, load_flights
from atomic_actors.tools.demo._events import (
    Answers,
    Event,
    Finished,
    InterruptedFlight,
    Job,
    Progress,
    Replayed,
    Sending,
    Sent,
    Started,
    decode_job,
    encode,
)
from atomic_actors.tools.demo._logbook import Logbook

__all__ = ("FlightSender", "main")

#: Tells, and later asks, that are under way at once; the store takes what waits in one call.
SENDERS: Final = 128
PROGRESS_INTERVAL_S: Final = 0.04
#: After a restart the store is read until no dead letter has been added for this long.
QUIET_S: Final = 0.6
POLL_INTERVAL_S: Final = 0.06
#: The same while flights are sent, where it should not take time from them.
REPLAY_INTERVAL_S: Final = 0.25
REPORT_INTERVAL_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 120.0
ANSWERS_PER_LINE: Final = 200
ALL: Final = 1_000_000
ENDINGS: Final[tuple[EventName, ...]] = ("completed", "refused", "failed")


class DemoFailed(Exception):
    """Something happened that no kill explains; the text says what."""


class FlightSender:
    """Sends flights in time order, many at once, without ever overtaking for one aircraft.

    Senders take the next flight from one shared iterator. A sender whose aircraft still waits for an
    earlier flight to be accepted waits for that one; it was taken before, so this cannot go in circles.

    Args:
        flights: all of them, in time order.
        accepted: how many of the first ones are known to be accepted.
        tell: sends one flight, given its place in `flights`; returns when it is accepted.
    """

    def __init__(
        self, flights: Sequence[Flight], accepted: int, tell: Callable[[int, Flight], Awaitable[object]]
    ) -> None:
        #: Every flight before this place is accepted.
        self.accepted = accepted
        #: Places at or after `accepted` that were accepted out of turn.
        self._ahead: set[int] = set()
        self._flights = flights
        self._next = iter(range(accepted, len(flights)))
        self._tell = tell
        #: The last flight of an aircraft that is under way.
        self._under_way: dict[str, anyio.Event] = {}

    async def run(self) -> None:
        """Send all that is left."""
        async with anyio.create_task_group() as group:
            for _ in range(SENDERS):
                group.start_soon(self._send)

    async def _send(self) -> None:
        for number in self._next:
            flight = self._flights[number]
            before = self._under_way.get(flight.aircraft)
            mine = self._under_way[flight.aircraft] = anyio.Event()
            if before is not None:
                await before.wait()
            await self._tell(number, flight)
            mine.set()
            if self._under_way[flight.aircraft] is mine:
                del self._under_way[flight.aircraft]
            self._note_accepted(number)

    def _note_accepted(self, number: int) -> None:
        self._ahead.add(number)
        while self.accepted in self._ahead:
            self._ahead.remove(self.accepted)
            self.accepted += 1


class Worker:
    """One run of the child process, from the job to `Finished`, unless it is killed."""

    def __init__(self, job: Job, channel: int) -> None:
        self._job = job
        self._channel = channel
        self._flights = load_flights(job.limit)
        self._begun = 0
        self._ended = 0
        #: Ids of the dead letters that this run replayed.
        self._replayed: set[str] = set()

    async def run(self) -> None:
        """Do the job; a closed pipe from the parent ends it early, in good order."""
        began = perf_counter()
        role = self._job.role
        actors = [] if role == "sender" else [Aircraft]
        config = Config(actors=actors, url=self._job.url, namespace=self._job.namespace)
        async with ActorSystem(config) as system, anyio.create_task_group() as group:
            self._listen(system)
            self._emit(Started(os.getpid(), perf_counter() - began))
            group.start_soon(self._stop_with_parent, group.cancel_scope)
            if role == "host":
                await self._report_turns()
            if role == "sender":
                group.start_soon(self._keep_replaying, system)
            elif self._job.restarted:
                self._emit(Replayed(tuple(await self._replay_interrupted(system))))
            await self._send_all(system)
            await self._finish(system)
            group.cancel_scope.cancel()

    def _listen(self, system: ActorSystem) -> None:
        def begun(_: object) -> None:
            self._begun += 1

        def ended(_: object) -> None:
            self._ended += 1

        system.listen("dispatched", begun)
        for event in ENDINGS:
            system.listen(event, ended)

    async def _send_all(self, system: ActorSystem) -> None:
        async def tell(number: int, flight: Flight) -> None:
            # What the parent knows is a little behind at a kill. The key makes the store know a flight
            # that it accepted before, so that sending it again adds nothing.
            message = RecordFlight(number, flight)
            await system.tell(Aircraft.ref(flight.aircraft), message, key=f"flight-{number}")

        sender = FlightSender(self._flights, self._job.accepted, tell)
        self._emit(Sending())
        began = perf_counter()
        async with anyio.create_task_group() as group:
            group.start_soon(self._report_progress, sender)
            await sender.run()
            group.cancel_scope.cancel()
        self._emit(self._progress(sender))
        self._emit(Sent(perf_counter() - began))

    async def _report_progress(self, sender: FlightSender) -> None:
        while True:
            self._emit(self._progress(sender))
            await anyio.sleep(PROGRESS_INTERVAL_S)

    async def _report_turns(self) -> None:
        while True:
            self._emit(Progress(0, self._in_turn))
            await anyio.sleep(PROGRESS_INTERVAL_S)

    def _progress(self, sender: FlightSender) -> Progress:
        return Progress(sender.accepted, self._in_turn)

    @property
    def _in_turn(self) -> int:
        return max(self._begun - self._ended, 0)

    async def _replay_interrupted(self, system: ActorSystem) -> list[InterruptedFlight]:
        """Replay at the head what a kill interrupted, until no more of it appears."""
        rows: list[InterruptedFlight] = []
        quiet_since = perf_counter()
        while perf_counter() - quiet_since < QUIET_S:
            letters = await system.dead_letters.list(kind=KIND, limit=ALL)
            fresh = [letter for letter in letters if letter.message_id not in self._replayed]
            rows += [self._row(letter) for letter in fresh if letter.replayed_as is None]
            async with anyio.create_task_group() as group:
                for letter in fresh:
                    group.start_soon(self._replay, system, letter)
            if fresh:
                quiet_since = perf_counter()
            await anyio.sleep(POLL_INTERVAL_S)
        return rows

    async def _keep_replaying(self, system: ActorSystem) -> None:
        """Replay what kills interrupt, as long as this process runs.

        It is reported when no more of it appears, or when that takes long.
        """
        rows: list[InterruptedFlight] = []
        reported = perf_counter()
        while True:
            fresh = await self._replay_fresh(system)
            rows += fresh
            if rows and (not fresh or perf_counter() - reported > REPORT_INTERVAL_S):
                self._emit(Replayed(tuple(rows)))
                rows = []
            if not rows:
                reported = perf_counter()
            await anyio.sleep(REPLAY_INTERVAL_S)

    async def _replay_fresh(self, system: ActorSystem) -> list[InterruptedFlight]:
        """Replay what this run has not seen yet; returns it, but for what another run had replayed before."""
        letters = await system.dead_letters.list(kind=KIND, limit=ALL)
        fresh = [letter for letter in letters if letter.message_id not in self._replayed]
        async with anyio.create_task_group() as group:
            for letter in fresh:
                group.start_soon(self._replay, system, letter)
        return [self._row(letter) for letter in fresh if letter.replayed_as is None]

    async def _replay(self, system: ActorSystem, letter: DeadLetter) -> None:
        # A worker before this one may have been killed between the two calls: replaying twice replays
        # once, and resuming what runs changes nothing.
        if letter.reason != "interrupted":
            raise DemoFailed(f"{letter.entity}: {letter.reason}, {letter.error_type}: {letter.error}")
        if letter.replayed_as is None:
            await system.dead_letters.replay(letter.message_id, at="head")
        await system.resume(letter.entity)
        self._replayed.add(letter.message_id)

    def _row(self, letter: DeadLetter) -> InterruptedFlight:
        flight = self._flights[int(letter.message["number"])]
        return InterruptedFlight(
            message_id=letter.message_id,
            aircraft=letter.entity.id,
            flight=flight.title,
            reason=letter.reason,
            attempts=letter.attempts,
        )

    async def _finish(self, system: ActorSystem) -> None:
        """Ask every aircraft; a query sees all that was accepted before it, so nothing else is waited for."""
        if self._job.restarted and self._job.role == "all":
            late = await self._replay_interrupted(system)
            if late:
                self._emit(Replayed(tuple(late)))
        logbooks: dict[str, Logbook] = {}
        names = sorted({flight.aircraft for flight in self._flights})
        shared = iter(names)
        async with anyio.create_task_group() as group:
            for _ in range(SENDERS):
                group.start_soon(self._ask, system, shared, logbooks)
        for start in range(0, len(names), ANSWERS_PER_LINE):
            part = names[start : start + ANSWERS_PER_LINE]
            self._emit(Answers({name: logbooks[name] for name in part}))
        letters = await system.dead_letters.list(kind=KIND, limit=ALL)
        self._emit(Finished(sum(letter.replayed_as is None for letter in letters)))

    async def _ask(self, system: ActorSystem, names: Iterator[str], logbooks: dict[str, Logbook]) -> None:
        for name in names:
            logbooks[name] = await system.ask(Aircraft.ref(name), GetLogbook(), timeout_s=ANSWER_TIMEOUT_S)

    async def _stop_with_parent(self, scope: anyio.CancelScope) -> None:
        await anyio.wait_readable(sys.stdin.fileno())
        scope.cancel()

    def _emit(self, event: Event) -> None:
        data = memoryview(encode(event))
        while data:
            data = data[os.write(self._channel, data) :]


def main() -> None:
    """Read the job from standard input and do it."""
    job = decode_job(sys.stdin.buffer.readline())
    # Standard output is the pipe to the parent; other output must not get into it.
    channel = os.dup(1)
    os.dup2(2, 1)
    anyio.run(Worker(job, channel).run)


if __name__ == "__main__":
    main()
