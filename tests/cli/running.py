"""`atomic-actors run` in a process of its own, read line by line."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from atomic_actors._system import ActorSystem
from atomic_actors.base._config import Config
from tests.cli.application import ROOT
from tests.servers import Server

PARTITIONS = 8
MODULE = "tests.cli.workers_application"
SERVING = re.compile(r"worker (\d+): serving, pid (\d+), .*, (\d+) restarts?")
#: A loaded machine takes seconds to start a process.
PATIENCE_S = 40.0


@define(eq=False)
class Running:
    """The command, and all that it and its workers have written."""

    process: subprocess.Popen[str]
    store: dict[str, str]
    lines: list[str] = field(factory=list[str], init=False)
    changed: threading.Condition = field(factory=threading.Condition, init=False)
    ended: bool = field(default=False, init=False)
    #: Keeps the pids of workers that were seen from being given to others.
    handles: dict[int, int] = field(factory=dict[int, int], init=False)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                found = SERVING.search(line)
                if found and int(found[2]) not in self.handles:
                    with suppress(ProcessLookupError):
                        self.handles[int(found[2])] = os.pidfd_open(int(found[2]))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    @property
    def output(self) -> str:
        with self.changed:
            return "\n".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Block until `count` lines have the pattern."""
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found[:] = [match for line in self.lines if (match := re.search(pattern, line))]
            return len(found) >= count or self.ended

        with self.changed:
            self.changed.wait_for(is_there, PATIENCE_S)
        if len(found) < count:
            pytest.fail(f"{count} lines with {pattern!r} did not come; there was:\n{self.output}")
        return found

    def serving(self) -> dict[int, int]:
        """The pid of each worker as it was last said to be serving."""
        with self.changed:
            return {int(found[1]): int(found[2]) for line in self.lines if (found := SERVING.search(line))}

    def wait_gone(self, pid: int) -> None:
        """Block until a worker has ended, whoever its parent is now."""
        readable, _, _ = select.select([self.handles[pid]], [], [], PATIENCE_S)
        if not readable:
            pytest.fail(f"the worker process {pid} is still there:\n{self.output}")

    def wait_code(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the command did not end:\n{self.output}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def config(self, **more: Any) -> Config:
        """For a system beside the workers; without actors it sends only."""
        return Config(
            url=self.store["ATOMIC_ACTORS_URL"],
            namespace=self.store["ATOMIC_ACTORS_NAMESPACE"],
            partitions=PARTITIONS,
            allow_no_persistence=True,
            ask_timeout_s=30.0,
            **more,
        )

    def sender(self) -> ActorSystem:
        return ActorSystem(self.config())


def store_of(server: Server, namespace: str) -> dict[str, str]:
    """The environment of a process that is to use the store, and to find what is here."""
    return {
        "ATOMIC_ACTORS_URL": server.url,
        "ATOMIC_ACTORS_NAMESPACE": namespace,
        "ATOMIC_ACTORS_PARTITIONS": str(PARTITIONS),
        "ATOMIC_ACTORS_ALLOW_NO_PERSISTENCE": "1",
        "ATOMIC_ACTORS_DRAIN_TIMEOUT_S": "5",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }


@contextmanager
def running(
    *words: str,
    server: Server,
    namespace: str,
    target: str = f"{MODULE}:system",
    directory: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> Generator[Running]:
    """Run the command; whatever happens, no process of it is left."""
    store = store_of(server, namespace)
    process = subprocess.Popen(
        [sys.executable, "-m", "atomic_actors", "run", target, *words],
        cwd=directory,
        env={**os.environ, **store, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = Running(process, store)
    reader = threading.Thread(target=run.read)
    reader.start()
    try:
        yield run
    except BaseException:
        print(f"--- what the command wrote ---\n{run.output}")
        raise
    finally:
        process.kill()
        process.wait()
        for handle in run.handles.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        # Workers that were never seen serving end by themselves, and the pipe with them.
        reader.join(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()
