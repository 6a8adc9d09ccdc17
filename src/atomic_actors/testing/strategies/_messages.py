"""Hypothesis strategies of the messages that actors take, and of the entities that they go to.

    @given(messages(Account))
    def test_whatever_comes(message: Message[Any]) -> None: ...

What a strategy makes is what can be sent: it comes back from the store as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, TypeVar, cast, get_origin, overload

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from atomic_actors.actors._declarations import ActorSource, declared_by, declared_options, globals_of
from atomic_actors.actors._messages import Message, RawMessage, is_message_class, message_name, message_spec
from atomic_actors.actors._specs import Actor, ActorLike, EntityKind, HandlerSpec, collect
from atomic_actors.base._annotations import UNSAID, location_of, resolve_annotation
from atomic_actors.base._errors import UsageError
from atomic_actors.base._records import EntityRef, check_kind
from atomic_actors.codec._codec import Codec
from atomic_actors.testing.strategies._values import Overrides, ValueStrategies, entity_ids, plain_data

__all__ = ("MessageSource", "entities", "messages")

MessageT = TypeVar("MessageT", bound=Message[Any])

MessageSource: TypeAlias = ActorLike | type[Message[Any]] | Callable[..., Any]

_NAME_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@attrs.frozen
class _Handled:
    """One sort of message: what is sent under one wire name."""

    #: `*` stands for every name that nothing else has.
    name: str
    #: The message class, with its parameters if it has some; what a handler by name wants; `Any` for plain data.
    payload_type: Any
    #: None for a message that is sent as a `RawMessage`.
    message_class: type[Message[Any]] | None


# Entities.


def entities(
    kind: str | type[Actor[Any]] | EntityKind[Any], ids: Iterable[str] | SearchStrategy[str] | None = None
) -> SearchStrategy[EntityRef]:
    """A strategy of the addresses of one kind's entities.

    `entities(Account, ids=["a", "b"])` makes two of them, so that messages meet in one entity.

    Args:
        kind: the kind's name, an actor class or an `EntityKind`.
        ids: the ids to choose from, or a strategy of ids; any text that can be an id where left out.

    Raises:
        InvalidEntityId: the kind or an id is not of the form that `EntityRef` asks for.
        UsageError: `ids` is empty.
    """
    if isinstance(kind, EntityKind):
        kind = kind.declared.kind
    elif not isinstance(kind, str):
        kind = declared_by(kind).kind
    check_kind(kind)
    name = kind
    if isinstance(ids, SearchStrategy):
        return ids.map(lambda entity_id: EntityRef(name, entity_id))
    if ids is None:
        return entity_ids().map(lambda entity_id: EntityRef(name, entity_id))
    refs = [EntityRef(name, entity_id) for entity_id in ([ids] if isinstance(ids, str) else ids)]
    if not refs:
        raise UsageError("ids: expected at least one id")
    return st.sampled_from(refs)


# Messages.


@overload
def messages(
    source: type[MessageT], /, *, overrides: Overrides | None = None
) -> SearchStrategy[MessageT]: ...
@overload
def messages(
    *sources: MessageSource | Iterable[MessageSource],
    only: Iterable[type[Message[Any]] | str] | None = None,
    overrides: Overrides | None = None,
) -> SearchStrategy[Message[Any]]: ...
def messages(
    *sources: MessageSource | Iterable[MessageSource],
    only: Iterable[type[Message[Any]] | str] | None = None,
    overrides: Overrides | None = None,
) -> SearchStrategy[Any]:
    """A strategy of the messages that something handles, as the types of their fields say.

    `messages(Account)` makes each of the messages that `Account` has a handler for;
    `messages(Account, only=[Deposit], overrides={Deposit: {"amount": st.integers(1, 100)}})` makes deposits of
    1 to 100. A handler by name gets a `RawMessage`. Messages for `@handler("*")` are made only where
    there are no others, or where `only=` names `"*"`.

    Args:
        sources: actor classes, `EntityKind`s, either with `.using(...)`, modules of such, handler functions, or
            message classes.
        only: the message classes or wire names to make; all of them where left out.
        overrides: by class, at any depth: a strategy for the whole class, or one for each of some fields. A
            message without a class is listed under its wire name; its strategy makes the payload.

    Raises:
        UsageError: there is nothing to make, a field's values cannot be made or sent (the text names
            the field), or `only` or `overrides` names what is not there. Drawing raises it where a
            constructor refuses what was made for it.
    """
    codec = Codec()
    given: list[MessageSource] = []
    for source in sources:
        # A generic class with its parameters can be iterated over, too.
        if isinstance(source, Iterable) and get_origin(source) is None and not isinstance(source, type):
            given += cast("Iterable[MessageSource]", source)
        else:
            given.append(cast("MessageSource", source))
    found = {handled.name: handled for source in given for handled in _handled_by(source)}
    values = ValueStrategies({} if overrides is None else overrides)
    chosen = _chosen(found, only)
    made = [_strategy_of(handled, values, codec, frozenset(found)) for handled in chosen]
    names = set(found)
    unused = [key for key in values.unused() if key not in names]
    if unused:
        shown = ", ".join(key if isinstance(key, str) else location_of(key) for key in unused)
        raise UsageError(
            f"overrides: no message that is made here has {shown}; look for it at `only=`, or remove it"
        )
    return st.one_of(made)


def _chosen(found: Mapping[str, _Handled], only: Iterable[type[Message[Any]] | str] | None) -> list[_Handled]:
    if only is None:
        named = [handled for name, handled in found.items() if name != "*"]
        if not (named or found):
            raise UsageError(
                "nothing handles a message; give an actor class with handlers, or message classes"
            )
        return named or list(found.values())
    if isinstance(only, str | type):
        raise UsageError(f"only: expected a list; write only=[{getattr(only, '__name__', repr(only))}]")
    chosen: list[_Handled] = []
    for thing in only:
        name = thing if isinstance(thing, str) else message_name(thing)
        if name not in found:
            raise UsageError(f"only: nothing handles {name}; there are {', '.join(sorted(found))}")
        chosen.append(found[name])
    if not chosen:
        raise UsageError("only: expected at least one message")
    return chosen


# What handles which messages.


def _handled_by(source: Any) -> list[_Handled]:
    if is_message_class(source):
        return [_Handled(message_spec(source).name, source, source)]
    if is_message_class(get_origin(source)):
        cls: type[Message[Any]] = get_origin(source)
        return [_Handled(message_spec(cls).name, source, cls)]
    if inspect.iscoroutinefunction(source):
        return [_handled_by_function(source)]
    specs = collect([bound_to_anything(source)])
    found: list[_Handled] = []
    for spec in specs.values():
        found += map(_handled, spec.handlers.values())
        found += [] if spec.fallback is None else [_handled(spec.fallback)]
    return found


def bound_to_anything(source: Any) -> Any:
    """An actor class or an `EntityKind` with something for whatever it needs; other things as they are."""
    target: object = source
    if isinstance(target, EntityKind) or (isinstance(target, type) and issubclass(target, Actor)):
        return ActorSource(source, _anything_for(source))
    return source


def _anything_for(source: Any) -> dict[str, None]:
    """Keywords for what an actor needs from outside: no actor is made here, so anything will do."""
    functions: list[tuple[Callable[..., Any], int]] = []
    if isinstance(source, EntityKind):
        functions += [(function, 2) for function, _ in source.functions]
        functions += [(function, 1) for function in source.hooks.values()]
    else:
        functions.append((source, 0))
    return {
        parameter.name: None
        for function, leading in functions
        for parameter in list(inspect.signature(function).parameters.values())[leading:]
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _handled(spec: HandlerSpec) -> _Handled:
    message_class = spec.message_type if is_message_class(spec.message_type) else None
    return _Handled(spec.name, spec.payload_type, message_class)


def _handled_by_function(function: Callable[..., Any]) -> _Handled:
    options = declared_options(function)
    annotation: Any = UNSAID
    if options is not None:
        annotation = options.annotation
    else:
        parameters = list(inspect.signature(function).parameters.values())[1:2]
        if parameters and parameters[0].annotation is not inspect.Parameter.empty:
            annotation = parameters[0].annotation
    location = location_of(function)
    if annotation is not UNSAID:
        try:
            annotation = resolve_annotation(annotation, globals_of(function))
        except (NameError, AttributeError) as error:
            raise UsageError(
                f"{location}: the annotation {annotation!r} cannot be resolved: {error}"
            ) from None
    message_class: Any = get_origin(annotation) or annotation
    if message_class is not RawMessage and is_message_class(message_class):
        return _Handled(message_spec(message_class).name, annotation, message_class)
    if options is None or options.name is None:
        raise UsageError(
            f"{location}: it does not declare which message it handles; give the actor class or the EntityKind instead"
        )
    raw = annotation is UNSAID or message_class is RawMessage
    return _Handled(options.name, Any if raw else annotation, None)


# Strategies.


def _strategy_of(
    handled: _Handled, values: ValueStrategies, codec: Codec, names: frozenset[str]
) -> SearchStrategy[Any]:
    if handled.message_class is not None:
        return _typed(handled, handled.message_class, values, codec)
    if handled.name == "*":
        free = st.text(_NAME_LETTERS, min_size=1, max_size=12).filter(lambda name: name not in names)
        return st.builds(RawMessage, free, _payload(handled, values, codec))
    name = handled.name
    return _payload(handled, values, codec).map(lambda payload: RawMessage(name, payload))


def _typed(
    handled: _Handled, cls: type[Message[Any]], values: ValueStrategies, codec: Codec
) -> SearchStrategy[Any]:
    id_field = message_spec(cls).entity_id_field
    if id_field is not None:
        # Any text fits the field, but not any text is the id of an entity.
        values.set_field(cls, id_field, entity_ids())
    return values.values(codec.form(handled.payload_type), cls.__name__)


def _payload(handled: _Handled, values: ValueStrategies, codec: Codec) -> SearchStrategy[Any]:
    """The plain data that a `RawMessage` carries."""
    override = values.overrides.get(handled.name)
    if isinstance(override, SearchStrategy):
        return override
    if override is not None:
        return st.fixed_dictionaries(dict(override))
    if handled.payload_type is Any:
        return plain_data()
    encode, decode = codec.coder(handled.payload_type).encode, codec.coder(Any).decode
    made = values.values(codec.form(handled.payload_type), handled.name)
    return made.map(lambda value: decode(encode(value)))
