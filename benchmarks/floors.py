"""The floors: the least that the same work costs without actors."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import coredis
from anyio.streams.memory import MemoryObjectReceiveStream

from benchmarks._measure import Sample, Settings, check_total, latency_of, rate_of

CLIENTS = 100
INCREMENT = """#!lua name=atomic_actors_benchmark
server.register_function('benchmark_increment', function(keys, args)
  return server.call('INCRBY', keys[1], args[1])
end)
"""

Counters = coredis.Redis[bytes]


@asynccontextmanager
async def _counters(settings: Settings, pool_size: int) -> AsyncIterator[Counters]:
    async with coredis.Redis("127.0.0.1", settings.port, max_connections=pool_size) as client:
        await client.function_load(INCREMENT, replace=True)
        yield client


def _key(number: int) -> str:
    return f"benchmark-counter-{number}"


async def _increment(client: Counters, key: str) -> object:
    return await client.fcall("benchmark_increment", [key], [1])


async def _check_counters(client: Counters, count: int, expected: int) -> None:
    values = [await client.get(_key(number)) for number in range(count)]
    check_total(sum(int(value or 0) for value in values), expected)


async def counters_concurrent(settings: Settings, *, pool_size: int) -> Sample:
    """100 clients, 100 counters, each waiting for its Lua increment; per second."""
    async with _counters(settings, pool_size) as client:
        operations = [functools.partial(_increment, client, _key(number)) for number in range(CLIENTS)]
        sample, finished = await rate_of(operations, settings)
        await _check_counters(client, CLIENTS, finished)
    return sample


async def counter_sequential_rate(settings: Settings) -> Sample:
    """One client, one counter, one increment after the other; per second."""
    async with _counters(settings, 1) as client:
        sample, finished = await rate_of([functools.partial(_increment, client, _key(0))], settings)
        await _check_counters(client, 1, finished)
    return sample


async def counter_latency(settings: Settings) -> Sample:
    """One client, one counter: the median round trip in milliseconds."""
    async with _counters(settings, 1) as client:
        sample, finished = await latency_of(functools.partial(_increment, client, _key(0)), settings)
        await _check_counters(client, 1, finished)
    return sample


class _Request:
    """An amount to add; the worker leaves the new total in it and sets the event."""

    __slots__ = ("amount", "answered", "total")

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.answered = anyio.Event()
        self.total = 0


async def _work(requests: MemoryObjectReceiveStream[_Request], totals: list[int], number: int) -> None:
    async with requests:
        async for request in requests:
            totals[number] += request.amount
            request.total = totals[number]
            request.answered.set()


async def stream_round_trips(settings: Settings) -> Sample:
    """100 clients, 100 worker tasks: a memory object stream there, an event back; per second."""
    totals = [0] * CLIENTS
    async with anyio.create_task_group() as group:
        operations: list[Callable[[], Awaitable[object]]] = []
        for number in range(CLIENTS):
            send, receive = anyio.create_memory_object_stream[_Request](CLIENTS)
            group.start_soon(_work, receive, totals, number)

            async def round_trip(send: anyio.abc.ObjectSendStream[_Request] = send) -> int:
                request = _Request(1)
                await send.send(request)
                await request.answered.wait()
                return request.total

            operations.append(round_trip)
        sample, finished = await rate_of(operations, settings)
        group.cancel_scope.cancel()
    check_total(sum(totals), finished)
    return sample


FLOORS: dict[str, Callable[[Settings], Awaitable[Sample]]] = {
    "counters_pool_1": functools.partial(counters_concurrent, pool_size=1),
    "counters_pool_10": functools.partial(counters_concurrent, pool_size=10),
    "counters_pool_100": functools.partial(counters_concurrent, pool_size=100),
    "counter_sequential_rate": counter_sequential_rate,
    "counter_latency": counter_latency,
    "stream_round_trips": stream_round_trips,
}
