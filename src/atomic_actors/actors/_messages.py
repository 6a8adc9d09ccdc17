"""What a message is: its base classes, its wire name, its reply type, and the entity it names.

A message is an attrs class or a dataclass that derives from `Command` or `Query`. Everything the
library wants to know about one is read once for each class into a frozen `MessageSpec`, and kept on
that class. Two things make the reading less simple than it looks:

* Slotted attrs classes and dataclasses are *rebuilt*: the class statement makes one class, the
  decorator makes another from its namespace, and `__init_subclass__` runs for both, the second time
  without the keywords. So the options are stored in the class's own namespace, which the rebuilt
  class takes over, and everything else is worked out on first use, when only the final class is left.
* Under `from __future__ import annotations` an annotation is a string, and its names may be defined
  further down in the module. So annotations are resolved on first use as well.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, get_args, get_origin

import attrs

from atomic_actors.base._annotations import (
    UNSAID,
    _substitute,
    generic_argument,
    is_type_variable,
    location_of,
    module_namespace,
    resolve_annotation,
)
from atomic_actors.base._errors import InvalidEntityId, InvalidHandler, UnknownMessageType
from atomic_actors.base._records import EntityRef, check_kind

# Type checkers know the default of a type variable; at run time an unsaid parameter is `UNSAID`.
if TYPE_CHECKING:
    from typing_extensions import TypeVar
else:
    from typing import TypeVar

__all__ = (
    "Command",
    "EntityId",
    "Message",
    "MessageSpec",
    "Query",
    "RawMessage",
    "check_message_name",
    "is_message_class",
    "is_query",
    "message_name",
    "message_spec",
    "reply_type_of",
    "target_of",
    "wire_name_of",
)

if TYPE_CHECKING:
    ReplyT_co = TypeVar("ReplyT_co", covariant=True, default=Any)
else:
    ReplyT_co = TypeVar("ReplyT_co", covariant=True)

MAX_NAME_BYTES: Final = 256

_DECLARED: Final = "__atomic_actors_declared__"
_SPEC: Final = "__atomic_actors_spec__"
_TARGET: Final = "__atomic_actors_target__"


def check_message_name(name: object, location: str) -> None:
    """Raise `InvalidHandler` unless `name` can be a wire name.

    A wire name is 1 to 256 bytes of text without control characters and without `=`, which the
    store's records use to separate names from their properties; `*` stands for every other name.
    """
    if not isinstance(name, str):
        raise InvalidHandler(f"{location}: name: expected str, got {type(name).__name__}")
    if not name or name == "*":
        raise InvalidHandler(
            f"{location}: name: {name!r} is not a valid message name; use one such as 'Deposit'"
        )
    if not name.isprintable() or "=" in name:
        raise InvalidHandler(f"{location}: name: {name[:40]!r} may hold neither '=' nor control characters")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise InvalidHandler(f"{location}: name: {name[:20]!r}... is longer than {MAX_NAME_BYTES} bytes")


class EntityId:
    """Marks the field of a message that holds the id of its entity.

    `account_id: Annotated[str, EntityId]` in a message that is declared with `kind="account"` lets
    `ask(message)` and `tell(message)` find the entity themselves.
    """


@attrs.frozen
class _Declared:
    kind: str | None
    name: str | None


class Message(Generic[ReplyT_co]):
    """The base of `Command` and `Query`; the parameter is the type of the reply.

    Class keywords:
        kind: the kind of entity it goes to, for messages that name their own target with an
            `EntityId` field. Subclasses inherit it.
        name: the wire name; by default the class name. Subclasses do not inherit it.
    """

    __slots__ = ()

    def __init_subclass__(cls, *, kind: str | None = None, name: str | None = None) -> None:
        super().__init_subclass__()
        if _DECLARED in vars(cls) and kind is None and name is None:
            return  # a rebuilt slotted class: its namespace has the options of the class statement
        location = location_of(cls)
        if kind is not None:
            try:
                check_kind(kind)
            except InvalidEntityId as error:
                raise InvalidHandler(f"{location}: {error}") from None
        if name is not None:
            check_message_name(name, location)
        inherited: _Declared | None = getattr(cls, _DECLARED, None)
        if kind is None and inherited is not None:
            kind = inherited.kind
        setattr(cls, _DECLARED, _Declared(kind, name))


class Command(Message[ReplyT_co]):
    """A message that may change its entity: `@frozen class Deposit(Command[int]): amount: int`.

    The parameter is the type of the reply; without one, any reply will do. Decorate the class with
    `@attrs.frozen` (or `@dataclass`).
    """

    __slots__ = ()


class Query(Message[ReplyT_co]):
    """A message that changes nothing: `@frozen class GetBalance(Query[int]): pass`.

    A query's handler is transactional unless declared otherwise, and fails with `QueryChangedState` if
    it changes the state or adds to the outbox.
    """

    __slots__ = ()


@attrs.frozen
class RawMessage(Message[Any]):
    """A message by its wire name, for entities whose message classes are not known here.

    Args:
        name: the wire name, such as `"ReserveStock"`.
        payload: plain data: None, bool, int, float, str, bytes, list, dict.

    Raises:
        InvalidHandler: the name is empty, too long, or has characters that a name may not have.
    """

    name: str
    payload: Any = None

    def __attrs_post_init__(self) -> None:
        check_message_name(self.name, "RawMessage")


@attrs.frozen(kw_only=True)
class MessageSpec:
    """Everything there is to know about a message class."""

    cls: type[Message[Any]]
    #: The wire name.
    name: str
    #: The reply's type, resolved; `Any` where none was given.
    reply_type: Any
    query: bool
    #: The kind that `kind=` named, or None for a message that is sent to an entity by reference.
    kind: str | None
    #: The field that holds the entity's id; always there where `kind` is, and only there.
    entity_id_field: str | None


# Annotations and type parameters.


# What a message class says.


def is_message_class(value: object) -> bool:
    """Whether `value` is a class that derives from `Message`."""
    return isinstance(value, type) and issubclass(value, Message)


def message_spec(cls: type[Message[Any]]) -> MessageSpec:
    """The spec of a message class; worked out once for each class.

    Raises:
        InvalidHandler: the class is not a message, is neither an attrs class nor a dataclass, is
            both command and query, or is declared with `kind=` but without exactly one `EntityId`
            field of type `str`.
    """
    spec: MessageSpec | None = vars(cls).get(_SPEC)
    if spec is None or spec.cls is not cls:  # a rebuilt class takes over the spec of the first one
        spec = _make_spec(cls)
        setattr(cls, _SPEC, spec)
    return spec


def message_name(cls: type[Message[Any]]) -> str:
    """The wire name of a message class: its class name, or the value of `name=`."""
    declared: _Declared | None = vars(cls).get(_DECLARED)
    return cls.__name__ if declared is None or declared.name is None else declared.name


def wire_name_of(message: Message[Any]) -> str:
    """The wire name of a message: a `RawMessage` carries its own, every other has that of its class."""
    return message.name if isinstance(message, RawMessage) else message_name(type(message))


def is_query(cls: type[Message[Any]]) -> bool:
    """Whether the class derives from `Query`."""
    return issubclass(cls, Query)


def reply_type_of(form: Any) -> Any:
    """The reply type of a message class, or of a generic one with its parameters, such as `Put[int]`.

    Raises:
        InvalidHandler: the reply type is given as a string that cannot be resolved.
    """
    found = generic_argument(form, Message)
    if found is UNSAID or is_type_variable(found):
        return Any
    parameters = getattr(found, "__parameters__", ())
    return _substitute(found, dict.fromkeys(parameters, Any))


def target_of(message: Message[Any]) -> EntityRef:
    """The entity that a message names itself, with `kind=` and its `EntityId` field.

    Raises:
        InvalidEntityId: the message names no entity, or the field's value is not an id.
        InvalidHandler: the message class is declared in a way that cannot work.
        UnknownMessageType: it is not a message.
    """
    target: tuple[str, str, Callable[[Any], Any]] | None = type(message).__dict__.get(_TARGET)
    if target is None:
        target = _make_target(message)
    kind, field, get_id = target
    try:
        return EntityRef(kind, get_id(message))
    except InvalidEntityId as error:
        raise InvalidEntityId(f"{location_of(type(message))}.{field}: {error}") from None


def _make_target(message: Message[Any]) -> tuple[str, str, Callable[[Any], Any]]:
    cls = type(message)
    if not is_message_class(cls):
        raise UnknownMessageType(
            f"{message!r} is not a message: expected an instance of a Command or a Query"
        )
    if cls is RawMessage:
        raise InvalidEntityId(
            "a RawMessage names no entity; give it before the message: EntityRef('warehouse', 'SKU-1'), message"
        )
    spec = message_spec(cls)
    if spec.kind is None or spec.entity_id_field is None:
        raise InvalidEntityId(
            f"{location_of(cls)} names no entity; give it before the message: EntityRef(kind, id), message; or "
            'declare the class with kind="..." and a field annotated Annotated[str, EntityId]'
        )
    target = (spec.kind, spec.entity_id_field, attrgetter(spec.entity_id_field))
    setattr(cls, _TARGET, target)
    return target


def _make_spec(cls: type[Message[Any]]) -> MessageSpec:
    location = location_of(cls)
    if not is_message_class(cls):
        raise InvalidHandler(f"{location} is not a message class; derive it from Command or Query")
    if cls in (Message, Command, Query):
        raise InvalidHandler(f"{cls.__name__} is a base of messages; derive a class from it and use that")
    if issubclass(cls, Command) and issubclass(cls, Query):
        raise InvalidHandler(f"{location} is both a Command and a Query; derive it from one of them")
    own = vars(cls)
    if "__attrs_attrs__" not in own and "__dataclass_fields__" not in own:
        raise InvalidHandler(
            f"{location}: a message is an attrs class or a dataclass; put @attrs.frozen above the class"
        )
    name = message_name(cls)
    check_message_name(name, location)
    declared: _Declared | None = own.get(_DECLARED)
    kind = None if declared is None else declared.kind
    return MessageSpec(
        cls=cls,
        name=name,
        reply_type=reply_type_of(cls),
        query=is_query(cls),
        kind=kind,
        entity_id_field=None if kind is None else _entity_id_field(cls, kind),
    )


def _entity_id_field(cls: type[Any], kind: str) -> str:
    location = location_of(cls)
    marked: list[tuple[str, Any]] = []
    unresolved: list[str] = []
    for name, annotation, owner in _annotated_fields(cls):
        try:
            resolved = resolve_annotation(annotation, module_namespace(owner), {owner.__name__: owner})
        except NameError as error:
            # Names behind `if TYPE_CHECKING` are fine in fields that hold no id.
            unresolved.append(f"{name} ({error})")
            continue
        resolved = getattr(resolved, "__value__", resolved)  # `type AccountId = Annotated[...]`
        if get_origin(resolved) is Annotated:
            base, *extras = get_args(resolved)
            if any(extra is EntityId or isinstance(extra, EntityId) for extra in extras):
                marked.append((name, base))
    if len(marked) == 1:
        name, base = marked[0]
        base = getattr(base, "__supertype__", base)  # NewType
        if isinstance(base, type) and issubclass(base, str):
            return name
        raise InvalidHandler(
            f"{location}.{name}: an entity's id is text; annotate it Annotated[str, EntityId]"
        )
    if marked:
        names = " and ".join(name for name, _ in marked)
        raise InvalidHandler(f"{location}: both {names} are marked EntityId; a message goes to one entity")
    hint = f"; could not resolve {', '.join(unresolved)}" if unresolved else ""
    raise InvalidHandler(
        f"{location}: kind={kind!r} needs a field that holds the entity's id; annotate one of them "
        f"Annotated[str, EntityId]{hint}"
    )


def _annotated_fields(cls: type[Any]) -> list[tuple[str, Any, type[Any]]]:
    """Every field with its annotation and the class whose module the annotation was written in."""
    fields: list[tuple[str, Any]]
    if attrs.has(cls):
        fields = [(field.name, field.type) for field in attrs.fields(cls)]
    else:
        fields = [(field.name, field.type) for field in dataclasses.fields(cls)]
    found: list[tuple[str, Any, type[Any]]] = []
    for name, annotation in fields:
        for owner in cls.__mro__:
            own = inspect.get_annotations(owner)
            if name in own:
                found.append((name, own[name], owner))
                break
        else:
            found.append((name, annotation, cls))
    return found
