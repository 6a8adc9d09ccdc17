"""The worker process as its parent sees it: started, listened to, killed or stopped."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from atomic_actors.tools.demo._events import Event, Job, decode_event, encode

__all__ = ("SILENCE_LIMIT_S", "Child", "ChildFailed", "Line")

#: Longest silence of a healthy worker. It reports many times a second, but a busy machine is slow.
SILENCE_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 15.0
LOG_TAIL_LINES: Final = 25


#: A worker's report, and which worker.
Line: TypeAlias = "tuple[Child, bytes]"


class ChildFailed(Exception):
    """The worker ended, or fell silent, without being killed; the text has the end of its log."""


class Child:
    """One worker process.

    Args:
        job: what it is to do; None where `give` sets it later.
        log: the file that takes what it prints; appended to.
        lines: where what it says goes, with itself, and an empty line at its end; `events` reads them where
            this is left out.
    """

    def __init__(self, job: Job | None, log: Path, lines: queue.SimpleQueue[Line] | None = None) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "atomic_actors.tools.demo.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
                # Ctrl-C in a terminal goes to a whole group; the parent decides when the worker stops.
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue() if lines is None else lines
        self._reader = threading.Thread(target=self._read, name="demo-reader", daemon=True)
        self._reader.start()
        #: Whether it was killed, here and by us, so that it left nothing in order.
        self.killed = False
        if job is not None:
            self.give(job)

    def give(self, job: Job) -> None:
        """Tell it what to do."""
        assert self._process.stdin is not None
        # Should it have died already, reading from it will tell.
        with suppress(BrokenPipeError):
            self._process.stdin.write(encode(job))
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((self, line))
        self._lines.put((self, b""))

    def events(self) -> Iterator[Event]:
        """What the worker says, until it ends.

        Raises:
            ChildFailed: it ended with an exit code other than 0, or was silent for a minute.
        """
        while True:
            try:
                _, line = self._lines.get(timeout=SILENCE_LIMIT_S)
            except queue.Empty:
                raise ChildFailed(
                    f"the worker produced no output for {SILENCE_LIMIT_S:.0f} seconds\n{self._log_tail()}"
                ) from None
            if not line:
                self.check_end()
                return
            # A worker that died in the middle of a line leaves half of it.
            if line.endswith(b"\n"):
                yield decode_event(line)

    def check_end(self) -> None:
        """Wait for its end.

        Raises:
            ChildFailed: its exit code is not 0.
        """
        code = self._process.wait()
        if code != 0:
            raise ChildFailed(f"the worker ended with exit code {code}\n{self._log_tail()}")

    def kill(self) -> None:
        """`kill -9`: the worker gets no chance to do anything; returns when it is gone."""
        self.killed = True
        self._process.send_signal(signal.SIGKILL)
        self._close()

    def let_go(self) -> None:
        """Ask it to stop in good order. Does nothing if it ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def stop(self) -> None:
        """Ask it to stop in good order; if it does not, kill it. Does nothing if it ended."""
        self.let_go()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.killed = True
        self._process.send_signal(signal.SIGKILL)
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.wait()
        self._reader.join(STOP_LIMIT_S)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def _log_tail(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


def _environment() -> dict[str, str]:
    """Ours, with the place this package was imported from first, which may be no installed one."""
    root = str(Path(__file__).resolve().parents[3])
    rest = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{rest}" if rest else root}
