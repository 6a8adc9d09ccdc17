"""One worker process as its parent sees it: started, listened to, asked to end, killed."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Protocol, Self

import anyio
from anyio.abc import ByteReceiveStream, Process, TaskGroup
from attrs import define, field, frozen

from atomic_actors.tools.workers._reports import Failed, Numbers, Ready, Report, ReportReader

__all__ = ("END_MARGIN_S", "Child", "WorkerSettings", "describe_exit")

#: A worker gets this much longer than its `drain_timeout_s`: it settles and releases behind a shield of 5 s.
END_MARGIN_S: Final = 10.0
#: The kernel needs no longer than this to end a process that was killed.
KILL_LIMIT_S: Final = 10.0
#: What a worker prints after its end, or a child of it that has the same pipe, is not waited for longer.
LAST_WORDS_LIMIT_S: Final = 0.5
LINE_BYTES_MAX: Final = 65_536


@frozen(kw_only=True)
class WorkerSettings:
    """How workers are started.

    Args:
        target: `package.module:system`.
        workers: how many.
        backend: the event loop that they run on.
        uvloop: whether asyncio runs on uvloop.
        start_timeout_s: a worker that is not ready by then is killed and counts as failed.
        capture: whether what they print goes through the parent; else it goes where the parent's goes.
    """

    target: str
    workers: int = 1
    backend: Literal["asyncio", "trio"] = "asyncio"
    uvloop: bool = False
    start_timeout_s: float = 300.0
    capture: bool = False


def describe_exit(code: int) -> str:
    """An exit code in words, such as "was killed by SIGKILL"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@define
class Times:
    """When a worker was started, was ready, reported something last: `anyio.current_time`."""

    started_s: float = field(factory=anyio.current_time)
    ready_s: float = math.inf
    heard_s: float = field(factory=anyio.current_time)


class Parent(Protocol):
    """Who started a worker process."""

    def changed(self) -> None:
        """It has reported something, or has ended."""
        ...

    def printed(self, number: int, line: str) -> None:
        """It has printed a line; only where lines are captured."""
        ...


@define(eq=False)
class Child:
    """One worker process.

    `run` has to be running for anything to be noticed. When it is cancelled it kills the process, and it
    returns only when the process is gone. Should the parent be gone before that, the worker sees its
    channel closed.
    """

    process: Process
    reader: ReportReader
    parent: Parent
    number: int
    ready: Ready | None = field(default=None, init=False)
    failed: Failed | None = field(default=None, init=False)
    numbers: Numbers | None = field(default=None, init=False)
    turns_per_s: float = field(default=0.0, init=False)
    times: Times = field(factory=Times, init=False)
    #: Whether it was asked to end, so that its end is expected.
    asked: bool = field(default=False, init=False)
    killed: bool = field(default=False, init=False)
    exit_code: int | None = field(default=None, init=False)
    #: Set when it is ready, or never will be.
    settled: anyio.Event = field(factory=anyio.Event, init=False)
    ended: anyio.Event = field(factory=anyio.Event, init=False)

    @classmethod
    async def start(
        cls,
        number: int,
        settings: WorkerSettings,
        parent: Parent,
    ) -> Self:
        """Start a process for the worker of this number.

        Raises:
            OSError: the machine cannot start one now.
        """
        mine, theirs = socket.socketpair()
        try:
            with theirs:
                process = await anyio.open_process(
                    _command(number, settings, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if settings.capture else None,
                    stderr=subprocess.STDOUT if settings.capture else None,
                    env=_environment(capture=settings.capture),
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C in a terminal goes to a whole group; the parent decides when workers stop.
                    start_new_session=True,
                )
        except BaseException:
            mine.close()  # if the process was started nevertheless, this ends it
            raise
        return cls(process, ReportReader(mine), parent, number)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has entered its system, and has not ended since."""
        return self.ready is not None and self.exit_code is None

    @property
    def served_s(self) -> float:
        """How long it has been ready; 0 where it never was."""
        return max(anyio.current_time() - self.times.ready_s, 0.0)

    @property
    def end_limit_s(self) -> float:
        """How long it may take from SIGTERM to its end; without end where its settings say so."""
        if self.ready is None:
            return END_MARGIN_S
        return self.ready.drain_timeout_s + END_MARGIN_S if self.ready.drain_timeout_s else math.inf

    # Its life.

    async def run(self) -> None:
        """Listen to it until it has ended."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen)
                if self.process.stdout is not None:
                    group.start_soon(self._pass_lines_on, self.process.stdout)
                await self.process.wait()
                await self._hear_last_words(group)
            self._end()
        finally:
            await self._make_sure_it_is_gone()

    async def _listen(self) -> None:
        while not self.reader.ended:
            await anyio.wait_readable(self.reader.channel)
            self._take_reports()

    async def _hear_last_words(self, group: TaskGroup) -> None:
        """What was sent before the end; a child of the worker may hold the pipes open, and is not waited for."""
        self._take_reports()
        group.cancel_scope.deadline = anyio.current_time() + LAST_WORDS_LIMIT_S

    def _take_reports(self) -> None:
        for report in self.reader.read_nowait():
            self._take(report)

    def _take(self, report: Report) -> None:
        self.times.heard_s = anyio.current_time()
        if isinstance(report, Ready):
            self.ready, self.times.ready_s = report, self.times.heard_s
            self.settled.set()
        elif isinstance(report, Failed):
            self.failed = report
        else:
            before, self.numbers = self.numbers, report
            if before is not None and report.at_s > before.at_s:
                self.turns_per_s = (report.turns - before.turns) / (report.at_s - before.at_s)
        self.parent.changed()

    def _end(self) -> None:
        self.exit_code = self.process.returncode
        self.turns_per_s = 0.0
        self.settled.set()
        self.ended.set()
        self.parent.changed()

    async def _pass_lines_on(self, stream: ByteReceiveStream) -> None:
        rest = b""
        while True:
            try:
                rest += await stream.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                break
            *lines, rest = rest.split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self.parent.printed(self.number, line.decode("utf-8", "replace").rstrip("\r"))
        if rest:
            self.parent.printed(self.number, rest.decode("utf-8", "replace"))

    async def _make_sure_it_is_gone(self) -> None:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + KILL_LIMIT_S):
            if self.process.returncode is None:
                self.kill()
                await self.process.wait()
            if self.exit_code is None:
                self._end()
            if self.process.stdout is not None:
                await self.process.stdout.aclose()
        self.reader.channel.close()

    # Its end.

    def ask_to_end(self) -> None:
        """SIGTERM: leave in good order; asked again, do not wait for running turns."""
        self.asked = True
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.asked = self.killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        # Once it has been waited for, the pid may belong to another process.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def end(self) -> None:
        """Ask it to end, and kill it if it has not by then; returns when it is gone."""
        if not self.asked:
            self.ask_to_end()
        with anyio.move_on_after(self.end_limit_s):
            await self.ended.wait()
        if not self.ended.is_set():
            self.kill()
            await self.ended.wait()


def _command(number: int, settings: WorkerSettings, channel: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "atomic_actors.tools.workers.worker",
        settings.target,
        f"--number={number}",
        f"--workers={settings.workers}",
        f"--backend={settings.backend}",
        f"--channel={channel}",
        *(["--uvloop"] if settings.uvloop else []),
        *(["--captured"] if settings.capture else []),
    ]


def _environment(*, capture: bool) -> dict[str, str]:
    """Ours; the place this package was imported from is added where it is not installed."""
    root = Path(__file__).resolve().parents[3]
    path = os.environ.get("PYTHONPATH", "")
    # What is in the path comes before the standard library, where installed packages have no business.
    if root.name not in ("site-packages", "dist-packages") and str(root) not in path.split(os.pathsep):
        path = f"{path}{os.pathsep}{root}" if path else str(root)
    # Through a pipe Python would hold lines back.
    return {**os.environ, "PYTHONPATH": path, **({"PYTHONUNBUFFERED": "1"} if capture else {})}
