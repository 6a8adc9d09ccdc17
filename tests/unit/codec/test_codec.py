from __future__ import annotations

import datetime
import enum
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from decimal import Decimal
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import attrs
import msgspec
import pytest
from attrs import define, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.actors._messages import Command, EntityId
from atomic_actors.base._errors import InvalidPayload, UsageError
from atomic_actors.codec._codec import Codec

T = TypeVar("T")
AccountId = NewType("AccountId", str)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Corner(enum.Enum):
    TOP = (0, 1)
    LEFT = (1, 0)


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Point(NamedTuple):
    x: int
    y: int = 0


class Address(TypedDict):
    street: str
    city: NotRequired[str]


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class Withdraw(Command[int], kind="account"):
    account_id: Annotated[str, EntityId]
    amount: int


@define
class Box(Generic[T]):
    content: T
    more: list[T] = field(factory=list)


@define
class IntBox(Box[int]):
    pass


@frozen
class Cat:
    name: str


@frozen
class Dog:
    name: str
    age: int = 0


@frozen
class Puppy(Dog):
    pass


@define
class Node:
    name: str
    children: list[Node] = field(factory=list)
    parent: Node | None = None


@dataclass
class Line:
    sku: str
    quantity: int = 1
    tags: list[str] = dataclass_field(default_factory=list)


@frozen
class Everything:
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
    path: Path
    color: Color
    level: Level
    corner: Corner
    rights: Right
    literal: Literal["a", 1, True, None]
    maybe: int | None
    old_maybe: Optional[str]  # noqa: UP045
    numbers: list[int]
    uid: set[str]
    fixed: frozenset[int]
    pair: tuple[int, str]
    many: tuple[float, ...]
    queue: deque[int]
    by_name: dict[str, list[int]]
    by_number: dict[int, str]
    by_point: dict[Point, int]
    counted: Counter[str]
    ordered: OrderedDict[str, int]
    point: Point
    address: Address
    pet: Cat | Dog | None
    either: int | float | str | None
    line: Line
    box: Box[Decimal]
    account: AccountId
    plain: Any
    _private: int = 0


codec = Codec()

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_int = st.integers(-(2**63), 2**64 - 1)
_texts = st.text(max_size=8)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=_int,
    ratio=st.floats(allow_nan=False),
    text=_texts,
    data=st.binary(max_size=8),
    moment=st.datetimes() | st.datetimes(timezones=st.just(datetime.UTC)),
    day=st.dates(),
    hour=st.times(),
    span=st.timedeltas(),
    price=st.decimals(allow_nan=False),
    uuid=st.uuids(),
    path=st.sampled_from([Path("a/b"), Path("/"), Path(".")]),
    color=st.sampled_from(Color),
    level=st.sampled_from(Level),
    corner=st.sampled_from(Corner),
    rights=st.sampled_from([Right(0), Right.READ, Right.READ | Right.WRITE]),
    literal=st.sampled_from(["a", 1, True, None]),
    maybe=st.none() | _int,
    old_maybe=st.none() | _texts,
    numbers=st.lists(_int, max_size=3),
    uid=st.sets(_texts, max_size=3),
    fixed=st.frozensets(_int, max_size=3),
    pair=st.tuples(_int, _texts),
    many=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    queue=st.lists(_int, max_size=3).map(deque),
    by_name=st.dictionaries(_texts, st.lists(_int, max_size=2), max_size=2),
    by_number=st.dictionaries(_int, _texts, max_size=2),
    by_point=st.dictionaries(st.builds(Point, _int, _int), _int, max_size=2),
    counted=st.dictionaries(_texts, _int, max_size=2).map(Counter),
    ordered=st.dictionaries(_texts, _int, max_size=2).map(OrderedDict),
    point=st.builds(Point, _int, _int),
    address=st.fixed_dictionaries({"street": _texts}, optional={"city": _texts}),
    pet=st.none() | st.builds(Cat, _texts) | st.builds(Dog, _texts, _int),
    either=st.none() | _int | st.floats(allow_nan=False) | _texts,
    line=st.builds(Line, _texts, _int, st.lists(_texts, max_size=2)),
    box=st.builds(Box, st.decimals(allow_nan=False), st.lists(st.decimals(allow_nan=False), max_size=2)),
    account=_texts.map(AccountId),
    plain=_plain,
    private=_int,
)


def same(before: Any, after: Any) -> None:
    assert type(after) is type(before)
    assert after == before


def written(value: Any, type_: Any) -> str:
    with pytest.raises(InvalidPayload) as caught:
        codec.coder(type_).encode(value)
    return str(caught.value)


def read(plain: Any, type_: Any) -> str:
    with pytest.raises(InvalidPayload) as caught:
        codec.coder(type_).decode(msgspec.msgpack.encode(plain))
    with pytest.raises(InvalidPayload) as again:
        codec.from_plain(plain, type_)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def unusable(type_: Any) -> str:
    with pytest.raises(UsageError) as caught:
        codec.coder(type_)
    assert not isinstance(caught.value, InvalidPayload)
    return str(caught.value)


# Round trips.


@given(everything)
def test_everything_comes_back(value: Everything) -> None:
    again = codec.coder(Everything).decode(codec.coder(Everything).encode(value))
    for attribute in attrs.fields(Everything):
        same(getattr(value, attribute.name), getattr(again, attribute.name))
    assert codec.from_plain(codec.to_plain(value, Everything), Everything) == value


@given(_plain)
def test_any_passes_plain_data(value: Any) -> None:
    same(value, codec.coder(Any).decode(codec.coder(Any).encode(value)))


@given(_plain)
def test_strange_data_is_read_or_refused(plain: Any) -> None:
    for type_ in (Node, Deposit, list[int], Cat | Dog, Address, Point, Color, float, datetime.datetime):
        try:
            value = codec.from_plain(plain, type_)
        except InvalidPayload:
            continue
        assert codec.from_plain(codec.to_plain(value, type_), type_) == value


@given(st.binary(max_size=40))
def test_strange_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        codec.coder(Any).decode(data)
    except InvalidPayload as error:
        assert str(error)  # noqa: PT017


def test_recursive_and_generic_classes() -> None:
    node = Node("a", [Node("b"), Node("c", [Node("d")])], Node("p"))
    assert codec.coder(Node).decode(codec.coder(Node).encode(node)) == node
    box = Box(Box(3, [4]))
    assert codec.coder(Box[Box[int]]).decode(codec.coder(Box[Box[int]]).encode(box)) == box
    assert codec.coder(IntBox).decode(codec.coder(IntBox).encode(IntBox(3, [4]))) == IntBox(3, [4])
    assert written(IntBox("3"), IntBox) == "IntBox.content: expected int, got str '3'"  # type: ignore[arg-type]


def test_local_classes() -> None:
    @define
    class Chain:
        following: Chain | None = None

    chain = Chain(Chain(Chain()))
    assert codec.coder(Chain).decode(codec.coder(Chain).encode(chain)) == chain


def test_fields_that_the_constructor_does_not_take() -> None:
    @define
    class Open:
        total: int = field(init=False, default=0)

    @frozen
    class Worked:
        side: int
        area: int = field(init=False)

        def __attrs_post_init__(self) -> None:
            object.__setattr__(self, "area", self.side**2)

    value = Open()
    value.total = 7
    assert codec.coder(Open).decode(codec.coder(Open).encode(value)) == value
    assert codec.to_plain(Worked(3), Worked) == {"side": 3}
    assert codec.coder(Worked).decode(codec.coder(Worked).encode(Worked(3))).area == 9


def test_field_names_that_generated_code_uses() -> None:
    Odd = attrs.make_class(
        "Odd", {name: field(type=int) for name in ("cl", "converter", "attrs", "o", "res", "instance")}
    )
    odd = Odd(1, 2, 3, 4, 5, 6)
    assert codec.coder(Odd).decode(codec.coder(Odd).encode(odd)) == odd


def test_the_form_on_the_wire() -> None:
    assert codec.coder(Deposit).encode(Deposit(5)) == msgspec.msgpack.encode({"amount": 5})
    assert codec.to_plain(Withdraw("a", 1), Withdraw) == {"account_id": "a", "amount": 1}
    assert (
        codec.to_plain(datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), datetime.datetime)
        == "2024-01-02T00:00:00+00:00"
    )
    assert codec.to_plain(Corner.TOP, Corner) == "TOP"
    assert codec.to_plain([Cat("a"), Dog("b", 2)], list[Cat | Dog]) == [
        {"_type": "Cat", "name": "a"},
        {"_type": "Dog", "name": "b", "age": 2},
    ]
    assert codec.to_plain(Cat("a"), Cat | None) == {"name": "a"}


def test_sets_have_the_same_bytes_whatever_their_order() -> None:
    encode = codec.coder(set[str | int | None]).encode
    assert encode({"a", "b", 1, None}) == encode({None, 1, "b", "a"})
    assert codec.to_plain({"c", "a", "b"}, set[str]) == ["a", "b", "c"]


def test_extra_fields_are_ignored_and_missing_ones_take_defaults() -> None:
    assert codec.from_plain({"name": "a", "age": 1, "owner": "x"}, Dog) == Dog("a", 1)
    assert codec.from_plain({"name": "a"}, Dog) == Dog("a")
    assert codec.from_plain({"street": "s", "zip": 1}, Address) == {"street": "s"}
    assert codec.from_plain([1], Point) == Point(1)


def test_coders_are_made_once() -> None:
    assert codec.coder(Deposit) is codec.coder(Deposit)
    assert codec.coder(list[int]) is codec.coder(list[int])


def test_subclasses_of_plain_types_become_plain() -> None:
    class Name(str):
        __slots__ = ()

    assert codec.coder(str).encode(Name("a")) == codec.coder(str).encode("a")
    assert codec.coder(int).encode(Level.LOW) == codec.coder(int).encode(1)
    same(2.0, codec.coder(float).decode(codec.coder(float).encode(2)))


# Bad values, when they are written.


@pytest.mark.parametrize(
    ("value", "type_", "text"),
    [
        (Deposit("5"), Deposit, "Deposit.amount: expected int, got str '5'"),  # type: ignore[arg-type]
        (Deposit(True), Deposit, "Deposit.amount: expected int, got bool True"),
        (Deposit(5.0), Deposit, "Deposit.amount: expected int, got float 5.0"),  # type: ignore[arg-type]
        (
            Deposit(2**64), Deposit,
            "Deposit.amount: int 18446744073709551616 cannot be encoded: can't serialize ints < -2**63 or > 2**64 - 1",
        ),
        (Puppy("a"), Dog, "Dog: expected Dog itself, no subclass, got Puppy Puppy(name='a', age=0)"),
        (Cat("a"), Dog, "Dog: expected Dog, got Cat Cat(name='a')"),
        (Node("a", [Node("b", [Node(3)])]), Node, "Node.children[0].children[0].name: expected str, got int 3"),  # type: ignore[arg-type]
        ({"a": [1, "x"]}, dict[str, list[int]], "value['a'][1]: expected int, got str 'x'"),
        ({1: []}, dict[str, list[int]], "value[1] (the key): expected str, got int 1"),
        (defaultdict(int), dict[str, int], "value: expected dict, got defaultdict defaultdict(<class 'int'>, {})"),
        ((1, 2), list[int], "value: expected list, got tuple (1, 2)"),
        ((1,), tuple[int, str], "value: expected tuple of 2, got tuple (1,)"),
        ((1, 2), tuple[int, str], "value[1]: expected str, got int 2"),
        (Point(1, "2"), Point, "Point.y: expected int, got str '2'"),  # type: ignore[arg-type]
        ({"street": 1}, Address, "Address['street']: expected str, got int 1"),
        ({"street": "a", "zip": 1}, Address, "Address['zip']: Address has no such key"),
        ({}, Address, "Address['street']: required key is missing"),
        (deque([1], 3), deque[int], "value: expected deque without maxlen, which would be lost, got deque deque([1], maxlen=3)"),
        (datetime.datetime(2024, 1, 2), datetime.date, "value: expected date, got datetime datetime.datetime(2024, 1, 2, 0, 0)"),
        ("red", Color, "value: expected Color, got str 'red'"),
        (1.5, int | None, "value: expected int or None, got float 1.5"),
        (Point(1), Cat | Dog, "value: expected Cat or Dog, got Point Point(x=1, y=0)"),
        (Cat(1), Cat | Dog, "value.name: expected str, got int 1"),  # type: ignore[arg-type]
        (2**53 + 1, float, "value: expected float (this int has more digits than a float holds), got int 9007199254740993"),
        ("\ud800", str, "value: str '\\ud800' cannot be encoded: 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"),
        (
            {"a": [(1,)]}, Any,
            "value['a'][0]: expected plain data (None, bool, int, float, str, bytes, list, dict), got tuple (1,)",
        ),
        ("x" * 90, int, f"value: expected int, got str '{'x' * 56}..."),
        (list(range(9)), int, "value: expected int, got list of 9"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(value: Any, type_: Any, text: str) -> None:
    assert written(value, type_) == text


def test_a_lambda_is_refused_with_its_path() -> None:
    assert written({"f": lambda: None}, Any).startswith(
        "value['f']: expected plain data (None, bool, int, float, str, bytes, list, dict), got function <function"
    )


def test_data_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert written(loop, Any) == "value: nested too deeply, or contains itself"
    node = Node("a")
    node.children.append(node)
    assert written(node, Node) == "Node: nested too deeply, or contains itself"


def test_a_field_that_was_never_set() -> None:
    @define
    class Late:
        value: int = field(init=False)

    assert written(Late(), Late) == "Late.value: was never set"


# Bad data, when it is read.


@pytest.mark.parametrize(
    ("plain", "type_", "text"),
    [
        ({"amount": "5"}, Deposit, "Deposit.amount: expected int, got str '5'"),
        ({"amount": 5.7}, Deposit, "Deposit.amount: expected int, got float 5.7"),
        ({"amount": True}, Deposit, "Deposit.amount: expected int, got bool True"),
        ({}, Deposit, "Deposit.amount: required field is missing"),
        ([], Dog, "Dog: expected Dog, got list []"),
        ("name", Dog, "Dog: expected Dog, got str 'name'"),
        ({"name": 1, "age": "x"}, Dog, "Dog.name: expected str, got int 1; Dog.age: expected int, got str 'x'"),
        ("abc", list[str], "value: expected list, got str 'abc'"),
        ({"a": 1}, list[str], "value: expected list, got dict {'a': 1}"),
        ([["a", 1]], dict[str, int], "value: expected dict, got list [['a', 1]]"),
        (1, bool, "value: expected bool, got int 1"),
        ("a", bytes, "value: expected bytes, got str 'a'"),
        (b"a", str, "value: expected str, got bytes b'a'"),
        (True, float, "value: expected float, got bool True"),
        ("x", datetime.datetime, "value: expected datetime as ISO 8601 text, got str 'x'"),
        ("2024-01-02", datetime.datetime, "value: expected datetime as ISO 8601 text, got str '2024-01-02'"),
        (5, Decimal, "value: expected Decimal as decimal text, got int 5"),
        ("1,5", Decimal, "value: expected Decimal as decimal text, got str '1,5'"),
        ("x", UUID, "value: expected UUID as UUID text, got str 'x'"),
        ("green", Color, "value: expected one of 'red', 'blue', got str 'green'"),
        (1.0, Level, "value: expected one of 1, 2, got float 1.0"),
        (True, Literal[1, 2], "value: expected one of 1, 2, got bool True"),
        ([1, 2, 3], Point, "Point: expected list of 2, got list [1, 2, 3]"),
        ({"name": "a"}, Cat | Dog, "value['_type']: expected 'Cat' or 'Dog', got None"),
        ({"_type": "Dog", "name": 1}, Cat | Dog, "value.name: expected str, got int 1"),
        ([[1], [2, "x"]], list[list[int]], "value[1][1]: expected int, got str 'x'"),
        ([1, 2, 3, 4, 5, 6, 7], list[str], "; ".join(f"value[{i}]: expected str, got int {i + 1}" for i in range(5)) + "; and 2 more"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused(plain: Any, type_: Any, text: str) -> None:
    assert read(plain, type_) == text


def test_a_validator_of_the_class_speaks() -> None:
    @frozen
    class Positive:
        amount: int = field(validator=attrs.validators.gt(0))

    assert read({"amount": -1}, Positive) == "Positive: ValueError: 'amount' must be > 0: -1"


def test_bytes_that_are_no_messagepack() -> None:
    with pytest.raises(InvalidPayload) as caught:
        codec.coder(Deposit).decode(b"\xc1")
    assert str(caught.value).startswith("Deposit: the bytes are not valid MessagePack: ")


def test_a_timestamp_of_messagepack_is_not_plain() -> None:
    data = msgspec.msgpack.encode(datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC))
    with pytest.raises(InvalidPayload, match="expected plain data"):
        codec.coder(Any).decode(data)


# Types that cannot be stored.


class Handle:
    pass


@frozen
class Holder:
    handle: Handle


@frozen
class Deep:
    holders: list[Holder]


@frozen
class Misspelt:
    value: Nowhere  # type: ignore[name-defined]  # noqa: F821


@frozen
class Tagged:
    _type: str


def test_a_type_that_cannot_be_stored_names_the_field() -> None:
    remedy = (
        "store an attrs class or dataclass, None, bool, int, float, str, bytes, datetime, Decimal, UUID, Enum, Path, "
        "list, set, tuple or dict of such, and make the rest from it"
    )
    for type_ in (Holder, Deep, list[Holder]):  # the second question must not meet what the first left behind
        assert unusable(type_) == f"Holder.handle: values of Handle cannot be stored; {remedy}"
    assert unusable(Callable[[int], int]).startswith(
        "value: values of collections.abc.Callable[[int], int] cannot"
    )
    assert unusable(defaultdict[str, int]).startswith(
        "value: values of collections.defaultdict[str, int] cannot"
    )
    assert unusable(Box) == f"Box.content: {T} is not bound to a type; give the class its type parameters"
    assert unusable(Misspelt) == (
        "Misspelt.value: the annotation 'Nowhere' cannot be resolved: name 'Nowhere' is not defined; define it at "
        "the top of the module, outside `if TYPE_CHECKING`"
    )


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (
            str | datetime.datetime,
            "value: str and datetime look the same when stored, so a value of this union could not be read back; "
            "give each a class of its own",
        ),
        (
            list[int] | set[int],
            "value: list and set look the same when stored, so a value of this union could not be read back; "
            "give each a class of its own",
        ),
        (
            int | Level,
            "value: int and Level look the same when stored, so a value of this union could not be read back; "
            "give each a class of its own",
        ),
        (
            dict[str, int] | Cat,
            "value: dict and Cat look the same when stored, so a value of this union could not be read back; "
            "give each a class of its own",
        ),
        (Cat | Tagged, "value: Tagged._type has the name that tells the classes of a union apart; rename it"),
        (dict[Cat, int], "value: Cat cannot be the key of a stored dict; use str, int or a tuple of such"),
        (set[list[int]], "value: a set cannot hold list; use list or tuple"),
    ],
)
def test_types_that_could_not_be_read_back(type_: Any, text: str) -> None:
    assert unusable(type_) == text


def test_abstract_collections() -> None:
    same((1, 2), codec.coder(Sequence[int]).decode(codec.coder(Sequence[int]).encode([1, 2])))
    same({"a": 1}, codec.coder(Mapping[str, int]).decode(codec.coder(Mapping[str, int]).encode({"a": 1})))
