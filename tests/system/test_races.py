"""Answers of the store that come at an awkward moment: while a scope ends, a handler is cut, a node is left.

The moments are too short to be hit from outside, so these tests put the parts of a system in place by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from attrs import define, field, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, LifecycleEvent, handler
from atomic_actors.codec._envelope import NO_HEADERS, encode_envelope, make_uid
from atomic_actors.journal._protocol import Appended, Dispatch, Dispatched, Offer, Unsettled, pack_body
from atomic_actors.node._assembly import Parts
from atomic_actors.node.execution import _supervisor
from atomic_actors.node.execution._turn import current_activation
from atomic_actors.node.routing._router import Pending, append_of
from tests.system.support import PATIENCE_S

pytestmark = pytest.mark.anyio

UNIQUE = "0" * 31 + "1"
TURN = Offer(
    dispatch=Dispatch(
        turn=1, messages=(Dispatched(UNIQUE, b"", 1, 0),), recovering=False, version=0, state=None
    )
)


@frozen
class Work(Command[None]):
    number: int = 0


@frozen
class Slow(Command[None]):
    pass


@define(eq=False)
class Script:
    """What the handlers do, and what they did."""

    work: Callable[[Work], None] = lambda _: None
    ran: list[int] = field(factory=list)
    begun: anyio.Event = field(factory=anyio.Event)
    gate: anyio.Event = field(factory=anyio.Event)
    worked: anyio.Event = field(factory=anyio.Event)


def kinds(script: Script) -> tuple[type[Actor[Any]], type[Actor[Any]]]:
    class Box(Actor[None], kind="box"):
        @handler
        async def slow(self, message: Slow) -> None:
            script.begun.set()
            with anyio.CancelScope(shield=True):
                await script.gate.wait()

        @handler
        async def work(self, message: Work) -> None:
            script.ran.append(message.number)
            script.worked.set()
            await anyio.lowlevel.checkpoint()

    class Ledger(Actor[None], kind="ledger"):
        @handler(transactional=True)
        async def work(self, message: Work) -> None:
            script.ran.append(message.number)
            script.work(message)
            if message.number:
                await anyio.lowlevel.checkpoint()

    return Box, Ledger


def parts_of(system: ActorSystem) -> Parts:
    parts = system._parts
    assert parts is not None
    return parts


async def test_a_commit_that_leaves_more_behind_looks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sweep would find it, too.
    monkeypatch.setattr(_supervisor, "SWEEP_INTERVAL_S", 60.0)
    script = Script()
    box, _ = kinds(script)
    async with ActorSystem(Config(url="memory:", actors=[box])) as system:
        ref = box.ref("a")
        await system.tell(ref, Slow())
        await script.begun.wait()
        receipts = [await system.tell(ref, Work(number)) for number in range(40)]
        await system.tell(ref, Work(99))
        for receipt in receipts:
            assert await system.withdraw(receipt)
        script.gate.set()
        with anyio.fail_after(PATIENCE_S):
            await script.worked.wait()
        assert script.ran == [99]


async def test_a_cut_that_comes_too_late_spares_the_next_of_the_run() -> None:
    script = Script()

    def cut(message: Work) -> None:
        activation: Any = current_activation.get()
        if message.number == 0:
            activation.turn_scope.cut_if_late(activation.turn_scope.deadline_s)

    script.work = cut
    _, ledger = kinds(script)
    async with ActorSystem(Config(url="memory:", actors=[ledger])) as system:
        ref = ledger.ref("a")
        await system.pause(ref)
        async with anyio.create_task_group() as task_group:
            for number in range(3):
                # One after the other into the log: an ask is accepted before its first wait ends.
                task_group.start_soon(system.ask, ref, Work(number))
                with anyio.fail_after(PATIENCE_S):
                    while (await system.audit()).enqueued <= number:
                        await anyio.lowlevel.checkpoint()
            await system.resume(ref)
        assert script.ran[0] == 0
        assert sorted(set(script.ran)) == [0, 1, 2]


async def test_what_was_offered_to_a_scope_that_never_began_is_given_back() -> None:
    box, _ = kinds(Script())
    async with ActorSystem(Config(url="memory:", actors=[box], drain_timeout_s=0.1)) as system:
        parts = parts_of(system)
        supervisor, membership = parts.supervisor, parts.membership
        ref = box.ref("a")
        number = (await system.where(ref)).partition
        old = supervisor._partitions[number]
        membership.lose(number, "for the test")
        with anyio.fail_after(PATIENCE_S):
            await old.ended.wait()
        unwinding = old.ended = anyio.Event()
        membership._take(number, "claim-of-the-test", 5)
        await anyio.wait_all_tasks_blocked()
        activation = supervisor.admit(supervisor.kinds["box"], ref, str(ref), number)
        assert activation is not None
        activation.offered(TURN)
        assert supervisor.catalog.find(str(ref)) is activation
        membership.lose(number, "for the test, again")
        unwinding.set()
        await anyio.wait_all_tasks_blocked()
        assert supervisor.catalog.find(str(ref)) is None


async def test_an_answer_while_a_scope_closes_starts_nothing() -> None:
    box, _ = kinds(Script())
    config = Config(url="memory:", actors=[box], drain_timeout_s=0.1, partitions=1)
    async with ActorSystem(config) as system:
        parts = parts_of(system)
        ref = box.ref("a")
        await system.ask(box.ref("b"), Work())
        partition = parts.supervisor._partitions[0]
        activation = parts.supervisor.admit(parts.supervisor.kinds["box"], ref, str(ref), 0)
        assert activation is not None
        offered: list[bool] = []

        async def answer_while_it_closes() -> None:
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
                group = partition.task_group
                if group is not None and group.cancel_scope.cancel_called and not offered:
                    offered.append(True)
                    activation.offered(TURN)

        async with anyio.create_task_group() as task_group:
            for _ in range(10):
                task_group.start_soon(answer_while_it_closes)
            await anyio.lowlevel.checkpoint()
            parts.membership.lose(0, "for the test")
        assert offered
        assert activation.status == "ended"


async def test_no_handler_begins_once_the_drain_has_run_out() -> None:
    script = Script()
    box, _ = kinds(script)
    config = Config(url="memory:", actors=[box], drain_timeout_s=0.05, partitions=1)
    async with ActorSystem(config) as system:
        parts = parts_of(system)
        await system.tell(box.ref("s"), Slow())
        await script.begun.wait()
        sender = parts.sender
        call = sender.call_checker.check(box.ref("a"), Work())
        assert call is not None
        local_take = sender._admit(call)
        assert local_take is not None
        uid = make_uid(sender.store_clock.now_ms(), 1)
        oneshot = sender.router.backend.new_oneshot()
        pending = Pending(sender.router, "tell", call, uid=uid, oneshot=oneshot, local_take=local_take)
        envelope = encode_envelope(NO_HEADERS, call.payload)
        body = pack_body(name=call.name, deadline_ms=0, waited_for=False, key="", envelope=envelope)
        step = append_of(call, pending, body)
        (appended,) = (await parts.store.journal.execute([step])).results
        assert isinstance(appended, Appended)
        parts.supervisor.draining = True
        parts.supervisor.cancel_partitions()
        await anyio.wait_all_tasks_blocked()
        local_take.offered(appended.offer)
        await anyio.wait_all_tasks_blocked()
        script.gate.set()
        await anyio.wait_all_tasks_blocked()
        assert script.ran == []


async def test_a_turn_left_behind_is_settled_once() -> None:
    script = Script()
    box, _ = kinds(script)
    events: list[LifecycleEvent] = []
    config = Config(url="memory:", actors=[box], drain_timeout_s=0.05, partitions=1)
    async with ActorSystem(config) as system:
        system.listen("interrupted", events.append)
        receipt = await system.tell(box.ref("s"), Slow())
        await script.begun.wait()
        left = Unsettled("box/s", 1, (receipt.message_id.rpartition("/")[2],))
        for _ in range(3):
            parts_of(system).supervisor.settle_old(0, left)
        await anyio.wait_all_tasks_blocked()
        assert len(events) == 1
        script.gate.set()
