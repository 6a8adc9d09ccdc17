"""One entity in memory: offer, turn, commit."""

from __future__ import annotations

import anyio
import pytest

from atomic_actors.journal._protocol import (
    NOTHING,
    Finish,
    Finished,
    Interrupt,
    JournalUnavailable,
    Park,
    Rejected,
    Settled,
    SettleLost,
    Stale,
    Take,
    Taken,
)
from tests.unit.node.execution.world import Add, Break, Stay, counter, owner

pytestmark = pytest.mark.anyio


async def test_a_turn_is_committed_and_its_asker_told() -> None:
    async with owner() as world:
        step, on_result = await world.run(Add(3))
        (verdict,) = step.verdicts
        assert (step.entity, step.turn, step.expected_version) == (counter(), 1, 0)
        assert verdict.event == "complete"
        assert step.state is not None
        assert world.replies.told == []
        on_result(Finished(1, NOTHING))
        assert [(sender, entity) for sender, entity, _, _ in world.replies.told] == [("here", counter())]
        assert world.replies.told[0][3] == b"completed\n" + verdict.reply
        counts = world.node.events.counts
        assert (counts.turns, counts.completed) == (1, 1)
        assert not world.activation(counter()).is_busy


async def test_the_answer_to_a_commit_brings_the_next_turn() -> None:
    async with owner() as world:
        _, on_result = await world.run(Add(1))
        on_result(Finished(1, world.offer(Add(2), turn=2, version=1)))
        await anyio.wait_all_tasks_blocked()
        step, _ = world.commits.take(Finish)
        assert (step.turn, step.expected_version) == (2, 1)
        assert world.activation(counter()).state.value.amount == 3


async def test_an_asker_on_another_node_is_told_by_the_commit() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        world.commits.answer(Take, Taken(world.offer(Add(), sender="there")))
        await anyio.wait_all_tasks_blocked()
        step, on_result = world.commits.take(Finish)
        assert [channel for channel, _ in step.pushes] == [b"there"]
        on_result(Finished(1, NOTHING))
        assert [sender for sender, _, _, _ in world.replies.told] == [""]


async def test_a_failure_undoes_what_the_handler_did() -> None:
    async with owner() as world:
        step, on_result = await world.run(Break())
        assert [verdict.event for verdict in step.verdicts] == ["fail"]
        assert step.state is None
        on_result(Finished(0, NOTHING))
        assert world.activation(counter()).state.value.amount == 0
        assert world.node.events.counts.dead_lettered == 1


async def test_a_handler_is_cut_at_its_deadline() -> None:
    async with owner(turn_timeout_s=5.0) as world:
        await world.begin(Stay())
        world.supervisor.tick(world.now_s + 4.9)
        await anyio.wait_all_tasks_blocked()
        assert "Finish" not in world.commits.kinds()
        world.supervisor.tick(world.now_s + 5.1)
        await anyio.wait_all_tasks_blocked()
        step, on_result = world.commits.take(Finish)
        assert [verdict.event for verdict in step.verdicts] == ["fail"]
        # Its task goes on, in a new scope.
        on_result(Finished(0, world.offer(Add(), turn=2)))
        await anyio.wait_all_tasks_blocked()
        assert world.commits.take(Finish)[0].state is not None


async def test_a_dispatch_that_comes_twice_runs_once() -> None:
    async with owner() as world:
        offer = world.offer(Add())
        first, second = world.admit(), world.admit()
        assert first is not None
        assert second is first
        first.offered(offer)
        first.offered(offer)
        await anyio.wait_all_tasks_blocked()
        world.commits.answer(Finish, Finished(1, NOTHING))
        await anyio.wait_all_tasks_blocked()
        assert world.commits.kinds() == ["Sweep"]
        assert first.state.value.amount == 1


async def test_a_handler_that_is_cut_off_by_a_loss_is_settled() -> None:
    async with owner() as world:
        await world.begin(Stay())
        world.leases.lose(0, "for the test")
        await anyio.wait_all_tasks_blocked()
        step = world.commits.answer(Interrupt, Settled("interrupt"))
        assert (step.turn, step.began, step.claim) == (1, True, "claim-1")
        assert world.node.events.counts.interrupted == 1
        assert world.supervisor.catalog.count() == 0


async def test_what_a_lost_history_has_cut_off_is_settled_under_the_next_claim() -> None:
    async with owner() as world:
        await world.begin(Stay())
        world.leases.lose(0, "the store has lost history")
        await anyio.wait_all_tasks_blocked()
        world.commits.answer(Interrupt, Stale("claim"))
        (step,) = world.node.settlements._in_doubt(0, "next")
        assert isinstance(step, SettleLost)
        assert (step.entity, step.claim, step.attempt) == (counter(), "next", 1)
        world.leases.claim(0)
        assert world.node.settlements._in_doubt(0, "next") == []


async def test_nothing_begins_once_the_lease_has_run_out() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        world.leases.run_out.add(0)
        world.commits.answer(Take, Taken(world.offer(Add())))
        await anyio.wait_all_tasks_blocked()
        assert world.commits.kinds() == ["Sweep"]
        assert world.leases.claims[0] == ""


async def test_a_stale_commit_loses_the_partition() -> None:
    async with owner() as world:
        _, on_result = await world.run(Add())
        on_result(Stale("claim"))
        await anyio.wait_all_tasks_blocked()
        assert world.leases.claims[0] == ""
        assert world.replies.told == []


async def test_a_rejected_commit_parks_and_is_settled() -> None:
    async with owner() as world:
        _, on_result = await world.run(Add())
        on_result(Rejected("invalid", "damaged"))
        await anyio.wait_all_tasks_blocked()
        assert world.commits.take(Park)[0].entity == counter()
        assert world.commits.take(Interrupt)[0].began
        assert world.activation(counter()).state.version == -1


async def test_a_commit_without_an_answer_tells_no_asker() -> None:
    async with owner() as world:
        _, on_result = await world.run(Add())
        on_result(JournalUnavailable("left", sent=True))
        await anyio.wait_all_tasks_blocked()
        assert world.replies.told == []
        assert world.node.events.counts.turns == 0


async def test_an_entity_that_passivated_reads_its_state_again() -> None:
    async with owner() as world:
        _, on_result = await world.run(Add())
        on_result(Finished(1, NOTHING))
        world.supervisor.catalog.close(world.activation(counter()))
        await anyio.wait_all_tasks_blocked()
        assert world.supervisor.catalog.count() == 0
        world.supervisor.wake(0, counter())
        assert world.commits.take(Take)[0].held_version == -1


async def test_a_state_that_was_taken_for_granted_is_asked_for() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        world.commits.answer(Take, Taken(world.offer(Add(), version=4)))
        await anyio.wait_all_tasks_blocked()
        assert world.commits.take(Take)[0].held_version == -1
