"""The verbs of a system: the reply's type is the one that the message declares."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

from attrs import define, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    Command,
    Config,
    DeadLetter,
    EntityHandle,
    EntityId,
    EntityRef,
    Query,
    RawMessage,
    Receipt,
    handler,
)


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class GetNames(Query[list[str]]):
    pass


@frozen
class Withdraw(Command[int], kind="account"):
    account_id: Annotated[str, EntityId]
    amount: int


@frozen
class Close(Command[None]):
    pass


@define
class Balance:
    amount: int = 0


class Account(Actor[Balance], kind="account"):
    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        self.state.amount += message.amount
        return self.state.amount


async def the_verbs(system: ActorSystem, account: EntityRef) -> None:
    assert_type(await system.ask(account, Deposit(1)), int)
    assert_type(await system.ask(account, GetNames(), timeout_s=1, key="k", on_cancel="detach"), list[str])
    assert_type(await system.ask(Withdraw("a-42", 80)), int)
    assert_type(await system.ask(account, RawMessage("x", {})), Any)
    await system.ask(account, Close())
    receipt = await system.tell(account, Deposit(1), key="k", expires_in_s=1)
    assert_type(receipt, Receipt[int])
    assert_type(await system.tell(Withdraw("a-42", 80)), Receipt[int])
    assert_type(await system.result(receipt), int)
    assert_type(await system.result(receipt, 1), int)
    assert_type(await system.result("account/a-42/0"), Any)
    assert_type(await system.withdraw(receipt), bool)
    assert_type(await system.tell_many([(account, Deposit(1)), Withdraw("a", 1)]), list[Receipt[Any]])
    assert_type(await system.dead_letters.list(), list[DeadLetter])
    assert_type(await system.dead_letters.replay("account/a-42/0", at="head"), Receipt[Any])


async def a_handle(system: ActorSystem) -> None:
    account = system.entity(Account.ref("a-42"))
    assert_type(account, EntityHandle)
    assert_type(await account.ask(Deposit(1)), int)
    assert_type(await account.ask(GetNames(), timeout_s=1), list[str])
    receipt = await account.tell(Deposit(1))
    assert_type(receipt, Receipt[int])
    assert_type(await account.result(receipt), int)
    assert_type(await account.result("account/a-42/0"), Any)
    assert_type(await account.tell_many([Deposit(1)]), list[Receipt[Any]])


async def an_own_one() -> None:
    async with ActorSystem(Config(actors=[Account])) as system:
        assert_type(system, ActorSystem)


async def wrong(system: ActorSystem, account: EntityRef) -> None:
    await system.ask("account/a-42", Deposit(1))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await system.ask(account, "deposit")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await system.tell(account, Deposit)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await system.ask(account, Deposit(1), on_cancel="forget")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
