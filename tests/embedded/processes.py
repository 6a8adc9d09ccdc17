"""Processes around the embedded server: look whether they live, kill them, run an application."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import redis
from attrs import define
from redis.backoff import NoBackoff
from redis.retry import Retry

import atomic_actors.journal.embedded._server as embedded_process
from atomic_actors.journal.embedded._embedded import EmbeddedLocation

APPLICATION = Path(__file__).with_name("application.py")
SOURCE = Path(embedded_process.__file__).parents[2]
#: Enough for a process that was killed to be gone, on a busy machine.
END_TIMEOUT_S = 5.0


def runs(pid: int) -> bool:
    """Whether the process lives; one that only waits for its parent to notice does not."""
    state = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return state.stdout.strip()[:1] not in ("", "Z")


def process_title(pid: int) -> str:
    """The command line; a server puts its socket there."""
    return subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


async def ended(pid: int) -> bool:
    with anyio.move_on_after(END_TIMEOUT_S):
        while runs(pid):  # noqa: ASYNC110 - the end of somebody else's child gives no event
            await anyio.sleep(0.01)
        return True
    return False


async def kill(location: EmbeddedLocation) -> None:
    os.kill(location.pid, signal.SIGKILL)
    assert await ended(location.pid)


def kill_left_behind(directory: Path) -> None:
    """Kill the server of a directory that a failed test did not stop."""
    record = directory / "server.json"
    pid = json.loads(record.read_text())["pid"] if record.exists() else 0
    if pid and runs(pid) and str(directory) in process_title(pid):
        os.kill(pid, signal.SIGKILL)


def call(location: EmbeddedLocation, *command: str | int | bytes) -> Any:
    retry = Retry(NoBackoff(), 0)
    path = str(location.socket_path)
    with redis.Redis(unix_socket_path=path, decode_responses=True, protocol=2, retry=retry) as client:
        return cast("Callable[..., Any]", client.execute_command)(*command)


def setting(location: EmbeddedLocation, name: str) -> str:
    value: str = call(location, "CONFIG GET", name)[name]
    return value


@define(eq=False)
class Application:
    process: subprocess.Popen[str]

    async def report(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return cast(
            "dict[str, Any]", json.loads(await anyio.to_thread.run_sync(self.process.stdout.readline))
        )

    async def kill(self) -> None:
        self.process.kill()
        await anyio.to_thread.run_sync(self.process.wait)

    async def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert await anyio.to_thread.run_sync(self.process.wait) == 0


@contextmanager
def application(directory: Path, backend: str) -> Generator[Application]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, APPLICATION, directory, backend],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield Application(process)
        finally:
            process.kill()
