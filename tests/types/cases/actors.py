"""Actors, handlers, messages and what a turn works with."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, assert_type

from attrs import define, frozen

from atomic_actors.actors._messages import Command, EntityId, Message, Query, RawMessage
from atomic_actors.actors._specs import Actor, ActorSource, Context, EntityKind, Outbox, collect, handler
from atomic_actors.base._records import Completed, EntityRef, Park, Retry

R = TypeVar("R")
S = TypeVar("S")


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class Withdraw(Command[int], kind="account", name="withdraw"):
    account_id: Annotated[str, EntityId]
    amount: int


@frozen
class GetNames(Query[list[str]]):
    pass


@frozen
class Close(Command[None]):
    pass


@frozen
class Open(Command):
    pass


@frozen
class Wrong(Command[int], knid="account"):  # type: ignore[call-arg]  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    pass


@define
class Balance:
    amount: int = 0


class Repo:
    async def save(self, amount: int) -> None: ...


async def ask(entity: EntityRef, message: Message[R]) -> R:
    raise NotImplementedError


class Account(Actor[Balance], kind="account", on_dead="park", idle_timeout_s=5, durable=True):
    def __init__(self, repo: Repo) -> None:
        self.repo = repo

    async def on_activate(self) -> None:
        self.state = Balance(1)

    async def look(self, message: Deposit) -> Completed[int] | Retry | Park:
        return Completed(message.amount)

    @handler(on_interrupted=look, max_attempts=2)
    async def deposit(self, message: Deposit) -> int:
        assert_type(self.state, Balance)
        assert_type(self.outbox, Outbox)
        assert_type(self.context, Context[Balance])
        self.outbox.add(Account.ref("b"), message)
        self.outbox.add("account/b", message)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(await self.context.ask(Account.ref("b"), GetNames()), list[str])
        self.context.start_soon(self.repo.save, 5)
        self.context.start_soon(self.repo.save, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        return self.state.amount

    @handler
    async def names(self, message: GetNames) -> list[str]:
        return []

    @handler("Other", transactional=True)
    async def other(self, message: RawMessage) -> Any:
        return message.payload

    @handler  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
    def blocking(self, message: Close) -> None: ...


class Stateless(Actor):
    @handler
    async def close(self, message: Close) -> None:
        assert_type(self.state, None)


class Base(Actor[S]):
    @handler
    async def close(self, message: Close) -> None: ...

    def read(self) -> S:
        return self.state


class Concrete(Base[Balance], max_attempts=3):
    async def use(self) -> None:
        assert_type(self.read(), Balance)


class Misspelt(Actor, idle_timout_s=5):  # type: ignore[call-arg]  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    pass


async def asks() -> None:
    account = Account.ref("a-42")
    assert_type(account, EntityRef)
    assert_type(await ask(account, Deposit(1)), int)
    assert_type(await ask(account, Withdraw("a-42", 1)), int)
    assert_type(await ask(account, GetNames()), list[str])
    assert_type(await ask(account, Open()), Any)
    assert_type(await ask(account, RawMessage("Ping", {"a": 1})), Any)
    await ask(account, Close())
    await ask(account, "Close")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def handlers_stay_methods(account: Account) -> None:
    assert_type(await account.deposit(Deposit(1)), int)
    assert_type(await account.names(GetNames()), list[str])
    await account.deposit(Close())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


accounts = EntityKind("account", state=Balance, on_dead="park")
plain = EntityKind("plain")
assert_type(accounts, EntityKind[Balance])
assert_type(plain, EntityKind[None])
assert_type(accounts.ref("a"), EntityRef)


@accounts.handler
async def withdraw(context: Context[Balance], message: Withdraw, *, repo: Repo) -> int:
    assert_type(context.state, Balance)
    context.state = Balance(context.state.amount - message.amount)
    await repo.save(context.state.amount)
    return context.state.amount


@accounts.handler(transactional=True, max_attempts=3)
async def deposit(context: Context[Balance], message: Deposit) -> int:
    return message.amount


@accounts.handler("*")
async def rest(context: Context[Balance], message: RawMessage) -> Any:
    return message.payload


@accounts.on_activate
async def load(context: Context[Balance], repo: Repo) -> None: ...


@plain.handler
async def close(context: Context, message: Close) -> None:
    assert_type(context.state, None)


@accounts.handler  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
async def wrong_state(context: Context[int], message: Close) -> None: ...


@accounts.handler  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
def blocking(context: Context[Balance], message: Close) -> None: ...


async def functions_stay_functions(context: Context[Balance]) -> None:
    assert_type(await withdraw(context, Withdraw("a", 1), repo=Repo()), int)
    assert_type(await deposit(context, Deposit(1)), int)


assert_type(Account.using(repo=Repo()), ActorSource)
collect([Account.using(repo=Repo()), accounts.using(repo=Repo()), accounts, Stateless])
collect(["account"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
