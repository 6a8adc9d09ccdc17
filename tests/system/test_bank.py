"""What the first page shows, word for word, and the other ways to write the same."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
from attrs import define, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    Command,
    Config,
    Context,
    EntityId,
    EntityKind,
    EntityRef,
    Query,
    RawMessage,
    Refused,
    UnknownMessageType,
    handler,
)
from tests.system.support import NewSystem, Watcher

pytestmark = pytest.mark.anyio


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class Transfer(Command[int]):
    to: str
    amount: int


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
    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        self.state.amount += message.amount
        return self.state.amount

    @handler(transactional=True)
    async def transfer(self, message: Transfer) -> int:
        if self.state.amount < message.amount:
            raise InsufficientFunds(self.state.amount)
        self.state.amount -= message.amount
        self.outbox.add(Account.ref(message.to), Deposit(message.amount))
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        return self.state.amount


async def test_the_first_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Config(actors=[Account])` and nothing else, but for where the data go."""
    async with ActorSystem(Config(actors=[Account], url="memory:")) as system:
        account = Account.ref("a-42")
        await system.tell(account, Deposit(100))
        assert await system.ask(account, GetBalance()) == 100


def test_a_ref_needs_no_system() -> None:
    assert Account.ref("a-42") == EntityRef("account", "a-42")


async def test_transfers(new_system: NewSystem) -> None:
    async with new_system(Account) as system:
        arrived = Watcher(system, "completed")
        mine, yours = system.entity(Account.ref("mine")), system.entity(Account.ref("yours"))
        assert await mine.ask(Deposit(100)) == 100
        assert await mine.ask(Transfer("yours", 30)) == 70
        with pytest.raises(InsufficientFunds) as refusal:
            await mine.ask(Transfer("yours", 71))
        assert refusal.value.balance == 70
        assert refusal.value.message_id is not None
        assert refusal.value.message_id.startswith("account/mine/")
        assert await mine.ask(GetBalance()) == 70
        await arrived.wait(3)
        assert await yours.ask(GetBalance()) == 30
        assert (await system.audit()).is_balanced


# Targets in messages, free functions.


@frozen
class Withdraw(Command[int], kind="vault"):
    vault_id: Annotated[str, EntityId]
    amount: int


@frozen
class Fill(Command[int], kind="vault"):
    amount: int
    vault_id: Annotated[str, EntityId]


vaults = EntityKind("vault", state=Balance)


@vaults.handler(transactional=True)
async def fill(context: Context[Balance], message: Fill) -> int:
    context.state.amount += message.amount
    return context.state.amount


@vaults.handler
async def withdraw(context: Context[Balance], message: Withdraw, fee: int) -> int:
    if context.state.amount < message.amount + fee:
        raise InsufficientFunds(context.state.amount)
    context.state = Balance(context.state.amount - message.amount - fee)
    return context.state.amount


async def test_messages_that_name_their_entity(new_system: NewSystem) -> None:
    async with new_system(vaults.using(fee=1)) as system:
        receipt = await system.tell(Fill(100, "a-42"))
        assert receipt.entity == vaults.ref("a-42")
        assert await system.ask(Withdraw("a-42", 80)) == 19
        with pytest.raises(InsufficientFunds):
            await system.ask(Withdraw("a-42", 19))
        receipts = await system.tell_many([Fill(1, "a-42"), (vaults.ref("b"), Fill(7, "ignored"))])
        assert [await system.result(each) for each in receipts] == [20, 7]


# By name.


class Repo:
    def __init__(self) -> None:
        self.saved: list[Any] = []


@frozen
class Stock:
    quantity: int


class Warehouse(Actor, kind="warehouse"):
    def __init__(self, repo: Repo, limit: int = 10) -> None:
        self.repo = repo
        self.limit = limit

    @handler("ReserveStock")
    async def reserve(self, message: RawMessage) -> dict[str, Any]:
        self.repo.saved.append((message.name, message.payload))
        return {"left": self.limit - message.payload["quantity"]}

    @handler("Restock")
    async def restock(self, message: Stock) -> list[int]:
        return [message.quantity, self.limit]

    @handler("*")
    async def anything(self, message: RawMessage) -> str:
        self.repo.saved.append((message.name, message.payload))
        return f"{message.name}?"


@frozen
class CountStock(Query[str]):
    shelf: int


async def test_by_name_with_no_shared_code(new_system: NewSystem) -> None:
    repo = Repo()
    async with new_system(Warehouse.using(repo=repo)) as system:
        entity = EntityRef("warehouse", "SKU-1")
        assert await system.ask(entity, RawMessage("ReserveStock", {"quantity": 4})) == {"left": 6}
        assert await system.ask(entity, RawMessage("Restock", {"quantity": 5})) == [5, 10]
        assert await system.ask(entity, RawMessage("Whatever", [1, None, b"x"])) == "Whatever?"
        # A message class that the kind does not know is a message by name, too.
        assert await system.ask(entity, CountStock(3)) == "CountStock?"
        assert repo.saved == [
            ("ReserveStock", {"quantity": 4}),
            ("Whatever", [1, None, b"x"]),
            ("CountStock", {"shelf": 3}),
        ]


async def test_a_raw_message_reaches_a_typed_handler(new_system: NewSystem) -> None:
    async with new_system(Account) as system:
        account = Account.ref("raw")
        assert await system.ask(account, RawMessage("Deposit", {"amount": 5})) == 5
        assert await system.ask(account, GetBalance()) == 5
        with pytest.raises(UnknownMessageType, match=r"'account'.*'Withdraw'.*Deposit, GetBalance, Transfer"):
            await system.ask(account, RawMessage("Withdraw", {"amount": 5}))


async def test_using_gives_every_activation_its_keywords(new_system: NewSystem) -> None:
    repo = Repo()
    async with new_system(Warehouse.using(repo=repo, limit=3)) as system:
        entities = [EntityRef("warehouse", f"SKU-{number}") for number in range(3)]
        for entity in entities:
            assert await system.ask(entity, RawMessage("Restock", {"quantity": 0})) == [0, 3]
        assert (await system.counts("warehouse")).active == 3


async def test_modules_are_scanned(new_system: NewSystem) -> None:
    module = ModuleType("a_module_of_actors")
    exec(
        "from attrs import frozen\n"
        "from atomic_actors import Actor, Command, EntityKind, handler\n"
        "from tests.system.test_bank import Account\n"
        "@frozen\n"
        "class Ping(Command[str]):\n    pass\n"
        "class Echo(Actor):\n"
        "    @handler\n"
        "    async def ping(self, message: Ping) -> str:\n        return 'pong'\n"
        "free = EntityKind('free')\n"
        "@free.handler\n"
        "async def free_ping(context, message: Ping) -> str:\n    return str(context.entity)\n",
        module.__dict__,
    )
    sys.modules[module.__name__] = module
    try:
        async with new_system(module) as system:
            ping = module.__dict__["Ping"]
            assert await system.ask(EntityRef("echo", "e"), ping()) == "pong"
            assert await system.ask(EntityRef("free", "f"), ping()) == "free/f"
            # What the module only imports is not its own.
            with pytest.raises(LookupError, match="account"):
                await system.ask(Account.ref("a"), GetBalance())
    finally:
        del sys.modules[module.__name__]


async def test_actors_without_state(new_system: NewSystem) -> None:
    async with new_system(Warehouse.using(repo=Repo())) as system:
        ref = EntityRef("warehouse", "SKU-1")
        await system.ask(ref, RawMessage("x"))
        assert (await system.where(ref)).version == 0


async def test_a_node_without_actors_sends_to_one_that_has_them(new_system: NewSystem) -> None:
    async with new_system(Account), new_system() as client:
        # With doorbells it takes milliseconds; in memory the owner finds it on its next sweep.
        assert await client.ask(Account.ref("far"), Deposit(3)) == 3
        with pytest.raises(InsufficientFunds):
            await client.ask(Account.ref("far"), Transfer("x", 4))
