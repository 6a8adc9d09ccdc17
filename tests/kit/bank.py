"""A bank, its model, and what a bank must not do."""

from __future__ import annotations

from typing import Any

import anyio
from attrs import define, frozen

from atomic_actors import Actor, Command, EntityRef, Query, Refused, handler


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class Withdraw(Command[int]):
    amount: int


@frozen
class Transfer(Command[int]):
    amount: int
    to: str


@frozen
class GetBalance(Query[int]):
    pass


@define
class Balance:
    amount: int = 0


@define
class InsufficientFunds(Refused):
    balance: int


class Account(Actor[Balance], kind="account"):
    @handler
    async def deposit(self, message: Deposit) -> int:
        self.state.amount += message.amount
        await anyio.lowlevel.checkpoint()
        return self.state.amount

    @handler
    async def withdraw(self, message: Withdraw) -> int:
        if self.state.amount < message.amount:
            raise InsufficientFunds(self.state.amount)
        self.state.amount -= message.amount
        return self.state.amount

    @handler
    async def transfer(self, message: Transfer) -> int:
        if self.state.amount < message.amount:
            raise InsufficientFunds(self.state.amount)
        self.state.amount -= message.amount
        self.outbox.add(EntityRef("account", message.to), Deposit(message.amount))
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        return self.state.amount


class AccountModel:
    """What an account does, one message at a time."""

    def initial(self) -> int:
        return 0

    def apply(self, state: int, input: Any) -> tuple[int, int]:
        if isinstance(input, Withdraw):
            if state < input.amount:
                raise InsufficientFunds(state)
            return state - input.amount, state - input.amount
        if isinstance(input, Deposit):
            return state + input.amount, state + input.amount
        return state, state


class Forgetful(Actor[Balance], kind="account"):
    """Keeps what it should keep in its state in the process: right until the node dies."""

    def __init__(self) -> None:
        self.amount = 0

    @handler
    async def deposit(self, message: Deposit) -> int:
        self.amount += message.amount
        return self.amount
