"""Public classes and functions say that they are from the package that users import them from."""

from __future__ import annotations

import importlib
import inspect
import pickle
import traceback
from typing import ClassVar, get_type_hints

import attrs
import pytest
from attrs import define, frozen

import atomic_actors
from atomic_actors import AskTimeout, Command, DeadLetter, EntityRef, Refused, StoreUnavailable
from atomic_actors.base._errors import error_from_code
from atomic_actors.base._public_names import set_public_module
from atomic_actors.codec._codec import Codec

PACKAGES = ["atomic_actors", "atomic_actors.client", "atomic_actors.testing"]
PUBLIC = [
    pytest.param(package, name, id=f"{package}.{name}")
    for package in PACKAGES
    for name in importlib.import_module(package).__all__
]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_things_say_their_package(package: str, name: str) -> None:
    thing = getattr(importlib.import_module(package), name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__module__ == package
        # So `pickle`, and whoever else looks a class up by its names, finds it.
        assert pickle.loads(pickle.dumps(thing)) is thing


@pytest.mark.parametrize("name", atomic_actors.__all__)
def test_annotations_are_readable(name: str) -> None:
    thing = getattr(atomic_actors, name)
    if inspect.isclass(thing):
        get_type_hints(thing)
        get_type_hints(thing.__init__)


@define
class Overdrawn(Refused):
    balance: int


@frozen
class Report(Command[int]):
    letter: DeadLetter
    about: EntityRef


def test_annotations_of_subclasses_are_readable() -> None:
    assert get_type_hints(Overdrawn) == {"code": ClassVar[str], "balance": int} | get_type_hints(Refused)
    assert attrs.fields(attrs.resolve_types(Overdrawn)).balance.type is int


def test_public_classes_travel_in_messages() -> None:
    account = EntityRef("account", "a")
    letter = DeadLetter(
        message_id="m-1",
        entity=account,
        name="Deposit",
        message={"amount": 1},
        reason="failed",
        error="no",
        error_type="ValueError",
        traceback="",
        attempts=1,
        interruptions=0,
        accepted_at_s=3.5,
        died_at_s=4.0,
    )
    report = Report(letter, account)
    codec = Codec()
    assert codec.coder(Report).decode(codec.coder(Report).encode(report)) == report


def test_tracebacks_read_as_users_write() -> None:
    (line,) = traceback.format_exception_only(StoreUnavailable("no answer"))
    assert line == "atomic_actors.StoreUnavailable: no answer\n"


def test_errors_are_found_by_their_code() -> None:
    assert type(error_from_code("ask_timeout", "", message_id="m")) is AskTimeout


def test_only_classes_and_functions_are_changed() -> None:
    values = ("text", 3, ("a", "b"), len, property())
    for value in values:
        set_public_module("somewhere", value)
    assert len.__module__ == "builtins"
