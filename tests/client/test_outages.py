"""A store that is slow, silent, restarted, gone, or not ours; and pushes that get lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from atomic_actors import (
    AcceptanceUnknown,
    AskTimeout,
    Expired,
    NotExecuted,
    OutcomeUnknown,
    StoreIncompatible,
    StoreUnavailable,
    StoreUnsafe,
    UnknownMessage,
)
from atomic_actors.client import Client
from atomic_actors.client._connections import BlockingAnswers, meaning_of, run_now
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._link import ACL_RULES, explain
from tests.client.conftest import NewClient, Template, Worker
from tests.client.till import Add, Sleep, Total, config_for, till
from tests.servers import Kind, Server, free_port, start_server

pytestmark = [pytest.mark.redis]


def wait_until_listening(client: Client) -> None:
    assert client._slot.session is not None
    deadline_s = time.monotonic() + 10
    while not client._slot.session._listener.is_listening:
        assert time.monotonic() < deadline_s, "nobody listens for replies"
        time.sleep(0.005)


# Pushes.


def test_a_push_is_what_wakes(worker: object, client: Client, store_server: Server) -> None:
    """Where pushes arrive, the store is not asked for outcomes."""
    client.ask(till("a"), Add(1))
    wait_until_listening(client)
    assert client._slot.session is not None
    asked = []
    look_up = client._slot.session._store.try_once
    client._slot.session._store.try_once = lambda *arguments: asked.append(1) or look_up(*arguments)  # type: ignore[method-assign, func-returns-value]
    for _ in range(20):
        client.ask(till("a"), Add(1))
    assert len(asked) <= 2, "nearly every reply had to be fetched"


def test_pushes_that_are_not_allowed(worker: object, client: Client, store_server: Server) -> None:
    user = "app" if store_server.credentials else "default"
    store_server.call("ACL", "SETUSER", user, "-publish")
    try:
        assert [client.ask(till("a"), Add(1)) for _ in range(3)] == [1, 2, 3]
        rejected = store_server.call("INFO", "commandstats")["cmdstat_publish"]["rejected_calls"]
        assert rejected > 0
    finally:
        store_server.call("ACL", "SETUSER", user, "+publish")


def test_a_listener_that_is_cut_off(worker: object, client: Client, store_server: Server) -> None:
    client.ask(till("a"), Add(1))
    wait_until_listening(client)
    with ThreadPoolExecutor(1) as executor:
        asking = executor.submit(client.ask, till("a"), Sleep(0.3), timeout_s=10)
        store_server.call("CLIENT", "KILL", "TYPE", "pubsub")
        assert asking.result(10) == "slept"
    wait_until_listening(client)
    assert client.ask(till("a"), Add(1)) == 2


# Slow and restarted stores.


def test_an_answer_that_is_lost(worker: object, new_client: NewClient, store_server: Server) -> None:
    """The same message is sent again, and runs once."""
    client = new_client(store_timeout_s=0.2)
    client.ask(till("a"), Add(1))
    begun_s = time.monotonic()
    store_server.call("CLIENT", "PAUSE", 700, "WRITE")
    client.tell(till("a"), Add(1))
    assert time.monotonic() - begun_s > 0.4, "the store was not silent"
    store_server.call("CLIENT", "PAUSE", 700, "WRITE")
    assert client.ask(till("a"), Add(1), timeout_s=10) == 3
    assert client.ask(till("a"), Total()) == 3


def test_what_is_not_known(worker: object, new_client: NewClient, store_server: Server) -> None:
    teller, asker = (new_client(store_timeout_s=0.2, accept_timeout_s=0.6) for _ in range(2))
    assert teller.ask(till("a"), Add(1)) == 1
    assert asker.ask(till("a"), Add(1)) == 2
    store_server.call("CLIENT", "PAUSE", 5000, "WRITE")
    with pytest.raises(AcceptanceUnknown) as unknown:
        teller.tell(till("a"), Add(1))
    with pytest.raises(AskTimeout) as timed_out:
        asker.ask(till("a"), Add(10), timeout_s=0.3)
    with pytest.raises(StoreUnavailable):  # by now it counts as away
        teller.tell(till("a"), Add(100))
    store_server.call("CLIENT", "UNPAUSE")
    fresh = new_client()
    try:
        assert fresh.result(unknown.value.message_id or "", timeout_s=10) == 3
    except UnknownMessage:
        assert fresh.ask(till("a"), Total()) == 2
    with pytest.raises((UnknownMessage, Expired)):
        fresh.result(timed_out.value.message_id or "", timeout_s=10)


def test_the_library_is_flushed(worker: object, client: Client, store_server: Server) -> None:
    client.ask(till("a"), Add(1))
    store_server.call("FUNCTION", "FLUSH")
    client.tell(till("a"), Add(1))
    assert client.ask(till("a"), Total()) == 2


@pytest.fixture(params=["redis", "valkey"])
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Server]:
    """A server that a test may stop."""
    with start_server(request.param, tmp_path=tmp_path, tcp=True, appendonly="always") as server:
        yield server


def test_answers_count_when_replicas_have_them(own_server: Server, new_client: NewClient) -> None:
    """The server has no replica: it takes the message, and nobody may say so."""
    careful = new_client(
        own_server.url,
        replication="acknowledged",
        replication_timeout_s=0.05,
        accept_timeout_s=0.5,
        store_failure_threshold=100,
    )
    with pytest.raises(AcceptanceUnknown) as unknown:
        careful.tell(till("a"), Add(1))
    message_id = unknown.value.message_id or ""
    with pytest.raises(OutcomeUnknown):
        careful.result(message_id, timeout_s=0.3)
    assert new_client(own_server.url).withdraw(message_id)


@contextmanager
def worker_at(template: Template, server: Server, namespace: str) -> Generator[None]:
    pid = template.order(start=[server.url, namespace])
    assert pid > 0
    worker = Worker(template, pid)
    try:
        yield
    finally:
        worker.stop()


def test_a_restart_in_the_middle(own_server: Server, template: Template, namespace: str) -> None:
    """What was accepted is done once, and what is said of the rest is true."""
    config = config_for(own_server.url, namespace)
    done, stop = threading.Event(), threading.Event()
    with worker_at(template, own_server, namespace), Client(config) as client:
        assert client.ask(till("slow"), Sleep(0)) == "slept"

        def ask_on(number: int) -> int:
            count = 0
            while not stop.is_set():
                try:
                    client.ask(till(f"till-{number}"), Add(1), timeout_s=20)
                    count += 1
                    done.set()
                except NotExecuted:
                    time.sleep(0.05)
            return count

        with ThreadPoolExecutor(4) as executor:
            counts = [executor.submit(ask_on, number) for number in range(3)]
            slow = executor.submit(client.ask, till("slow"), Sleep(0.5), timeout_s=20)
            assert done.wait(10)
            own_server.restart()
            done.clear()
            assert done.wait(20), "nobody gets through after the restart"
            stop.set()
            assert slow.result(20) == "slept"
            for number, count in enumerate(counts):
                assert client.ask(till(f"till-{number}"), Total(), timeout_s=20) == count.result(20)


def test_the_store_is_gone_and_comes_back(own_server: Server, template: Template, namespace: str) -> None:
    with Client(config_for(own_server.url, namespace)) as client:
        receipt = client.tell(till("a"), Add(1))
        own_server.stop()
        begun_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match="nothing was sent") as gone:
            client.tell(till("a"), Add(10))
        assert time.monotonic() - begun_s < 1.0
        assert gone.value.message_id is not None
        begun_s = time.monotonic()
        for _ in range(50):
            with pytest.raises(StoreUnavailable):
                client.ask(till("a"), Add(10))
        assert time.monotonic() - begun_s < 1.0, "nobody remembers that the store is away"
        own_server.start()
        deadline_s = time.monotonic() + 5
        while True:
            try:
                client.tell(till("a"), Add(2))
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        with worker_at(template, own_server, namespace):
            assert client.result(receipt, timeout_s=20) == 1
            assert client.ask(till("a"), Total()) == 3


# Stores that cannot be used.


def test_nobody_is_there(namespace: str) -> None:
    begun_s = time.monotonic()
    with Client(f"redis://127.0.0.1:{free_port()}", namespace=namespace) as client:
        with pytest.raises(StoreUnavailable, match="nothing was sent: no connection to the store"):
            client.ask(till("a"), Add(1))
        with pytest.raises(StoreUnavailable):
            client.tell_many([(till("a"), Add(1))])
        with pytest.raises(StoreUnavailable):
            client.result("till/a/" + "0" * 32)
    assert time.monotonic() - begun_s < 2.0


@contextmanager
def false_store(*, hangs: bool) -> Generator[tuple[int, list[socket.socket]]]:
    """A port at which connections are taken, and closed at once or never answered."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:

        def take() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                if not hangs:
                    connection.close()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in taken:
                connection.close()


def test_there_is_no_storm(namespace: str) -> None:
    with (
        false_store(hangs=False) as (port, taken),
        Client(f"redis://127.0.0.1:{port}", namespace=namespace) as client,
    ):
        stop_s = time.monotonic() + 1.2

        def try_on(_: int) -> int:
            count = 0
            while time.monotonic() < stop_s:
                with pytest.raises(StoreUnavailable):
                    client.tell(till("a"), Add(1))
                count += 1
                time.sleep(0.002)
            return count

        with ThreadPoolExecutor(8) as executor:
            refused = sum(executor.map(try_on, range(8)))
        assert refused > 100
        assert len(taken) < 50, "every refused call tried to connect"


def test_a_store_that_never_answers(namespace: str) -> None:
    with (
        false_store(hangs=True) as (port, _),
        Client(f"redis://127.0.0.1:{port}", namespace=namespace, store_timeout_s=0.2) as client,
    ):
        begun_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            client.ask(till("a"), Add(1), timeout_s=3)
        assert time.monotonic() - begun_s < 2.0


def with_user(server: Server, namespace: str) -> str:
    rules = [rule.replace("<namespace>", namespace) for rule in ACL_RULES.split()]
    server.call("ACL", "SETUSER", "clerk", "reset", "on", ">secret", *rules)
    return f"redis://clerk:secret@127.0.0.1:{server.port}"


def test_a_wrong_password(store_server: Server, new_client: NewClient, namespace: str) -> None:
    url = with_user(store_server, namespace).replace("secret", "guess")
    before = int(store_server.call("INFO", "stats")["total_connections_received"])
    with pytest.raises(StoreIncompatible, match="rejected the user or the password") as refused:
        new_client(url).ask(till("a"), Add(1))
    assert "guess" not in str(refused.value)
    after = int(store_server.call("INFO", "stats")["total_connections_received"])
    assert after - before < 8


def test_few_rights_are_enough(
    worker: object, store_server: Server, new_client: NewClient, namespace: str
) -> None:
    client = new_client(with_user(store_server, namespace))
    receipt = client.tell(till("a"), Add(1), key="k")
    wait_until = time.monotonic() + 5
    assert client.ask(till("a"), Add(1)) == 2
    assert client.result(receipt) == 1
    wait_until_listening(client)
    assert time.monotonic() < wait_until
    store_server.call("ACL", "SETUSER", "clerk", "-fcall")
    with pytest.raises(StoreIncompatible, match="lacks a permission"):
        client.tell(till("a"), Add(1))


def test_another_number_of_partitions(store_server: Server, new_client: NewClient, worker: object) -> None:
    with pytest.raises(StoreIncompatible, match="has 4 partitions in the store"):
        new_client(partitions=8).tell(till("a"), Add(1))


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_an_unsafe_store(kind: Kind, namespace: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(f"{kind}_server")
    with Client(server.url, namespace=namespace) as client, pytest.raises(StoreUnsafe, match="appendonly"):
        client.tell(till("a"), Add(1))


def test_what_is_no_reply(worker: object, client: Client, store_server: Server, namespace: str) -> None:
    """Anybody may write to the channel; what does not decode is passed over."""
    client.ask(till("a"), Add(1))
    wait_until_listening(client)
    assert client._slot.session is not None
    with store_server.client() as other:
        for payload in (b"", b"\xff\xff", b"\x01", b"\x93\x01\x02\x03"):
            other.publish(f"{namespace}:reply:{client._slot.session.node_id}", payload)
    assert client.ask(till("a"), Add(1)) == 2
    assert client._slot.session._listener.is_listening


def test_pushes_that_cannot_be_heard(
    worker: object, store_server: Server, new_client: NewClient, namespace: str
) -> None:
    client = new_client(with_user(store_server, namespace))
    store_server.call("ACL", "SETUSER", "clerk", "-subscribe")
    assert [client.ask(till("a"), Add(1)) for _ in range(3)] == [1, 2, 3]


def test_a_store_that_dies_while_it_is_greeted_is_away(own_server: Server) -> None:
    """What the driver says then is told once, and not as its own cause: who looks for the cause would never end."""
    connection = own_server.client().connection_pool.get_connection()
    answers = BlockingAnswers(connection, 1.0)
    own_server.stop()
    with pytest.raises(redis.ConnectionError) as lost:
        run_now(answers.create_request(b"CONFIG GET", b"save"))
    assert lost.value.__cause__ is not lost.value
    meaning = meaning_of(lost.value, sent=False)
    assert isinstance(meaning, JournalUnavailable)
    assert "no connection to the store" in str(meaning)


def test_causes_that_go_round_in_a_circle() -> None:
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert "second" in str(explain(first, sent=False))
