"""One turn at a time, in the order of acceptance; runs of transactional turns."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import Actor, Command, HandlerFailed, Query, Receipt, handler
from tests.system.support import (
    BreakWrite,
    Decline,
    Declined,
    Desk,
    NewSystem,
    Read,
    Stage,
    Watcher,
    Work,
    Write,
    desk,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind_of_turn", [Write, Work])
async def test_many_tellers_each_in_order(new_system: NewSystem, stage: Stage, kind_of_turn: Any) -> None:
    tellers, each = 20, 15
    async with new_system(Desk.using(stage=stage)) as system:

        async def teller(number: int) -> None:
            for place in range(each):
                await system.tell(desk(), kind_of_turn(f"{number} {place}"))

        async with anyio.create_task_group() as task_group:
            for number in range(tellers):
                task_group.start_soon(teller, number)
        words = await system.ask(desk(), Read(), timeout_s=30)
        assert len(words) == tellers * each
        for number in range(tellers):
            mine = [word for word in words if word.startswith(f"{number} ")]
            assert mine == [f"{number} {place}" for place in range(each)]
        assert stage.log == words
        assert stage.most_running <= 1


async def test_a_tell_and_an_ask_of_one_sender_keep_their_order(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        for number in range(30):
            await system.tell(desk(), Work(str(number)))
            assert len(await system.ask(desk(), Read())) == number + 1


async def test_entities_do_not_wait_for_each_other(new_system: NewSystem, stage: Stage) -> None:
    names = [f"d{number}" for number in range(20)]
    stage.hold(*names)
    async with new_system(Desk.using(stage=stage)) as system:
        receipts = [await system.tell(desk(name), Work(name)) for name in names]
        for name in names:
            await stage.wait_for(name)
        assert stage.running == len(names)
        stage.release()
        for name, receipt in zip(names, receipts, strict=True):
            assert await system.result(receipt) == name


# Runs of transactional turns. Behind a held turn they gather, and are then taken together.


@define
class Total:
    amounts: list[int] = Factory(list)


@frozen
class Add(Command[int]):
    amount: int


@frozen
class Hold(Command[None]):
    pass


@frozen
class Amounts(Query[list[int]]):
    pass


class Tally(Actor[Total], kind="tally", max_attempts=2):
    """Refuses 7s and fails at 13s, after it has changed the state."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler
    async def hold(self, message: Hold) -> None:
        await self.stage.visit("hold")

    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.stage.seen["add"].append((message.amount, self.context.attempt))
        self.state.amounts.append(message.amount)
        if message.amount == 7:
            raise Declined("seven", message.amount)
        if message.amount == 13:
            raise RuntimeError("thirteen")
        return sum(self.state.amounts)

    @handler
    async def amounts(self, message: Amounts) -> list[int]:
        return self.state.amounts


TALLY = Tally.ref("t")


async def run_of(new_system: NewSystem, stage: Stage, amounts: list[int], **settings: Any) -> tuple[Any, ...]:
    """The replies or exceptions of a run, what is in the state after it, and how many turns there were."""
    stage.hold("hold")
    async with new_system(Tally.using(stage=stage), **settings) as system:
        await system.tell(TALLY, Hold())
        await stage.wait_for("hold")
        receipts = await system.tell_many([(TALLY, Add(amount)) for amount in amounts])
        before = system.statistics().turns
        stage.release()
        outcomes: list[Any] = []
        for receipt in receipts:
            try:
                outcomes.append(await system.result(receipt))
            except (HandlerFailed, Declined) as error:
                outcomes.append(type(error).__name__)
        turns = system.statistics().turns - before
        kept = await system.ask(TALLY, Amounts())
        report = await system.audit()
        assert report.is_balanced
        return outcomes, kept, turns


async def test_a_run_is_one_commit(new_system: NewSystem, stage: Stage) -> None:
    amounts = list(range(20, 70))
    outcomes, kept, turns = await run_of(new_system, stage, amounts)
    assert kept == amounts
    assert outcomes == [sum(amounts[: place + 1]) for place in range(50)]
    assert turns < 10
    assert stage.seen["add"] == [(amount, 1) for amount in amounts]


async def test_a_run_has_a_greatest_length(new_system: NewSystem, stage: Stage) -> None:
    amounts = list(range(20, 50))
    outcomes, kept, turns = await run_of(new_system, stage, amounts, max_run_length=1)
    assert kept == amounts
    assert outcomes[-1] == sum(amounts)
    assert turns >= 30


async def test_a_refusal_in_a_run_rolls_back_only_itself(new_system: NewSystem, stage: Stage) -> None:
    outcomes, kept, turns = await run_of(new_system, stage, [1, 7, 2, 7, 7, 3])
    assert outcomes == [1, "Declined", 3, "Declined", "Declined", 6]
    assert kept == [1, 2, 3]
    assert turns <= 3


@pytest.mark.parametrize("amounts", [[13], [1, 13, 2], [13, 1, 2], [1, 2, 13], [1, 13, 13, 2, 7, 13, 3]])
async def test_a_failure_in_a_run_rolls_back_only_itself(
    new_system: NewSystem, stage: Stage, amounts: list[int]
) -> None:
    outcomes, kept, _ = await run_of(new_system, stage, amounts)
    good = [amount for amount in amounts if amount not in (7, 13)]
    assert kept == good
    expected: list[Any] = []
    total = 0
    for amount in amounts:
        total += amount if amount in good else 0
        expected.append({7: "Declined", 13: "HandlerFailed"}.get(amount, total))
    assert outcomes == expected
    # Every failing one had its two attempts before anything behind it began.
    ran = [entry for amount in amounts for entry in ([(13, 1), (13, 2)] if amount == 13 else [(amount, 1)])]
    assert stage.seen["add"] == ran


async def test_the_prefix_of_a_run_is_committed_before_a_retry(new_system: NewSystem, stage: Stage) -> None:
    """While the failing head waits for its back-off, what came before it is done and told."""
    stage.hold("hold")
    slow = {"backoff_initial_s": 3600, "backoff_max_s": 3600}
    async with new_system(Tally.using(stage=stage), **slow) as system:
        await system.tell(TALLY, Hold())
        await stage.wait_for("hold")
        receipts = await system.tell_many([(TALLY, Add(amount)) for amount in (1, 2, 13, 3)])
        stage.release()
        assert await system.result(receipts[1]) == 3
        where = await system.where(TALLY)
        assert (where.waiting, where.dispatched) == (2, 0)
        assert stage.seen["add"] == [(1, 1), (2, 1), (13, 1)]
        # The head keeps its place, also before what comes later.
        assert await system.withdraw(receipts[3]) is True
        assert await system.withdraw(receipts[2]) is False


async def test_runs_end_at_an_effectful_turn(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        kinds: list[Any] = [Write, Write, Work, Write, Work, Work, Write, Write]
        messages = [kind(str(number)) for number, kind in enumerate(kinds)]
        receipts: list[Receipt[Any]] = await system.tell_many([(desk(), message) for message in messages])
        stage.release()
        await system.result(receipts[-1])
        expected = ["first", *(str(number) for number in range(len(kinds)))]
        assert await system.ask(desk(), Read()) == expected
        assert stage.log == expected


async def test_failures_refusals_and_queries_in_one_run(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("first")
    async with new_system(Desk.using(stage=stage)) as system:
        watcher = Watcher(system, "completed", "refused", "failed")
        await system.tell(desk(), Work("first"))
        await stage.wait_for("first")
        messages: list[Any] = [
            Write("a"),
            Read(),
            Decline("no"),
            Read(),
            BreakWrite(),
            Read(),
            Write("b"),
            Read(),
        ]
        receipts = await system.tell_many([(desk(), message) for message in messages])
        stage.release()
        reads = [await system.result(receipts[place]) for place in (1, 3, 5, 7)]
        assert reads == [["first", "a"]] * 3 + [["first", "a", "b"]]
        events = await watcher.wait(9)
        names = ["completed", "completed", "completed", "refused", "completed", "failed"]
        assert [event.event for event in events] == [*names, *["completed"] * 3]
        assert [event.message_id for event in events[1:]] == [receipt.message_id for receipt in receipts]
        # Neither the refused nor the failed one's outbox went out.
        assert await system.ask(desk("elsewhere"), Read()) == []
