"""States, schemas and refusals."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import msgspec
import pytest
from attrs import define, field

from atomic_actors.base._errors import InvalidPayload, InvalidState, Refused
from tests.unit.codec.test_codec import Cat, Color, Deposit, Dog, Everything, Handle, Line, Node, codec


@define
class InsufficientFunds(Refused):
    balance: int


class Closed(Refused):
    pass


# States.


@define
class Balance:
    amount: int = 0
    history: list[Line] = field(factory=list)


def grow(text: str) -> str:
    return text + "x"


@define
class Growing:
    name: str = field(default="", converter=grow)


@define
class Outer:
    inner: Growing = field(factory=Growing)


@define
class Wrong:
    amount: int = "0"  # type: ignore[assignment]


@define
class Holding:
    handle: Handle = field(factory=Handle)


def test_a_state_that_survives() -> None:
    codec.check_round_trip(Balance)
    codec.check_round_trip(dict[str, int])


def test_states_that_do_not() -> None:
    def problem(type_: Any) -> str:
        with pytest.raises(InvalidState) as caught:
            codec.check_round_trip(type_)
        return str(caught.value)

    assert problem(Deposit) == (
        "Deposit: must be constructible without arguments (TypeError: Deposit.__init__() missing 1 required positional "
        "argument: 'amount'); give every field a default"
    )
    assert (
        problem(Outer)
        == "Outer.inner.name: the default str 'x' comes back as str 'xx' after encode and decode"
    )
    assert (
        problem(Wrong) == "the default of the state cannot be stored: Wrong.amount: expected int, got str '0'"
    )
    assert problem(Holding).startswith(
        "the default of the state cannot be stored: Holding.handle: values of Handle cannot be stored"
    )


# Schemas.


def test_json_schema() -> None:
    assert codec.json_schema(Deposit) == {
        "$ref": "#/$defs/Deposit",
        "$defs": {
            "Deposit": {
                "title": "Deposit",
                "type": "object",
                "properties": {"amount": {"type": "integer"}},
                "required": ["amount"],
            }
        },
    }
    assert codec.json_schema(list[Color | None]) == {
        "type": "array",
        "items": {"anyOf": [{"enum": ["red", "blue"]}, {"type": "null"}]},
    }
    node = codec.json_schema(Node)["$defs"]["Node"]
    assert node["properties"]["children"] == {"type": "array", "items": {"$ref": "#/$defs/Node"}}
    assert node["required"] == ["name"]


def test_json_schema_keeps_values_that_python_takes_for_equal() -> None:
    schema = codec.json_schema(Literal[1, True, 0, False])
    assert [(type(value), value) for value in schema["enum"]] == [
        (int, 1),
        (bool, True),
        (int, 0),
        (bool, False),
    ]


def test_json_schema_of_everything_is_json() -> None:
    schema = codec.json_schema(Everything)
    assert msgspec.json.decode(msgspec.json.encode(schema)) == schema
    assert set(schema["$defs"]["Everything"]["properties"]) == {a.name for a in attrs.fields(Everything)}
    assert set(schema["$defs"]) == {"Everything", "Cat", "Dog", "Line", "Box"}


def test_json_schema_tells_tagged_classes_apart() -> None:
    tags = [
        choice["allOf"][1]["properties"]["_type"]["const"] for choice in codec.json_schema(Cat | Dog)["anyOf"]
    ]
    assert tags == ["Cat", "Dog"]


# Refusals.


def test_a_refusal_comes_back_as_the_same_class() -> None:
    name, fields = codec.encode_refusal(InsufficientFunds(80))
    assert (name, fields) == ("InsufficientFunds", {"balance": 80})
    again = codec.decode_refusal(name, fields, {"InsufficientFunds": InsufficientFunds})
    assert isinstance(again, InsufficientFunds)
    assert again.balance == 80


def test_a_refusal_that_is_not_known_here() -> None:
    again = codec.decode_refusal("InsufficientFunds", {"balance": 80}, {})
    assert type(again) is Refused
    assert (again.name, again.details) == ("InsufficientFunds", {"balance": 80})


def test_a_refusal_of_another_version() -> None:
    again = codec.decode_refusal("InsufficientFunds", {"left": 80}, {"InsufficientFunds": InsufficientFunds})
    assert type(again) is Refused
    assert (again.name, again.details) == ("InsufficientFunds", {"left": 80})


def test_refusals_without_attrs_keep_text_and_details() -> None:
    name, fields = codec.encode_refusal(Closed("for good", details=[1]))
    assert name == "Closed"
    known = codec.decode_refusal(name, fields, {"Closed": Closed})
    unknown = codec.decode_refusal(name, fields, {})
    assert type(known) is Closed
    assert type(unknown) is Refused
    assert str(known) == str(unknown) == "for good"
    assert known.name == unknown.name == "Closed"
    assert known.details == unknown.details == [1]
    plain = codec.decode_refusal(*codec.encode_refusal(Refused("no", name="TooLate", details={"by": 3})), {})
    assert (str(plain), plain.name, plain.details) == ("no", "TooLate", {"by": 3})


def test_a_refusal_that_cannot_travel() -> None:
    with pytest.raises(InvalidPayload) as caught:
        codec.encode_refusal(InsufficientFunds("80"))  # type: ignore[arg-type]
    assert str(caught.value) == "InsufficientFunds.balance: expected int, got str '80'"
    with pytest.raises(InvalidPayload) as caught:
        codec.encode_refusal(Closed(details={1, 2}))
    assert str(caught.value) == (
        "Closed.details: expected plain data (None, bool, int, float, str, bytes, list, dict), got set {1, 2}"
    )
