"""The verbs of the blocking client: typed like those of a system."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

from attrs import frozen

from atomic_actors import Command, Config, EntityId, EntityRef, Query, RawMessage, Receipt
from atomic_actors.client import Client


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


def the_verbs(client: Client, account: EntityRef) -> None:
    assert_type(client.ask(account, Deposit(1)), int)
    assert_type(client.ask(account, GetNames(), timeout_s=1, key="k", on_cancel="detach"), list[str])
    assert_type(client.ask(Withdraw("a-42", 80)), int)
    assert_type(client.ask(account, RawMessage("x", {})), Any)
    client.ask(account, Close())
    receipt = client.tell(account, Deposit(1), key="k", expires_in_s=1)
    assert_type(receipt, Receipt[int])
    assert_type(client.tell(Withdraw("a-42", 80)), Receipt[int])
    assert_type(client.result(receipt), int)
    assert_type(client.result(receipt, 1), int)
    assert_type(client.result("account/a-42/0"), Any)
    assert_type(client.withdraw(receipt), bool)
    assert_type(client.tell_many([(account, Deposit(1)), Withdraw("a", 1)]), list[Receipt[Any]])


def the_ways_to_make_one() -> None:
    with Client("redis://localhost", namespace="bank", ask_timeout_s=1, result_ttl_s=30) as client:
        assert_type(client, Client)
    Client().close()
    assert_type(Client(Config(url="redis://localhost"), max_connections=4).config, Config)


def wrong(client: Client, account: EntityRef) -> None:
    client.ask("account/a-42", Deposit(1))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    client.ask(account, "deposit")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    client.tell(account, Deposit)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    client.ask(account, Deposit(1), on_cancel="forget")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
