"""Hypothesis strategies for everything that the codec stores, made from the codec's own forms.

A form says how one type is stored (`_forms`), so what is made here is what can be sent: integers that
MessagePack holds, text without surrogates, no NaN, dict keys and set items that come back.

Types may contain themselves. Each form has a *height*: how many classes deep its smallest value is. A
strategy is made for a form and the room that is left for classes inside each other; where the room runs out,
collections are empty, unions take a member that fits, and fields that have a default keep it.
"""

from __future__ import annotations

import datetime
import functools
import math
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from enum import Enum, EnumType, Flag
from pathlib import PurePath
from typing import Any, Final, cast
from uuid import UUID

import attrs
import msgspec
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy

from atomic_actors.base._errors import UsageError
from atomic_actors.base._records import EntityRef
from atomic_actors.codec._classes import ClassField, ClassForm, TypedDictForm, UnionForm
from atomic_actors.codec._forms import AnyForm, DictForm, Form, LeafForm, ManyForm, TupleForm, describe

__all__ = ("FieldOverrides", "Overrides", "ValueStrategies", "entity_ids", "plain_data")

FieldOverrides = Mapping[str, SearchStrategy[Any]]
#: By a class, or by a name where there is no class: a strategy for it, or one for each of some fields.
Overrides = Mapping[Any, SearchStrategy[Any] | FieldOverrides]

#: How many classes deeper than its smallest value a value may be.
_EXTRA_DEPTH: Final = 2
#: Of a list, set, dict or the like; larger ones rarely find more.
_MAX_ITEMS: Final = 5
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1
_REFUSED_IN_IDS: Final = "".join(map(chr, range(32))) + "\x7f"
_ZONES: Final = (
    datetime.UTC,
    datetime.timezone(datetime.timedelta(hours=5, minutes=30)),
    datetime.timezone(datetime.timedelta(hours=-8)),
)


def _datetimes() -> SearchStrategy[datetime.datetime]:
    # A zone moves the first and the last hours of the calendar out of it.
    zoned = st.datetimes(
        datetime.datetime(2, 1, 1), datetime.datetime(9998, 12, 31), timezones=st.sampled_from(_ZONES)
    )
    return st.datetimes() | zoned


def _paths(cls: type[PurePath]) -> SearchStrategy[PurePath]:
    names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=8)
    relative = st.lists(names, max_size=3).map(lambda parts: cls(*parts))
    return relative | relative.map(lambda path: cls(path.root or "/") / path)


def _flags(cls: type[Flag]) -> SearchStrategy[Flag]:
    members = list(cls)

    def combine(chosen: list[Flag]) -> Flag:
        combined = cls(0)
        for member in chosen:
            combined |= member
        return combined

    return st.lists(st.sampled_from(members), max_size=len(members)).map(combine)


_LEAVES: Final[dict[type, Callable[[], SearchStrategy[Any]]]] = {
    type(None): st.none,
    bool: st.booleans,
    int: lambda: st.integers(_INT_MIN, _INT_MAX),
    float: lambda: st.floats(allow_nan=False),
    str: st.text,
    bytes: st.binary,
    datetime.datetime: _datetimes,
    datetime.date: st.dates,
    datetime.time: lambda: st.times() | st.times(timezones=st.sampled_from(_ZONES)),
    datetime.timedelta: st.timedeltas,
    Decimal: lambda: st.decimals(allow_nan=False),
    UUID: st.uuids,
}


@functools.cache
def _plain_leaves() -> SearchStrategy[Any]:
    return st.one_of([_LEAVES[cls]() for cls in (type(None), bool, int, float, str, bytes)])


@functools.cache
def entity_ids() -> SearchStrategy[str]:
    """Every sort of text that may be the id of an entity, not longer than 20 characters."""
    allowed = st.characters(exclude_categories=["Cs"], exclude_characters=_REFUSED_IN_IDS)
    return st.text(allowed, min_size=1, max_size=20)


@functools.cache
def entity_refs() -> SearchStrategy[EntityRef]:
    """Addresses of any kind."""
    kinds = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12)
    return st.builds(EntityRef, kinds, entity_ids())


@functools.cache
def plain_data() -> SearchStrategy[Any]:
    """What a field annotated with `Any` may hold: None, bool, int, float, str, bytes, list, dict."""
    return st.recursive(
        _plain_leaves(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )


def _is_empty_enum(cls: Any) -> bool:
    return isinstance(cls, EnumType) and not list(cls)


def _choices(form: LeafForm) -> list[Any] | None:
    """The values of an enum or a Literal; None for other forms."""
    if form.classes and _is_empty_enum(form.classes[0]):
        return []
    plains: list[Any] | None = form.json.get("enum")
    return None if plains is None else [form.read(plain) for plain in plains]


def _override_key(thing: Any) -> Any:
    # The forms of these know the name of their class and not the class.
    is_typed_dict = isinstance(thing, type) and hasattr(thing, "__total__")
    return thing.__name__ if is_typed_dict or _is_empty_enum(thing) else thing


def _by_key(overrides: Overrides) -> dict[Any, SearchStrategy[Any] | FieldOverrides]:
    return {_override_key(key): override for key, override in overrides.items()}


def _key_of(form: Form) -> Any:
    """What an override of this form is listed under; None where it cannot have one."""
    if isinstance(form, TypedDictForm):
        return form.label
    if isinstance(form, ClassForm) or (isinstance(form, TupleForm) and form.names):
        return form.classes[0]
    if isinstance(form, LeafForm) and (not form.classes or _is_empty_enum(form.classes[0])):
        return form.label
    # A Literal has the classes of its values and another label.
    if isinstance(form, LeafForm) and form.label in ("None", form.classes[0].__name__):
        return form.classes[0]
    return None


def _inside(form: Form) -> Iterable[Form]:
    match form:
        case ManyForm():
            return (form.item,)
        case TupleForm():
            return form.items
        case DictForm():
            return (form.keys, form.values)
        case ClassForm():
            return [each.type for each in form.fields]
        case TypedDictForm():
            return [inner for inner, _ in form.fields.values()]
        case UnionForm():
            return form.members
        case _:
            return ()


def _field_names(form: Form) -> tuple[str, ...]:
    match form:
        case ClassForm():
            return tuple(each.name for each in form.fields)
        case TypedDictForm():
            return tuple(form.fields)
        case TupleForm():
            return form.names
        case _:
            return ()


@define(eq=False)
class ValueStrategies:
    """Makes a strategy of each form.

    Args:
        overrides: strategies to use instead of those that are made here.
        plain: make the plain data that a value is stored as, and not the value.
    """

    overrides: dict[Any, SearchStrategy[Any] | FieldOverrides] = field(converter=_by_key)
    plain: bool = False
    #: The overrides that met something to override.
    used: set[Any] = field(factory=set[Any], init=False)
    _heights: dict[Form, float] = field(factory=dict[Form, float], init=False)
    _made: dict[tuple[Form, float], SearchStrategy[Any]] = field(
        factory=dict[tuple[Form, float], SearchStrategy[Any]], init=False
    )

    def values(self, form: Form, path: str) -> SearchStrategy[Any]:
        """The values of a form.

        Args:
            form: what the codec made of a type.
            path: what error texts begin with, such as the name of the class.

        Raises:
            UsageError: there are no values, or an override names a field that is not there.
        """
        self._learn(form)
        if self._heights[form] == math.inf:
            raise UsageError(self._no_end(form, path))
        return self._strategy(form, self._heights[form] + _EXTRA_DEPTH, path)

    def set_field(self, cls: type, name: str, strategy: SearchStrategy[Any]) -> None:
        """Make a field's values with a strategy, where the field and its class have no override."""
        given = self.overrides.get(cls, {})
        if not isinstance(given, SearchStrategy):
            self.overrides[cls] = {name: strategy, **given}

    def unused(self) -> list[Any]:
        """The overrides that nothing asked for."""
        return [key for key in self.overrides if key not in self.used]

    # Heights.

    def _learn(self, root: Form) -> None:
        """Find the heights of a form and of everything inside it."""
        found: dict[Form, None] = {}
        pending = [root]
        while pending:
            form = pending.pop()
            if form not in found:
                found[form] = None
                self._check_override(form)
                pending += _inside(form)
        self._heights.update(dict.fromkeys(found, math.inf))
        changed = True
        while changed:
            changed = False
            for form in found:
                height = self._height(form)
                if height < self._heights[form]:
                    self._heights[form], changed = height, True

    def _check_override(self, form: Form) -> None:
        override = self._override(form)
        if override is None:
            return
        self.used.add(_key_of(form))
        if isinstance(override, SearchStrategy):
            return
        names = _field_names(form)
        for name, strategy in override.items():
            if name not in names:
                there = ", ".join(names) or "none"
                raise UsageError(f"overrides: {form.label} has no field {name!r}; the fields are {there}")
            if not isinstance(cast("object", strategy), SearchStrategy):
                raise UsageError(
                    f"overrides: {form.label}.{name}: expected a Hypothesis strategy, got {describe(strategy)}"
                )

    def _height(self, form: Form) -> float:
        if isinstance(self._override(form), SearchStrategy):
            return 0
        match form:
            case TupleForm():
                return max((self._heights[item] for item in form.items), default=0)
            case UnionForm():
                return min(self._heights[member] for member in form.members)
            case ClassForm():
                needed = [each for each in form.fields if each.default is attrs.NOTHING]
                return 1 + max((self._field_height(form, each.name, each.type) for each in needed), default=0)
            case TypedDictForm():
                needed_items = [(name, inner) for name, (inner, needed) in form.fields.items() if needed]
                return 1 + max((self._field_height(form, *item) for item in needed_items), default=0)
            case LeafForm():
                return math.inf if _choices(form) == [] else 0
            case _:
                return 0

    def _field_height(self, form: Form, name: str, inner: Form) -> float:
        return 0 if name in self._fields(form) else self._heights[inner]

    def _no_end(self, form: Form, path: str) -> str:
        """Why a form has no values: the innermost class or enum inside it that has none."""
        seen: set[Form] = set()
        found, where = form, path
        while form not in seen:
            seen.add(form)
            if _key_of(form) is not None:
                found, where = form, path
            inside = list(_inside(form))
            names = _field_names(form) or [""] * len(inside)
            for name, inner in zip(names, inside, strict=True):
                if self._heights[inner] == math.inf and inner not in seen:
                    form, path = inner, f"{path}.{name}" if name else path
                    break
        why = "always contains itself" if _field_names(found) else "has no members"
        return (
            f"{where}: there are no values of {found.label}, because it {why}; give a strategy of your own: "
            f"overrides={{{found.label}: ...}}"
        )

    # Strategies.

    def _override(self, form: Form) -> SearchStrategy[Any] | FieldOverrides | None:
        key = _key_of(form)
        if key is EntityRef and key not in self.overrides:
            return entity_refs()
        return None if key is None else self.overrides.get(key)

    def _fields(self, form: Form) -> FieldOverrides:
        override = self._override(form)
        return {} if override is None or isinstance(override, SearchStrategy) else override

    def _fits(self, form: Form, room: float) -> bool:
        return self._heights[form] <= room

    def _strategy(self, form: Form, room: float, path: str) -> SearchStrategy[Any]:
        made = self._made.get((form, room))
        if made is None:
            override = self._override(form)
            given = override if isinstance(override, SearchStrategy) else None
            made = self._made[form, room] = self._make(form, room, path) if given is None else given
        return made

    def _make(self, form: Form, room: float, path: str) -> SearchStrategy[Any]:
        match form:
            case LeafForm():
                return self._leaf(form)
            case ManyForm():
                return self._many(form, room, path)
            case TupleForm():
                return self._tuple(form, room, path)
            case DictForm():
                return self._dict(form, room, path)
            case ClassForm():
                return self._class(form, room, path)
            case TypedDictForm():
                return self._typed_dict(form, room, path)
            case UnionForm():
                fitting = [member for member in form.members if self._fits(member, room)]
                # The simplest value comes first, because Hypothesis shrinks towards the first.
                fitting.sort(key=lambda member: (self._heights[member], member.classes != (type(None),)))
                return st.one_of([self._strategy(member, room, path) for member in fitting])
            case _:
                return plain_data()

    def _leaf(self, form: LeafForm) -> SearchStrategy[Any]:
        choices = _choices(form)
        cls = form.classes[0] if form.classes else None
        if choices is not None:
            made: SearchStrategy[Any] = st.sampled_from(choices)
        elif cls is not None and issubclass(cls, Flag):
            made = _flags(cls)
        elif cls is not None and issubclass(cls, PurePath):
            made = _paths(cls)
        else:
            made = _LEAVES[cast("type", cls)]()
        return made.map(form.write) if self.plain else made

    def _item(self, form: Form, room: float, path: str) -> SearchStrategy[Any]:
        """What may be the key of a dict or in a set: of plain data, no list and no dict."""
        return _plain_leaves() if isinstance(form, AnyForm) else self._strategy(form, room, path)

    def _many(self, form: ManyForm, room: float, path: str) -> SearchStrategy[Any]:
        if not self._fits(form.item, room):
            return st.builds(list if self.plain else form.make)
        unordered = form.make in (set, frozenset)
        if self.plain:
            unique = msgspec.msgpack.encode if unordered else None
            item = self._strategy(form.item, room, path)
            return st.lists(item, max_size=_MAX_ITEMS, unique_by=unique)
        if not unordered:
            items = st.lists(self._strategy(form.item, room, path), max_size=_MAX_ITEMS)
            return items if form.make is list else items.map(form.make)

        def collect(items: list[Any]) -> Any:
            try:
                return form.make(items)
            except TypeError as error:
                raise UsageError(
                    f"{path}: a {form.label} cannot hold {form.item.label}: {error}; give a strategy of your own "
                    f"with overrides=, or make the class hashable"
                ) from error

        return st.lists(self._item(form.item, room, path), max_size=_MAX_ITEMS).map(collect)

    def _tuple(self, form: TupleForm, room: float, path: str) -> SearchStrategy[Any]:
        own, cls = self._fields(form), form.classes[0]
        names = form.names or tuple(f"[{index}]" for index in range(len(form.items)))
        places = st.tuples(
            *(
                own[name] if name in own else self._strategy(item, room, f"{path}.{name}")
                for name, item in zip(names, form.items, strict=True)
            )
        )
        if self.plain:
            return places.map(list)
        return places.map(lambda values: cls(*values)) if form.names else places

    def _dict(self, form: DictForm, room: float, path: str) -> SearchStrategy[Any]:
        make = form.classes[0]
        if not (self._fits(form.keys, room) and self._fits(form.values, room)):
            return st.builds(dict if self.plain else make)
        keys = self._item(form.keys, room, path)
        found = st.dictionaries(keys, self._strategy(form.values, room, path), max_size=_MAX_ITEMS)
        return found if self.plain or make is dict else found.map(make)

    def _typed_dict(self, form: TypedDictForm, room: float, path: str) -> SearchStrategy[Any]:
        own = self._fields(form)
        required: dict[str, SearchStrategy[Any]] = {}
        optional: dict[str, SearchStrategy[Any]] = {}
        for name, (inner, needed) in form.fields.items():
            if name in own or self._fits(inner, room - 1):
                place = required if needed else optional
                given = own.get(name)
                place[name] = self._strategy(inner, room - 1, f"{path}.{name}") if given is None else given
        return st.fixed_dictionaries(required, optional=optional)

    def _class(self, form: ClassForm, room: float, path: str) -> SearchStrategy[Any]:
        own = self._fields(form)
        drawn: dict[str, SearchStrategy[Any]] = {}
        for each in form.fields:
            # Without room the default stays.
            if each.name in own:
                drawn[each.name] = own[each.name]
            elif self._fits(each.type, room - 1):
                drawn[each.name] = self._strategy(each.type, room - 1, f"{path}.{each.name}")
        fields = {each.name: each for each in form.fields}
        return st.fixed_dictionaries(drawn).map(lambda values: _construct(form, fields, values, path))


def _construct(
    form: ClassForm, fields: Mapping[str, ClassField], values: Mapping[str, Any], path: str
) -> Any:
    cls = form.classes[0]
    arguments = {fields[name].alias: value for name, value in values.items() if fields[name].init}
    try:
        made = cls(**arguments)
    except HypothesisException:
        raise
    except Exception as error:  # whatever a constructor of the user's raises
        remedy = ", ".join(f"{name!r}: ..." for name in values)
        raise UsageError(
            f"{path}: {form.name} refuses {_shown(arguments)} ({type(error).__name__}: {error}); say what its fields "
            f"may hold: overrides={{{form.name}: {{{remedy}}}}}"
        ) from error
    for name, value in values.items():
        if not fields[name].init and not hasattr(made, name):
            setattr(made, name, value)
    return made


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(_each_shown(arguments))


def _each_shown(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        yield f"{name}={value.name if isinstance(value, Enum) else describe(value)}"
