"""The private server, shared by a client and an actor system, or by clients alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from atomic_actors import StoreUnavailable
from atomic_actors.base._config import Config
from atomic_actors.client import Client
from atomic_actors.journal.embedded._server import Answer, files_of, inspect_server
from tests.client.conftest import Template, Worker
from tests.client.test_threads import in_child
from tests.client.till import PARTITIONS, Add, Total, till


def server_in(directory: Path) -> Answer | None:
    return inspect_server(files_of(directory))[1]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"embedded://{tmp_path}/store"


def new_client(store: str) -> Client:
    return Client(store, partitions=PARTITIONS, namespace="n")


def test_a_worker_and_a_client_share_a_directory(store: str, template: Template, tmp_path: Path) -> None:
    with new_client(store) as client:
        receipt = client.tell(till("a"), Add(1))  # starts the server
        pid = template.order(start=[store, "n"])
        assert pid > 0
        worker = Worker(template, pid)
        assert client.result(receipt, timeout_s=20) == 1
        worker.stop()
        assert server_in(tmp_path / "store") is not None
    assert server_in(tmp_path / "store") is None, "the last user leaves, and the server runs on"


def test_a_server_that_dies_is_brought_back(store: str, template: Template, tmp_path: Path) -> None:
    with new_client(store) as client:
        client.tell(till("a"), Add(1))
        before = server_in(tmp_path / "store")
        assert before is not None
        os.kill(before.pid, 9)
        for _ in range(5):
            try:
                client.tell(till("a"), Add(2))
                break
            except StoreUnavailable:  # it was killed under our eyes
                continue
        after = server_in(tmp_path / "store")
        assert after is not None
        assert after.pid != before.pid
        pid = template.order(start=[store, "n"])
        assert client.ask(till("a"), Total(), timeout_s=20) == 3
        Worker(template, pid).stop()


def test_a_forked_child_is_a_user_of_its_own(store: str, tmp_path: Path) -> None:
    client = new_client(store)
    client.tell(till("a"), Add(1))

    def work() -> None:
        client.tell(till("a"), Add(1))
        client.close()

    assert in_child(work) == 0
    assert server_in(tmp_path / "store") is not None, "the child stopped the parent's server"
    client.tell(till("a"), Add(1))
    client.close()
    assert server_in(tmp_path / "store") is None


def test_in_a_notebook(store: str) -> None:
    """A cell runs in a thread that has an event loop already."""

    async def cell() -> str:
        with Client(Config(url=store, namespace="n")) as client:
            return client.tell(till("a"), Add(1)).entity.id

    assert asyncio.run(cell()) == "a"
