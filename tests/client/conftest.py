"""A store, a worker process that answers, and a client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from atomic_actors.client import Client
from tests.client.till import config_for
from tests.servers import Server, namespace, redis_server, store_server, valkey_server

__all__ = ("namespace", "redis_server", "store_server", "valkey_server")

ROOT = Path(__file__).parents[2]

NewClient: TypeAlias = Callable[..., Client]


@contextmanager
def running_worker(url: str, namespace: str) -> Generator[subprocess.Popen[str]]:
    """A process whose actor system answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.client.till", url, namespace],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the worker did not start"
        yield process
    finally:
        if process.poll() is None:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()
        process.stdin.close()


@pytest.fixture
def worker(store_server: Server, namespace: str) -> Generator[subprocess.Popen[str]]:
    with running_worker(store_server.url, namespace) as process:
        yield process


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
