"""Rows that take several processes: asking across them, dying, leaving, joining, and what adding one costs.

The process of the sample itself is a pure sender: it owns nothing.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
from attrs import Factory, define

from atomic_actors import ActorSystem, Config, EntityRef
from benchmarks._fleet import Child, Fleet, askers, fleet
from benchmarks._measure import Sample, Settings, check_total, latency_of
from benchmarks.orders import orders_bullmq, orders_five_workers
from benchmarks.rows import Deposit, EffectfulAccount, GetBalance, TransactionalAccount

ENTITIES = 50
WORKERS = 3
LEASE_TTL_S = 2.0
#: Nothing may take so long; an ask that does fails the sample.
PATIENCE_S = 30.0
#: Clients pause between asks where the row is about the longest ask: about 1,000 asks a second.
PAUSE_S = 0.05
#: How long the longest ask is looked for once ownership has come to rest.
AFTERMATH_S = 0.5
SENDERS = 2
CLIENTS = 100


async def _ask(system: ActorSystem, entity: EntityRef, amount: int = 1) -> None:
    await system.ask(entity, Deposit(amount), timeout_s=PATIENCE_S)


async def _ask_all(system: ActorSystem, refs: Sequence[EntityRef]) -> None:
    async with anyio.create_task_group() as group:
        for ref in refs:
            group.start_soon(_ask, system, ref)


async def _check_balances(system: ActorSystem, refs: Sequence[EntityRef], expected: int) -> None:
    check_total(sum([await system.ask(ref, GetBalance(), timeout_s=PATIENCE_S) for ref in refs]), expected)


def _median_of(values: Sequence[float], **more: object) -> Sample:
    return Sample(statistics.median(values), {"operations": len(values), "values": list(values), **more})


# Dying.


async def _kill_once(system: ActorSystem, workers: Fleet, refs: Sequence[EntityRef]) -> float:
    """Kill the worker with the most partitions among messages that it was given; seconds until all answer."""
    shares = await workers.settled()
    # What is accepted now is in the store or in a handler when the worker dies: none of it may be lost.
    await system.tell_many([(ref, Deposit(1)) for ref in refs])
    began_s = time.perf_counter()
    workers.kill(workers.busiest(shares))
    await _ask_all(system, refs)
    elapsed_s = time.perf_counter() - began_s
    await workers.join()
    return elapsed_s


async def takeover(settings: Settings, *, strangers: bool) -> Sample:
    """`kill -9` of one of three workers until 50 entities have answered again; median seconds."""
    refs = [TransactionalAccount.ref(f"a-{number}") for number in range(ENTITIES)]
    options = ["--lease-ttl-s", str(LEASE_TTL_S), *(["--strangers"] if strangers else [])]
    async with (
        fleet(settings, ["transactional"], WORKERS, *options) as workers,
        ActorSystem(Config(url=settings.url)) as system,
    ):
        await _ask_all(system, refs)
        values = [await _kill_once(system, workers, refs) for _ in range(settings.kills)]
        await _check_balances(system, refs, ENTITIES * (1 + 2 * settings.kills))
    return _median_of(values, lost=0)


# Leaving and joining.


@define(eq=False)
class _Watch:
    """Clients that ask all the time, one for each entity, and how long their asks took."""

    system: ActorSystem
    refs: Sequence[EntityRef]
    asks: int = 0
    stopping: bool = False
    #: (began, ended) of each ask.
    spans: list[tuple[float, float]] = Factory(list)

    async def run(self) -> None:
        """Ask until told to stop; an ask that fails ends the sample."""
        async with anyio.create_task_group() as group:
            for number, ref in enumerate(self.refs):
                group.start_soon(self._repeat, ref, number * PAUSE_S / len(self.refs))

    async def _repeat(self, ref: EntityRef, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        while not self.stopping:
            began_s = time.perf_counter()
            await _ask(self.system, ref)
            self.asks += 1
            self.spans.append((began_s, time.perf_counter()))
            await anyio.sleep(PAUSE_S)

    def longest_since(self, began_s: float) -> float:
        """Seconds of the longest ask that ended after an instant."""
        return max(end - max(begin, began_s) for begin, end in self.spans if end >= began_s)


async def _watched(settings: Settings, *, leaves: bool) -> Sample:
    refs = [EffectfulAccount.ref(f"a-{number}") for number in range(ENTITIES)]
    options = ["--lease-ttl-s", str(LEASE_TTL_S)]
    values: list[float] = []
    took: list[float] = []
    #: The longest asks while nothing happens: on a machine that does other work they may be long, too.
    before: list[float] = []
    async with (
        fleet(settings, ["effectful"], WORKERS - (not leaves), *options) as workers,
        ActorSystem(Config(url=settings.url)) as system,
    ):
        watch = _Watch(system, refs)
        async with anyio.create_task_group() as group:
            group.start_soon(watch.run)
            for _ in range(settings.kills):
                began_s = time.perf_counter()
                shares = await workers.settled()
                await anyio.sleep(AFTERMATH_S)
                before.append(watch.longest_since(began_s + AFTERMATH_S) * 1000)
                watch.spans.clear()
                began_s = time.perf_counter()
                if leaves:
                    took.append(await workers.stop(workers.busiest(shares)))
                else:
                    joined = await workers.join()
                    took.append(time.perf_counter() - began_s)
                    shares = await workers.settled()
                await anyio.sleep(AFTERMATH_S)
                values.append(watch.longest_since(began_s))
                watch.spans.clear()
                if leaves:
                    await workers.join()
                else:
                    await workers.stop(joined)
            watch.stopping = True
        await _check_balances(system, refs, watch.asks)
    word = "leaving_took_s" if leaves else "starting_took_s"
    more = {
        word: took,
        "longest_before_ms": before,
        "asks": watch.asks,
        "failed_asks": 0,
        "partitions": sorted(shares.values()),
    }
    return _median_of([value * 1000 for value in values], **more)


# Asking across processes, and what a second worker costs.


async def remote_ask(settings: Settings) -> Sample:
    """One client asks one entity of another process again and again; median milliseconds."""
    entity = EffectfulAccount.ref("a-0")
    async with (
        fleet(settings, ["effectful"], 1),
        ActorSystem(Config(url=settings.url)) as system,
    ):
        sample, finished = await latency_of(functools.partial(_ask, system, entity), settings)
        await _check_balances(system, [entity], finished)
    return sample


async def asks_of_workers(settings: Settings, *, workers: int) -> Sample:
    """Clients in two sending processes ask 100 entities of one or more workers; per second."""
    refs = [EffectfulAccount.ref(f"a-{number}") for number in range(CLIENTS)]
    async with fleet(settings, ["effectful"], workers) as some:
        shares = await some.settled()
        samples: dict[int, dict[str, Any]] = {}

        async def hear(number: int, asker: Child) -> None:
            samples[number] = json.loads(await asker.hear(settings.warmup_s + settings.window_s + PATIENCE_S))

        async with askers(settings, SENDERS, CLIENTS) as senders:
            for sender in senders:
                sender.say("go")
            async with anyio.create_task_group() as group:
                for number, sender in enumerate(senders):
                    group.start_soon(hear, number, sender)
        async with ActorSystem(Config(url=settings.url)) as system:
            await _check_balances(system, refs, sum(sample["finished"] for sample in samples.values()))
    more = {"partitions_of_each_worker": sorted(shares.values())}
    return Sample(sum(sample["value"] for sample in samples.values()), {"senders": samples, **more})


SAMPLES: dict[str, Callable[[Settings], Awaitable[Sample]]] = {
    "orders_five_workers": orders_five_workers,
    "orders_bullmq": orders_bullmq,
    "takeover_strangers": functools.partial(takeover, strangers=True),
    "takeover_same_host": functools.partial(takeover, strangers=False),
    "graceful_stop": functools.partial(_watched, leaves=True),
    "join": functools.partial(_watched, leaves=False),
    "remote_ask": remote_ask,
    "two_processes": functools.partial(asks_of_workers, workers=2),
    "one_process": functools.partial(asks_of_workers, workers=1),
}
