"""The demo with many workers: all of them run aircraft, one more process sends the flights.

A killed worker is not replaced while another one lives: that its aircraft go on elsewhere is what there is to
see. Only when the last one was killed is a new one started.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import msgspec
from attrs import define, field

from atomic_actors.tools.demo._child import SILENCE_LIMIT_S, Child, ChildFailed, Line
from atomic_actors.tools.demo._events import (
    Answers,
    Event,
    Finished,
    Job,
    Progress,
    Replayed,
    Sent,
    Started,
    decode_event,
)
from atomic_actors.tools.demo._logbook import Logbook
from atomic_actors.tools.demo._plan import KillPlan
from atomic_actors.tools.demo._screen import Screen

__all__ = (
    "Fleet",
    "Tally",
)


@define(eq=False)
class _Host:
    """A worker that runs aircraft."""

    number: int
    child: Child
    started: bool = False
    in_turn: int = 0


@define(kw_only=True)
class Tally:
    """What came out of a demo's work."""

    kills: int = 0
    #: Flights whose turn a kill has cut off, and those of them not replayed yet.
    interrupted: int = 0
    waiting: int = 0
    sending_s: float = 0.0
    #: The logbooks of the aircraft.
    found: dict[str, Logbook] = field(factory=dict[str, Logbook])


@define(eq=False, kw_only=True)
class Fleet:
    """Runs the workers and the sender, kills as planned, gathers what came out.

    Args:
        screen: where to tell the story.
        job: the sender's job; the workers' differ in their role only.
        workers: how many.
        plan: when to kill.
        place: the directory for logs.
        date_of: the day that so many flights have reached.
    """

    screen: Screen
    job: Job
    workers: int
    plan: KillPlan
    place: Path
    date_of: Callable[[int], str]
    tally: Tally = field(factory=Tally, init=False)
    _accepted: int = field(default=0, init=False)
    _hosts: dict[Child, _Host] = field(factory=dict[Child, _Host], init=False)
    _sender: Child | None = field(default=None, init=False)
    _all: list[Child] = field(factory=list[Child], init=False)
    _lines: queue.SimpleQueue[Line] = field(factory=queue.SimpleQueue[Line], init=False)
    _sending: bool = field(default=False, init=False)
    _finished: bool = field(default=False, init=False)

    @property
    def left_a_server(self) -> bool:
        """Whether no process exited cleanly, so that the store was not stopped."""
        return all(child.killed for child in self._all)

    @property
    def alive(self) -> int:
        """How many workers live."""
        return len(self._hosts)

    def run(self) -> None:
        """Start everything, and see it through to the sender's last word.

        Raises:
            ChildFailed: a process ended, or fell silent, without being killed.
        """
        for number in range(self.workers):
            self._start_host(number + 1)
        # It loads its code beside the others, and gets its job when they are ready.
        self._sender = self._start(None, "sender")
        while not self._finished:
            self._hear(*self._next_line())
        self.stop()

    def stop(self) -> None:
        """End every process in good order, all at the same time."""
        for child in self._all:
            child.let_go()
        for child in self._all:
            child.stop()

    def _start(self, job: Job | None, name: str) -> Child:
        child = Child(job, self.place / f"{name}.log", self._lines)
        self._all.append(child)
        return child

    def _start_host(self, number: int) -> None:
        child = self._start(msgspec.structs.replace(self.job, role="host"), f"worker-{number}")
        self._hosts[child] = _Host(number, child)

    def _next_line(self) -> Line:
        try:
            return self._lines.get(timeout=SILENCE_LIMIT_S)
        except queue.Empty:
            raise ChildFailed(f"no worker produced output for {SILENCE_LIMIT_S:.0f} seconds") from None

    def _hear(self, child: Child, line: bytes) -> None:
        if child.killed:
            return  # its remaining output does not matter any more
        if not line:
            child.check_end()
            raise ChildFailed("a process of the demo ended before its work was done")
        # A process that dies in the middle of a line leaves half of it.
        if line.endswith(b"\n"):
            event = decode_event(line)
            host = self._hosts.get(child)
            if host is None:
                self._hear_sender(event)
            else:
                self._hear_host(host, event)

    def _hear_host(self, host: _Host, event: Event) -> None:
        if isinstance(event, Started):
            host.started = True
            self.screen.host_started(host.number, event.pid, event.seconds)
            if not self._sending and all(each.started for each in self._hosts.values()):
                assert self._sender is not None
                self._sending = True
                self._sender.give(self.job)
        elif isinstance(event, Progress):
            host.in_turn = event.in_turn
            self._kill_if_due()

    def _hear_sender(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._accepted = event.accepted
            in_turn = sum(host.in_turn for host in self._hosts.values())
            self.screen.progress(event.accepted, in_turn, self.date_of(event.accepted))
            self._kill_if_due()
        elif isinstance(event, Started):
            self.screen.sender_started(event.pid)
        elif isinstance(event, Replayed):
            self.tally.interrupted += len(event.flights)
            self.screen.close_bar()
            self.screen.interrupted(event.flights)
        elif isinstance(event, Sent):
            self.tally.sending_s = event.seconds
            self.screen.comparing()
        elif isinstance(event, Answers):
            self.tally.found.update(event.logbooks)
        elif isinstance(event, Finished):
            self.tally.waiting = event.waiting
            self._finished = True

    def _kill_if_due(self) -> None:
        """Kill the worker that has the most turns to cut off."""
        victim = max(self._hosts.values(), key=lambda host: host.in_turn)
        if not self.plan.wants(self._accepted, victim.in_turn):
            return
        victim.child.kill()
        del self._hosts[victim.child]
        self.tally.kills += 1
        self.screen.killed(victim.child.pid, self._accepted, victim.in_turn)
        self.screen.left(victim.number, len(self._hosts))
        if not self._hosts:
            self._start_host(victim.number)
