"""The verbs of the client, and every way in which a message can end."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import pytest

from atomic_actors import (
    AskTimeout,
    EntityRef,
    Expired,
    HandlerFailed,
    Interrupted,
    InvalidConfig,
    InvalidEntityId,
    InvalidKey,
    InvalidMessageId,
    KeyReused,
    OutcomeUnknown,
    PayloadTooLarge,
    QueueDepthExceeded,
    RawMessage,
    Refused,
    ResultExpired,
    SystemNotRunning,
    UnknownMessage,
    UnknownMessageType,
    Withdrawn,
)
from atomic_actors.client import Client
from atomic_actors.codec._envelope import make_uid
from tests.client.conftest import NewClient, NewWorker, wait_accepted
from tests.client.till import (
    Add,
    AddTo,
    Break,
    Die,
    Overdrawn,
    Read,
    Refuse,
    Sleep,
    Total,
    Write,
    till,
)

pytestmark = [pytest.mark.redis]


def test_ask_tell_and_result(worker: object, client: Client) -> None:
    receipt = client.tell(till("a"), Add(10))
    assert receipt.entity == till("a")
    assert client.ask(till("a"), Add(5), timeout_s=5) == 15
    assert client.result(receipt) == 10
    assert client.result(receipt.message_id) == 10
    assert client.ask(till("a"), Total()) == 15


def test_messages_that_name_their_entity_and_messages_by_name(worker: object, client: Client) -> None:
    assert client.ask(AddTo("a", 3)) == 3
    assert client.result(client.tell(AddTo("a", 4))) == 7
    assert client.ask(till("a"), RawMessage("Ship", {"sku": "S-1"})) == "shipped S-1"
    assert client.ask(till("a"), RawMessage("Add", {"amount": 1})) == 8


def test_tell_many_keeps_the_order(worker: object, client: Client) -> None:
    names = ["a", "b", "c"]
    receipts = client.tell_many([(till(names[at % 3]), Write(str(at))) for at in range(900)])
    assert len({receipt.message_id for receipt in receipts}) == 900
    assert [receipt.entity.id for receipt in receipts[:4]] == ["a", "b", "c", "a"]
    for first, name in enumerate(names):
        assert client.ask(till(name), Read()) == [str(at) for at in range(first, 900, 3)]
    assert client.tell_many([]) == []
    assert [receipt.entity for receipt in client.tell_many([AddTo("d", 1)])] == [till("d")]


def test_tell_many_says_how_many_were_accepted(client: Client, new_client: NewClient) -> None:
    full = new_client(max_depth=2)
    with pytest.raises(QueueDepthExceeded) as refused:
        full.tell_many([(till("a"), Add(at)) for at in range(5)])
    assert refused.value.__notes__ == ["2 of 5 messages were accepted; this is number 2"]


def test_a_refusal_comes_back_as_its_class(worker: object, client: Client) -> None:
    with pytest.raises(Overdrawn) as refused:
        client.ask(till("a"), Refuse(80))
    assert refused.value.balance == 80
    assert refused.value.message_id is not None
    assert isinstance(refused.value, Refused)


def test_a_failure(worker: object, client: Client) -> None:
    with pytest.raises(HandlerFailed, match="lp0 on fire") as failed:
        client.ask(till("a"), Break())
    assert failed.value.error_type.endswith("RuntimeError")
    with pytest.raises(HandlerFailed):
        client.result(failed.value.message_id or "")


def test_an_interruption(new_worker: NewWorker, client: Client) -> None:
    first = new_worker()
    receipt = client.tell(till("a"), Die())
    assert first.wait() == 3
    new_worker()
    with pytest.raises(Interrupted):
        client.result(receipt, timeout_s=20)


def test_a_deadline(worker: object, client: Client) -> None:
    client.tell(till("a"), Sleep(1.0))
    begun_s = time.monotonic()
    with pytest.raises(AskTimeout) as timed_out:
        client.ask(till("a"), Add(1), timeout_s=0.2)
    assert 0.15 < time.monotonic() - begun_s < 1.0
    assert isinstance(timed_out.value, TimeoutError)
    with pytest.raises(Expired):
        client.result(timed_out.value.message_id or "", timeout_s=10)
    assert client.ask(till("a"), Total()) == 0


def test_withdrawing(client: Client) -> None:
    receipt = client.tell(till("a"), Add(1))
    assert client.withdraw(receipt)
    assert client.withdraw(receipt)
    with pytest.raises(Withdrawn):
        client.result(receipt)
    keyed = client.tell(till("a"), Add(1), key="k")
    assert client.withdraw(keyed.message_id)


def test_an_answer_ends_the_waits_of_other_threads(client: Client) -> None:
    receipt = client.tell(till("a"), Add(1))
    ends: list[BaseException] = []

    def wait() -> None:
        try:
            client.result(receipt, timeout_s=20)
        except Withdrawn as error:
            ends.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    client.withdraw(receipt)
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in ends] == [Withdrawn] * 3


def test_keys(worker: object, client: Client, new_client: NewClient) -> None:
    first = client.tell(till("a"), Add(1), key="k")
    assert client.tell(till("a"), Add(1), key="k") == first
    assert new_client().ask(till("a"), Add(1), key="k") == 1
    with pytest.raises(KeyReused):
        client.ask(till("a"), Add(2), key="k")
    with pytest.raises(KeyReused):
        client.tell(till("a"), Add(2), key="k")
    assert client.ask(till("a"), Total()) == 1


def test_what_the_store_does_not_know(client: Client, new_client: NewClient) -> None:
    now_ms = int(time.time() * 1000)
    with pytest.raises(UnknownMessage):
        client.result(f"till/a/{make_uid(now_ms, 7)}")
    with pytest.raises(ResultExpired):
        client.result(f"till/a/{make_uid(now_ms - 100_000, 7)}")
    assert not client.withdraw(f"till/a/{make_uid(now_ms, 7)}")


@pytest.mark.parametrize("on_cancel", ["withdraw", "detach"])
def test_an_interrupted_wait_withdraws(client: Client, on_cancel: str) -> None:
    class Enough(Exception):
        """What Celery raises from a signal handler at a time limit, say."""

    def raise_enough(number: int, frame: FrameType | None) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, raise_enough)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Enough):
            client.ask(till("a"), Add(1), timeout_s=20, key="k", on_cancel=on_cancel)  # type: ignore[call-overload]
    finally:
        signal.signal(signal.SIGALRM, before)
    receipt = client.tell(till("a"), Add(1), key="k")  # the same message
    assert client.withdraw(receipt)
    with pytest.raises(Withdrawn):
        client.result(receipt)


def test_what_an_interrupted_wait_leaves(client: Client, worker: object) -> None:
    """Detached, the message runs; withdrawn, it does not."""
    client.tell(till("a"), Sleep(1.5))

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def interrupt_once_accepted() -> None:
        wait_accepted(client)
        # To the thread that waits: its lock notices no signal that another thread gets.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for on_cancel, amount in (("withdraw", 1), ("detach", 10)):
            thread = threading.Thread(target=interrupt_once_accepted)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                client.ask(till("a"), Add(amount), timeout_s=20, on_cancel=on_cancel)  # type: ignore[call-overload]
            thread.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert client.ask(till("a"), Total()) == 10


def test_mistakes(client: Client, new_client: NewClient) -> None:
    for call, error in (
        (lambda: client.ask("till/a", Add(1)), InvalidEntityId),  # type: ignore[call-overload]
        (lambda: client.ask(till("a"), "add"), UnknownMessageType),  # type: ignore[call-overload]
        (lambda: client.ask(till("a"), Add(1), key=""), InvalidKey),
        (lambda: client.ask(till("a"), Add(1), timeout_s=-1), InvalidConfig),
        (lambda: client.ask(till("a"), Add(1), on_cancel="forget"), InvalidConfig),  # type: ignore[call-overload]
        (lambda: client.tell(till("a"), Add(1), expires_in_s=0), InvalidConfig),
        (lambda: client.tell_many([3]), UnknownMessageType),  # type: ignore[list-item]
        (lambda: client.result("till"), InvalidMessageId),
        (lambda: new_client(max_payload_bytes=10).tell(till("a"), Write("x" * 20)), PayloadTooLarge),
    ):
        with pytest.raises(error):
            call()


def test_settings() -> None:
    with pytest.raises(InvalidConfig, match="memory:"):
        Client("memory:")
    with pytest.raises(InvalidConfig, match="colour: there is no such setting"):
        Client("redis://localhost", colour="red")
    with pytest.raises(InvalidConfig, match="max_connections"):
        Client("redis://localhost", max_connections=0)
    with pytest.raises(InvalidConfig, match="partitions"):
        Client("redis://localhost", partitions=0)
    client = Client("redis://:secret@localhost", namespace="n", service="s", ask_timeout_s=1, password=None)
    assert (client.config.namespace, client.config.service, client.config.ask_timeout_s) == ("n", "s", 1)
    assert "secret" not in repr(client)
    assert "not connected yet" in repr(client)
    changed = Client(client.config, namespace="m")
    assert (changed.config.namespace, changed.config.service) == ("m", "s")


def test_closing(client: Client) -> None:
    client.tell(till("a"), Add(1))
    ends: list[BaseException] = []

    def wait() -> None:
        try:
            client.ask(EntityRef("till", "nobody-is-there"), Add(1), timeout_s=20)
        except OutcomeUnknown as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_accepted(client)
    client.close()
    client.close()
    thread.join(10)
    assert [type(error) for error in ends] == [OutcomeUnknown]
    assert ends[0].message_id.startswith("till/nobody-is-there/")  # type: ignore[attr-defined]
    with pytest.raises(SystemNotRunning):
        client.tell(till("a"), Add(1))
    with pytest.raises(SystemNotRunning), client:
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "atomic-actors-replies"]


def test_a_with_block_closes(new_client: NewClient, worker: object) -> None:
    with new_client() as client:
        assert client.ask(till("a"), Add(1)) == 1
    assert "closed" in repr(client)
