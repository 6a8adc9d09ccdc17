"""The actor that the tests of declarations share, and how they look at it."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, frozen

from atomic_actors.actors._messages import Command, Query
from atomic_actors.actors._specs import Actor, ActorSpec, HandlerSpec, collect, handler
from atomic_actors.base._config import Config
from atomic_actors.base._errors import InvalidHandler


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class Ship(Command[str]):
    order: str


@frozen
class GetBalance(Query[int]):
    pass


@define
class Balance:
    amount: int = 0


class Account(Actor[Balance], kind="account"):
    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def ship(self, message: Ship) -> str:
        return message.order

    @handler
    async def balance(self, message: GetBalance) -> int:
        return self.state.amount


def only(source: Any, config: Config | None = None) -> ActorSpec:
    (spec,) = collect([source], config).values()
    return spec


def refused(source: Any, error: type[Exception] = InvalidHandler) -> str:
    with pytest.raises(error) as caught:
        collect([source])
    return str(caught.value)


async def run(spec: HandlerSpec, instance: Any, message: Any) -> Any:
    return await spec.function(instance, message)
