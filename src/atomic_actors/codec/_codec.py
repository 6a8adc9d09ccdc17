"""Values to bytes and back: messages, replies, states and refusals.

Every type is worked out once into a tree of *forms* (`_forms`, `_classes`), one for each
type that is met inside. cattrs generates the functions that take classes apart and put them together;
msgspec turns plain data into MessagePack. Three rules hold everywhere:

* Strict: an int is not made from `"5"`, `5.7` or `True`; only a float takes an int. A value that would
  not come back as it was is refused when it is written, not discovered when it is read.
* The hot path only says "no". What was wrong, and where, is found afterwards by walking the same forms
  again (`explain`), so that good values pay nothing for the texts of bad ones.
* What is not known is ignored: extra fields of a newer writer do not stop an older reader.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections import Counter, OrderedDict, deque
from collections import abc as collections_abc
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from pathlib import PurePath
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin

import attrs
import msgspec
import typing_extensions

from atomic_actors.base._annotations import resolve_annotation
from atomic_actors.base._errors import InvalidPayload, InvalidState, Refused, UsageError
from atomic_actors.codec._classes import ClassField, ClassForm, TypedDictForm, union_form
from atomic_actors.codec._forms import (
    AnyForm,
    DictForm,
    Form,
    ManyForm,
    Mismatch,
    TupleForm,
    choices_form,
    describe,
    explain,
    leaf_form,
    path_form,
)

__all__ = ("Codec", "Coder")

_PROBLEMS_SHOWN: Final = 5
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

#: Label, what a list of items is made into, and what is written, for each collection.
_COLLECTIONS: Final[dict[Any, tuple[str, Any, tuple[type, ...]]]] = {
    list: ("list", list, (list,)),
    collections_abc.MutableSequence: ("list", list, (list,)),
    tuple: ("tuple", tuple, (tuple,)),
    collections_abc.Sequence: ("sequence", tuple, (tuple, list)),
    set: ("set", set, (set,)),
    collections_abc.MutableSet: ("set", set, (set,)),
    frozenset: ("frozenset", frozenset, (frozenset,)),
    collections_abc.Set: ("set", frozenset, (frozenset, set)),
    deque: ("deque", deque, (deque,)),
}
_DICTS: Final[dict[Any, tuple[str, Any]]] = {
    dict: ("dict", dict),
    collections_abc.Mapping: ("dict", dict),
    collections_abc.MutableMapping: ("dict", dict),
    OrderedDict: ("OrderedDict", OrderedDict),
    Counter: ("Counter", Counter),
}
_WRAPPERS: Final = tuple(
    getattr(module, name)
    for module in (typing, typing_extensions)
    for name in ("Annotated", "Final", "Required", "NotRequired", "ReadOnly")
    if hasattr(module, name)
)
_REMEDY: Final = (
    "store an attrs class or dataclass, None, bool, int, float, str, bytes, datetime, Decimal, UUID, Enum, "
    "Path, list, set, tuple or dict of such, and make the rest from it"
)


def _is_typed_dict(type_: Any) -> bool:
    return typing.is_typeddict(type_) or typing_extensions.is_typeddict(type_)


def _is_named_tuple(type_: Any) -> bool:
    return issubclass(type_, tuple) and hasattr(cast("Any", type_), "_fields")


def _name_of(type_: Any) -> str:
    origin: Any = get_origin(type_)
    if isinstance(type_, type) and origin is None:
        return type_.__name__
    return str(type_).replace("typing.", "")


def _bare(type_: Any) -> Any:
    """The type without what says nothing about the data: Annotated, Final, NewType, aliases."""
    while True:
        if get_origin(type_) in _WRAPPERS:
            type_ = get_args(type_)[0]
        elif hasattr(type_, "__supertype__"):
            type_ = type_.__supertype__
        elif hasattr(type_, "__value__") and not isinstance(type_, type):  # `type X = ...` of Python 3.12
            type_ = type_.__value__
        else:
            return type(None) if type_ is None else type_


def _fill(type_: Any, variables: Mapping[Any, Any]) -> Any:
    """The type with type variables replaced."""
    type_ = _bare(type_)
    if isinstance(type_, TypeVar):
        return variables.get(type_, type_)
    parameters = getattr(type_, "__parameters__", ())
    if get_origin(type_) is None or not parameters:
        return type_
    return type_[tuple(variables.get(parameter, parameter) for parameter in parameters)]


def _variables_of(type_: Any) -> dict[Any, Any]:
    """What a class and its bases put for their type variables."""
    origin: Any = get_origin(type_) or type_
    parameters = getattr(origin, "__parameters__", ())
    variables: dict[Any, Any] = dict(zip(parameters, get_args(type_), strict=False))
    for base in getattr(origin, "__orig_bases__", ()):
        if get_origin(base) is not None:
            for variable, filled in _variables_of(base).items():
                variables.setdefault(variable, _fill(filled, variables))
    return variables


class _Builder:
    """Works out the form of each type, once."""

    def __init__(self) -> None:
        self._forms: dict[Any, Form] = {}

    def root(self, type_: Any, path: str) -> Form:
        """The form of a type that is asked for from outside; raises as `form` does."""
        known = self._forms.get(_bare(type_))
        if known is not None:
            return known
        kept = dict(self._forms)
        try:
            return self.form(type_, path)
        except BaseException:
            self._forms = kept  # half a form must not be found by the next one who asks
            raise

    def form(self, type_: Any, path: str) -> Form:
        """The form of a type.

        Args:
            type_: any annotation.
            path: where it stands, for errors.

        Raises:
            UsageError: values of the type, or of one inside it, cannot be stored.
        """
        type_ = _bare(type_)
        try:
            known = self._forms.get(type_)
        except TypeError as error:
            raise UsageError(f"{path}: the type {_name_of(type_)} cannot be hashed") from error
        if known is None:
            known = self._forms[type_] = self._make(type_, path)
        return known

    def _make(self, type_: Any, path: str) -> Form:
        origin: Any = get_origin(type_) or type_
        arguments = get_args(type_)
        if type_ in (Any, object):
            return AnyForm()
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, path)
        if origin in (Literal, typing_extensions.Literal):
            return self._literal(arguments, path)
        if origin in _COLLECTIONS:
            return self._collection(origin, arguments, path)
        if origin in _DICTS:
            return self._dict(origin, arguments, path)
        if isinstance(type_, TypeVar):
            raise UsageError(f"{path}: {type_} is not bound to a type; give the class its type parameters")
        if isinstance(origin, type):
            made = leaf_form(origin) or self._make_class(type_, origin, path)
            if made is not None:
                return made
        raise UsageError(f"{path}: values of {_name_of(type_)} cannot be stored; {_REMEDY}")

    def _make_class(self, type_: Any, origin: Any, path: str) -> Form | None:
        if issubclass(origin, PurePath):
            return path_form(origin)
        if issubclass(origin, Enum):
            return self._enum(origin)
        if attrs.has(origin) or dataclasses.is_dataclass(origin):
            return self._class(type_, origin)
        if _is_typed_dict(origin):
            return self._typed_dict(type_, origin)
        if _is_named_tuple(origin):
            return self._named_tuple(type_, origin)
        return None

    def _enum(self, cls: type[Enum]) -> Form:
        if issubclass(cls, Flag):
            return choices_form(cls.__name__, [], cls)
        # Names stand in for values that are not plain text or numbers.
        by_value = all(member.value.__class__ in (str, int) for member in cls)
        return choices_form(cls.__name__, [(m, m.value if by_value else m.name) for m in cls])

    def _literal(self, values: tuple[Any, ...], path: str) -> Form:
        pairs: list[tuple[Any, Any]] = []
        for value in values:
            pairs.append(
                (value, self.form(type(value), path).write(value) if isinstance(value, Enum) else value)
            )
        if len({(plain.__class__, plain) for _, plain in pairs}) < len(pairs):
            raise UsageError(f"{path}: two values of this Literal look the same when stored")
        return choices_form("", pairs)

    def _union(self, arguments: tuple[Any, ...], path: str) -> Form:
        flat: list[Any] = []
        pending = list(arguments)
        while pending:
            argument = _bare(pending.pop(0))
            if get_origin(argument) in (typing.Union, types.UnionType):
                pending[:0] = get_args(argument)
            elif argument not in flat:
                flat.append(argument)
        if len(flat) == 2 and Any in flat and type(None) in flat:
            return AnyForm()
        return union_form(tuple(self.form(argument, path) for argument in flat), path)

    def _collection(self, origin: Any, arguments: tuple[Any, ...], path: str) -> Form:
        label, make, classes = _COLLECTIONS[origin]
        if origin is tuple and arguments and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            places = tuple(self.form(argument, f"{path}[{i}]") for i, argument in enumerate(arguments))
            return TupleForm.of(f"tuple of {len(places)}", places, tuple)
        item = self.form(arguments[0] if arguments else Any, f"{path}[]")
        if make in (set, frozenset) and not (item.key or isinstance(item, (AnyForm, ClassForm))):
            raise UsageError(f"{path}: a set cannot hold {item.label}; use list or tuple")
        return ManyForm.of(label, item, make, classes)

    def _dict(self, origin: Any, arguments: tuple[Any, ...], path: str) -> Form:
        label, make = _DICTS[origin]
        key_type = arguments[0] if arguments else Any
        value_type = int if make is Counter else arguments[1] if arguments else Any
        keys = self.form(key_type, f"{path}[] (the key)")
        if not (keys.key or isinstance(keys, AnyForm)):
            raise UsageError(
                f"{path}: {keys.label} cannot be the key of a stored dict; use str, int or a tuple of such"
            )
        return DictForm.of(label, keys, self.form(value_type, f"{path}[]"), make)

    def _typed_dict(self, type_: Any, cls: Any) -> Form:
        form = TypedDictForm(label=cls.__name__, classes=(dict,), wire=frozenset({dict}))
        self._forms[type_] = form
        variables = _variables_of(type_)
        fields: dict[str, tuple[Form, bool]] = {}
        for name, annotation in _annotations(cls, [(name, None) for name in cls.__annotations__]).items():
            # Where annotations are text, `__required_keys__` does not see the markers.
            required = name in cls.__required_keys__ and "NotRequired" not in str(get_origin(annotation))
            path = f"{cls.__name__}[{name!r}]"
            fields[name] = (self.form(_fill(annotation, variables), path), required)
        form.build(fields)
        return form

    def _named_tuple(self, type_: Any, cls: Any) -> Form:
        names: tuple[str, ...] = cls._fields
        variables = _variables_of(type_)
        resolved = _annotations(cls, [(name, None) for name in names])
        places = tuple(
            self.form(_fill(resolved[name], variables), f"{cls.__name__}.{name}") for name in names
        )
        return TupleForm.of(cls.__name__, places, cls, names, len(cls._field_defaults))

    def _class(self, type_: Any, cls: Any) -> Form:
        form = ClassForm(
            label=cls.__name__, name=cls.__name__, classes=(cls,), wire=frozenset({dict}), constructs=True
        )
        # Known before its fields are, so that a class may contain itself.
        self._forms[type_] = form
        found = _attrs_fields(cls) if attrs.has(cls) else _dataclass_fields(cls)
        resolved = _annotations(cls, [(name, annotation) for name, annotation, *_ in found])
        variables = _variables_of(type_)
        fields: list[ClassField] = []
        for name, _, alias, default, init, kw_only in found:
            inner = self.form(_fill(resolved[name], variables), f"{cls.__name__}.{name}")
            fields.append(
                ClassField(name=name, alias=alias, type=inner, default=default, init=init, kw_only=kw_only)
            )
        form.build(cls, tuple(fields))
        return form


def _own_annotations(cls: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", cast("dict[str, Any]", vars(cls)).get("__annotations__", {}))


def _annotations(cls: Any, fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """The resolved annotation of each field; each is read where the class that wrote it stands."""
    resolved: dict[str, Any] = {}
    for name, annotation in fields:
        bases: tuple[Any, ...] = getattr(cls, "__mro__", (cls,))
        owner = next((base for base in bases if name in _own_annotations(base)), cls)
        if annotation is None or isinstance(annotation, str):
            # What the class says now: public classes of this package have resolved annotations.
            annotation = _own_annotations(owner).get(name, annotation or Any)
        local_names = {base.__name__: base for base in reversed(bases)}
        global_names = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        try:
            resolved[name] = resolve_annotation(annotation, global_names, local_names)
        except NameError as error:
            raise UsageError(
                f"{cls.__name__}.{name}: the annotation {annotation!r} cannot be resolved: {error}; define it at the "
                f"top of the module, outside `if TYPE_CHECKING`"
            ) from None
    return resolved


def _is_frozen(cls: Any) -> bool:
    parameters = getattr(cls, "__dataclass_params__", None)
    return bool(parameters and parameters.frozen) or "frozen" in getattr(cls.__setattr__, "__name__", "")


def _attrs_fields(cls: Any) -> list[tuple[Any, ...]]:
    # What a frozen class does not take as an argument it works out itself.
    return [
        (a.name, a.type, a.alias, a.default, a.init, a.kw_only)
        for a in attrs.fields(cls)
        if a.init or not _is_frozen(cls)
    ]


def _dataclass_fields(cls: Any) -> list[tuple[Any, ...]]:
    fields: list[tuple[Any, ...]] = []
    for field in dataclasses.fields(cls):
        default: Any = attrs.NOTHING
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = attrs.Factory(field.default_factory)
        if field.init or not _is_frozen(cls):
            fields.append((field.name, field.type, field.name, default, field.init, field.kw_only))
    return fields


def _form_write(form: Form, value: Any) -> Any:
    return form.write(value)


def _form_encode(form: Form, value: Any) -> Any:
    return _encode(form.write(value))


def _form_read(form: Form, value: Any) -> Any:
    return form.read(value)


class Coder:
    """Encodes and decodes the values of one type.

    Args:
        form: how the type is stored.
        name: what an error path begins with.
    """

    __slots__ = ("_form", "_name", "_read", "_write")

    def __init__(self, form: Form, name: str) -> None:
        self._form = form
        self._name = name
        # Looked up once: these two are called for every message.
        self._write = form.write
        self._read = form.read

    def encode(self, value: Any) -> bytes:
        """A value as bytes.

        Raises:
            InvalidPayload: the value does not fit the type; the text carries the path of the bad field.
        """
        try:
            return _encode(self._write(value))
        except Exception as error:
            problem = _refusal(self._form, value, self._name, _form_encode, error, reading=False)
            raise problem from _cause(error)

    def decode(self, data: bytes) -> Any:
        """The value that `encode` made bytes of.

        Raises:
            InvalidPayload: the bytes do not fit the type; the text carries the path of the bad field.
        """
        try:
            plain = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
            raise InvalidPayload(f"{self._name}: the bytes are not valid MessagePack: {error}") from error
        try:
            return self._read(plain)
        except Exception as error:
            problem = _refusal(self._form, plain, self._name, _form_read, error, reading=True)
            raise problem from _cause(error)


class Codec:
    """Encodes and decodes values by their types. One for a process; it keeps what it worked out.

    The coder of each type is made once.
    """

    def __init__(self) -> None:
        self._builder = _Builder()
        self._coders: dict[Any, Coder] = {}

    def coder(self, type_: Any) -> Coder:
        """What encodes and decodes the values of a type.

        Raises:
            UsageError: values of this type cannot be stored; the text names the field.
        """
        try:
            return self._coders[type_]
        except KeyError:
            pass
        coder = self._coders[type_] = Coder(*self._form(type_))
        return coder

    def to_plain(self, value: Any, type_: Any) -> Any:
        """A value as plain data: None, bool, int, float, str, bytes, list, dict.

        Raises:
            InvalidPayload: the value does not fit `type_`; the text carries the path of the bad field.
            UsageError: values of this type cannot be stored.
        """
        form, name = self._form(type_)
        try:
            return form.write(value)
        except Exception as error:
            raise _refusal(form, value, name, _form_write, error, reading=False) from _cause(error)

    def from_plain(self, value: Any, type_: Any) -> Any:
        """A value of `type_` from plain data.

        Raises:
            InvalidPayload: the data does not fit `type_`; the text carries the path of the bad field.
            UsageError: values of this type cannot be stored.
        """
        form, name = self._form(type_)
        try:
            return form.read(value)
        except Exception as error:
            raise _refusal(form, value, name, _form_read, error, reading=True) from _cause(error)

    def check_round_trip(self, type_: Any) -> None:
        """Check that the default value of a state class survives encode and decode.

        Raises:
            InvalidState: the class is not constructible without arguments, cannot be stored, or comes back
                different; the text names the class and the field.
        """
        name = _label(type_)
        made_by: Any = get_origin(type_) or type_
        try:
            default = made_by()
        except Exception as error:
            raise InvalidState(
                f"{name}: must be constructible without arguments ({type(error).__name__}: {error}); give every field a default"
            ) from error
        try:
            coder = self.coder(type_)
            first = coder.encode(default)
            again = coder.decode(first)
            second = coder.encode(again)
        except UsageError as error:
            raise InvalidState(f"the default of the state cannot be stored: {error}") from error
        if first != second:
            form, _ = self._form(type_)
            raise InvalidState(_difference(form, default, again, name))

    def form(self, type_: Any) -> Form:
        """How values of a type are stored, as a tree; for those who make values rather than encode them.

        Raises:
            UsageError: values of this type cannot be stored; the text names the field.
        """
        return self._form(type_)[0]

    def json_schema(self, type_: Any) -> dict[str, Any]:
        """The JSON Schema of a type's plain data, with classes under `$defs`.

        bytes are described as JSON has them, as base64 text; MessagePack stores them as they are.

        Raises:
            UsageError: values of this type cannot be stored.
        """
        definitions: dict[str, Any] = {}
        schema = self._form(type_)[0].schema(definitions)
        for definition in definitions.values():
            del definition["x-class"]
        return {**schema, "$defs": definitions} if definitions else schema

    def encode_refusal(self, error: Refused) -> tuple[str, Any]:
        """The wire name and the plain fields of a refusal.

        Of an attrs class only its fields travel; of another, its text and `details`.

        Raises:
            InvalidPayload: a field has a value that does not fit its type, or `details` is not plain data.
            UsageError: values of a field's type cannot be stored.
        """
        cls = type(error)
        name = error.name if cls is Refused else cls.__name__
        if attrs.has(cls):
            return name, self.to_plain(error, cls)
        text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
        try:
            details = self.to_plain(error.details, Any)
        except InvalidPayload as problem:
            raise InvalidPayload(f"{name}.details: {str(problem).removeprefix('value: ')}") from problem
        return name, {"message": text, "details": details}

    def decode_refusal(self, name: str, fields: Any, classes: Mapping[str, type[Refused]]) -> Refused:
        """The refusal that a wire name and plain fields stand for.

        Args:
            name: the wire name.
            fields: what `encode_refusal` gave.
            classes: the refusals that are known here, by wire name.

        Returns:
            The same class; `Refused` with `name` and `details` where it is not known here or its
            fields are those of another version.
        """
        cls = classes.get(name)
        if cls is not None and attrs.has(cls):
            try:
                return cast("Refused", self.from_plain(fields, cls))
            except UsageError:
                return Refused(name=name, details=fields)
        text, details = "", fields
        if fields.__class__ is dict and set(fields) == {"message", "details"}:
            text, details = str(fields["message"]), fields["details"]
        if cls is not None and cls.__init__ is Refused.__init__:
            return cls(text, name=name, details=details)
        return Refused(text, name=name, details=details)

    def _form(self, type_: Any) -> tuple[Form, str]:
        name = _label(type_)
        return self._builder.root(type_, name), name


def _label(type_: Any) -> str:
    """What an error path begins with."""
    bare = _bare(type_)
    origin: Any = get_origin(bare) or bare
    for is_class in (attrs.has, dataclasses.is_dataclass, _is_typed_dict, _is_named_tuple):
        if isinstance(origin, type) and is_class(cast("Any", origin)):
            return str(cast("Any", origin).__name__)
    return "value"


def _cause(error: Exception) -> Exception | None:
    """What a text about a bad value follows from: an exception of the user's class, not our own "no"."""
    return None if isinstance(error, Mismatch) else error


def _refusal(
    form: Form, value: Any, name: str, use: Callable[[Form, Any], Any], error: Exception, *, reading: bool
) -> InvalidPayload:
    if isinstance(error, RecursionError):
        return InvalidPayload(f"{name}: nested too deeply, or contains itself")
    problems = explain(form, value, name, use, reading) or [f"{name}: {type(error).__name__}: {error}"]
    more = len(problems) - _PROBLEMS_SHOWN
    shown = "; ".join(problems[:_PROBLEMS_SHOWN])
    return InvalidPayload(f"{shown}; and {more} more" if more > 0 else shown)


def _difference(form: Form, before: Any, after: Any, path: str) -> str:
    for (suffix, part, old), (_, _, new) in zip(
        form.parts(before, False), form.parts(after, False), strict=False
    ):
        if isinstance(part, Form) and _form_encode(part, old) != _form_encode(part, new):
            return _difference(part, old, new, path + suffix)
    return f"{path}: the default {describe(before)} comes back as {describe(after)} after encode and decode"
