"""Virtual time on Trio: a clock that jumps, a scheduler with a seed, and processes that can be stopped.

Inside `virtual_time` the run that is under way has a clock that does not advance while any task can run, and jumps to
the next deadline when none can. Everything that is drawn comes from one seed: the order in which Trio runs its
tasks, the `random` module, and `os.urandom` (so message ids, claims and `uuid4` too).

A `Process` is a group of tasks that can be stopped as SIGSTOP stops a process: whatever becomes runnable is held
back, timers go off unheard, and when it is continued everything happens at once. One that is never continued has
died as by SIGKILL: no `finally` runs, nothing is cancelled. Tasks belong to the process in whose context they were
started, as their children do.

Trio has no public way to do either (its maintainers decline one until input and output can be simulated as well:
trio issue 2675), so three private names are used: the run queue, the scheduler's generator and the flag that sorts
a batch before it is shuffled. The tests of this module fail if they mean something else one day.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import trio
import trio.testing
from attrs import define, field
from trio._core import _run

from atomic_actors.node.ownership._instants import Instant, instants_from

__all__ = ("Process", "current_process", "start_outside", "virtual_time")

_process: ContextVar[Process | None] = ContextVar("atomic_actors_simulated_process", default=None)


def current_process() -> Process | None:
    """The process that the running task belongs to; None outside of all."""
    return _process.get()


@define(eq=False)
class Process:
    """Tasks that are stopped together, and their clock.

    Args:
        clock_rate: how fast its clock runs: 1.01 gains a hundredth of a second each second.
        on_step: called each time one of its tasks is about to go on, with how often that happened before.
        owner: whose process it is.
    """

    clock_rate: float = 1.0
    on_step: Callable[[int], None] | None = None
    owner: Any = None
    #: How often one of its tasks was made to go on.
    steps: int = field(default=0, init=False)
    is_stopped: bool = field(default=False, init=False)
    _held: list[Any] = field(factory=list[Any], init=False)
    _clock_base: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    def stop(self) -> None:
        """Stop every task of the process where it stands."""
        self.is_stopped = True
        # What is about to run does not, either. Trio wakes the tasks of a scope in no order that could be had again,
        # so that "all that were woken before" would be others in each run.
        queue = _runner().runq
        waiting = list(queue)
        queue.clear()
        for task in waiting:
            if task.context.get(_process) is self:
                self._held.append(task)
            else:
                queue.extend((task,))

    def go_on(self) -> None:
        """Continue after `stop`: whatever became runnable meanwhile is."""
        self.is_stopped = False
        held, self._held = self._held, []
        _runner().runq.extend(held)

    def may_run(self, task: Any) -> bool:
        """Whether a task that has become runnable runs; else it is held."""
        steps, self.steps = self.steps, self.steps + 1
        if self.on_step is not None and not self.is_stopped:
            self.on_step(steps)
        if self.is_stopped:
            self._held.append(task)
            return False
        return True

    def set_clock_rate(self, rate: float) -> None:
        """From now on the process's clock runs so fast."""
        now_s = trio.current_time()
        self._clock_base = (now_s, self._read_clock_s(now_s))
        self.clock_rate = rate

    def skip(self, seconds: float) -> None:
        """The world's clock is about to jump so far: this one will not show it."""
        now_s = trio.current_time()
        self._clock_base = (now_s + seconds, self._read_clock_s(now_s))

    def _read_clock_s(self, now_s: float) -> float:
        since_s, read_s = self._clock_base
        return read_s + (now_s - since_s) * self.clock_rate

    def read_clock_s(self) -> float:
        """What the process's own clock shows, in seconds."""
        return self._read_clock_s(trio.current_time())

    def start_soon(self, nursery: trio.Nursery, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Start a task of this process."""
        _start_in(self, nursery, function, args)


def start_outside(nursery: trio.Nursery, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Start a task that belongs to no process, whichever task starts it."""
    _start_in(None, nursery, function, args)


def _start_in(
    process: Process | None,
    nursery: trio.Nursery,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
) -> None:
    def start() -> None:
        _process.set(process)
        nursery.start_soon(function, *args)

    copy_context().run(start)


class _RunQueue(deque[Any]):
    """Trio's run queue, without the tasks of processes that are stopped."""

    def append(self, task: Any, /) -> None:
        process = task.context.get(_process)
        if process is None or process.may_run(task):
            super().append(task)


def _runner() -> Any:
    runner = getattr(_run.GLOBAL_RUN_CONTEXT, "runner", None)
    if runner is None:
        raise RuntimeError("virtual time needs Trio: run this with trio.run, or use run_simulation")
    return runner


def _read_instant() -> Instant:
    process = _process.get()
    now_s = trio.current_time() if process is None else process.read_clock_s()
    return now_s, now_s


@contextmanager
def virtual_time(seed: int) -> Generator[trio.testing.MockClock]:
    """Let the Trio run that is under way go on in virtual time, until left.

    Time goes on from what the run's clock shows, so that deadlines from before keep their meaning; they pass as
    virtual time does.

    Args:
        seed: decides everything that is drawn.

    Returns:
        The run's clock: `jump` moves it on.

    Raises:
        RuntimeError: there is no Trio run here.
    """
    runner = _runner()
    now_s, before = runner.clock.current_time(), (runner.clock, runner.clock_autojump_threshold, runner.runq)
    clock = trio.testing.MockClock()
    clock.jump(now_s)
    # It does not advance between jumps, so there is nothing to compute.
    clock.current_time = lambda: clock._virtual_base  # type: ignore[method-assign]
    drawn, urandom, flag = random.getstate(), os.urandom, _run._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler = _run._r.getstate()
    runner.clock, runner.runq = clock, _RunQueue(runner.runq)
    clock.autojump_threshold = 0
    random.seed(seed)
    _run._r.seed(seed)
    os.urandom = random.Random(seed).randbytes
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        with instants_from(_read_instant):
            yield clock
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = flag  # type: ignore[misc]
        os.urandom = urandom
        _run._r.setstate(scheduler)
        random.setstate(drawn)
        runner.clock, runner.clock_autojump_threshold = before[:2]
        runner.runq = deque(runner.runq)
