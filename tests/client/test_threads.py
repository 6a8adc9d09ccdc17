"""Many threads, and many processes, with one client."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from atomic_actors import StoreUnavailable
from atomic_actors.client import Client
from tests.client.conftest import NewClient
from tests.client.till import Add, Read, Sleep, Total, Write, till
from tests.servers import Server

pytestmark = [pytest.mark.redis]

THREADS = 16
ASKS = 50


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; returns its exit status."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads in the parent; that they do no harm is what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


@pytest.mark.parametrize("max_connections", [16, 3])
def test_threads_share_a_client(worker: object, new_client: NewClient, max_connections: int) -> None:
    client = new_client(max_connections=max_connections)
    start = threading.Barrier(THREADS)

    def work(number: int) -> tuple[list[int], list[int]]:
        start.wait()
        own: list[int] = []
        shared: list[int] = []
        for at in range(ASKS):
            client.tell(till(f"lines-{number}"), Write(str(at)))
            own.append(client.ask(till(f"own-{number}"), Add(1), timeout_s=30))
            shared.append(client.ask(till("shared"), Add(1), timeout_s=30))
        return own, shared

    with ThreadPoolExecutor(THREADS) as executor:
        results = list(executor.map(work, range(THREADS)))
    for own, shared in results:
        assert own == list(range(1, ASKS + 1))
        assert shared == sorted(shared)
    everything = sorted(reply for _, shared in results for reply in shared)
    assert everything == list(range(1, THREADS * ASKS + 1))
    for number in range(THREADS):
        assert client.ask(till(f"lines-{number}"), Read()) == [str(at) for at in range(ASKS)]
    assert client._slot.session is not None
    assert len(client._slot.session._pool._open) <= max_connections


def test_no_connection_is_free(worker: object, new_client: NewClient, store_server: Server) -> None:
    """What the program does to itself is said so, and does not make the store count as away."""
    client = new_client(max_connections=1, accept_timeout_s=0.3)
    client.tell(till("a"), Add(1))
    assert client._slot.session is not None
    pool = client._slot.session._pool
    store_server.call("CLIENT", "PAUSE", 10_000, "WRITE")
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(client.ask, till("a"), Add(1), timeout_s=10)
        try:
            deadline_s = time.monotonic() + 10
            while any(pool._idle.values()):
                assert time.monotonic() < deadline_s, "the connection is not used"
                time.sleep(0.002)
            with pytest.raises(StoreUnavailable, match="max_connections"):
                client.tell(till("a"), Add(100))
        finally:
            store_server.call("CLIENT", "UNPAUSE")
        assert first.result(10) == 2


def test_a_forked_child_has_connections_of_its_own(worker: object, client: Client) -> None:
    assert client.ask(till("a"), Add(1)) == 1
    parent_node = client._slot.session.node_id if client._slot.session else ""

    def work() -> None:
        assert client.ask(till("a"), Add(1), timeout_s=10) == 2
        assert client.ask(till("a"), Sleep(0.05), timeout_s=10) == "slept"
        assert client._slot.session is not None
        assert client._slot.session.node_id != parent_node
        client.close()

    assert in_child(work) == 0
    assert client.ask(till("a"), Add(1)) == 3
    assert client._slot.session is not None
    assert client._slot.session.node_id == parent_node


def test_a_child_that_leaves_without_a_word(worker: object, client: Client) -> None:
    """What the child's end collects must not touch the parent's connections."""
    assert client.ask(till("a"), Add(1)) == 1

    def work() -> None:
        gc.collect()

    assert in_child(work) == 0
    for expected in range(2, 10):
        assert client.ask(till("a"), Add(1)) == expected


def test_forks_while_other_threads_ask(worker: object, client: Client) -> None:
    """Locks that other threads hold at the moment of the fork do not hang the child."""
    stop = threading.Event()

    def ask_on(number: int) -> int:
        count = 0
        while not stop.is_set():
            client.ask(till(f"busy-{number}"), Add(1), timeout_s=20)
            count += 1
        return count

    with ThreadPoolExecutor(6) as executor:
        counts = [executor.submit(ask_on, number) for number in range(6)]
        try:
            for number in range(1, 9):

                def work(number: int = number) -> None:
                    assert client.ask(till("children"), Add(1), timeout_s=15) == number

                assert in_child(work) == 0
        finally:
            stop.set()
        for number, count in enumerate(counts):
            assert client.ask(till(f"busy-{number}"), Total()) == count.result(20) > 0


def test_a_lock_that_is_held_at_the_fork(worker: object, client: Client) -> None:
    client.ask(till("a"), Add(1))
    assert client._slot.session is not None
    locks = [
        client._slot._lock,
        client._slot.session._pool._lock,
        client._slot.session._waiters._lock,
        client._slot.session._words._lock,
        client._slot.session._store._wire_lock,
        client._slot.session._store._greet_lock,
    ]
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        held.set()
        forked.wait(30)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def work() -> None:
        assert client.ask(till("a"), Add(1), timeout_s=10) == 2

    try:
        assert in_child(work) == 0
    finally:
        forked.set()
        thread.join()
    assert client.ask(till("a"), Add(1)) == 3


def run_in_process(client: Client, number: int) -> None:
    for _ in range(20):
        client.ask(till("pool"), Add(1), timeout_s=20)
    client.close()


def test_multiprocessing(worker: object, client: Client) -> None:
    """A client made before the fork, in use or not, serves each worker of a pre-forking server."""
    client.ask(till("pool"), Add(1))
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = [context.Process(target=run_in_process, args=(client, number)) for number in range(3)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert client.ask(till("pool"), Total()) == 61
