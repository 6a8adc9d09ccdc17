"""Message classes: what survives a rebuilt class, wire names, reply types, targets, and bad declarations."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, NewType, TypeVar

import attrs
import pytest
from attrs import define, frozen

from atomic_actors.actors._messages import (
    Command,
    EntityId,
    Message,
    Query,
    RawMessage,
    is_query,
    message_name,
    message_spec,
    reply_type_of,
    target_of,
    wire_name_of,
)
from atomic_actors.base._errors import InvalidEntityId, InvalidHandler, UnknownMessageType, UsageError
from atomic_actors.base._records import EntityRef

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T")
AccountId = Annotated[str, EntityId]
Sku = NewType("Sku", str)
HERE = __name__


@frozen
class Deposit(Command[int]):
    amount: int


@frozen
class GetBalance(Query[int]):
    pass


@frozen
class Withdraw(Command[int], kind="account"):
    account_id: Annotated[str, EntityId]
    amount: int


@define
class Renamed(Command[None], kind="account", name="renamed-2"):
    account_id: AccountId


@dataclass(frozen=True)
class Plain(Command[str], kind="account", name="plain"):
    account_id: Annotated[str, EntityId]


@dataclass(frozen=True, slots=True)
class Slotted(Command[str], kind="account", name="slotted"):
    account_id: Annotated[str, EntityId]


@attrs.frozen(slots=False)
class Unslotted(Query["Later"], kind="account", name="unslotted"):
    account_id: Annotated[Sku, EntityId]


@frozen
class Later:
    pass


@frozen
class NestedLater(Query[dict[str, "Later"]]):
    pass


@pytest.mark.parametrize(
    ("cls", "name", "reply_type", "query", "kind", "field"),
    [
        (Deposit, "Deposit", int, False, None, None),
        (GetBalance, "GetBalance", int, True, None, None),
        (Withdraw, "Withdraw", int, False, "account", "account_id"),
        (Renamed, "renamed-2", type(None), False, "account", "account_id"),
        (Plain, "plain", str, False, "account", "account_id"),
        (Slotted, "slotted", str, False, "account", "account_id"),
        (Unslotted, "unslotted", Later, True, "account", "account_id"),
        (NestedLater, "NestedLater", dict[str, Later], True, None, None),
    ],
)
def test_spec(
    cls: type[Message[Any]], name: str, reply_type: Any, query: bool, kind: str | None, field: str | None
) -> None:
    spec = message_spec(cls)
    assert spec.cls is cls
    assert (spec.name, spec.reply_type, spec.query, spec.kind, spec.entity_id_field) == (
        name,
        reply_type,
        query,
        kind,
        field,
    )
    assert message_name(cls) == name
    assert is_query(cls) is query
    assert reply_type_of(cls) == reply_type
    assert message_spec(cls) is spec


def test_the_slotted_classes_are_really_slotted() -> None:
    assert not hasattr(Withdraw("a", 1), "__dict__")
    assert not hasattr(Slotted("a"), "__dict__")


def test_only_the_final_class_counts() -> None:
    class First(Command[int], kind="account", name="first"):
        account_id: Annotated[str, EntityId]

    before_decorator = First
    rebuilt = frozen(First)
    assert rebuilt is not before_decorator
    with pytest.raises(InvalidHandler, match="attrs class or a dataclass"):
        message_spec(before_decorator)
    assert message_spec(rebuilt).cls is rebuilt
    assert message_spec(rebuilt).name == "first"


def test_a_class_that_is_rebuilt_late_gets_a_spec_of_its_own() -> None:
    @dataclass
    class First(Command[int], kind="account", name="first"):
        account_id: Annotated[str, EntityId]

    assert target_of(First("a-1")) == EntityRef("account", "a-1")
    rebuilt = dataclass(slots=True)(First)
    assert rebuilt is not First
    assert message_spec(rebuilt).cls is rebuilt
    assert message_spec(rebuilt).name == "first"
    assert target_of(rebuilt("a-2")) == EntityRef("account", "a-2")


def test_a_spec_does_not_keep_its_class_alive() -> None:
    @frozen
    class Local(Command[int], kind="account"):
        account_id: AccountId

    target_of(Local("a"))
    gone = weakref.ref(Local)
    del Local
    gc.collect()
    assert gone() is None


def test_a_subclass_inherits_the_kind_and_not_the_name() -> None:
    @frozen
    class Base(Command[T], kind="account", name="base"):
        account_id: AccountId

    @frozen
    class Child(Base[bytes]):
        extra: int = 0

    spec = message_spec(Child)
    assert (spec.name, spec.kind, spec.entity_id_field, spec.reply_type) == (
        "Child",
        "account",
        "account_id",
        bytes,
    )
    assert target_of(Child("a-1")) == EntityRef("account", "a-1")


class TestReplyType:
    def test_without_a_parameter_it_is_any(self) -> None:
        @frozen
        class Open(Command):
            pass

        assert reply_type_of(Open) is Any

    def test_through_generic_bases(self) -> None:
        @frozen
        class Page(Query[list[T]]):
            pass

        @frozen
        class Second(Page[T], Generic[T]):
            pass

        @frozen
        class Names(Second[str]):
            pass

        assert reply_type_of(Names) == list[str]
        assert reply_type_of(Page) == list[Any]
        assert reply_type_of(Page[int]) == list[int]

    def test_behind_a_mixin(self) -> None:
        class Mixin:
            pass

        @frozen
        class Mixed(Mixin, Command[float]):
            pass

        assert reply_type_of(Mixed) is float

    def test_a_name_that_is_nowhere(self) -> None:
        @frozen
        class Lost(Command["Nowhere"]):
            pass

        with pytest.raises(InvalidHandler, match=r"Lost: a type parameter .* name 'Nowhere' is not defined"):
            message_spec(Lost)


class TestTarget:
    @pytest.mark.parametrize(
        "message",
        [Withdraw("a-42", 80), Renamed("a-42"), Plain("a-42"), Slotted("a-42"), Unslotted(Sku("a-42"))],
    )
    def test_is_kind_and_field(self, message: Message[Any]) -> None:
        assert target_of(message) == EntityRef("account", "a-42")
        assert target_of(message) == EntityRef("account", "a-42")

    def test_a_bad_id_names_the_field(self) -> None:
        with pytest.raises(InvalidEntityId) as caught:
            target_of(Withdraw("", 1))
        assert str(caught.value) == f"{HERE}.Withdraw.account_id: id: must not be empty"

    def test_without_kind(self) -> None:
        with pytest.raises(InvalidEntityId) as caught:
            target_of(Deposit(1))
        assert str(caught.value) == (
            f"{HERE}.Deposit names no entity; give it before the message: EntityRef(kind, id), message; or "
            'declare the class with kind="..." and a field annotated Annotated[str, EntityId]'
        )

    def test_of_a_raw_message(self) -> None:
        with pytest.raises(InvalidEntityId, match="a RawMessage names no entity; give it before the message"):
            target_of(RawMessage("Ping"))

    @pytest.mark.parametrize("thing", ["text", None, 5, Deposit])
    def test_of_what_is_no_message(self, thing: Any) -> None:
        with pytest.raises(UnknownMessageType, match="is not a message: expected an instance of a Command"):
            target_of(thing)

    def test_without_a_marked_field(self) -> None:
        @frozen
        class Unmarked(Command[int], kind="account"):
            account_id: str

        with pytest.raises(InvalidHandler) as caught:
            target_of(Unmarked("a"))
        assert str(caught.value) == (
            f"{HERE}.TestTarget.test_without_a_marked_field.<locals>.Unmarked: kind='account' needs a field that "
            "holds the entity's id; annotate one of them Annotated[str, EntityId]"
        )
        assert isinstance(caught.value, UsageError)

    def test_with_two_marked_fields(self) -> None:
        @frozen
        class Twice(Command[int], kind="account"):
            first: AccountId
            second: AccountId

        with pytest.raises(InvalidHandler, match="Twice: both first and second are marked EntityId"):
            target_of(Twice("a", "b"))

    def test_with_an_id_that_is_no_text(self) -> None:
        @frozen
        class Number(Command[int], kind="account"):
            account_id: Annotated[int, EntityId]

        with pytest.raises(InvalidHandler, match=r"Number.account_id: an entity's id is text"):
            target_of(Number(5))

    def test_a_field_that_cannot_be_resolved_does_no_harm(self) -> None:
        @frozen
        class Priced(Command[int], kind="account"):
            price: Decimal
            account_id: AccountId

        assert message_spec(Priced).entity_id_field == "account_id"

    def test_a_field_that_cannot_be_resolved_is_named_where_no_other_is_marked(self) -> None:
        @frozen
        class Priced(Command[int], kind="account"):
            price: Decimal

        with pytest.raises(
            InvalidHandler, match=r"could not resolve price \(name 'Decimal' is not defined\)"
        ):
            message_spec(Priced)

    def test_an_inherited_field_is_resolved_in_its_own_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        other = type(sys)("other_messages")
        monkeypatch.setitem(sys.modules, other.__name__, other)
        source = (
            "from __future__ import annotations\n"
            "from typing import Annotated\n"
            "from attrs import frozen\n"
            "from atomic_actors.actors._messages import Command, EntityId as Marker\n"
            "@frozen\n"
            "class Base(Command[int], kind='shelf'):\n"
            "    sku: Annotated[str, Marker]\n"
        )
        exec(source, vars(other))

        @frozen
        class Child(other.Base):
            count: int = 0

        assert target_of(Child("s-1")) == EntityRef("shelf", "s-1")


class TestBadDeclarations:
    @pytest.mark.parametrize("base", [Message, Command, Query])
    def test_a_base_itself(self, base: type[Message[Any]]) -> None:
        with pytest.raises(InvalidHandler, match="is a base of messages; derive a class from it"):
            message_spec(base)

    @pytest.mark.parametrize("thing", [int, Later])
    def test_no_message_class(self, thing: Any) -> None:
        with pytest.raises(InvalidHandler, match="is not a message class; derive it from Command or Query"):
            message_spec(thing)

    def test_a_plain_class(self) -> None:
        class Undecorated(Command[int]):
            pass

        class UndecoratedChild(Deposit):
            extra: int

        for cls in (Undecorated, UndecoratedChild):
            with pytest.raises(InvalidHandler) as caught:
                message_spec(cls)
            assert str(caught.value) == (
                f"{HERE}.{cls.__qualname__}: a message is an attrs class or a dataclass; put @attrs.frozen above "
                "the class"
            )

    def test_command_and_query(self) -> None:
        @frozen
        class Both(Command[int], Query[int]):
            pass

        with pytest.raises(InvalidHandler, match="is both a Command and a Query"):
            message_spec(Both)

    def test_a_bad_kind(self) -> None:
        with pytest.raises(InvalidHandler, match=r"Bad: kind: 'my kind' may hold only letters"):

            class Bad(Command[int], kind="my kind"):
                pass

    @pytest.mark.parametrize("name", ["", "*", "a=b", "a\nb", "x" * 257, 5])
    def test_a_bad_name(self, name: Any) -> None:
        with pytest.raises(InvalidHandler, match=r"Bad: name: "):

            class Bad(Command[int], name=name):
                pass

        with pytest.raises(InvalidHandler, match=r"RawMessage: name: "):
            RawMessage(name)

    def test_an_unknown_keyword(self) -> None:
        with pytest.raises(TypeError, match="knid"):

            class Bad(Command[int], knid="account"):
                pass


def test_wire_names_of_messages() -> None:
    assert wire_name_of(RawMessage("ReserveStock", {"quantity": 50})) == "ReserveStock"
    assert wire_name_of(Renamed("a")) == "renamed-2"
    assert wire_name_of(Deposit(1)) == "Deposit"


def test_a_raw_message_is_a_value() -> None:
    assert RawMessage("Ping") == RawMessage("Ping", None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RawMessage("Ping").name = "Pong"
