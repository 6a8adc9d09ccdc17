"""Partitions and the work in them."""

from __future__ import annotations

import anyio
import pytest

from atomic_actors.base._errors import ActorLimitExceeded
from atomic_actors.journal._protocol import (
    NOTHING,
    Defer,
    Expire,
    Expired,
    Finish,
    Finished,
    Interrupt,
    Offer,
    Rejected,
    Settled,
    Sweep,
    Swept,
    Take,
    Taken,
    Unsettled,
)
from atomic_actors.node.execution import _supervisor
from atomic_actors.node.execution._supervisor import SWEEP_INTERVAL_S
from tests.unit.node.execution.world import Add, Stay, counter, owner

pytestmark = pytest.mark.anyio


def swept(*due: str, unsettled: tuple[Unsettled, ...] = (), own: tuple[Unsettled, ...] = ()) -> Swept:
    return Swept(due=due, unsettled=unsettled, next_due_ms=0, outbound=(), own=own)


async def test_a_sweep_wakes_what_is_due_and_settles_what_was_left() -> None:
    async with owner() as world:
        left = Unsettled(counter("b"), 7, ("0" * 32,))
        world.commits.answer(Sweep, swept(counter(), unsettled=(left,)))
        assert world.commits.kinds() == ["Interrupt", "Take"]
        step = world.commits.answer(Interrupt, Settled("requeue"))
        assert (step.entity, step.claim, step.turn) == (counter("b"), "claim-1", 7)
        # Settled: now it is seen what the entity has to do.
        assert world.commits.take(Take)[0].entity == counter()
        assert world.commits.take(Take)[0].entity == counter("b")


async def test_one_sweep_at_a_time_and_one_an_interval() -> None:
    async with owner() as world:
        world.supervisor.tick(
            world.now_s + 100,
        )
        assert world.commits.kinds() == ["Sweep"]
        world.commits.answer(Sweep, swept())
        world.supervisor.tick(world.now_s + SWEEP_INTERVAL_S - 0.01)
        assert world.commits.kinds() == []
        world.supervisor.tick(world.now_s + SWEEP_INTERVAL_S)
        assert world.commits.kinds() == ["Sweep"]


async def test_a_full_sweep_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_supervisor, "SWEEP_LIMIT", 1)
    async with owner() as world:
        world.commits.answer(Sweep, swept(counter()))
        world.commits.take(Take)
        world.supervisor.tick(world.now_s)
        assert world.commits.kinds() == ["Sweep"]


async def test_a_dispatch_of_its_own_that_it_does_not_know_is_taken() -> None:
    async with owner() as world:
        own = Unsettled(counter(), 3, ("0" * 32,))
        world.commits.answer(Sweep, swept(own=(own,)))
        assert world.commits.take(Take)[0].entity == counter()


async def test_a_take_without_an_offer_ends_the_activation() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        assert world.supervisor.catalog.count() == 1
        world.commits.answer(Take, Taken(NOTHING))
        assert world.supervisor.catalog.count() == 0


async def test_a_retry_is_taken_when_its_time_has_come() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        world.commits.answer(Take, Taken(Offer(not_before_ms=world.store_clock.now_ms() + 500)))
        world.supervisor.tick(world.now_s)
        assert "Take" not in world.commits.kinds()
        world.store_clock.note(world.store_clock.now_ms() + 500, world.now_s)
        world.supervisor.tick(world.now_s)
        assert world.commits.take(Take)[0].entity == counter()


async def test_an_expired_head_is_expired_and_its_asker_told() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        uid = "1" * 32
        world.commits.answer(Take, Taken(Offer(expired=(uid, ""))))
        world.commits.answer(Expire, Expired(True, None))
        assert world.replies.told == [("", counter(), uid, b"expired\n")]
        assert world.commits.take(Take)[0].entity == counter()


async def test_what_the_store_cannot_read_is_parked() -> None:
    async with owner() as world:
        world.supervisor.wake(0, counter())
        world.commits.answer(Take, Rejected("invalid", "damaged"))
        assert world.commits.kinds() == ["Sweep", "Park"]


async def test_a_kind_without_handlers_is_put_off() -> None:
    async with owner() as world:
        world.supervisor.wake(0, "other/x")
        assert world.commits.take(Defer)[0].entity == "other/x"
        assert world.supervisor.catalog.count() == 0


async def test_a_busy_entity_looks_again_later() -> None:
    async with owner() as world:
        finish, on_result = await world.run(Add())
        world.supervisor.wake(0, counter())
        assert "Take" not in world.commits.kinds()
        on_result(Finished(1, NOTHING))
        assert world.commits.take(Take)[0].held_version == 1
        assert finish.claim == "claim-1"


async def test_nothing_is_admitted_where_the_partition_is_not_owned() -> None:
    async with owner() as world:
        world.leases.run_out.add(0)
        assert world.admit() is None
        world.leases.lose(0, "for the test")
        assert world.admit() is None
        world.supervisor.wake(0, counter())
        assert world.supervisor.catalog.count() == 0


async def test_too_many_activations() -> None:
    async with owner(max_activations=1) as world:
        await world.begin(Stay())
        with pytest.raises(ActorLimitExceeded):
            world.admit("b")
        world.supervisor.wake(0, counter("b"))
        assert "Take" not in world.commits.kinds()
        world.activation(counter()).turn_scope.cut("deadline")
        await anyio.wait_all_tasks_blocked()
        world.commits.answer(Finish, Finished(1, NOTHING))
        # It fell idle: it has to go, and then the other one gets its place.
        world.supervisor.tick(world.now_s)
        await anyio.wait_all_tasks_blocked()
        assert world.commits.take(Take)[0].entity == counter("b")


async def test_who_leaves_takes_only_what_its_own_turns_wait_for() -> None:
    async with owner() as world:
        world.supervisor.stop_taking_in(0)
        assert world.admit() is None
        world.supervisor.await_entity(counter())
        assert world.admit() is not None
        assert world.admit("b") is None
        world.supervisor.let_go(0, counter())
        assert world.admit() is None


async def test_a_drain_waits_for_the_turn() -> None:
    async with owner() as world:
        finish, on_result = await world.run(Add())
        drained = anyio.Event()

        async def drain() -> None:
            await world.supervisor.drain_partition(0)
            drained.set()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(drain)
            await anyio.wait_all_tasks_blocked()
            assert not drained.is_set()
            on_result(Finished(1, NOTHING))
            with anyio.fail_after(5):
                await drained.wait()
        assert finish.turn == 1
        assert world.supervisor.catalog.count() == 0


async def test_a_partition_that_comes_back_has_a_scope_of_its_own() -> None:
    async with owner() as world:
        before = world.partition()
        world.leases.lose(0, "for the test")
        world.leases.claim(0)
        with anyio.fail_after(5):
            await before.ended.wait()
        await anyio.wait_all_tasks_blocked()
        after = world.partition()
        assert (before.is_open, after.is_open) == (False, True)
        assert (before.epoch, after.epoch) == (1, 2)
        assert not before.is_owned
        assert after.is_valid()
        before.lose("a late answer")  # not this claim's any more
        assert after.is_owned


async def test_an_offer_to_a_closed_partition_is_given_back() -> None:
    async with owner() as world:
        activation = world.admit()
        assert activation is not None
        await world.supervisor.end_partition(0)
        activation.offered(world.offer(Add()))
        assert activation.status == "ended"
        step, _ = world.commits.take(Interrupt)
        assert not step.began
        assert world.supervisor.catalog.count() == 0
