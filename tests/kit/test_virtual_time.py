"""Virtual time and processes: what the simulation asks of Trio, some of which has no public name."""

from __future__ import annotations

import os
import random

import trio
import trio.lowlevel
from trio._core import _run

from atomic_actors.node.ownership._instants import elapsed_s, instant_now
from atomic_actors.testing.simulation._virtual_time import (
    Process,
    current_process,
    start_outside,
    virtual_time,
)


def test_trio_still_has_what_is_used() -> None:
    """If this fails, Trio has changed inside: look at `_virtual_time`."""
    assert hasattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING")
    assert isinstance(_run._r, random.Random)

    async def main() -> None:
        runner = _run.GLOBAL_RUN_CONTEXT.runner
        assert hasattr(runner, "runq")
        assert hasattr(runner, "clock_autojump_threshold")
        assert runner.clock is trio.lowlevel.current_clock()

    trio.run(main)


def test_the_clock_jumps_and_goes_on_afterwards() -> None:
    async def main() -> None:
        before_s = trio.current_time()
        with virtual_time(1):
            assert trio.current_time() - before_s < 1
            await trio.sleep(80_000)
            assert 80_000 <= trio.current_time() - before_s < 80_002
        await trio.lowlevel.checkpoint()
        assert trio.current_time() - before_s < 1_000

    trio.run(main)


def test_a_stopped_process_stands_still_and_goes_on() -> None:
    seen: list[float] = []

    async def tick() -> None:
        while True:
            seen.append(trio.current_time())
            await trio.sleep(1)

    async def main() -> None:
        with virtual_time(1):
            began_s = trio.current_time()
            process = Process()
            async with trio.open_nursery() as nursery:
                process.start_soon(nursery, tick)
                await trio.sleep(3.5)
                process.stop()
                await trio.sleep(10)
                assert len(seen) == 4
                process.go_on()
                await trio.sleep(0.1)
                # The timer went off meanwhile, once.
                assert [round(at_s - began_s, 1) for at_s in seen] == [0.0, 1.0, 2.0, 3.0, 13.5]
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_stopped_process_runs_no_finally() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append("finally")

    async def main() -> None:
        with virtual_time(1):
            process = Process()
            async with trio.open_nursery() as nursery:
                process.start_soon(nursery, work)
                await trio.sleep(1)
                process.stop()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(100)
                assert seen == []
                process.go_on()
        assert seen == ["finally"]

    trio.run(main)


def test_children_belong_to_the_process_unless_started_outside() -> None:
    found: dict[str, Process | None] = {}

    async def look(name: str) -> None:
        found[name] = current_process()

    async def parent(nursery: trio.Nursery) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(look, "child")
            start_outside(nursery, look, "outside")

    async def main() -> None:
        with virtual_time(1):
            process = Process()
            async with trio.open_nursery() as nursery:
                process.start_soon(nursery, parent, nursery)
            assert found == {"child": process, "outside": None}

    trio.run(main)


def test_each_process_has_a_clock_of_its_own_for_leases() -> None:
    measured: list[float] = []

    async def measure() -> None:
        since = instant_now()
        await trio.sleep(100)
        measured.append(elapsed_s(since))

    async def main() -> None:
        with virtual_time(1):
            async with trio.open_nursery() as nursery:
                for rate in (0.99, 1.0, 1.01):
                    process = Process()
                    process.set_clock_rate(rate)
                    process.start_soon(nursery, measure)
        assert sorted(round(seconds, 3) for seconds in measured) == [99.0, 100.0, 101.0]

    trio.run(main)


def test_the_order_of_tasks_is_the_seeds() -> None:
    def order(seed: int) -> list[int]:
        seen: list[int] = []

        async def work(number: int) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                seen.append(number)

        async def main() -> None:
            with virtual_time(seed):
                async with trio.open_nursery() as nursery:
                    for number in range(5):
                        nursery.start_soon(work, number)

        trio.run(main)
        return seen

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_everything_is_as_it_was() -> None:
    urandom, flag, state = os.urandom, _run._ALLOW_DETERMINISTIC_SCHEDULING, random.getstate()

    async def main() -> None:
        runner = _run.GLOBAL_RUN_CONTEXT.runner
        clock = runner.clock
        with virtual_time(1):
            random.random()
        assert runner.clock is clock
        assert type(runner.runq).__name__ == "deque"

    trio.run(main)
    assert (os.urandom, flag, state) == (urandom, _run._ALLOW_DETERMINISTIC_SCHEDULING, random.getstate())
