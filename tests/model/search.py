"""Visits every state, the nearest first, and gives the shortest way to the first one in which something is wrong.

The search knows nothing of messages: a `System` says what follows a state and what is wrong with one.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from attrs import frozen

__all__ = ("Found", "Report", "System", "Trace", "search")

S = TypeVar("S", bound=Hashable)
L = TypeVar("L", covariant=True)

PROGRESS_STATES = 50_000


class System(Protocol[S, L]):
    """What is searched."""

    def first(self) -> S:
        """The state before everything."""
        ...

    def moves(self, state: S) -> Iterable[tuple[L, S]]:
        """What may follow though nothing goes wrong."""
        ...

    def faults(self, state: S) -> Iterable[tuple[L, S]]:
        """What may follow where something goes wrong."""
        ...

    def wrong(self, state: S) -> str | None:
        """What is wrong with a state."""
        ...

    def wrong_at_rest(self, state: S) -> str | None:
        """What is wrong with a state that no move leaves."""
        ...


@frozen
class Trace(Generic[S, L]):
    """A way from the first state: each action, and the state that it led to."""

    first: S
    steps: tuple[tuple[L, S], ...]

    def __len__(self) -> int:
        return len(self.steps)


@frozen
class Found(Generic[S, L]):
    """What was wrong, and the shortest way to it."""

    what: str
    trace: Trace[S, L]


@frozen
class Report(Generic[S, L]):
    """What a search has seen.

    Args:
        states: how many states were visited, each counted once.
        transitions: how many actions led from one to another.
        depth: how many actions the farthest of them is away.
        at_rest: how many of them no move leaves.
        complete: whether all were visited.
        elapsed_s: how long it took, in seconds.
        found: what was wrong; the search ends there.
    """

    states: int
    transitions: int
    depth: int
    at_rest: int
    complete: bool
    elapsed_s: float
    found: Found[S, L] | None


class _Visited(Generic[S, L]):
    """The states so far, in the order in which they were reached, each with the one before it."""

    def __init__(self, system: System[S, L]) -> None:
        self.system = system
        self.first = system.first()
        self.numbers: dict[S, int] = {self.first: 0}
        self.states: list[S] = [self.first]
        self.before = array("l", [0])

    def trace(self, number: int) -> Trace[S, L]:
        """The way to a state; the actions are found anew, because keeping them would cost more."""
        steps: list[tuple[L, S]] = []
        while number:
            before = self.before[number]
            state, origin = self.states[number], self.states[before]
            ways = (*self.system.moves(origin), *self.system.faults(origin))
            steps.append(next(way for way in ways if way[1] == state))
            number = before
        return Trace(self.first, tuple(reversed(steps)))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: states hold no cycles, and it would look at a million of them in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def search(
    system: System[S, L],
    *,
    states_max: int,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Report[S, L]:
    """Visit states breadth first.

    Args:
        system: what is searched.
        states_max: where to stop.
        on_progress: called now and then with the states visited, those still to be left, and the depth.
    """
    began_s = time.perf_counter()
    visited = _Visited(system)
    numbers, states, before = visited.numbers, visited.states, visited.before
    moves, faults, wrong = system.moves, system.faults, system.wrong
    transitions = at_rest = number = depth = 0
    level_end = 1
    what = wrong(visited.first)
    culprit = 0
    while what is None and number < len(states) < states_max:
        if number == level_end:
            depth += 1
            level_end = len(states)
        state = states[number]
        ways = [*moves(state)]
        if all(after == state for _, after in ways):
            at_rest += 1
            what, culprit = system.wrong_at_rest(state), number
            if what is not None:
                break
        ways += faults(state)
        transitions += len(ways)
        for _, after in ways:
            if after not in numbers:
                numbers[after] = len(states)
                states.append(after)
                before.append(number)
                what = wrong(after)
                if what is not None:
                    culprit = len(states) - 1
                    break
        number += 1
        if on_progress is not None and number % PROGRESS_STATES == 0:
            on_progress(len(states), len(states) - number, depth)
    return Report(
        states=len(states),
        transitions=transitions,
        depth=depth,
        at_rest=at_rest,
        complete=what is None and number == len(states),
        elapsed_s=time.perf_counter() - began_s,
        found=None if what is None else Found(what, visited.trace(culprit)),
    )
