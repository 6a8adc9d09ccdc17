"""Both event loops on a clock that jumps: a schedule that lasts minutes runs in milliseconds, and always the same.

Trio has `MockClock`; its scheduler shuffles the tasks of each step, from a generator that is seeded here. asyncio
gets a loop whose selector does not sleep but moves the loop's time on.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import trio.testing
from trio._core import _run

from atomic_actors.node.ownership._instants import instants_from

T = TypeVar("T")


class Stuck(Exception):
    """Every task waits, and nothing will ever wake one."""


class _JumpingSelector(selectors.SelectSelector):
    """Never sleeps: what it would have slept is added to the loop's time."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck("every task waits and no timer runs")
            self.now_s += max(timeout, 0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtual(backend: str, seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on a clock that jumps, with everything random seeded.

    Args:
        backend: "asyncio" or "trio".
        seed: for Trio's scheduler, for message ids, and for the `random` module (the jitter of back-offs).
        main: what to run.
    """
    random.seed(seed)
    # A lease that a node forgot is taken over after its time: in virtual seconds, as everything here.
    with instants_from(lambda: (anyio.current_time(),) * 2), _ids_of(seed):
        return _run_virtual(backend, seed, main)


@contextmanager
def _ids_of(seed: int) -> Iterator[None]:
    # Message ids break ties, between dead letters of one millisecond for example.
    before = os.urandom
    os.urandom = random.Random(seed).randbytes
    try:
        yield
    finally:
        os.urandom = before


def _run_virtual(backend: str, seed: int, main: Callable[[], Awaitable[T]]) -> T:
    if backend == "asyncio":
        return anyio.run(main, backend="asyncio", backend_options={"loop_factory": JumpingLoop})
    # Both names are private: `test_the_same_seed_gives_the_same_run` tells when they mean nothing any more.
    before: Any = _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    _run._r.seed(seed)  # type: ignore[attr-defined]
    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[attr-defined]
