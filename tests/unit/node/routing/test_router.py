"""The router: who waits for what, and how the waiting ends. No store, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import anyio
import pytest
from attrs import define, field

from atomic_actors import (
    AcceptanceUnknown,
    AskTimeout,
    EntityRef,
    LifecycleEvent,
    OutcomeUnknown,
    QueueDepthExceeded,
    StoreUnavailable,
)
from atomic_actors.base._oneshot import Backend
from atomic_actors.base._telemetry import Listeners
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import NO_HEADERS
from atomic_actors.contracts._outcomes import RefusalReader
from atomic_actors.contracts._waiting import POLL_FIRST_REMOTE_S
from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    JournalSettings,
    JournalUnavailable,
    OutcomeRead,
    ReadOutcome,
    Rejected,
    Step,
    Withdraw,
    WithdrawAnswer,
)
from atomic_actors.journal.commit._batches import OnResult
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node.routing._destinations import CheckedCall
from atomic_actors.node.routing._router import Router, SentMessage

pytestmark = pytest.mark.anyio

codec = Codec()

DONE = b"completed\n\x05"


@define(eq=False)
class Queue:
    """Keeps what is submitted; the test answers."""

    sent: list[tuple[Step, OnResult]] = field(factory=list[tuple[Step, OnResult]])
    is_left: bool = False
    is_away: bool = False
    settings: JournalSettings = field(factory=JournalSettings)

    def submit(self, step: Step, on_result: OnResult) -> None:
        if self.is_away:
            raise JournalUnavailable("away", sent=False)
        self.sent.append((step, on_result))

    async def request(self, step: Step) -> WithdrawAnswer:
        self.sent.append((step, lambda _: None))
        return WithdrawAnswer("withdrawn")

    def steps(self, kind: type[Step]) -> list[Any]:
        return [step for step, _ in self.sent if isinstance(step, kind)]


@define(eq=False)
class World:
    """A router, its store and its clock."""

    now_s: float = 100.0
    queue: Queue = field(factory=Queue)
    events: list[LifecycleEvent] = field(factory=list[LifecycleEvent])
    listeners: Listeners = field(factory=Listeners)
    router: Router = field(init=False)

    def __attrs_post_init__(self) -> None:
        clock = StoreClock(lambda: self.now_s)
        clock.note(1_000_000, self.now_s)
        self.router = Router(
            node_id="me",
            backend=Backend.current(),
            store_clock=clock,
            refusals=RefusalReader(codec),
            listeners=self.listeners,
        )

    def call(self, entity: str = "desk/one") -> CheckedCall:
        return CheckedCall(
            ref=EntityRef(*entity.split("/")),
            entity=entity,
            service="",
            partition=0,
            journal=cast("CommitQueue", self.queue),
            max_depth=0,
            kind=None,
            name="Work",
            payload=b"",
            reply_coder=codec.coder(int),
            reply_type=int,
        )

    async def ask(self, *, timeout_s: float = 10.0, key: str = "", **more: Any) -> Any:
        more = {"uid": "", "on_cancel": "withdraw", "in_turn": False, **more}
        return await self.router.ask(self.call(), None, NO_HEADERS, timeout_s=timeout_s, key=key, **more)

    def tell(self, timeout_s: float = 10.0) -> Any:
        return self.router.tell(self.call(), None, NO_HEADERS, key="", expires_in_s=None, timeout_s=timeout_s)

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        self.router.tick(self.now_s)

    def accept(self, **fields: Any) -> Append:
        step, on_result = self.queue.sent[-1]
        assert isinstance(step, Append)
        fields = {"uid": step.uid, "duplicate": False, "outcome": None, "offer": NOTHING, **fields}
        on_result(Appended(**fields))
        return step


async def asking(world: World, then: Callable[[], None], **fields: Any) -> Any:
    """Ask, call `then` once it waits, and return what came of it."""
    results: list[Any] = []

    async def ask() -> None:
        try:
            results.append(await world.ask(**fields))
        except Exception as error:
            results.append(error)

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        then()
    return results[0]


async def test_an_answer_ends_an_ask() -> None:
    world = World()

    def answer() -> None:
        step = world.accept()
        assert world.router.answered("desk/other", step.uid, DONE) is False
        assert world.router.answered("desk/one", step.uid, DONE) is True
        assert world.router.answered("desk/one", step.uid, DONE) is True

    assert await asking(world, answer) == 5
    assert world.router.accepted == 1
    # Nothing of it is left to look at.
    world.pass_s(60)
    assert world.queue.steps(ReadOutcome) == []


async def test_a_late_answer_is_looked_up_ever_more_rarely() -> None:
    world = World()
    times: list[int] = []

    def wait() -> None:
        world.accept()
        for tick in range(100):
            before = len(world.queue.sent)
            world.pass_s(0.05)
            times.extend([tick] * (len(world.queue.sent) - before))
        step, on_result = world.queue.sent[-1]
        assert isinstance(step, ReadOutcome)
        on_result(OutcomeRead("finished", DONE))

    assert await asking(world, wait) == 5
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] * 0.05 <= POLL_FIRST_REMOTE_S + 0.1
    assert gaps == sorted(gaps)


async def test_an_ask_ends_when_its_time_is_up() -> None:
    world = World()

    def wait() -> None:
        world.accept()
        world.pass_s(0.99)
        assert list(world.router._pending)
        world.pass_s(0.11)

    assert isinstance(await asking(world, wait, timeout_s=1.0), AskTimeout)


async def test_a_tell_ends_with_its_acceptance_or_its_time() -> None:
    world = World()
    oneshot = world.tell()
    step = world.accept()
    assert world.router.receipt_of(await oneshot) == step.uid
    late = world.tell(timeout_s=1.0)
    world.pass_s(1.1)
    with pytest.raises(AcceptanceUnknown):
        world.router.receipt_of(await late)
    refused = world.tell()
    world.queue.sent[-1][1](Rejected("queue_depth_exceeded", "full"))
    with pytest.raises(QueueDepthExceeded):
        world.router.receipt_of(await refused)
    world.queue.is_away = True
    with pytest.raises(StoreUnavailable):
        world.router.receipt_of(await world.tell())
    assert world.router.accepted == 1
    assert world.queue.steps(ReadOutcome) == []


async def test_a_key_that_was_used_waits_for_the_first_message() -> None:
    world = World()

    def answer() -> None:
        world.accept(uid="f" * 32, duplicate=True)
        (step,) = world.queue.steps(ReadOutcome)
        assert step.uid == "f" * 32
        assert world.router.answered("desk/one", "f" * 32, DONE)

    assert await asking(world, answer, key="k") == 5


@pytest.mark.parametrize("on_cancel", ["withdraw", "detach"])
async def test_a_cancelled_ask_withdraws_its_message(on_cancel: str) -> None:
    world = World()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await world.ask(on_cancel=on_cancel)
    assert len(world.queue.steps(Withdraw)) == (on_cancel == "withdraw")
    assert not world.router._pending


async def test_a_result_is_looked_up_at_once() -> None:
    world = World()
    sent = SentMessage(
        entity="desk/one", partition=0, journal=cast("CommitQueue", world.queue), reply_coder=codec.coder(int)
    )
    async with anyio.create_task_group() as task_group:

        async def read() -> None:
            assert await world.router.result(sent, "0" * 32, 1.0) == 5

        task_group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        ((step, on_result),) = world.queue.sent
        assert isinstance(step, ReadOutcome)
        on_result(OutcomeRead("finished", DONE))


async def test_who_still_waits_is_told_when_the_system_is_left() -> None:
    world = World()
    told = world.tell()
    error = await asking(world, world.router.abandon_all)
    assert isinstance(error, OutcomeUnknown)
    with pytest.raises(AcceptanceUnknown):
        world.router.receipt_of(await told)


async def test_listeners_hear_of_what_is_accepted_now() -> None:
    world = World()
    world.listeners.add("accepted", world.events.append)
    world.tell()
    step = world.accept()
    world.tell()
    world.accept(duplicate=True)
    assert [event.message_id for event in world.events] == [f"desk/one/{step.uid}"]
