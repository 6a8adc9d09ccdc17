"""Strategies from contracts: whatever is made can be sent and comes back as it was."""

from __future__ import annotations

import datetime
import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, MutableMapping, MutableSequence, MutableSet, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from decimal import Decimal
from pathlib import Path, PurePath, PureWindowsPath
from types import ModuleType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
    cast,
)
from uuid import UUID

import attrs
import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from atomic_actors import (
    Actor,
    Command,
    Context,
    EntityId,
    EntityKind,
    EntityRef,
    InvalidEntityId,
    Message,
    Query,
    RawMessage,
    UsageError,
    handler,
)
from atomic_actors.actors._messages import target_of
from atomic_actors.codec._codec import Codec
from atomic_actors.testing.strategies._messages import entities, messages
from atomic_actors.testing.strategies._values import ValueStrategies

T = TypeVar("T")
AccountId = NewType("AccountId", str)
codec = Codec()


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Corner(enum.Enum):
    TOP = (0, 1)
    LEFT = (1, 0)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class NoRight(enum.Flag):
    pass


class Nothing(enum.Enum):
    pass


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
    _age: int = 0


@define
class Box(Generic[T]):
    content: T
    more: list[T] = field(factory=list)


@define
class Tree:
    name: str
    branches: list[Tree] = field(factory=list)
    by_name: dict[str, Tree] = field(factory=dict)
    parent: Tree | None = None


@frozen
class Sum:
    left: Sum | Number
    right: Sum | Number


@frozen
class Number:
    value: int


@dataclass
class Line:
    sku: str
    quantity: int = 1
    tags: list[str] = dataclass_field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Key:
    part: int
    area: int = dataclass_field(init=False, default=0)


@define
class Late:
    known: int
    unset: int = field(init=False)


SUPPORTED: list[Any] = [
    None, bool, int, float, str, bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
    Decimal, UUID, Path, PurePath, PureWindowsPath, Color, Corner, Level, Right,
    Literal["a", 1, True, None, b"x", Color.RED], AccountId, Annotated[int, "metres"], Final[int],
    int | None, Optional[str], Union[int, str], int | float | str | None, Cat | Dog | None, list[Cat | Dog],  # noqa: UP007, UP045
    list[int], MutableSequence[int], tuple[int, str], tuple[()], tuple[float, ...], Sequence[str], set[str],
    set[Cat], set[Any], set[datetime.datetime], MutableSet[int], frozenset[int | str], AbstractSet[Color],
    deque[int], dict[str, list[int]], dict[int, str], dict[Point, int], dict[tuple[int, str], int],
    dict[Color, int], dict[datetime.date, int], dict[bytes | None, bool], dict[Any, int], Mapping[UUID, int],
    MutableMapping[str, float], OrderedDict[str, int], Counter[str], Point, Address, Line, Key, Late, Box[int],
    Box[Box[Decimal]], Tree, Sum, EntityRef, Any, object, list, dict, set,
]  # fmt: skip


def values_of(type_: Any, **overrides: Any) -> SearchStrategy[Any]:
    return ValueStrategies(overrides).values(codec.form(type_), "value")


@pytest.mark.parametrize("type_", SUPPORTED, ids=str)
def test_every_value_of_every_type_comes_back(type_: Any) -> None:
    encode, decode = codec.coder(type_).encode, codec.coder(type_).decode

    @settings(max_examples=40)
    @given(values_of(type_))
    def check(value: Any) -> None:
        again = decode(encode(value))
        assert type(again) is type(value)
        assert again == value

    check()


@pytest.mark.parametrize(
    ("type_", "extreme"),
    [
        (int, lambda value: value == 2**64 - 1),
        (int, lambda value: value == -(2**63)),
        (float, lambda value: value == float("inf")),
        (datetime.datetime, lambda value: value.tzinfo is not None),
        (datetime.datetime, lambda value: value.tzinfo is None),
        (Right, lambda value: value == Right.READ | Right.WRITE),
        (Right, lambda value: value == Right(0)),
        (Literal[1, True], lambda value: value is True),
        (Literal[1, True], lambda value: value is not True),
        (Address, lambda value: "city" not in value),
        (Address, lambda value: "city" in value),
        (Path, Path.is_absolute),
        (Cat | Dog | None, lambda value: isinstance(value, Dog)),
        (Tree, lambda value: value.branches and value.branches[0].parent),
        (Sum, lambda value: isinstance(value.left, Sum) and isinstance(value.right, Number)),
        (int | float, lambda value: isinstance(value, float)),
        (int | float, lambda value: isinstance(value, int)),
        (Key, lambda value: value.part != 0),
        (Late, lambda value: value.unset != 0),
        (Dog, lambda value: value._age != 0),
        (Any, lambda value: isinstance(value, dict) and value),
    ],
)
def test_what_is_made_reaches_the_corners(type_: Any, extreme: Any) -> None:
    # Found is enough; the smallest one is nobody's question here.
    quick = settings(max_examples=1000, phases=[Phase.generate], database=None)
    assert extreme(find(values_of(type_), extreme, settings=quick))


def test_classes_that_contain_themselves_stay_small() -> None:
    def depth(tree: Tree) -> int:
        inner = [*tree.branches, *tree.by_name.values(), *([tree.parent] if tree.parent else [])]
        return 1 + max(map(depth, inner), default=0)

    @settings(suppress_health_check=[])
    @given(values_of(Tree))
    def check(tree: Tree) -> None:
        assert depth(tree) <= 3

    check()


# Messages.


@frozen
class Deposit(Command[int]):
    amount: int
    note: str = ""


@dataclass(frozen=True)
class Withdraw(Command[int], kind="account"):
    account_id: Annotated[str, EntityId]
    amount: Decimal


@frozen
class Put(Command[None], Generic[T]):
    content: T


@frozen
class GetBalance(Query[int]):
    pass


@frozen
class Parcel:
    weight: float
    lines: list[Line]
    at: tuple[int, int] = (0, 0)


class Account(Actor, kind="account"):
    def __init__(self, repo: object) -> None:
        self.repo = repo

    @handler
    async def deposit(self, message: Deposit) -> int:
        return message.amount

    @handler
    async def withdraw(self, message: Withdraw) -> int:
        return 0

    @handler
    async def put(self, message: Put[int]) -> None: ...

    @handler
    async def balance(self, message: GetBalance) -> int:
        return 0

    @handler("Ship")
    async def ship(self, message: Parcel) -> None: ...

    @handler("Note")
    async def note(self, message: RawMessage) -> None: ...

    @handler("*")
    async def other(self, message: RawMessage) -> None: ...


accounts = EntityKind("free_account")


@accounts.handler
async def take_deposit(context: Context[None], message: Deposit, repo: object) -> int:
    return message.amount


ALL_NAMES = {"Deposit", "Withdraw", "Put", "GetBalance", "Ship", "Note"}


def names_made(strategy: SearchStrategy[Any]) -> set[str]:
    found: set[str] = set()

    @settings(max_examples=100, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect_names(message: Any) -> None:
        found.add(message.name if isinstance(message, RawMessage) else type(message).__name__)

    collect_names()
    return found


def comes_back(message: Any, type_: Any) -> bool:
    return bool(codec.coder(type_).decode(codec.coder(type_).encode(message)) == message)


@given(messages(Account))
def test_messages_of_an_actor_can_be_sent(message: Message[Any]) -> None:
    match message:
        case RawMessage(name="Ship"):
            assert comes_back(message.payload, Any)
            assert codec.to_plain(codec.from_plain(message.payload, Parcel), Parcel).keys() == {
                "weight",
                "lines",
                "at",
            }
        case RawMessage():
            assert message.name == "Note"
            assert comes_back(message.payload, Any)
        case Put():
            assert comes_back(message, Put[int])
        case Withdraw():
            assert target_of(message) == EntityRef("account", message.account_id)
            assert comes_back(message, Withdraw)
        case _:
            assert comes_back(message, type(message))


def test_each_message_is_made() -> None:
    assert names_made(messages(Account)) == ALL_NAMES
    assert names_made(messages(Account.using(repo=None))) == ALL_NAMES
    assert names_made(messages(accounts)) == {"Deposit"}
    assert names_made(messages(Deposit, GetBalance)) == {"Deposit", "GetBalance"}
    assert names_made(messages(Put[int])) == {"Put"}
    assert names_made(messages([Account.deposit, Account.ship, take_deposit])) == {"Deposit", "Ship"}


def test_messages_of_a_module() -> None:
    module = ModuleType("shop")
    vars(module).update(
        Account=type("Account", (Account,), {"__module__": "shop", "__init__": object.__init__})
    )
    assert names_made(messages(module)) == ALL_NAMES


def test_only_some() -> None:
    assert names_made(messages(Account, only=[Deposit, "Ship"])) == {"Deposit", "Ship"}
    others = names_made(messages(Account, only=["*"]))
    assert others
    assert not others & ALL_NAMES


def test_messages_of_a_kind_with_nothing_but_a_fallback() -> None:
    class Sink(Actor):
        @handler("*")
        async def take(self, message: RawMessage) -> None: ...

    assert len(names_made(messages(Sink))) > 1


@given(
    messages(
        Account,
        only=[Deposit, Withdraw, "Ship", "Note"],
        overrides={
            Deposit: {"amount": st.integers(1, 100)},
            Withdraw: {"account_id": st.just("one")},
            Decimal: st.just(Decimal(5)),
            Line: {"quantity": st.just(7)},
            "Note": {"text": st.just("hello")},
        },
    )
)
def test_overrides(message: Message[Any]) -> None:
    match message:
        case Deposit():
            assert 1 <= message.amount <= 100
        case Withdraw():
            assert (message.account_id, message.amount) == ("one", Decimal(5))
        case RawMessage(name="Ship"):
            assert all(line["quantity"] == 7 for line in message.payload["lines"])
        case _:
            assert message == RawMessage("Note", {"text": "hello"})


def test_overrides_of_whole_classes_and_typed_dicts() -> None:
    @frozen
    class Move(Command):
        at: Point
        where: Address
        paint: Color
        of: Cat

    strategy = messages(
        Move,
        overrides={
            Point: {"y": st.just(3)},
            Address: {"city": st.just("Rome")},
            Color: st.just(Color.BLUE),
            Cat: st.just(Cat("Tom")),
        },
    )

    @given(strategy)
    def check(move: Move) -> None:
        assert move.at.y == 3
        assert move.where.get("city", "Rome") == "Rome"
        assert (move.paint, move.of) == (Color.BLUE, Cat("Tom"))

    check()


# Mistakes.


@define
class Endless:
    inner: Endless


@frozen
class WithEndless(Command):
    good: int
    chain: list[int | str]
    bad: Endless


@frozen
class WithNothing(Command):
    pair: tuple[int, Nothing]


@frozen
class WithNoRight(Command):
    right: NoRight


@frozen
class WithFunction(Command):
    call: type[int]


@frozen
class Unhashable:
    items: list[int]


@frozen
class WithSet(Command):
    items: set[Unhashable]


@frozen
class Strict(Command):
    amount: int = field(validator=attrs.validators.gt(0))


def never(strategy: SearchStrategy[Any]) -> None:
    """Draw until something is wrong."""
    find(strategy, lambda _: False)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: messages(WithEndless),
            "WithEndless.bad: there are no values of Endless, because it always contains itself; give a "
            "strategy of your own: overrides={Endless: ...}",
        ),
        (
            lambda: messages(WithNothing),
            "WithNothing.pair: there are no values of Nothing, because it has no members; give a strategy of "
            "your own: overrides={Nothing: ...}",
        ),
        (lambda: messages(WithNoRight), "there are no values of NoRight, because it has no members"),
        (lambda: messages(WithFunction), "WithFunction.call: values of type[int] cannot be stored; store an"),
        (lambda: messages(Account, only=["Sell"]), "only: nothing handles Sell; there are *, Deposit,"),
        (lambda: messages(Account, only=[]), "only: expected at least one message"),
        (lambda: messages(Account, only=cast("Any", Deposit)), "only: expected a list; write only=[Deposit]"),
        (messages, "nothing handles a message; give an actor class"),
        (
            lambda: messages(Deposit, overrides={Deposit: {"sum": st.integers()}}),
            "overrides: Deposit has no field 'sum'; the fields are amount, note",
        ),
        (
            lambda: messages(Deposit, overrides={Deposit: {"amount": cast("Any", 5)}}),
            "overrides: Deposit.amount: expected a Hypothesis strategy, got int 5",
        ),
        (
            lambda: messages(Deposit, overrides={Cat: st.just(Cat("Tom"))}),
            "overrides: no message that is made here has tests.kit.test_strategies.Cat",
        ),
        (lambda: messages([take_deposit, names_made]), "expected an Actor class, an EntityKind or a module"),
        (lambda: entities("account", ids=[]), "ids: expected at least one id"),
    ],
)
def test_mistakes_are_named(make: Any, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert text in str(caught.value)


def test_a_constructor_that_refuses_is_named() -> None:
    with pytest.raises(UsageError, match="Strict: Strict refuses amount=int ") as caught:
        never(messages(Strict))
    assert "overrides={Strict: {'amount': ...}}" in str(caught.value)
    assert find(messages(Strict, overrides={Strict: {"amount": st.integers(1)}}), lambda _: True) == Strict(1)


def test_a_set_of_what_cannot_be_hashed_is_named() -> None:
    with pytest.raises(UsageError, match=r"WithSet.items: a set cannot hold Unhashable: .*overrides="):
        never(messages(WithSet))


def test_an_endless_class_can_be_overridden() -> None:
    found = find(messages(WithEndless, overrides={Endless: st.none()}), lambda _: True)
    assert found == WithEndless(0, [], None)  # type: ignore[arg-type]
    empty = find(messages(WithNothing, overrides={Nothing: st.none()}), lambda _: True)
    assert empty.pair == (0, None)  # type: ignore[comparison-overlap]


# Entities.


@given(entities(Account) | entities("x", st.text("ab", min_size=1)) | entities(accounts, ids=["one", "two"]))
def test_entities(entity: EntityRef) -> None:
    match entity.kind:
        case "account":
            assert EntityRef.parse(str(entity)) == entity
        case "free_account":
            assert entity.id in ("one", "two")
        case _:
            assert entity.kind == "x"
            assert set(entity.id) <= {"a", "b"}


def test_bad_entities_are_refused() -> None:
    with pytest.raises(InvalidEntityId):
        entities("no kind")
    with pytest.raises(InvalidEntityId):
        entities("account", ids=["fine", ""])
