"""What users write to declare actors: `Actor`, `EntityKind`, `handler`, and what a turn works with.

Declaring does little: decorators and class keywords only record the options, because slotted
classes are rebuilt and messages may be defined further down in the module. `_actor.collect` does the
rest, once, when a system is made. Users import these names from `atomic_actors`, and the package
imports them from `_specs`.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)

import attrs

from atomic_actors.actors._messages import Message, check_message_name
from atomic_actors.base._annotations import UNSAID, location_of, resolve_annotation
from atomic_actors.base._config import KindConfig
from atomic_actors.base._errors import (
    InvalidConfig,
    InvalidEntityId,
    InvalidHandler,
    OutboxLimitExceeded,
    UnknownMessageType,
)
from atomic_actors.base._records import Completed, EntityRef, Park, Retry, check_kind

# Type checkers know the default of a type variable; at run time a plain `Actor` has no parameter.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    StateT = TypeVar("StateT", default=None)
else:
    from typing import TypeVar

    StateT = TypeVar("StateT")

__all__ = (
    "Actor",
    "ActorLike",
    "ActorSource",
    "Context",
    "Declared",
    "EntityKind",
    "HandlerOptions",
    "KindOptions",
    "OnInterrupted",
    "Outbox",
    "Recovery",
    "check_async",
    "declared_by",
    "declared_options",
    "globals_of",
    "handler",
    "listed",
    "split_policy",
)

R = TypeVar("R")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
MessageT = TypeVar("MessageT")
MethodT = TypeVar("MethodT", bound="Callable[[Any, Any], Coroutine[Any, Any, Any]]")

Recovery: TypeAlias = "Callable[..., Coroutine[Any, Any, Completed[Any] | Retry | Park]]"
OnInterrupted: TypeAlias = "Literal['dead_letter', 'retry'] | str | Recovery"

DECLARED: Final = "__atomic_actors_declared__"
HANDLES: Final = "__atomic_actors_handles__"
_WORD_STARTS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


# What a turn works with.


class Outbox:
    """The messages that leave with the commit of this turn, and only with it.

    Invariant: never more than `limit` entries, unless `limit` is 0.

    Args:
        limit: the most messages of one turn (`max_outbox_messages`); 0 means unbounded.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int = 0) -> None:
        self._entries: list[tuple[EntityRef, Message[Any]]] = []
        self._limit = limit

    def add(self, entity: EntityRef, message: Message[Any]) -> None:
        """Send `message` to `entity` if and when this turn commits; dropped if it does not.

        Raises:
            OutboxLimitExceeded: the turn has added `max_outbox_messages` already.
            InvalidEntityId: `entity` is not an `EntityRef`.
            UnknownMessageType: `message` is not an instance of a message class.
        """
        if not isinstance(cast("object", entity), EntityRef):
            raise InvalidEntityId(
                f"entity: expected an EntityRef such as Account.ref('a-42'), got {entity!r}"
            )
        if not isinstance(cast("object", message), Message):
            raise UnknownMessageType(
                f"{message!r} is not a message: expected an instance of a Command or a Query"
            )
        if 0 < self._limit <= len(self._entries):
            raise OutboxLimitExceeded(
                f"the turn has {self._limit} messages in its outbox; raise max_outbox_messages, or split the work"
            )
        self._entries.append((entity, message))

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[EntityRef, Message[Any]]]:
        return iter(self._entries)

    def __repr__(self) -> str:
        return f"<Outbox {len(self._entries)} of {self._limit or 'any number of'} messages>"


class Context(ABC, Generic[StateT]):
    """The turn that is running: `self.context` in a method, the first argument of a free function."""

    # Type checkers would take it to mean that no code may assign `context.state`.
    if not TYPE_CHECKING:
        __slots__ = ()

    #: The entity whose turn this is.
    entity: EntityRef
    #: `kind/id/<uuid7>` of the message; the same in every attempt.
    message_id: str
    #: 1 in the first attempt.
    attempt: int
    #: When the turn is cancelled, on the clock of `anyio.current_time()`; infinity for never.
    deadline: float
    #: Grows with every change of owner. Hand it to outside systems that can refuse a lower one.
    fencing_token: int
    #: The same in every attempt. Hand it to outside systems that drop what they have seen before.
    idempotency_key: str
    #: The entity's state, for free functions; the same object as a method's `self.state`.
    state: StateT
    #: What leaves with the commit; the same object as a method's `self.outbox`.
    outbox: Outbox

    @abstractmethod
    async def ask(self, entity: EntityRef, message: Message[R]) -> R:
        """Ask another entity and wait for its reply; the message leaves at once, commit or not.

        Deadline and path are inherited. The id of the message derives from this turn's message,
        attempt and the ordinal of the ask.

        Raises:
            AskCycle: the entity waits, directly or not, for this turn.
            TooManyHops: the chain of asks is longer than `max_hops`.
            AskTimeout: no reply before the deadline.
            NotSupported: the handler is transactional.
        """

    @abstractmethod
    def start_soon(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """Run `function(*args)` beside the handler; it ends before the turn commits."""


# Declared options: of a decorator, of a class statement.


class KindOptions(TypedDict, total=False):
    """The options of a kind, as class keywords of an `Actor` and as keywords of an `EntityKind`.

    `durable=False` makes a volatile kind: memory only, nothing is written. `on_interrupted` may also
    be an async method or its name. All others mean what the `KindConfig` field of the same name means.
    """

    durable: bool
    on_interrupted: OnInterrupted | None
    idle_timeout_s: float | None
    max_depth: int | None
    max_attempts: int | None
    backoff: Literal["exponential", "fixed"] | None
    backoff_initial_s: float | None
    backoff_max_s: float | None
    backoff_jitter: float | None
    max_interruptions: int | None
    on_dead: Literal["continue", "park"] | None
    turn_timeout_s: float | None
    max_run_length: int | None


@attrs.frozen
class Declared:
    """The options of a class statement or an `EntityKind(...)`.

    Invariant: at most one of `overrides.on_interrupted` and `recovery` is set.
    """

    kind: str
    durable: bool
    overrides: KindConfig
    #: A method, or its name, that decides about interrupted turns.
    recovery: str | Recovery | None


def listed(names: Iterable[str]) -> str:
    """Names for the text of an error: `'a', 'b'`."""
    return ", ".join(repr(name) for name in names)


def split_policy(
    option: Any, location: str
) -> tuple[Literal["dead_letter", "retry"] | None, str | Recovery | None]:
    """Tell a policy's word from a method or the name of one."""
    if option is None or option == "dead_letter" or option == "retry":
        return option, None
    if isinstance(option, str) or callable(option):
        return None, cast("str | Recovery", option)
    raise InvalidHandler(
        f"{location}: on_interrupted: expected 'dead_letter', 'retry', or a method or its name, got {option!r}"
    )


def _declare(location: str, kind: str, options: Mapping[str, Any], base: Declared | None) -> Declared:
    known = [field.name for field in attrs.fields(KindConfig)]
    unknown = sorted(set(options) - {"durable", *known})
    if unknown:
        raise InvalidHandler(
            f"{location}: unknown option {listed(unknown)}; there are kind, durable, {', '.join(known)}"
        )
    word, recovery = split_policy(options.get("on_interrupted"), location)
    given = {name: value for name, value in options.items() if name != "durable" and value is not None}
    given.pop("on_interrupted", None)
    durable = options.get("durable", True if base is None else base.durable)
    if not isinstance(durable, bool):
        raise InvalidHandler(f"{location}: durable: expected True or False, got {durable!r}")
    try:
        check_kind(kind)
        if base is None:
            return Declared(kind, durable, KindConfig(**given, on_interrupted=word), recovery)
        if word is not None or recovery is not None:
            return Declared(
                kind, durable, attrs.evolve(base.overrides, **given, on_interrupted=word), recovery
            )
        return Declared(kind, durable, attrs.evolve(base.overrides, **given), base.recovery)
    except (InvalidEntityId, InvalidConfig) as error:
        raise InvalidHandler(f"{location}: {error}") from None


@attrs.frozen(kw_only=True)
class HandlerOptions:
    """The options of a handler decorator."""

    name: str | None
    transactional: bool | None
    on_interrupted: OnInterrupted | None
    max_attempts: int | None
    #: The annotation of the message, resolved as far as it could be where the function was written.
    annotation: Any = UNSAID


def _options(
    function: Callable[..., Any],
    name: str | None,
    *,
    transactional: bool | None,
    on_interrupted: OnInterrupted | None,
    max_attempts: int | None,
    local_names: Mapping[str, Any],
) -> HandlerOptions:
    location = location_of(function)
    if isinstance(function, staticmethod | classmethod) or not callable(function):
        raise InvalidHandler(
            f"{location}: @handler goes above a plain async function, or takes the name of a message"
        )
    check_async(function, location, "a handler")
    if name is not None and name != "*":
        check_message_name(name, location)
    split_policy(on_interrupted, location)
    try:
        KindConfig(max_attempts=max_attempts)  # the same rule as for a whole kind
    except InvalidConfig as error:
        raise InvalidHandler(f"{location}: {error}") from None
    annotation = UNSAID
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) > 1 and parameters[1].annotation is not inspect.Parameter.empty:
        annotation = parameters[1].annotation
        # A name that is defined further down in the module waits for `collect`.
        with suppress(NameError, AttributeError):
            annotation = resolve_annotation(annotation, globals_of(function), local_names)
    return HandlerOptions(
        name=name,
        transactional=transactional,
        on_interrupted=on_interrupted,
        max_attempts=max_attempts,
        annotation=annotation,
    )


def check_async(function: Any, location: str, what: str) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidHandler(f"{location}: {what} returns one value; it must not yield")
    if not inspect.iscoroutinefunction(function):
        raise InvalidHandler(
            f"{location}: {what} must be written `async def`; run blocking work inside it with "
            "`await anyio.to_thread.run_sync(...)`"
        )


def globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", getattr(inspect.unwrap(function), "__globals__", {}))


def _names_at_the_decorator() -> dict[str, Any]:
    """Local names where the decorator stands, so that messages may be defined inside a function.

    Called by a decorator; looks at the decorator's caller, through class bodies to the function
    around them.
    """
    frame = inspect.currentframe()
    for _ in range(2):
        frame = None if frame is None else frame.f_back
    names: dict[str, Any] = {}
    while frame is not None and frame.f_locals is not frame.f_globals:
        here = dict(frame.f_locals)
        names = {**here, **names}
        if not ("__module__" in here and "__qualname__" in here):
            break
        frame = frame.f_back
    return names


@overload
def handler(function: MethodT, /) -> MethodT: ...
@overload
def handler(
    name: str | None = None,
    /,
    *,
    transactional: bool | None = None,
    on_interrupted: OnInterrupted | None = None,
    max_attempts: int | None = None,
) -> Callable[[MethodT], MethodT]: ...
def handler(
    target: Any = None,
    /,
    *,
    transactional: bool | None = None,
    on_interrupted: OnInterrupted | None = None,
    max_attempts: int | None = None,
) -> Any:
    """Make an async method handle the message that its parameter is annotated with.

    `@handler` stands alone, or takes a wire name and options: `@handler("ReserveStock")` handles
    that name, `@handler("*")` every name that nothing else handles. With a name, `message` is a
    `RawMessage`, or the payload structured to the type that the parameter is annotated with.

    Args:
        target: the method, or a wire name.
        transactional: every effect is in the commit, so an interrupted turn may be run again and
            consecutive ones may be committed together. By default so for queries only.
        on_interrupted: what becomes of a turn that was cut off and is not transactional:
            `"dead_letter"`, `"retry"`, or an async method (or its name) that takes the message and
            answers `Completed(reply)`, `Retry()` or `Park()`. By default what the kind says.
        max_attempts: how often it runs before its failure is final; 0 means unbounded. By default
            what the kind says.

    Raises:
        InvalidHandler: it is not an async function, or an option has a value that cannot work.
    """

    def decorate(function: Any, local_names: Mapping[str, Any] | None = None) -> Any:
        names = _names_at_the_decorator() if local_names is None else local_names
        name = target if isinstance(target, str) else None
        options = _options(
            function,
            name,
            transactional=transactional,
            on_interrupted=on_interrupted,
            max_attempts=max_attempts,
            local_names=names,
        )
        if HANDLES in vars(function):
            raise InvalidHandler(f"{location_of(function)}: @handler is applied to it twice")
        setattr(function, HANDLES, options)
        return function

    if target is None or isinstance(target, str):
        return decorate
    return decorate(target, _names_at_the_decorator())


def declared_options(value: Any) -> HandlerOptions | None:
    """What `@handler` declared for a value of a class's namespace, or None where it is not a handler."""
    return cast("HandlerOptions | None", getattr(value, HANDLES, None))


class Actor(Generic[StateT]):
    """The base of actor classes: `class Account(Actor[Balance], kind="account")`.

    One instance lives for each active entity. `state`, `outbox` and `context` are set before
    `on_activate` runs, and not by the constructor, which is all yours; `Account.using(...)` gives
    its keywords. A subclass of an actor class is a kind of its own with the same handlers; it
    overrides one by defining a method of the same name.

    Class keywords:
        kind: the kind's name; by default the class name in snake case.
        options: see `KindOptions`. Subclasses inherit them, and not the kind.

    Raises:
        InvalidHandler: the kind's name or an option cannot work.
    """

    #: The entity's state. A turn changes it in place or assigns a new one; the commit keeps it.
    state: StateT
    #: The messages that leave with this turn's commit.
    outbox: Outbox
    #: The turn that is running.
    context: Context[StateT]

    def __init_subclass__(cls, *, kind: str | None = None, **options: Unpack[KindOptions]) -> None:
        super().__init_subclass__()
        if DECLARED in vars(cls) and kind is None and not options:
            return  # a rebuilt slotted class: its namespace has the options of the class statement
        default = _WORD_STARTS.sub("_", cls.__name__).lower()
        base: Declared | None = getattr(cls, DECLARED, None)
        name = default if kind is None else kind
        setattr(cls, DECLARED, _declare(location_of(cls), name, cast("dict[str, Any]", options), base))

    @classmethod
    def ref(cls, id: str, /) -> EntityRef:
        """The address of one entity of this kind. Needs no system.

        Raises:
            InvalidEntityId: the id is empty, longer than 512 bytes, or has control characters.
        """
        return EntityRef(declared_by(cls).kind, id)

    @classmethod
    def using(cls, /, **keywords: Any) -> ActorSource:
        """This class with the keywords that its constructor gets at every activation."""
        return ActorSource(cls, keywords)

    async def on_activate(self) -> None:
        """Runs before the first message, with the state loaded; changes to it are not committed."""

    async def on_passivate(self) -> None:
        """Runs before an idle entity leaves memory; never after a crash."""


def declared_by(cls: type[Actor[Any]]) -> Declared:
    """The options of the class statement."""
    declared: Declared | None = getattr(cls, DECLARED, None)
    if declared is None:
        raise InvalidHandler("Actor itself has no kind; derive a class from it")
    return declared


class EntityKind(Generic[StateT]):
    """A kind whose handlers are free functions: `accounts = EntityKind("account", state=Balance)`.

    Args:
        kind: the kind's name.
        state: the class of the state; without it there is none.
        options: as the class keywords of `Actor`.

    Raises:
        InvalidHandler: the name or an option cannot work.
    """

    @overload
    def __init__(self: EntityKind[None], kind: str, **options: Unpack[KindOptions]) -> None: ...
    @overload
    def __init__(self, kind: str, *, state: type[StateT], **options: Unpack[KindOptions]) -> None: ...
    def __init__(self, kind: str, *, state: Any = None, **options: Unpack[KindOptions]) -> None:
        self.location = f"EntityKind({kind!r})"
        self.declared = _declare(self.location, kind, cast("dict[str, Any]", options), None)
        self.state_type = state
        self.functions: list[tuple[Callable[..., Any], HandlerOptions]] = []
        self.hooks: dict[str, Callable[..., Any]] = {}
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        #: Where it was made: a scan of a module takes only what is its own.
        self.module: str = "" if caller is None else caller.f_globals.get("__name__", "")
        self.location = f"{self.module}.{self.location}"

    def __repr__(self) -> str:
        return f"<EntityKind {self.declared.kind!r} of {len(self.functions)} handlers>"

    @overload
    def handler(
        self, function: Callable[Concatenate[Context[StateT], MessageT, P], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[Context[StateT], MessageT, P], Coroutine[Any, Any, R]]: ...
    @overload
    def handler(
        self,
        name: str | None = None,
        /,
        *,
        transactional: bool | None = None,
        on_interrupted: OnInterrupted | None = None,
        max_attempts: int | None = None,
    ) -> Callable[
        [Callable[Concatenate[Context[StateT], MessageT, P], Coroutine[Any, Any, R]]],
        Callable[Concatenate[Context[StateT], MessageT, P], Coroutine[Any, Any, R]],
    ]: ...
    def handler(
        self,
        target: Any = None,
        /,
        *,
        transactional: bool | None = None,
        on_interrupted: OnInterrupted | None = None,
        max_attempts: int | None = None,
    ) -> Any:
        """Make `async def name(context, message: Deposit, ...)` a handler; options as for `handler`.

        Further parameters are filled by name from `using(...)`.
        """

        def decorate(function: Any, local_names: Mapping[str, Any] | None = None) -> Any:
            names = _names_at_the_decorator() if local_names is None else local_names
            name = target if isinstance(target, str) else None
            options = _options(
                function,
                name,
                transactional=transactional,
                on_interrupted=on_interrupted,
                max_attempts=max_attempts,
                local_names=names,
            )
            self.functions.append((function, options))
            return function

        if target is None or isinstance(target, str):
            return decorate
        return decorate(target, _names_at_the_decorator())

    def on_activate(
        self, function: Callable[Concatenate[Context[StateT], P], Coroutine[Any, Any, None]], /
    ) -> Callable[Concatenate[Context[StateT], P], Coroutine[Any, Any, None]]:
        """Run `async def name(context, ...)` before an entity's first message."""
        self._add_hook("on_activate", function)
        return function

    def on_passivate(
        self, function: Callable[Concatenate[Context[StateT], P], Coroutine[Any, Any, None]], /
    ) -> Callable[Concatenate[Context[StateT], P], Coroutine[Any, Any, None]]:
        """Run `async def name(context, ...)` before an idle entity leaves memory."""
        self._add_hook("on_passivate", function)
        return function

    def _add_hook(self, name: str, function: Callable[..., Any]) -> None:
        check_async(function, location_of(function), name)
        if name in self.hooks:
            raise InvalidHandler(
                f"{self.location}: both {location_of(self.hooks[name])} and {location_of(function)} are {name}"
            )
        self.hooks[name] = function

    def ref(self, id: str, /) -> EntityRef:
        """The address of one entity of this kind. Needs no system."""
        return EntityRef(self.declared.kind, id)

    def using(self, /, **keywords: Any) -> ActorSource:
        """This kind with the keywords that its functions get."""
        return ActorSource(self, keywords)


@attrs.frozen(eq=False)
class ActorSource:
    """An actor class or an `EntityKind`, with what its constructor or functions need."""

    target: type[Actor[Any]] | EntityKind[Any]
    keywords: Mapping[str, Any] = attrs.field(factory=dict[str, Any])


ActorLike: TypeAlias = type[Actor[Any]] | EntityKind[Any] | ActorSource | ModuleType
