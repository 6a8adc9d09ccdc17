"""Turns declarations into the frozen specs that the runtime reads.

`collect` runs once, when a system is made. It finds the handlers of every kind, resolves their
messages, checks everything that can be checked without a message, and answers with one `ActorSpec`
for each kind. What users write is in `_declarations`; it is imported from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeAlias, cast, get_origin

import attrs

from atomic_actors.actors._declarations import (
    Actor,
    ActorLike,
    ActorSource,
    Context,
    EntityKind,
    HandlerOptions,
    KindOptions,
    OnInterrupted,
    Outbox,
    Recovery,
    check_async,
    globals_of,
    handler,
)
from atomic_actors.actors._messages import Message, RawMessage, is_message_class, message_spec, reply_type_of
from atomic_actors.actors._origins import ClassOrigin, KindOrigin, Origin, handler_methods
from atomic_actors.base._annotations import (
    UNSAID,
    generic_argument,
    is_type_variable,
    location_of,
    resolve_annotation,
)
from atomic_actors.base._config import Config, KindSettings, settings_for
from atomic_actors.base._errors import InvalidConfig, InvalidHandler, InvalidState
from atomic_actors.base._lifecycle import InterruptionPolicy, InterruptionRules

__all__ = (
    "Actor",
    "ActorLike",
    "ActorSource",
    "ActorSpec",
    "Context",
    "EntityKind",
    "HandlerSpec",
    "KindOptions",
    "Outbox",
    "collect",
    "handler",
)

AsyncFunction: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POLICY_WORDS: Final = {
    "dead_letter": InterruptionPolicy.DEAD_LETTER,
    "retry": InterruptionPolicy.RETRY,
}


@attrs.frozen(eq=False, kw_only=True)
class HandlerSpec:
    """One handler, ready to be called."""

    #: The wire name, or `*` for what no other handler of the kind takes.
    name: str
    #: The message class, or the class that a by-name handler wants its payload as; None where there is
    #: no class: a raw handler, or a payload such as `dict[str, int]`.
    message_type: type[Any] | None
    #: What the payload is structured to before the call; `Any` leaves it as plain data.
    payload_type: Any
    #: The function wants a `RawMessage(name, payload)`, not the payload alone.
    raw: bool
    #: What the reply is encoded as.
    reply_type: Any
    query: bool
    transactional: bool
    #: What becomes of an interrupted turn; plays no part where `transactional` is true.
    policy: InterruptionPolicy
    #: With `InterruptionPolicy.METHOD`: called like `function`, answers Completed, Retry or Park.
    recover: Recovery | None
    #: 0 means unbounded.
    max_attempts: int
    #: Unbound: called with the instance (a free function: with the context) and the message.
    function: AsyncFunction
    #: A free function: its first argument is the `Context`.
    free: bool
    #: `module.Class.method`, for the texts of errors.
    location: str


@attrs.frozen(eq=False, kw_only=True)
class ActorSpec:
    """One kind, ready to run."""

    kind: str
    durable: bool
    #: The class of the state, which is constructible without arguments; None where there is no state.
    state_type: Any | None
    #: By wire name, without the fallback.
    handlers: Mapping[str, HandlerSpec]
    #: By the exact class of a message.
    by_type: Mapping[type[Any], HandlerSpec]
    #: The handler of `*`.
    fallback: HandlerSpec | None
    #: Makes the instance of an activation; None for a kind of free functions.
    make_instance: Callable[[], Any]
    #: Called with the instance (free functions: with the context); None where there is nothing to run.
    on_activate: AsyncFunction | None
    on_passivate: AsyncFunction | None
    #: What holds for the kind: the configuration's over the class's, nothing left open.
    settings: KindSettings
    #: The type of the payload by wire name, where a handler names one.
    message_types: Mapping[str, Any]
    #: `module.Class`, for the texts of errors.
    location: str

    def handler_for(self, name: str) -> HandlerSpec | None:
        """The handler of a wire name: its own, else the fallback, else None."""
        return self.handlers.get(name, self.fallback)

    def policy(self) -> str:
        """The stamps of all handlers, as steps carry them.

        A line feed, then one line for each name: `Deposit=tdc3`, `Ship=edc3`, `*=edc3`. `*` is always there: the fallback's stamp, else that of an effectful handler with the defaults.
        """
        stamps = {name: self._stamp(spec) for name, spec in self.handlers.items()}
        stamps["*"] = self._stamp(self.fallback)
        return "\n" + "".join(f"{name}={stamp.encode()}\n" for name, stamp in stamps.items())

    def _stamp(self, spec: HandlerSpec | None) -> InterruptionRules:
        return InterruptionRules(
            transactional=False if spec is None else spec.transactional,
            policy=InterruptionPolicy.DEAD_LETTER if spec is None else spec.policy,
            park_on_dead=self.settings.on_dead == "park",
            max_interruptions=self.settings.max_interruptions,
        )


def _by_type(handlers: Mapping[str, HandlerSpec]) -> Mapping[type[Any], HandlerSpec]:
    return MappingProxyType(
        {cls: spec for spec in handlers.values() if is_message_class(cls := cast("Any", spec.message_type))}
    )


# From what `actors=` lists to specs.


def collect(sources: Iterable[ActorLike], config: Config | None = None) -> dict[str, ActorSpec]:
    """The specs of everything that `Config(actors=...)` lists, by kind.

    Args:
        sources: actor classes, `EntityKind`s, either with `.using(...)`, and modules; of a module,
            the actor classes with handlers and the `EntityKind`s that are defined in it.
        config: decides what the kinds leave open, and takes precedence where its `kinds` has an entry; by
            default one of defaults.

    Raises:
        InvalidConfig: an item is none of these, two declare one kind, or keywords of `using` are
            missing or unknown.
        InvalidHandler: a handler or a message is declared in a way that cannot work.
        InvalidState: a state class is not constructible without arguments.
    """
    if isinstance(cast("object", sources), str | type | EntityKind | ActorSource | ModuleType):
        raise InvalidConfig(f"actors: expected a list; write actors=[{getattr(sources, '__name__', '...')}]")
    if not isinstance(cast("object", sources), Iterable):
        raise InvalidConfig(f"actors: expected a list of actor classes, got {type(sources).__name__}")
    config = Config() if config is None else config
    specs: dict[str, ActorSpec] = {}
    for index, source in enumerate(sources):
        where = f"actors[{index}]"
        for single in _expand(source, where):
            spec = _spec_of(single, where, config)
            other = specs.setdefault(spec.kind, spec)
            if other is not spec and other.location == spec.location:
                raise InvalidConfig(f"{where}: {spec.location} is listed twice; a kind is declared once")
            if other is not spec:
                raise InvalidConfig(
                    f"{where}: kind {spec.kind!r} is declared by both {other.location} and {spec.location}; "
                    "give one of them another kind"
                )
    return specs


def _expand(source: Any, where: str) -> list[ActorSource]:
    if isinstance(source, ActorSource):
        return [source]
    if isinstance(source, EntityKind) or _is_actor_class(source):
        return [ActorSource(cast("Any", source))]
    if isinstance(source, ModuleType):
        found = [ActorSource(value) for value in _scan(source)]
        if not found:
            raise InvalidConfig(f"{where}: module {source.__name__} defines no actor with a handler")
        return found
    if isinstance(source, Actor):
        name = type(cast("object", source)).__name__
        raise InvalidConfig(f"{where}: {name} is given as an instance; write {name}.using(...) or {name}")
    raise InvalidConfig(f"{where}: expected an Actor class, an EntityKind or a module, got {source!r}")


def _is_actor_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Actor) and value is not Actor


def _scan(module: ModuleType) -> list[Any]:
    """What the module itself defines; bases that are abstract, open or without handlers are not kinds."""
    found: dict[int, Any] = {}
    value: Any
    for value in vars(module).values():
        if isinstance(cast("object", value), EntityKind):
            own = value.module == module.__name__
        else:
            own = (
                _is_actor_class(value)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
                and not is_type_variable(generic_argument(value, Actor))
                and bool(handler_methods(value))
            )
        if own:
            found[id(value)] = value
    return list(found.values())


def _spec_of(source: ActorSource, where: str, config: Config) -> ActorSpec:
    target = source.target
    if isinstance(target, EntityKind):
        return _assemble(KindOrigin(target, source.keywords, where), config)
    return _assemble(ClassOrigin(target, source.keywords, where), config)


# From one kind's declarations to its spec.


def _assemble(origin: Origin, config: Config) -> ActorSpec:
    declared = origin.declared
    kind = declared.kind
    settings = settings_for(config, kind, declared.overrides)
    state_type = None if origin.state_type in (UNSAID, None, type(None)) else origin.state_type
    _check_state(state_type, origin.location)
    if not origin.functions:
        raise InvalidHandler(f"{origin.location} has no handler; put @handler above an async function")
    default: OnInterrupted = settings.on_interrupted
    if declared.recovery is not None:
        _find_policy(origin, declared.recovery, origin.location)
        override = config.kinds.get(kind)
        if override is None or override.on_interrupted is None:
            default = declared.recovery
    handlers: dict[str, HandlerSpec] = {}
    for function, options in origin.functions:
        spec = _handler_spec(function, options, origin, settings, default)
        other = handlers.setdefault(spec.name, spec)
        if other is not spec:
            _refuse_second(kind, other, spec)
    fallback = handlers.pop("*", None)
    for name, hook in origin.hooks.items():
        check_async(hook, location_of(hook), name)
    hooks = {name: origin.bind(hook) for name, hook in origin.hooks.items()}
    return ActorSpec(
        kind=kind,
        durable=declared.durable,
        state_type=state_type,
        handlers=MappingProxyType(handlers),
        by_type=_by_type(handlers),
        fallback=fallback,
        make_instance=origin.instance_maker(),
        on_activate=hooks.get("on_activate"),
        on_passivate=hooks.get("on_passivate"),
        settings=settings,
        message_types=MappingProxyType(
            {name: spec.payload_type for name, spec in handlers.items() if not spec.raw}
        ),
        location=origin.location,
    )


def _check_state(state_type: Any, location: str) -> None:
    if state_type is None:
        return
    try:
        state_type()
    except Exception as error:
        name = getattr(state_type, "__qualname__", repr(state_type))
        raise InvalidState(
            f"{location}: the state {name} must be constructible without arguments ({error}); give every field a default"
        ) from error


def _refuse_second(kind: str, first: HandlerSpec, second: HandlerSpec) -> None:
    both_typed = first.message_type is not None and second.message_type is not None
    if both_typed and first.message_type is not second.message_type:
        raise InvalidHandler(
            f"kind {kind!r}: {location_of(first.message_type)} (handled by {first.location}) and "
            f"{location_of(second.message_type)} (handled by {second.location}) have the same wire name "
            f"{first.name!r}; give one of them another with name="
        )
    raise InvalidHandler(
        f"kind {kind!r}: both {first.location} and {second.location} handle {first.name!r}; "
        "one message has one handler"
    )


def _handler_spec(
    function: Callable[..., Any],
    options: HandlerOptions,
    origin: Origin,
    settings: KindSettings,
    default: OnInterrupted,
) -> HandlerSpec:
    location = location_of(function)
    check_async(function, location, "a handler")
    _check_parameters(function, location, free=origin.free)
    handled = _what_it_handles(function, options, location)
    transactional = handled.query if options.transactional is None else options.transactional
    option = options.on_interrupted
    if transactional and option is not None:
        raise InvalidHandler(
            f"{location}: on_interrupted does not apply to a transactional handler, which is always run again; "
            "leave it out, or set transactional=False"
        )
    policy, recover = InterruptionPolicy.DEAD_LETTER, None
    if not transactional:
        policy, recover = _find_policy(origin, default if option is None else option, location)
    return HandlerSpec(
        name=handled.name,
        message_type=handled.message_type,
        payload_type=handled.payload_type,
        raw=handled.raw,
        reply_type=handled.reply_type,
        query=handled.query,
        transactional=transactional,
        policy=policy,
        recover=recover,
        max_attempts=settings.max_attempts if options.max_attempts is None else options.max_attempts,
        function=origin.bind(function),
        free=origin.free,
        location=location,
    )


def _check_parameters(function: Callable[..., Any], location: str, *, free: bool) -> None:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    first_two, others = parameters[:2], parameters[2:]
    expected = "(context, message, ...)" if free else "(self, message)"
    if len(first_two) < 2 or any(p.kind not in _POSITIONAL for p in first_two):
        raise InvalidHandler(f"{location}: expected the parameters {expected}, got {signature}")
    if not free and any(p.default is p.empty and p.kind not in _VARIADIC for p in others):
        raise InvalidHandler(
            f"{location}: expected the parameters {expected}, got {signature}; what a handler needs from outside "
            "comes through the constructor: list the class with .using(...)"
        )
    if free and any(p.kind is p.POSITIONAL_ONLY for p in others):
        raise InvalidHandler(
            f"{location}: using(...) fills parameters by name; take the '/' out of {signature}"
        )


def _find_policy(
    origin: Origin, option: OnInterrupted, location: str
) -> tuple[InterruptionPolicy, Recovery | None]:
    if isinstance(option, str):
        if option in _POLICY_WORDS:
            return _POLICY_WORDS[option], None
        method = origin.find_method(option)
        if method is None:
            raise InvalidHandler(
                f"{location}: on_interrupted={option!r} is neither 'dead_letter' nor 'retry' nor a method of "
                f"{origin.location}"
            )
    else:
        method = option
    method_location = location_of(method)
    check_async(method, method_location, "an on_interrupted method")
    _check_parameters(method, method_location, free=origin.free)
    return InterruptionPolicy.METHOD, cast("Recovery", origin.bind(method))


@attrs.frozen(kw_only=True)
class _Handled:
    name: str
    message_type: type[Any] | None
    payload_type: Any
    raw: bool
    reply_type: Any
    query: bool


def _what_it_handles(function: Callable[..., Any], options: HandlerOptions, location: str) -> _Handled:
    annotation = options.annotation
    if annotation is not UNSAID:
        try:
            annotation = resolve_annotation(annotation, globals_of(function))
        except (NameError, AttributeError) as error:
            raise InvalidHandler(
                f"{location}: the annotation {annotation!r} of its message cannot be resolved: {error}; define it "
                "at the top of a module, and import it outside `if TYPE_CHECKING`"
            ) from None
    origin = get_origin(annotation) or annotation
    if annotation is UNSAID or origin is RawMessage:
        if options.name is None:
            raise InvalidHandler(
                f"{location}: it does not declare which message it handles; annotate `message` with a message class, "
                'or name one: @handler("ReserveStock")'
            )
        return _Handled(
            name=options.name, message_type=None, payload_type=Any, raw=True, reply_type=Any, query=False
        )
    if is_message_class(origin):
        return _typed(annotation, origin, options.name, location)
    if options.name is None:
        raise InvalidHandler(
            f"{location}: {_text(annotation)} is not a message class; derive it from Command or Query, "
            'or name the message: @handler("ReserveStock")'
        )
    message_type = origin if isinstance(origin, type) and origin is annotation else None
    return _Handled(
        name=options.name,
        message_type=message_type,
        payload_type=annotation,
        raw=False,
        reply_type=Any,
        query=False,
    )


def _typed(annotation: Any, cls: type[Message[Any]], name: str | None, location: str) -> _Handled:
    try:
        spec = message_spec(cls)
    except InvalidHandler as error:
        raise InvalidHandler(f"{location}: {error}") from None
    if name is not None and name != spec.name:
        raise InvalidHandler(
            f"{location}: @handler({name!r}) takes {location_of(cls)}, whose wire name is {spec.name!r}; leave the "
            f"name out, or declare the class with name={name!r}"
        )
    reply_type = spec.reply_type if annotation is cls else reply_type_of(annotation)
    return _Handled(
        name=spec.name,
        message_type=cls,
        payload_type=annotation,
        raw=False,
        reply_type=reply_type,
        query=spec.query,
    )


def _text(annotation: Any) -> str:
    return location_of(annotation) if isinstance(annotation, type) else str(annotation)
