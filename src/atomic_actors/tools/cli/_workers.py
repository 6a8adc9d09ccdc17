"""`atomic-actors run`: many worker processes, and one line about each.

On a terminal the lines stand at the bottom and are refreshed in place; what workers print appears above.
Elsewhere a line is written when something has changed, and workers write where this process does.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import anyio
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from atomic_actors.tools.cli._misused import Misused
from atomic_actors.tools.cli._screen import WIDTH_MAX, plain_table, printable
from atomic_actors.tools.workers import Manager, Phase, WorkerSettings, WorkerStatus
from atomic_actors.tools.workers._target import CannotServe, split_target

__all__ = ("WorkersScreen", "run")

WORKERS_MAX = 1024
COLOURS = {
    Phase.STARTING: "yellow",
    Phase.SERVING: "green",
    Phase.RELOADING: "cyan",
    Phase.SILENT: "bold red",
    Phase.LEAVING: "yellow",
    Phase.WAITING: "red",
    Phase.STOPPED: "dim",
}


class _Console(Console):
    """One whose reader may go away: workers must not die of that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class WorkersScreen:
    """What `run` shows, on standard error: standard output belongs to the application."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _Console(stderr=True, highlight=False)
        if not self._console.is_terminal:
            self._console.width = WIDTH_MAX
        self._live: Live | None = None
        self._shown: dict[int, tuple[object, ...]] = {}

    @property
    def is_in_place(self) -> bool:
        """Whether the lines are refreshed in place."""
        return self._console.is_terminal

    def __enter__(self) -> WorkersScreen:
        if self.is_in_place:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            with self._reader_may_be_gone():
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with self._reader_may_be_gone():
                self._live.stop()

    @contextmanager
    def _reader_may_be_gone(self) -> Generator[None]:
        try:
            yield
        except OSError:  # a terminal that was closed
            self._console.quiet = True

    def _print(self, text: Text) -> None:
        with self._reader_may_be_gone():
            self._console.print(text, soft_wrap=True)

    def noted(self, text: str) -> None:
        """A line of the log."""
        self._print(Text(printable(text)))

    def failed(self, text: str, traceback: str) -> None:
        """What went wrong."""
        if traceback:
            self._print(Text(printable(traceback.rstrip()), style="dim"))
        self._print(Text.assemble(("error: ", "red"), printable(text)))

    def line(self, number: int, text: str) -> None:
        """What a worker printed."""
        self._print(Text.assemble((f"{number} | ", "dim"), printable(text)))

    def status(self, workers: list[WorkerStatus]) -> None:
        """How the workers are."""
        if self._live is not None:
            with self._reader_may_be_gone():
                self._live.update(_table(workers), refresh=True)
            return
        for worker in workers:
            # Neither the time nor the speed: they change every second.
            key = (worker.phase, worker.pid, worker.restarts, worker.owned)
            before = self._shown.get(worker.number)
            self._shown[worker.number] = key
            # While a process is being made there is nothing to say yet.
            if key != before and (worker.pid or worker.phase is not Phase.STARTING):
                self.noted(_line(worker))


def _line(worker: WorkerStatus) -> str:
    parts = [f"worker {worker.number}: {worker.phase}"]
    if worker.pid:
        parts += [f"pid {worker.pid}", f"up {worker.uptime_s:.0f} s"]
    parts.append(f"{worker.restarts} restart{'' if worker.restarts == 1 else 's'}")
    if worker.pid and worker.partitions:
        parts += [
            f"{worker.turns_per_s:,.0f} turns/s",
            f"owns {worker.owned} of {worker.partitions} partitions",
        ]
    return ", ".join(parts)


def _table(workers: list[WorkerStatus]) -> Table:
    table = plain_table("worker", "state")
    for heading in ("pid", "up", "restarts", "turns/s", "partitions", "in memory"):
        table.add_column(heading, justify="right")
    for worker in workers:
        table.add_row(*_cells(worker))
    return table


def _cells(worker: WorkerStatus) -> Sequence[Text | str]:
    known = bool(worker.pid and worker.partitions)
    return (
        str(worker.number),
        Text(worker.phase, COLOURS[worker.phase]),
        str(worker.pid or "-"),
        _duration(worker.uptime_s) if worker.pid else "-",
        str(worker.restarts),
        f"{worker.turns_per_s:,.0f}" if known else "-",
        f"{worker.owned} of {worker.partitions}" if known else "-",
        f"{worker.activations:,}" if known else "-",
    )


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"


def _count_of(workers: str) -> int:
    if workers == "auto":
        return _processors()
    if not workers.isascii() or not workers.isdigit() or int(workers) > WORKERS_MAX:
        raise Misused(f"--workers: expected auto, or a number from 0 to {WORKERS_MAX}, got {workers!r}")
    return int(workers) or _processors()


def _processors() -> int:
    """How many this process may use, which can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


class _Terminal:
    """Tells the SIGHUP of a terminal that was closed from one that asks for a reload."""

    def __init__(self) -> None:
        # A user who starts this with nohup wants it to outlive the terminal.
        self._matters = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and self._is_there()

    @staticmethod
    def _is_there() -> bool:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        except OSError:
            return False
        return True

    def is_gone(self) -> bool:
        """Whether there was one, and is none any more."""
        return self._matters and not self._is_there()


def run(
    target: Annotated[
        str, Parameter(name="MODULE:NAME", help="An ActorSystem, a Config, or a function that returns one.")
    ],
    /,
    *,
    workers: Annotated[str, Parameter(help="How many processes; 0 or auto: one for each processor.")] = "1",
    backend: Annotated[
        Literal["asyncio", "trio"], Parameter(help="The event loop to run the workers on.")
    ] = "asyncio",
    uvloop: Annotated[bool, Parameter(help="Run asyncio on uvloop, which has to be installed.")] = False,
    start_timeout: Annotated[
        float,
        Parameter(validator=Number(gt=0), help="Seconds until a worker that is not ready counts as failed."),
    ] = 300.0,
) -> int:
    """Run a system in worker processes: restart those that die, reload on SIGHUP, stop on SIGTERM."""
    count = _count_of(workers)
    try:
        split_target(target)
    except CannotServe as error:
        raise Misused(str(error)) from None
    if uvloop and backend != "asyncio":
        raise Misused(f"--uvloop is for asyncio, not for {backend}")
    if uvloop and importlib.util.find_spec("uvloop") is None:
        raise Misused("--uvloop: uvloop is not installed; pip install atomic_actors[uvloop]")
    terminal = _Terminal()
    with WorkersScreen() as shown:
        settings = WorkerSettings(
            target=target,
            workers=count,
            backend=backend,
            uvloop=uvloop,
            start_timeout_s=start_timeout,
            capture=shown.is_in_place,
        )
        manager = Manager(settings, shown, terminal=terminal)
        return anyio.run(manager.run, backend=backend)
