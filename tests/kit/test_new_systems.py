"""What a fixture gives to a test: systems that share a store."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, frozen

from atomic_actors import Actor, Command, Config, HandlerFailed, InvalidConfig, Query, handler
from atomic_actors.testing.systems._new_systems import TEST_SETTINGS, NewActorSystem

pytestmark = pytest.mark.anyio


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class GetBalance(Query[int]):
    pass


@define
class Balance:
    amount: int = 0


class Account(Actor[Balance], kind="account"):
    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        if message.amount < 0:
            raise ValueError("less than nothing")
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        return self.state.amount


@pytest.fixture
def new_system() -> NewActorSystem:
    return NewActorSystem()


async def test_what_one_system_leaves_the_next_one_finds(new_system: NewActorSystem) -> None:
    async with new_system(Account) as system:
        assert await system.ask(Account.ref("a"), Deposit(100)) == 100
    async with new_system(Account) as system:
        assert await system.ask(Account.ref("a"), GetBalance()) == 100
    async with NewActorSystem()(Account) as system:
        assert await system.ask(Account.ref("a"), GetBalance()) == 0


async def test_two_systems_at_once_are_two_nodes(new_system: NewActorSystem) -> None:
    async with new_system(Account) as first, new_system(Account) as second:
        await first.ask(Account.ref("a"), Deposit(100))
        assert await second.ask(Account.ref("a"), GetBalance(), timeout_s=4) == 100


async def test_settings_win_over_the_short_waits(new_system: NewActorSystem) -> None:
    assert new_system(Account).config.partitions == TEST_SETTINGS["partitions"]
    assert new_system(Account, backoff="fixed").config.backoff == "fixed"
    async with new_system(Account, max_attempts=3) as system:
        with pytest.raises(HandlerFailed):
            await system.ask(Account.ref("a"), Deposit(-1))
        (dead,) = await system.dead_letters.list()
        assert dead.attempts == 3


async def test_the_settings_of_an_application(new_system: NewActorSystem) -> None:
    production = Config(
        url="redis://db.example", username="shop", namespace="shop", actors=[Account], ask_timeout_s=3
    )
    async with new_system(config=production) as system:
        assert system.config.url == "memory:"
        assert system.config.namespace == new_system.namespace
        assert system.config.username is None
        assert system.config.partitions == production.partitions
        assert system.config.ask_timeout_s == 3
        assert await system.ask(Account.ref("a"), Deposit(1)) == 1
    again = new_system.config(config=production, namespace="other", ask_timeout_s=2)
    assert (again.namespace, again.ask_timeout_s, again.actors) == ("other", 2, (Account,))


@pytest.mark.parametrize("settings", [{"url": "memory:"}, {"db": 3}, {"host": "elsewhere"}])
def test_the_store_is_not_for_the_test_to_choose(
    new_system: NewActorSystem, settings: dict[str, Any]
) -> None:
    with pytest.raises(InvalidConfig, match="the fixture sets the store"):
        new_system(Account, **settings)


def test_a_shared_store_has_one_size(new_system: NewActorSystem) -> None:
    new_system(Account)
    new_system(Account, service="another", partitions=8)
    with pytest.raises(InvalidConfig, match="share the store, which was made with"):
        new_system(Account, partitions=8)
