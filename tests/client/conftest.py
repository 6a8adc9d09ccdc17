"""A store, a worker process that answers, and a client."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from attrs import define

from atomic_actors.client import Client
from tests.client.till import config_for
from tests.servers import Server, namespace, redis_server, store_server, valkey_server

__all__ = ("namespace", "redis_server", "store_server", "valkey_server")

ROOT = Path(__file__).parents[2]

NewClient: TypeAlias = Callable[..., Client]


@define(eq=False)
class Template:
    """The warm parent of the workers."""

    process: subprocess.Popen[str]

    def order(self, **order: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the parent of the workers has ended"
        return int(line)


@define(eq=False)
class Worker:
    """A process whose actor system answers."""

    template: Template
    pid: int
    is_gone: bool = False

    def wait(self) -> int:
        """The exit status of a worker that ends by itself."""
        self.is_gone = True
        return self.template.order(wait=self.pid)

    def stop(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            assert self.template.order(stop=self.pid) == 0


NewWorker: TypeAlias = Callable[[], Worker]


def wait_accepted(client: Client) -> None:
    """Return once a thread waits for the outcome of a message that the store has."""
    deadline_s = time.monotonic() + 10
    while True:
        session = client._slot.session
        waiters = tuple(session._waiters._by_uid.values()) if session is not None else ()
        if any(waiter.accepted for some in waiters for waiter in some):
            return
        assert time.monotonic() < deadline_s, "the store has not accepted it"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def template() -> Generator[Template]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.client.till"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Template(process)


@pytest.fixture
def new_worker(template: Template, store_server: Server, namespace: str) -> Generator[NewWorker]:
    made: list[Worker] = []

    def start() -> Worker:
        pid = template.order(start=[store_server.url, namespace])
        assert pid > 0, "the worker did not start"
        made.append(Worker(template, pid))
        return made[-1]

    yield start
    for worker in made:
        worker.stop()


@pytest.fixture
def worker(new_worker: NewWorker) -> Worker:
    return new_worker()


@pytest.fixture
def new_client(store_server: Server, namespace: str) -> Generator[NewClient]:
    made: list[Client] = []

    def make(url: str | None = None, *, max_connections: int = 16, **settings: Any) -> Client:
        config = config_for(url or store_server.url, namespace, **settings)
        made.append(Client(config, max_connections=max_connections))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(new_client: NewClient) -> Client:
    return new_client()
