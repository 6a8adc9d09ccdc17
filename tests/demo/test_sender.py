"""The worker's sender: many tells at once, and never one aircraft's flights out of order."""

from __future__ import annotations

from random import Random

import anyio
import anyio.lowlevel
import pytest

from atomic_actors.tools.demo._data import Flight, load_flights
from atomic_actors.tools.demo.worker import FlightSender

pytestmark = pytest.mark.anyio


def flights_of_few_aircraft() -> list[Flight]:
    """So few that one aircraft often has several flights under way; else order would hold by itself."""
    return [flight for flight in load_flights() if flight.aircraft.endswith("MQ")][:1_500]


async def test_order_per_aircraft_is_kept() -> None:
    flights = flights_of_few_aircraft()
    random = Random(1)
    accepted: list[int] = []

    async def tell(number: int, _: Flight) -> None:
        for _ in range(random.randrange(5)):
            await anyio.lowlevel.checkpoint()
        accepted.append(number)

    sender = FlightSender(flights, 100, tell)
    await sender.run()
    assert accepted != sorted(accepted)
    assert sorted(accepted) == list(range(100, 1_500))
    assert sender.accepted == 1_500
    by_aircraft: dict[str, list[int]] = {}
    for number in accepted:
        by_aircraft.setdefault(flights[number].aircraft, []).append(number)
    assert all(numbers == sorted(numbers) for numbers in by_aircraft.values())


async def test_accepted_counts_only_what_has_no_gap_before_it() -> None:
    flights = load_flights(10)
    release = anyio.Event()
    others = anyio.Event()
    done = 0

    async def tell(number: int, _: Flight) -> None:
        nonlocal done
        if number == 3:
            await release.wait()
        done += 1
        if done == 9:
            others.set()

    sender = FlightSender(flights, 0, tell)
    async with anyio.create_task_group() as group:
        group.start_soon(sender.run)
        await others.wait()
        await anyio.lowlevel.checkpoint()
        assert sender.accepted == 3
        release.set()
    assert sender.accepted == 10
