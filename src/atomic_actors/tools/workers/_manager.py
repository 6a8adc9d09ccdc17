"""The parent of the workers: a slot for each, whatever process fills it at the time.

A slot's keeper (`_keep`) starts a process, waits for its end, and starts another one. A reload gives a slot a
successor: it is started beside the process that serves, and takes the slot over when it is ready; only then
is the old one asked to end. So the slots never lack capacity, and code that cannot start replaces nothing.

    starting --ready--> serving --asked--> leaving --> gone
        |                  |  ended unasked
        +----- failed -----+--> waiting (back-off) --> starting

Nothing here needs the store.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from atomic_actors.tools.workers._backoff import Backoff
from atomic_actors.tools.workers._child import END_MARGIN_S, Child, WorkerSettings, describe_exit

__all__ = ("Manager", "Observer", "Phase", "WorkerSettings", "WorkerStatus")

REFRESH_INTERVAL_S: Final = 1.0
#: A worker that is silent for this long has a blocked event loop, or is stopped.
SILENT_AFTER_S: Final = 5.0
EXIT_FINE: Final = 0
EXIT_FAILED: Final = 1


class Phase(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    SERVING = "serving"
    #: It serves, and its successor is starting.
    RELOADING = "reloading"
    #: It has not reported for a while: its event loop is blocked, or the process is stopped.
    SILENT = "silent"
    LEAVING = "leaving"
    #: It ended, and is started again when the back-off is over.
    WAITING = "waiting"
    STOPPED = "stopped"


@frozen(kw_only=True)
class WorkerStatus:
    """One line about one worker."""

    number: int
    phase: Phase
    #: 0 where no process runs.
    pid: int
    uptime_s: float
    #: How often a process of this worker was replaced because it had ended unasked.
    restarts: int
    turns_per_s: float
    owned: int
    #: 0 while it is not known.
    partitions: int
    activations: int


class Observer(Protocol):
    """Where the manager says what happens."""

    def noted(self, text: str) -> None:
        """Something happened that a log should have."""
        ...

    def failed(self, text: str, traceback: str) -> None:
        """Why there is nothing to serve, or a reload was given up."""
        ...

    def line(self, number: int, text: str) -> None:
        """A worker printed a line; only where `WorkerSettings.capture` is set."""
        ...

    def status(self, workers: list[WorkerStatus]) -> None:
        """How the workers are now: after each change, and every second."""
        ...


@define(eq=False, kw_only=True)
class _Slot:
    """The place of one worker."""

    number: int
    backoff: Backoff
    child: Child | None = None
    successor: Child | None = None
    restarts: int = 0
    waiting: bool = False
    #: Set, and replaced by a new one, when its process ends or a successor takes over.
    changed: anyio.Event = field(factory=anyio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class Terminal(Protocol):
    """The terminal that the manager was started from."""

    def is_gone(self) -> bool:
        """Whether a SIGHUP means that it was closed, and asks for no reload."""
        ...


@define
class _SoFar:
    """What has happened until now."""

    was_serving: bool = False
    all_served: bool = False
    gave_up: bool = False
    code: int = EXIT_FINE


@define(eq=False)
class Manager:
    """Runs workers until it is asked to stop.

    Args:
        settings: what to start, and how many.
        observer: receives every report.
        terminal: what it was started from; None where no SIGHUP means that this has ended.
    """

    settings: WorkerSettings
    observer: Observer
    terminal: Terminal | None = None
    _slots: list[_Slot] = field(factory=list[_Slot], init=False)
    #: Every process that has not ended, also old ones that leave and successors that start.
    _children: set[Child] = field(factory=set[Child], init=False)
    _starting: int = field(default=0, init=False)
    #: Set, and replaced by a new one, when a process ends or could not be started.
    _fewer: anyio.Event = field(factory=anyio.Event, init=False)
    _so_far: _SoFar = field(factory=_SoFar, init=False)
    _stop: anyio.Event = field(factory=anyio.Event, init=False)
    _stop_signals: int = field(default=0, init=False)
    _reload: anyio.Event = field(factory=anyio.Event, init=False)
    #: Bounds the way out; its deadline moves when a second signal arrives.
    _patience: anyio.CancelScope = field(init=False)
    _group: TaskGroup = field(init=False)

    async def run(self) -> int:
        """Start the workers, keep them running, stop them when told to.

        SIGTERM and SIGINT stop in good order, a second one does not wait for running turns, a third one
        kills; SIGHUP reloads. No worker is left when this returns or raises.

        Returns:
            The exit code: 0 after a stop in good order; 1 or 2 where the workers could not start, or one
            had to be killed on the way out.
        """
        self._patience = anyio.CancelScope()
        self._slots = [_Slot(number=number + 1, backoff=Backoff()) for number in range(self.settings.workers)]
        async with anyio.create_task_group() as group:
            self._group = group
            await group.start(self._watch_signals)
            group.start_soon(self._refresh)
            group.start_soon(self._reload_when_asked)
            for slot in self._slots:
                group.start_soon(self._keep, slot)
            await self._stop.wait()
            await self._end_all()
            group.cancel_scope.cancel()
        self._show()
        return self._so_far.code

    def stop(self) -> None:
        """Stop in good order; again: do not wait for running turns; once more: kill."""
        self._stop_signals += 1
        if self._stop_signals == 1:
            self._stop.set()
            return
        self.observer.noted(
            "not waiting for running turns any more" if self._stop_signals == 2 else "killing the workers"
        )
        hurry_s = END_MARGIN_S if self._stop_signals == 2 else 0.0
        self._patience.deadline = min(self._patience.deadline, anyio.current_time() + hurry_s)
        if self._stop_signals == 2:
            for child in self._children:
                child.ask_to_end()

    def reload(self) -> None:
        """Replace the workers one after another; during a reload: once more after it."""
        self._reload.set()

    async def _watch_signals(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if number != signal.SIGHUP or (self.terminal is not None and self.terminal.is_gone()):
                    self.observer.noted(f"{name}: stopping")
                    self.stop()
                elif not self._stop.is_set():
                    self.observer.noted(f"{name}: reloading, one worker after another")
                    self.reload()

    # A slot.

    async def _keep(self, slot: _Slot) -> None:
        while not self._stop.is_set():
            child = slot.child
            if child is None:
                child = await self._start(slot)
                if child is None:
                    await self._wait_before_restart(slot, 0.0)
                    continue
                if slot.child is not None:
                    # A successor has taken over in the very moment: two are one too many.
                    self._group.start_soon(self._leave, slot, child)
                    continue
                slot.child = child
                await self._wait_ready(child)
            while slot.child is child and not child.ended.is_set():
                await slot.changed.wait()
            # Else a successor has taken over.
            if slot.child is child and not self._stop.is_set():
                await self._ended_unasked(slot, child)

    async def _start(self, slot: _Slot) -> Child | None:
        """Start a process for a slot; None where the machine cannot."""
        self._starting += 1
        try:
            child = await Child.start(slot.number, self.settings, self)
            self._children.add(child)
        except OSError as error:
            self._give_up_or_say(slot, f"cannot be started: {error}", EXIT_FAILED, "")
            return None
        finally:
            self._starting -= 1
            self._one_fewer()
        self._group.start_soon(self._run_child, slot, child)
        self._show()
        if self._stop.is_set():
            child.ask_to_end()
        return child

    async def _run_child(self, slot: _Slot, child: Child) -> None:
        try:
            await child.run()
        finally:
            self._children.discard(child)
            self._one_fewer()
            slot.wake()

    def _one_fewer(self) -> None:
        self._fewer.set()
        self._fewer = anyio.Event()

    async def _wait_ready(self, child: Child) -> bool:
        """Whether it is ready in time; one that is not is killed."""
        with anyio.move_on_after(self.settings.start_timeout_s):
            await child.settled.wait()
        if not child.settled.is_set():
            child.kill()
            await child.ended.wait()
        if child.ready is None or child.exit_code is not None:
            return False
        self._so_far.was_serving = True
        if not self._so_far.all_served and all(slot.child and slot.child.is_ready for slot in self._slots):
            self._so_far.all_served = True
            self.observer.noted(f"{self.settings.target} is served; the store is {child.ready.store}")
        return True

    async def _ended_unasked(self, slot: _Slot, child: Child) -> None:
        why = self._why(child)
        code = child.failed.code if child.failed is not None else EXIT_FAILED
        trace = child.failed.traceback if child.failed is not None else ""
        slot.child = None
        self._give_up_or_say(slot, why, code, trace, child)
        if not self._stop.is_set():
            await self._wait_before_restart(slot, child.served_s)

    def _why(self, child: Child) -> str:
        if child.failed is None and child.killed:
            return f"was not ready within {self.settings.start_timeout_s:g} s"
        text = child.failed.text if child.failed is not None else describe_exit(child.exit_code or 0)
        if child.ready is None:
            return f"could not start: {text}" if child.failed else f"{text} before it was ready"
        return f"ended: {text}" if child.failed else text

    def _give_up_or_say(
        self, slot: _Slot, why: str, code: int, trace: str, child: Child | None = None
    ) -> None:
        """Workers of which none has ever served will not do better the next time."""
        if self._stop.is_set():
            return
        process = f" (process {child.pid})" if child is not None else ""
        if self._so_far.was_serving:
            self.observer.noted(f"worker {slot.number}{process} {why}")
            return
        text = why.removeprefix("could not start: ")
        self.observer.failed(text if text != why else f"worker {slot.number} {why}", trace)
        self._so_far.code, self._so_far.gave_up = code, True
        self._stop.set()

    async def _wait_before_restart(self, slot: _Slot, served_s: float) -> None:
        wait_s = slot.backoff.next_wait_s(served_s)
        if wait_s:
            self.observer.noted(f"worker {slot.number} is started again in {wait_s:g} s")
            slot.waiting = True
            self._show()
        with anyio.move_on_after(wait_s):
            while slot.child is None:
                await slot.changed.wait()
        slot.waiting = False
        slot.restarts += 1

    # Reload.

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload.wait()
            self._reload = anyio.Event()
            done = 0
            for slot in self._slots:
                if self._stop.is_set() or not await self._replace(slot):
                    break
                done += 1
            if not self._stop.is_set():
                self.observer.noted(f"reloaded {done} of {len(self._slots)} workers")

    async def _replace(self, slot: _Slot) -> bool:
        """Start a successor beside the process that serves; when it is ready, it takes over."""
        slot.successor = await self._start(slot)
        if slot.successor is None:
            return False
        successor = slot.successor
        try:
            if not await self._wait_ready(successor):
                if not self._stop.is_set():
                    trace = successor.failed.traceback if successor.failed is not None else ""
                    self.observer.failed(
                        f"the reload is given up: the new worker {slot.number} {self._why(successor)}; "
                        "those not replaced yet keep running",
                        trace,
                    )
                return False
        finally:
            slot.successor = None
        old, slot.child = slot.child, successor
        slot.backoff = Backoff()
        slot.wake()
        self._show()
        if old is not None and not old.ended.is_set():
            await self._leave(slot, old)
        return True

    async def _leave(self, slot: _Slot, child: Child) -> None:
        await child.end()
        if child.killed:
            self.observer.noted(
                f"worker {slot.number} (process {child.pid}) did not leave in time and was killed"
            )

    # The end.

    async def _end_all(self) -> None:
        limit_s = max((child.end_limit_s for child in self._children), default=0.0)
        for child in self._children:
            if not child.asked:
                child.ask_to_end()
        self._show()
        self._patience.deadline = min(self._patience.deadline, anyio.current_time() + limit_s)
        with self._patience:
            await self._wait_all_ended()
        late = list(self._children)
        for child in late:
            self.observer.noted(f"the worker process {child.pid} did not leave in time and is killed")
            child.kill()
            self._so_far.code = self._so_far.code or EXIT_FAILED
        await self._wait_all_ended()

    async def _wait_all_ended(self) -> None:
        while self._children or self._starting:
            await self._fewer.wait()

    # What is shown.

    async def _refresh(self) -> None:
        while True:
            await anyio.sleep(REFRESH_INTERVAL_S)
            self._show()

    # What a `Child` says.

    def changed(self) -> None:
        """See `Parent`."""
        self._show()

    def printed(self, number: int, line: str) -> None:
        """See `Parent`."""
        self.observer.line(number, line)

    def _show(self) -> None:
        # Nothing more to say about workers that never served.
        if not self._so_far.gave_up:
            self.observer.status(list(self.workers()))

    def workers(self) -> Iterator[WorkerStatus]:
        """How each worker is now."""
        for slot in self._slots:
            child = slot.child
            numbers = child.numbers if child is not None else None
            running = child is not None and child.exit_code is None
            yield WorkerStatus(
                number=slot.number,
                phase=self._phase(slot),
                pid=child.pid if child is not None and running else 0,
                uptime_s=anyio.current_time() - child.times.started_s
                if child is not None and running
                else 0.0,
                restarts=slot.restarts,
                turns_per_s=child.turns_per_s if child is not None else 0.0,
                owned=numbers.owned if numbers is not None and running else 0,
                partitions=numbers.partitions if numbers is not None else 0,
                activations=numbers.activations if numbers is not None and running else 0,
            )

    def _phase(self, slot: _Slot) -> Phase:
        child = slot.child
        if child is None or child.exit_code is not None:
            if self._stop.is_set():
                return Phase.STOPPED
            return Phase.WAITING if slot.waiting else Phase.STARTING
        if child.asked:
            return Phase.LEAVING
        if child.ready is None:
            return Phase.STARTING
        if anyio.current_time() - child.times.heard_s > SILENT_AFTER_S:
            return Phase.SILENT
        return Phase.RELOADING if slot.successor is not None else Phase.SERVING
