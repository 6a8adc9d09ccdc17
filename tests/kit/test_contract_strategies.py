"""Messages of kinds whose classes are elsewhere: what a contract describes, the service takes."""

from __future__ import annotations

import datetime
import enum
import json
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID

import msgspec
import pytest
from attrs import define, field, frozen
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from atomic_actors import Actor, Command, EntityKind, RawMessage, UsageError, handler
from atomic_actors.codec._codec import Codec
from atomic_actors.testing.strategies._contracts import from_contract, kind_contract

codec = Codec()


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: int = 0


class Address(TypedDict):
    street: str
    city: NotRequired[str]


@frozen
class Cat:
    name: str


@frozen
class Dog:
    name: str
    age: int = 0


@define
class Tree:
    name: str
    branches: list[Tree] = field(factory=list)
    parent: Tree | None = None


@frozen
class Everything(Command[None]):
    flag: bool
    count: int
    ratio: float
    text: str
    data: bytes
    moment: datetime.datetime
    day: datetime.date
    hour: datetime.time
    span: datetime.timedelta
    price: Decimal
    uuid: UUID
    color: Color
    literal: Literal["a", 1, True, None]
    maybe: int | None
    numbers: list[int]
    uid: set[str]
    moments: frozenset[datetime.date]
    pair: tuple[int, str]
    by_name: dict[str, list[int]]
    point: Point
    address: Address
    pet: Cat | Dog | None
    cat: Cat
    pets: list[Cat | Dog]
    tree: Tree
    plain: Any
    free: str = "default"


@frozen
class Deposit(Command[int]):
    amount: int


class Account(Actor, kind="account"):
    def __init__(self, repo: object) -> None:
        self.repo = repo

    @handler
    async def everything(self, message: Everything) -> None: ...

    @handler
    async def deposit(self, message: Deposit) -> int:
        return message.amount

    @handler("Note")
    async def note(self, message: RawMessage) -> None: ...


CONTRACT = kind_contract(Account)
CLASSES: dict[str, Any] = {"Everything": Everything, "Deposit": Deposit}


@settings(max_examples=60)
@given(from_contract(json.dumps(CONTRACT)))
def test_what_a_contract_describes_is_taken(message: RawMessage) -> None:
    arrived = codec.coder(Any).decode(codec.coder(Any).encode(message.payload))
    assert arrived == message.payload
    if message.name == "Note":
        return
    taken = codec.from_plain(arrived, CLASSES[message.name])
    assert codec.from_plain(codec.to_plain(taken, type(taken)), type(taken)) == taken


def payloads(name: str, **overrides: Any) -> SearchStrategy[Any]:
    strategy = from_contract(CONTRACT, only=[name], overrides=overrides)
    return strategy.map(lambda message: message.payload)


@pytest.mark.parametrize(
    "corner",
    [
        lambda payload: "free" not in payload,
        lambda payload: isinstance(payload["data"], bytes) and payload["data"],
        lambda payload: payload["pet"] is not None and payload["pet"]["_type"] == "Dog",
        lambda payload: "_type" not in payload["cat"],
        lambda payload: payload["literal"] is True,
        lambda payload: payload["tree"].get("branches"),
        lambda payload: payload["tree"].get("parent"),
        lambda payload: len(payload["uid"]) > 1,
    ],
)
def test_what_is_made_reaches_the_corners(corner: Any) -> None:
    quick = settings(max_examples=2000, phases=[Phase.generate], database=None)
    assert corner(find(payloads("Everything"), corner, settings=quick))


def test_a_contract_is_the_same_in_each_form() -> None:
    for contract in (CONTRACT, json.dumps(CONTRACT), msgspec.json.encode(CONTRACT)):
        assert find(from_contract(contract, only=["Deposit"]), lambda _: True) == RawMessage(
            "Deposit", {"amount": 0}
        )


@given(
    from_contract(
        CONTRACT,
        only=["Deposit", "Note", "Everything"],
        overrides={
            "Deposit": {"amount": st.integers(1, 9)},
            "Note": st.just("hello"),
            "Address": {"street": st.just("Via Appia")},
        },
    )
)
@settings(max_examples=30)
def test_overrides(message: RawMessage) -> None:
    if message.name == "Deposit":
        assert 1 <= message.payload["amount"] <= 9
    elif message.name == "Note":
        assert message.payload == "hello"
    else:
        assert message.payload["address"]["street"] == "Via Appia"


def broken(payload: Any) -> dict[str, Any]:
    return {"messages": {"Sell": {"query": False, "payload": payload}}}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: from_contract("{"), "the contract is not JSON"),
        (lambda: from_contract("[]"), "not a contract: it has no `messages` by name"),
        (lambda: from_contract({"messages": {}}), "the contract has no message, or `only` is empty"),
        (lambda: from_contract(CONTRACT, only=["Sell"]), "the contract has no Sell; there are Deposit"),
        (
            lambda: from_contract(broken({"type": "wave"})),
            "Sell: this schema is not of a kind that contracts have",
        ),
        (lambda: from_contract(broken({"$ref": "#/$defs/Gone"})), "Sell: the contract refers to Gone"),
        (
            lambda: from_contract(CONTRACT, overrides={"Deposit": {"sum": st.integers()}}),
            "Deposit has no field 'sum'; the fields are amount",
        ),
        (
            lambda: from_contract(CONTRACT, overrides={"Bird": st.just(1)}),
            "nothing that is made here is called Bird",
        ),
        (lambda: kind_contract(EntityKind("empty")), "has no handler"),
    ],
)
def test_mistakes_are_named(make: Any, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert text in str(caught.value)
