"""The simulation as users use it."""

from __future__ import annotations

import time
import uuid
from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from atomic_actors import AtomicActorsError, Config, EntityRef, Interrupted, UsageError
from atomic_actors.testing import (
    CALL_FAULTS,
    FRAME_FAULTS,
    NodeCrashed,
    Simulation,
    SimulationFailed,
    run_simulation,
    simulate,
    timeline,
)
from atomic_actors.testing.checkers._history import Began, Claimed, Ended
from tests.kit.bank import (
    Account,
    AccountModel,
    Deposit,
    Forgetful,
    GetBalance,
    InsufficientFunds,
    Transfer,
    Withdraw,
)

ONE, TWO = EntityRef("account", "1"), EntityRef("account", "2")
MODELS = {"account": AccountModel()}


def ends_of(simulation: Simulation) -> Counter[str]:
    return Counter(record.event for record in simulation.history.records if isinstance(record, Ended))


def test_in_a_trio_run_of_ones_own() -> None:
    async def main() -> None:
        async with simulate(Account, seed=3) as sim:
            await sim.system.tell(ONE, Deposit(10))
            sim.crash(before="commit", nth=2)
            await sim.system.tell(ONE, Deposit(10))
            began = time.monotonic()
            await sim.advance(days=1)
            assert time.monotonic() - began < 20, "idle time is skipped, not lived through"
            assert sim.at_s() >= 86_400
            await sim.settle()
            sim.check(MODELS)
            # Nobody knows whether the handler that was cut off had done something, so it does not run again.
            assert ends_of(sim) == {"complete": 1, "interrupt": 1}
            assert await sim.system.ask(ONE, GetBalance()) == 10
            assert len(sim.nodes) == 2

    trio.run(main)


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("moment", ["append", "take", "commit", "claim", "call", "await"])
def test_a_crash_at_each_moment(moment: str, side: str, nodes: int) -> None:
    if (moment, side) == ("await", "after"):
        pytest.skip("after one is before the next")

    async def main(sim: Simulation) -> None:
        sim.crash(**{side: moment}, nth=2)  # type: ignore[arg-type]
        for number in range(6):
            try:
                await sim.system.ask(EntityRef("account", str(number % 3)), Deposit(1), timeout_s=10)
            except AtomicActorsError:
                continue
        sim.crash()
        await sim.advance(minutes=1)
        await sim.settle()
        sim.check(MODELS)
        assert any(node.is_dead for node in sim.nodes)

    run_simulation(main, Account, seed=1, nodes=nodes)


def test_a_call_dies_with_its_node_and_the_message_does_not() -> None:
    async def main(sim: Simulation) -> None:
        sim.crash(before="commit")
        with pytest.raises(NodeCrashed):
            await sim.at(1).ask(ONE, Deposit(5))
        receipt = await sim.system.tell(TWO, Deposit(5))
        assert await sim.system.result(receipt) == 5
        with pytest.raises(NodeCrashed, match="node 1 is dead"):
            await sim.at(1).ask(ONE, Deposit(5))
        letters = await sim.system.dead_letters.list()
        assert [letter.reason for letter in letters] == ["interrupted"]
        with pytest.raises(Interrupted):
            await sim.system.result(letters[0].message_id)
        sim.check(MODELS)

    run_simulation(main, Account, seed=1)


def test_a_pause_longer_than_a_lease_gives_the_entity_away() -> None:
    async def main(sim: Simulation) -> None:
        await sim.system.ask(ONE, Deposit(1))
        owner = next(node for node in sim.nodes if node.number == next(
            record.node for record in sim.history.records if isinstance(record, Began)
        ))  # fmt: skip
        sim.pause(60.0, owner.number)
        assert await sim.system.ask(ONE, Deposit(1), timeout_s=30) == 2
        assert owner.is_paused
        await sim.advance(minutes=2)
        assert not owner.is_paused
        assert await sim.system.ask(ONE, Deposit(1), timeout_s=30) == 3
        sim.check(MODELS)
        nodes = {record.node for record in sim.history.records if isinstance(record, Began)}
        assert len(nodes) > 1

    run_simulation(main, Account, seed=2, nodes=3)


def test_refusals_and_outboxes() -> None:
    async def main(sim: Simulation) -> None:
        await sim.system.ask(ONE, Deposit(10))
        with pytest.raises(InsufficientFunds):
            await sim.system.ask(ONE, Withdraw(11))
        await sim.system.ask(ONE, Transfer(4, "2"))
        await sim.settle()
        assert await sim.system.ask(TWO, GetBalance()) == 4
        sim.check()

    run_simulation(main, Account, seed=4, nodes=2)


def test_what_breaks_a_promise_is_found_and_shown() -> None:
    async def main(sim: Simulation) -> None:
        await sim.system.ask(ONE, Deposit(10))
        sim.crash()
        await sim.system.ask(ONE, Deposit(10), timeout_s=30)
        await sim.settle()
        sim.check(MODELS)

    with pytest.raises(SimulationFailed) as failure:
        run_simulation(main, Forgetful, seed=7)
    text = str(failure.value)
    assert text.startswith("seed 7, 2 nodes in all, 1 faults:")
    assert "not linearizable" in text
    assert "crash" in text.partition("\n")[2]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), nodes=st.integers(1, 3))
def test_under_faults_of_every_kind(seed: int, nodes: int) -> None:
    async def main(sim: Simulation) -> None:
        for number in range(12):
            try:
                await sim.system.ask(EntityRef("account", str(number % 2)), Deposit(1), timeout_s=5)
            except AtomicActorsError:
                continue
        await sim.settle()
        sim.check(MODELS)

    run_simulation(
        main, Account, seed=seed, nodes=nodes, faults=(*CALL_FAULTS, *FRAME_FAULTS), fault_rate=0.1
    )


def test_one_seed_is_one_run() -> None:
    async def main(sim: Simulation) -> str:
        for _ in range(5):
            await sim.system.ask(ONE, Deposit(1))
        await sim.system.tell(TWO, Deposit(int(uuid.uuid4()) % 1000))
        await sim.settle()
        return timeline(sim.history)

    runs = [run_simulation(main, Account, seed=seed, nodes=3) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_what_was_random_before_is_random_afterwards() -> None:
    async def main(sim: Simulation) -> str:
        return uuid.uuid4().hex

    assert run_simulation(main, Account, seed=1) == run_simulation(main, Account, seed=1)
    assert uuid.uuid4().hex != uuid.uuid4().hex


def test_mistakes_are_named() -> None:
    async def main(sim: Simulation) -> None:
        with pytest.raises(ValueError, match="there is no 'lunch'; use append, take"):
            sim.crash(before="lunch")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match='use before="await"'):
            sim.crash(after="await")
        with pytest.raises(ValueError, match="not both"):
            sim.crash(before="commit", after="commit")
        with pytest.raises(ValueError, match="nth: counts from 1"):
            sim.crash(before="commit", nth=0)
        with pytest.raises(ValueError, match="there is no 9 that is alive"):
            sim.crash(node=9)
        with pytest.raises(ValueError, match="there is no 9 that is alive"):
            sim.pause(1.0, node=9)

    run_simulation(main, Account)
    with pytest.raises(ValueError, match="faults: there is no 'rain'"):
        run_simulation(main, Account, faults=["rain"])


def test_simulate_needs_trio() -> None:
    import asyncio

    async def main() -> None:
        async with simulate(Account):
            pass

    with pytest.raises(RuntimeError, match="use run_simulation"):
        asyncio.run(main())


def test_settings_reach_the_nodes() -> None:
    async def main(sim: Simulation) -> int:
        return sim.config.partitions

    assert run_simulation(main, Account, partitions=3) == 3
    assert run_simulation(main, Account, config=Config(url="memory:", partitions=5)) == 5


def test_a_store_that_goes_back_in_time_is_noticed() -> None:
    async def main(sim: Simulation) -> None:
        assert await sim.system.ask(ONE, Deposit(1)) == 1
        lose = sim.back_up()
        assert await sim.system.ask(ONE, Deposit(1)) == 2
        lose()
        # The very call that gives it away took a message: nobody knows what ran in the history that is gone.
        with pytest.raises(Interrupted):
            await sim.system.ask(ONE, Deposit(1), timeout_s=30)
        # The node gave the partition up, and claimed it anew.
        assert await sim.system.ask(ONE, Deposit(1), timeout_s=30) == 2
        await sim.settle()
        sim.check()
        assert max(record.epoch for record in sim.history.records if isinstance(record, Claimed)) == 2

    run_simulation(main, Account, seed=1)


def test_without_anybody_left_calls_say_so() -> None:
    async def main(sim: Simulation) -> None:
        sim.crash()
        with pytest.raises(NodeCrashed, match="restarts=False"):
            await sim.system.ask(ONE, Deposit(1))
        sim.join()
        assert await sim.system.ask(ONE, Deposit(1), timeout_s=30) == 1

    run_simulation(main, Account, restarts=False)


def test_settling_ends_a_pause() -> None:
    async def main(sim: Simulation) -> None:
        sim.pause(for_s=600)
        await sim.settle()
        assert sim.at_s() < 100
        sim.check()

    run_simulation(main, Account, nodes=2)


def test_what_is_checked_has_to_be_there() -> None:
    async def main(sim: Simulation) -> None:
        with pytest.raises(UsageError, match="models: there is no kind 'acount'"):
            sim.check(models={"acount": AccountModel()})
        with pytest.raises(ValueError, match="for_s: must be above 0"):
            sim.pause(for_s=-1)
        with pytest.raises(ValueError, match="there is no node 9"):
            await sim.at(9).ask(ONE, Deposit(1))
        assert sim.system.config.partitions == 8

    run_simulation(main, Account)
    for wrong in ({"nodes": 0}, {"fault_rate": -3.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            run_simulation(main, Account, **wrong)
