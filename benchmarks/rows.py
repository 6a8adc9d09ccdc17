"""The rows: the public API under the loads that the catalog names."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import anyio
import coredis
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, EntityRef, Query, handler
from benchmarks._measure import Sample, Settings, check_total, latency_of, peak_resident_bytes, rate_of

CLIENTS = 100
DRAIN_ENTITIES = 1_000
TELLS_PER_CALL = 1_000
#: The most messages the million row has accepted but not yet committed; well under the depth limit.
MILLION_IN_FLIGHT = 10_000
DRAIN_TIMEOUT_S = 120.0


@frozen
class Deposit(Command[int]):
    """Add to the balance; answers with the new one."""

    amount: int


@frozen
class GetBalance(Query[int]):
    """What the entity holds."""


@define
class Balance:
    """The state of every kind here."""

    amount: int = 0


class EffectfulAccount(Actor[Balance], kind="effectful_account"):
    """Its handler counts as one with effects outside the commit: never run twice."""

    @handler
    async def deposit(self, message: Deposit) -> int:
        """Add and answer."""
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        """Answer."""
        return self.state.amount


class TransactionalAccount(Actor[Balance], kind="transactional_account"):
    """Its handler touches only state: the owner may commit a run of turns in one step."""

    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        """Add and answer."""
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        """Answer."""
        return self.state.amount


class VolatileAccount(Actor[Balance], kind="volatile_account", durable=False):
    """No journal: in-memory speed."""

    @handler
    async def deposit(self, message: Deposit) -> int:
        """Add and answer."""
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        """Answer."""
        return self.state.amount


Account = type[EffectfulAccount] | type[TransactionalAccount] | type[VolatileAccount]


@define(eq=False)
class Drained:
    """Counts commits as the system reports them, and says when a number is reached."""

    completed: int = 0
    _goal: int = 0
    _reached: anyio.Event | None = None

    def on_completed(self, *_: object, **__: object) -> None:
        """The listener."""
        self.completed += 1
        if self._reached is not None and self.completed >= self._goal:
            self._reached.set()

    async def wait_for(self, goal: int) -> None:
        """Return once `goal` messages are committed; `TimeoutError` if they stop short of it."""
        if self.completed >= goal:
            return
        self._goal, self._reached = goal, anyio.Event()
        with anyio.fail_after(DRAIN_TIMEOUT_S):
            await self._reached.wait()
        self._reached = None


async def _check_balances(system: ActorSystem, entities: set[EntityRef], expected: int) -> None:
    check_total(
        sum([await system.ask(entity, GetBalance()) for entity in sorted(entities, key=str)]), expected
    )


async def _ask(system: ActorSystem, entity: EntityRef) -> int:
    return await system.ask(entity, Deposit(1))


async def asks(settings: Settings, *, account: Account, entities: int) -> Sample:
    """100 clients, each asking its entity again and again; per second."""
    async with ActorSystem(Config(url=settings.url, actors=[account])) as system:
        refs = [account.ref(f"a-{number % entities}") for number in range(CLIENTS)]
        sample, finished = await rate_of([functools.partial(_ask, system, ref) for ref in refs], settings)
        await _check_balances(system, set(refs), finished)
    return sample


async def one_client(settings: Settings) -> Sample:
    """One client asks one entity again and again; median milliseconds."""
    async with ActorSystem(Config(url=settings.url, actors=[EffectfulAccount])) as system:
        entity = EffectfulAccount.ref("a-0")
        sample, finished = await latency_of(functools.partial(_ask, system, entity), settings)
        await _check_balances(system, {entity}, finished)
    return sample


async def tell_and_drain(settings: Settings) -> Sample:
    """Tell a fixed number of messages in chunks, then wait until all are committed; per second."""
    drained = Drained()
    async with ActorSystem(Config(url=settings.url, actors=[EffectfulAccount])) as system:
        system.listen("completed", drained.on_completed)
        warm = EffectfulAccount.ref("warm-up")
        await system.tell_many([(warm, Deposit(1))] * 100)
        await drained.wait_for(100)

        refs = [EffectfulAccount.ref(f"a-{number}") for number in range(DRAIN_ENTITIES)]
        batch = [(refs[number % DRAIN_ENTITIES], Deposit(1)) for number in range(settings.messages)]
        started_s = time.perf_counter()
        for start in range(0, settings.messages, TELLS_PER_CALL):
            await system.tell_many(batch[start : start + TELLS_PER_CALL])
        accepted_s = time.perf_counter() - started_s
        await drained.wait_for(100 + settings.messages)
        elapsed_s = time.perf_counter() - started_s
        await _check_balances(system, set(refs), settings.messages)
    details = {"operations": settings.messages, "elapsed_s": elapsed_s, "accepted_after_s": accepted_s}
    return Sample(settings.messages / elapsed_s, details)


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, TELLS_PER_CALL):
        yield range(start, min(start + TELLS_PER_CALL, count))


async def _used_memory_bytes(settings: Settings) -> int:
    async with coredis.Redis("127.0.0.1", settings.port) as client:
        used = (await client.info("memory"))["used_memory"]
        assert isinstance(used, int)
        return used


async def million_entities(settings: Settings) -> Sample:
    """Touch very many entities once each, asleep again soon after; peak resident MiB of this process."""
    drained = Drained()
    used_before_bytes = await _used_memory_bytes(settings)
    # The limit on activations would refuse senders; the short idle time is what keeps memory small here.
    config = Config(url=settings.url, actors=[TransactionalAccount], idle_timeout_s=1.0, max_activations=0)
    async with ActorSystem(config) as system:
        system.listen("completed", drained.on_completed)
        started_s = time.perf_counter()
        for chunk in _chunks(settings.entities):
            await system.tell_many(
                [(TransactionalAccount.ref(f"a-{number}"), Deposit(1)) for number in chunk]
            )
            await drained.wait_for(chunk.stop - MILLION_IN_FLIGHT)
            if chunk.stop % 50_000 == 0:
                rate = chunk.stop / (time.perf_counter() - started_s)
                print(f"  {chunk.stop:,} entities, {rate:,.0f} per second", file=sys.stderr, flush=True)
        await drained.wait_for(settings.entities)
        elapsed_s = time.perf_counter() - started_s
        used_bytes = await _used_memory_bytes(settings) - used_before_bytes
        some = range(0, settings.entities, max(1, settings.entities // 100))
        await _check_balances(system, {TransactionalAccount.ref(f"a-{number}") for number in some}, len(some))
    details = {
        "operations": settings.entities,
        "elapsed_s": elapsed_s,
        "per_second": settings.entities / elapsed_s,
        "store_bytes_per_entity": used_bytes / settings.entities,
    }
    return Sample(peak_resident_bytes() / 2**20, details)


SAMPLES: dict[str, Callable[[Settings], Awaitable[Sample]]] = {
    "durable_asks": functools.partial(asks, account=EffectfulAccount, entities=CLIENTS),
    "one_client": one_client,
    "hot_entity": functools.partial(asks, account=EffectfulAccount, entities=1),
    "hot_entity_transactional": functools.partial(asks, account=TransactionalAccount, entities=1),
    "volatile_asks": functools.partial(asks, account=VolatileAccount, entities=CLIENTS),
    "tell_and_drain": tell_and_drain,
    "million_entities": million_entities,
}
