"""How each sort of type is stored: the forms that `_codec` puts together.

A form knows one type. `write` turns a value into plain data, `read` turns plain data into a value; both
raise `Mismatch` (or whatever the user's own class raises) when it does not fit, and say nothing more.
`parts` names what lies inside a value, so that `explain` can find the path to what was wrong.
"""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Flag
from pathlib import PurePath
from typing import Any, Final, NoReturn
from uuid import UUID

import msgspec
from attrs import define

__all__ = (
    "AnyForm",
    "DictForm",
    "Form",
    "ManyForm",
    "Mismatch",
    "TupleForm",
    "choices_form",
    "describe",
    "explain",
    "leaf_form",
    "path_form",
)

Write = Callable[[Any], Any]
#: cattrs hands the type over as well; forms know theirs.
Read = Callable[..., Any]
_TEXT: Final = frozenset({str})
_ARRAY: Final = frozenset({list, tuple})
_MAP: Final = frozenset({dict})
_PLAIN_LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})


class Mismatch(Exception):
    """A value does not fit a form. Its text, where there is one, replaces the form's label."""


def describe(value: Any) -> str:
    """A value for an error text: its class and a bounded `repr`."""
    if value is None:
        return "None"
    if value.__class__ in (list, tuple, set, frozenset, dict) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except Exception as error:  # a broken `repr` of the user's must not hide what was wrong
        text = f"(its repr raises {type(error).__name__})"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _unset(*_: Any) -> NoReturn:
    raise AssertionError("a form is used before it is built")


@define(eq=False, kw_only=True)
class Form:
    """How one type is stored.

    Args:
        label: what a good value is called in error texts.
        read_label: the same for plain data, where that differs.
        classes: the classes of the values it writes.
        wire: the classes of the plain data it reads.
        write: a value to plain data.
        read: plain data to a value.
        key: whether its plain data can be the key of a dict.
        constructs: whether an exception while reading or writing comes from a class of the user's.
    """

    label: str
    read_label: str = ""
    classes: tuple[type, ...] = ()
    wire: frozenset[type] = frozenset()
    write: Write = _unset
    read: Read = _unset
    key: bool = False
    constructs: bool = False

    def late_write(self) -> Write:
        """`write`, also while a class that contains itself is still being built."""
        if self.write is not _unset:
            return self.write

        def write(value: Any) -> Any:
            return self.write(value)

        return write

    def late_read(self) -> Read:
        """`read`, also while a class that contains itself is still being built."""
        if self.read is not _unset:
            return self.read

        def read(value: Any, _: Any = None) -> Any:
            return self.read(value)

        return read

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """Path, form and value of everything inside; a text in place of a form is a problem by itself."""
        yield from ()

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """The JSON Schema of the plain data; classes are put into `definitions`."""
        return {}


def explain(form: Form, value: Any, path: str, use: Callable[[Form, Any], Any], reading: bool) -> list[str]:
    """Every problem of a value as `path: what was expected`; empty if `use(form, value)` works."""
    try:
        use(form, value)
    except RecursionError:
        return [f"{path}: nested too deeply, or contains itself"]
    except Exception as error:  # the exceptions of the user's own classes are an answer as well
        problems: list[str] = []
        for suffix, part, inner in form.parts(value, reading):
            if isinstance(part, str):
                problems.append(f"{path}{suffix}: {part}")
            else:
                problems += explain(part, inner, path + suffix, use, reading)
        return problems or [f"{path}: {_complaint(form, value, error, reading)}"]
    return []


def _complaint(form: Form, value: Any, error: Exception, reading: bool) -> str:
    if isinstance(error, (OverflowError, UnicodeEncodeError)) and not reading:
        return f"{describe(value)} cannot be encoded: {error}"
    if form.constructs and not isinstance(error, Mismatch):
        return f"{type(error).__name__}: {error}"
    label = str(error) if isinstance(error, Mismatch) and str(error) else form.label
    if reading and form.read_label and label == form.label:
        label = form.read_label
    return f"expected {label}, got {describe(value)}"


# Leaves.


@define(eq=False, kw_only=True)
class LeafForm(Form):
    """A type with nothing inside."""

    json: dict[str, Any]

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """The JSON Schema of the plain data."""
        return dict(self.json)


def _exact_none(value: Any, _: Any = None) -> None:
    if value is not None:
        raise Mismatch


def _exact_bool(value: Any, _: Any = None) -> Any:
    if value is True or value is False:
        return value
    raise Mismatch


def _write_int(value: Any) -> Any:
    if value.__class__ is int:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)  # an IntEnum, for example
    raise Mismatch


def _read_int(value: Any, _: Any = None) -> Any:
    if value.__class__ is int:
        return value
    raise Mismatch


def _write_float(value: Any) -> Any:
    if value.__class__ is float:
        return value
    if isinstance(value, float):
        return float.__float__(value)
    return _read_float(value)


def _read_float(value: Any, _: Any = None) -> Any:
    if value.__class__ is float:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**53 and (abs(value) >= 2**1023 or int(float(value)) != value):
            raise Mismatch("float (this int has more digits than a float holds)")
        return float(value)
    raise Mismatch


def _write_str(value: Any) -> Any:
    if value.__class__ is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise Mismatch


def _read_str(value: Any, _: Any = None) -> Any:
    if value.__class__ is str:
        return value
    raise Mismatch


def _exact_bytes(value: Any, _: Any = None) -> Any:
    if value.__class__ is bytes:
        return value
    raise Mismatch


def _text_functions(
    cls: type, to_text: Callable[[Any], str], from_text: Callable[[str], Any]
) -> tuple[Write, Read]:
    def write(value: Any) -> str:
        # A datetime is a date to Python; stored as one it would lose its time.
        if isinstance(value, cls) and not (cls is datetime.date and isinstance(value, datetime.datetime)):
            return to_text(value)
        raise Mismatch

    def read(value: Any, _: Any = None) -> Any:
        if value.__class__ is str:
            return from_text(value)
        raise Mismatch

    return write, read


def _read_datetime(text: str) -> datetime.datetime:
    if "T" not in text and " " not in text:
        raise Mismatch  # a date alone is not a moment
    return datetime.datetime.fromisoformat(text)


_TEXT_LEAVES: Final[dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any], str]]] = {
    datetime.datetime: ("ISO 8601", datetime.datetime.isoformat, _read_datetime, "date-time"),
    datetime.date: ("ISO 8601", datetime.date.isoformat, datetime.date.fromisoformat, "date"),
    datetime.time: ("ISO 8601", datetime.time.isoformat, datetime.time.fromisoformat, "time"),
    datetime.timedelta: (
        "ISO 8601 duration",
        msgspec.to_builtins,
        lambda text: msgspec.convert(text, datetime.timedelta),
        "duration",
    ),
    Decimal: ("decimal", str, Decimal, "decimal"),
    UUID: ("UUID", str, UUID, "uuid"),
}
_EXACT_LEAVES: Final[dict[type, tuple[Write, Read, frozenset[type], tuple[type, ...]]]] = {
    type(None): (_exact_none, _exact_none, frozenset({type(None)}), (type(None),)),
    bool: (_exact_bool, _exact_bool, frozenset({bool}), (bool,)),
    int: (_write_int, _read_int, frozenset({int}), (int,)),
    float: (_write_float, _read_float, frozenset({float, int}), (float, int)),
    str: (_write_str, _read_str, _TEXT, (str,)),
    bytes: (_exact_bytes, _exact_bytes, frozenset({bytes}), (bytes,)),
}


def leaf_form(cls: Any) -> LeafForm | None:
    """The form of a type with nothing inside; None if it is none."""
    if cls in _EXACT_LEAVES:
        write, read, wire, classes = _EXACT_LEAVES[cls]
        label = "None" if cls is type(None) else cls.__name__
        json = msgspec.json.schema(cls)
        return LeafForm(label=label, classes=classes, wire=wire, write=write, read=read, key=True, json=json)
    if cls in _TEXT_LEAVES:
        hint, to_text, from_text, json_format = _TEXT_LEAVES[cls]
        return _text_form(cls, hint, to_text, from_text, {"type": "string", "format": json_format})
    return None


def path_form(cls: type[PurePath]) -> LeafForm:
    """The form of a path class."""
    return _text_form(cls, "path", str, cls, {"type": "string"})


def _text_form(
    cls: type, hint: str, to_text: Callable[[Any], str], from_text: Callable[[str], Any], json: dict[str, Any]
) -> LeafForm:
    write, read = _text_functions(cls, to_text, from_text)
    name = cls.__name__
    return LeafForm(
        label=name, read_label=f"{name} as {hint} text", classes=(cls,), wire=_TEXT, write=write, read=read,
        key=True, json=json,
    )  # fmt: skip


def choices_form(label: str, values: list[tuple[Any, Any]], flag: type[Flag] | None = None) -> LeafForm:
    """The form of an enum or a Literal.

    Args:
        label: what a good value is called.
        values: each value with its plain data.
        flag: the class, where combinations of its members are values as well.
    """
    # Keyed by class as well: 1, 1.0 and True are the same key to a dict.
    plains: dict[tuple[type, Any], Any] = {(value.__class__, value): plain for value, plain in values}
    by_plain: dict[tuple[type, Any], Any] = {}
    for value, plain in values:
        by_plain.setdefault((plain.__class__, plain), value)

    def write(value: Any) -> Any:
        if flag is not None and value.__class__ is flag:
            return value.value
        try:
            return plains[value.__class__, value]
        except (KeyError, TypeError):
            raise Mismatch from None

    def read(value: Any, _: Any = None) -> Any:
        if flag is not None and value.__class__ is int:
            return flag(value)
        try:
            return by_plain[value.__class__, value]
        except (KeyError, TypeError):
            raise Mismatch from None

    wire = frozenset(plain.__class__ for _, plain in values) if flag is None else frozenset({int})
    json: dict[str, Any] = {"type": "integer"} if flag else {"enum": [plain for _, plain in by_plain]}
    expected = "one of " + ", ".join(repr(plain) for _, plain in values)
    classes = tuple(dict.fromkeys(value.__class__ for value, _ in values)) or ((flag,) if flag else ())
    return LeafForm(
        label=label or expected, read_label=expected, classes=classes, wire=wire, write=write, read=read,
        key=True, json=json,
    )  # fmt: skip


# Plain data.


def _plain(value: Any, _: Any = None) -> Any:
    cls = value.__class__
    if cls in _PLAIN_LEAVES:
        return value
    if cls is list:
        for item in value:
            _plain(item)
    elif cls is dict:
        for key, item in value.items():
            if key.__class__ not in _PLAIN_LEAVES:
                raise Mismatch
            _plain(item)
    else:
        raise Mismatch
    return value


@define(eq=False, kw_only=True)
class AnyForm(Form):
    """Plain data, passed as it is. Other values are refused, since they would come back as something else."""

    label: str = "plain data (None, bool, int, float, str, bytes, list, dict)"
    wire: frozenset[type] = _PLAIN_LEAVES | {list, dict}
    write: Write = _plain
    read: Read = _plain

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The items of a list or dict."""
        if value.__class__ is list:
            yield from ((f"[{index}]", self, item) for index, item in enumerate(value))
        elif value.__class__ is dict:
            for key, item in value.items():
                if key.__class__ not in _PLAIN_LEAVES:
                    yield f"[{key!r}]", f"expected a plain key, got {describe(key)}", key
                yield f"[{key!r}]", self, item


# Collections.


def _stable_order(items: list[Any]) -> list[Any]:
    """Sets have no order; their bytes must not depend on the process that writes them."""
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=msgspec.msgpack.encode)


@define(eq=False, kw_only=True)
class ManyForm(Form):
    """A list, set, deque or tuple of one type of item."""

    item: Form
    make: Callable[[list[Any]], Any]

    @classmethod
    def of(cls, label: str, item: Form, make: Any, classes: tuple[type, ...]) -> ManyForm:
        """The form of a collection.

        Args:
            label: the name of the collection type.
            item: the form of its items.
            make: a list of items to the collection.
            classes: the classes that are written.
        """
        unordered = make in (set, frozenset)
        accepted = frozenset(classes)
        write_item, read_item = item.late_write(), item.late_read()

        def write(value: Any) -> Any:
            if type(value) not in accepted:
                raise Mismatch
            if make is deque and value.maxlen is not None:
                raise Mismatch("deque without maxlen, which would be lost")
            plain = [write_item(inner) for inner in value]
            return _stable_order(plain) if unordered else plain

        def read(value: Any, _: Any = None) -> Any:
            if value.__class__ is not list and value.__class__ is not tuple:
                raise Mismatch
            items = [read_item(inner) for inner in value]
            return items if make is list else make(items)

        return cls(
            label=label,
            read_label="list",
            classes=classes,
            wire=_ARRAY,
            write=write,
            read=read,
            item=item,
            make=make,
        )

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The items."""
        if value.__class__ in (_ARRAY if reading else self.classes):
            yield from ((f"[{index}]", self.item, inner) for index, inner in enumerate(value))

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """An array; of unique items for a set."""
        unique = {"uniqueItems": True} if self.make in (set, frozenset) else {}
        return {"type": "array", "items": self.item.schema(definitions), **unique}


@define(eq=False, kw_only=True)
class TupleForm(Form):
    """A tuple with a type for each place, or a NamedTuple; stored as an array, so it can be a key."""

    items: tuple[Form, ...]
    names: tuple[str, ...]
    required: int

    @classmethod
    def of(
        cls, label: str, items: tuple[Form, ...], make: Any, names: tuple[str, ...] = (), optional: int = 0
    ) -> TupleForm:
        """The form of a tuple.

        Args:
            label: the name of the type.
            items: a form for each place.
            make: the places, in order, to the tuple.
            names: of the places, for a NamedTuple.
            optional: how many of the last places have defaults.
        """
        size, required = len(items), len(items) - optional
        own: Any = make if names else tuple
        writes = tuple(item.late_write() for item in items)
        reads = tuple(item.late_read() for item in items)

        def write(value: Any) -> Any:
            if value.__class__ is not own or len(value) != size:
                raise Mismatch
            return tuple([write_item(inner) for write_item, inner in zip(writes, value, strict=True)])

        def read(value: Any, _: Any = None) -> Any:
            if value.__class__ not in _ARRAY or not required <= len(value) <= size:
                raise Mismatch
            found = [read_item(inner) for read_item, inner in zip(reads, value, strict=False)]
            return make(*found) if names else tuple(found)

        return cls(
            label=label, read_label=f"list of {size}", classes=(own,), wire=_ARRAY, write=write, read=read,
            key=all(item.key for item in items), items=items, names=names, required=required,
        )  # fmt: skip

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The places."""
        if value.__class__ in (_ARRAY if reading else self.classes) and self.required <= len(value) <= len(
            self.items
        ):
            for index, (item, inner) in enumerate(zip(self.items, value, strict=False)):
                yield f".{self.names[index]}" if self.names else f"[{index}]", item, inner

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """An array of fixed places."""
        places = [item.schema(definitions) for item in self.items]
        return {"type": "array", "prefixItems": places, "minItems": self.required, "maxItems": len(places)}


@define(eq=False, kw_only=True)
class DictForm(Form):
    """A dict of one type of key and one type of value."""

    keys: Form
    values: Form

    @classmethod
    def of(cls, label: str, keys: Form, values: Form, make: Any) -> DictForm:
        """The form of a dict class: `make` turns pairs in a dict into the class itself."""
        write_key, read_key = keys.late_write(), keys.late_read()
        write_value, read_value = values.late_write(), values.late_read()

        def write(value: Any) -> Any:
            if value.__class__ is not make:
                raise Mismatch
            return {write_key(key): write_value(inner) for key, inner in value.items()}

        def read(value: Any, _: Any = None) -> Any:
            if value.__class__ is not dict:
                raise Mismatch
            found = {read_key(key): read_value(inner) for key, inner in value.items()}
            return found if make is dict else make(found)

        return cls(
            label=label,
            read_label="dict",
            classes=(make,),
            wire=_MAP,
            write=write,
            read=read,
            keys=keys,
            values=values,
        )

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The keys and the values."""
        if value.__class__ in (_MAP if reading else {dict, *self.classes}):
            for key, inner in value.items():
                yield f"[{key!r}] (the key)", self.keys, key
                yield f"[{key!r}]", self.values, inner

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """An object whose names are the keys as text."""
        return {"type": "object", "additionalProperties": self.values.schema(definitions)}
