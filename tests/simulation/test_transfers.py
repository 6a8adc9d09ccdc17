"""Money moves between accounts in different partitions, and the node dies at each step in turn.

Nothing may be lost or doubled, and deposits arrive in the order in which they were sent. The same small workload
runs once in fair weather, to count its steps; then once for each step and each way to die there.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any

import anyio
import pytest
from attrs import Factory, define, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors import Actor, ActorSystem, Command, Config, Refused, handler
from atomic_actors.base._errors import AtomicActorsError
from atomic_actors.base._records import partition_of
from atomic_actors.codec._envelope import plain_of
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal
from tests.simulation.clock import run_virtual
from tests.simulation.faults import MOMENTS, CrashPoint, FaultyJournal, Moment, Weather
from tests.simulation.world import EPOCH_MS

PARTITIONS = 5
ACCOUNTS = ("a", "b", "c", "d")
OPENING = 100
#: (from, to, amount); the same pair more than once, and pairs that go back and forth.
TRANSFERS = (
    ("a", "b", 10),
    ("a", "b", 20),
    ("b", "c", 50),
    ("a", "c", 30),
    ("c", "a", 5),
    ("a", "b", 7),
    ("d", "a", 60),
    ("d", "a", 60),
    ("b", "b", 3),
)


@frozen
class Deposit(Command[int]):
    amount: int
    source: str = ""
    number: int = 0


@frozen
class Transfer(Command[int]):
    to: str
    amount: int


@frozen
class Wire(Command[int]):
    """The same by a handler with effects, which is not run again when it was cut off."""

    to: str
    amount: int


@define
class Balance:
    amount: int = 0
    #: What came from outside.
    opened: int = 0
    #: Deposits sent to each account, and those that came from each.
    sent: dict[str, int] = Factory(dict[str, int])
    got: dict[str, list[int]] = Factory(dict[str, list[int]])


@define
class InsufficientFunds(Refused):
    balance: int


class Account(Actor[Balance], kind="account"):
    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        self.state.amount += message.amount
        if not message.source:
            self.state.opened += message.amount
        else:
            self.state.got.setdefault(message.source, []).append(message.number)
        return self.state.amount

    @handler(transactional=True)
    async def transfer(self, message: Transfer) -> int:
        return self._move(message)

    @handler
    async def wire(self, message: Wire) -> int:
        await anyio.sleep(0.001)
        return self._move(message)

    def _move(self, message: Transfer | Wire) -> int:
        if self.state.amount < message.amount:
            raise InsufficientFunds(self.state.amount)
        self.state.amount -= message.amount
        number = self.state.sent[message.to] = self.state.sent.get(message.to, 0) + 1
        self.outbox.add(Account.ref(message.to), Deposit(message.amount, self.context.entity.id, number))
        return self.state.amount


@define(eq=False)
class Bank:
    """One run of the workload: a first node that may die, then one that lives."""

    move: type[Any]
    run_length: int
    crash: CrashPoint | None
    second_crash: CrashPoint | None = None
    weather: Weather = field(init=False)
    config: Config = field(init=False)
    store: MemoryJournal = field(init=False)
    _scope: anyio.CancelScope | None = None

    def __attrs_post_init__(self) -> None:
        self.weather = Weather(random.Random(1))
        self.config = Config(
            url="memory:",
            actors=[Account],
            partitions=PARTITIONS,
            max_run_length=self.run_length,
            max_interruptions=0,
            tick_interval_s=0.1,
        )
        self.store = MemoryJournal(journal_settings(self.config), now_ms=self.now_ms)

    def now_ms(self) -> int:
        return EPOCH_MS + int(anyio.current_time() * 1000)

    def _die(self) -> None:
        assert self._scope is not None
        self._scope.cancel()

    async def main(self) -> None:
        with anyio.fail_after(600):
            crashed = await self._node(self.crash, first=True)
            if crashed and self.second_crash is not None:
                await self._node(self.second_crash, first=False)
            await self._node(None, first=False)

    async def _node(self, crash: CrashPoint | None, *, first: bool) -> bool:
        journal = FaultyJournal(self.store, self.weather, crash, self._die)
        with anyio.CancelScope() as self._scope:
            async with ActorSystem(self.config, journal=journal) as system:
                if first:
                    await self._send(system)
                await self._wait_quiet()
        return journal.dead

    async def _send(self, system: ActorSystem) -> None:
        for account in ACCOUNTS:
            await system.tell(Account.ref(account), Deposit(OPENING), key="opening")
        for number, (source, to, amount) in enumerate(TRANSFERS):
            if number % 3 == 2:
                try:
                    await system.ask(Account.ref(source), self.move(to, amount))
                except AtomicActorsError:
                    continue
            else:
                await system.tell(Account.ref(source), self.move(to, amount))

    async def _wait_quiet(self) -> None:
        with anyio.fail_after(60):
            while (  # noqa: ASYNC110 - the store knows no events
                any(stream for partition in self._parts for stream in partition.streams.values())
                or any(entity.messages for partition in self._parts for entity in partition.entities.values())
                or self.weather.late
            ):
                await anyio.sleep(0.2)

    @property
    def _parts(self) -> list[Any]:
        return [self.store._partitions[number] for number in sorted(self.store._partitions)]

    @property
    def money(self) -> int:
        return sum(state["amount"] for state in self._states().values())

    @property
    def moved(self) -> int:
        """Transfers that were committed."""
        return sum(sum(state["sent"].values()) for state in self._states().values())

    def _states(self) -> dict[str, Any]:
        return {
            entity.name.partition("/")[2]: plain_of(entity.state)
            for partition in self._parts
            for entity in partition.entities.values()
            if entity.state
        }

    def check(self) -> None:
        """No money is lost or made, and every deposit came once and in its turn."""
        states = self._states()
        money = sum(state["amount"] for state in states.values())
        opened = sum(state["opened"] for state in states.values())
        assert money == opened, f"{money} of {opened}: {states}"
        for source, state in states.items():
            for to, count in state["sent"].items():
                got = states[to]["got"].get(source, [])
                assert got == list(range(1, count + 1)), f"{source} sent {count} to {to}, which got {got}"
        got_in_all = sum(len(numbers) for state in states.values() for numbers in state["got"].values())
        assert got_in_all == sum(sum(state["sent"].values()) for state in states.values())


def run_bank(backend: str, move: type[Any], run_length: int, *crashes: CrashPoint) -> Bank:
    logging.getLogger("atomic_actors").setLevel(logging.CRITICAL + 1)
    bank = Bank(move, run_length, crashes[0] if crashes else None, crashes[1] if len(crashes) > 1 else None)
    run_virtual(backend, 1, bank.main)
    bank.check()
    return bank


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("move", "run_length"), [(Transfer, 1), (Transfer, 100), (Wire, 100)])
def test_fair_weather(backend: str, move: type[Any], run_length: int) -> None:
    bank = run_bank(backend, move, run_length)
    assert bank.money == OPENING * len(ACCOUNTS)
    assert bank.moved == len(TRANSFERS) - 1, "one of them asks for more than there is"
    homes = {partition_of(f"account/{account}", PARTITIONS) for account in ACCOUNTS}
    assert len(homes) > 1, "the accounts must not all live in one partition"
    assert {"RelayRead", "RelayIn", "RelayAck"} <= set(bank.weather.step_kinds)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("backend", "move", "run_length"),
    [("trio", Transfer, 1), ("trio", Transfer, 100), ("trio", Wire, 100), ("asyncio", Transfer, 100)],
)
def test_crash_at_every_step(backend: str, move: type[Any], run_length: int, moment: Moment) -> None:
    crashed: Counter[str] = Counter()
    for count in range(1, 1_000):
        bank = run_bank(backend, move, run_length, CrashPoint("", count, moment))
        if not bank.weather.crashes:
            break
        crashed.update(kind for kind, _ in bank.weather.crashes)
    assert crashed.total() == count - 1 > 60
    assert {
        "Append",
        "Finish",
        "RelayRead",
        "RelayIn",
        "RelayAck",
        "ClaimPartition",
        "Sweep",
        "Release",
    } <= set(crashed)


@pytest.mark.timeout(120)
@given(
    first=st.integers(1, 90),
    second=st.integers(1, 60),
    moments=st.tuples(st.sampled_from(MOMENTS), st.sampled_from(MOMENTS)),
    move=st.sampled_from((Transfer, Wire)),
    run_length=st.sampled_from((1, 3, 100)),
)
def test_two_crashes(
    first: int, second: int, moments: tuple[Moment, Moment], move: type[Any], run_length: int
) -> None:
    run_bank("trio", move, run_length, CrashPoint("", first, moments[0]), CrashPoint("", second, moments[1]))
