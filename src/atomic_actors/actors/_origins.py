"""Where a kind comes from: an actor class or an `EntityKind`, read so that one function makes specs of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, cast

from atomic_actors.actors._declarations import (
    Actor,
    Declared,
    EntityKind,
    HandlerOptions,
    declared_by,
    declared_options,
    listed,
)
from atomic_actors.base._annotations import (
    generic_argument,
    is_type_variable,
    location_of,
)
from atomic_actors.base._errors import InvalidConfig, InvalidHandler

__all__ = ("ClassOrigin", "KindOrigin", "Origin", "handler_methods")

Function: TypeAlias = Callable[..., Any]

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Origin(Protocol):
    """What classes and `EntityKind`s have in common, so that one function makes specs of both."""

    location: str
    declared: Declared
    state_type: Any
    functions: list[tuple[Function, HandlerOptions]]
    hooks: Mapping[str, Function]
    #: Whether the handlers are functions that stand alone, and no methods.
    free: bool

    def instance_maker(self) -> Function:
        """What makes an entity's instance."""
        ...

    def find_method(self, name: str) -> Any:
        """The method of this name, or None."""
        ...

    def bind(self, function: Function) -> Function:
        """The function with what `using` gives it."""
        ...


class ClassOrigin:
    """An actor class."""

    free = False

    def __init__(self, cls: type[Actor[Any]], keywords: Mapping[str, Any], where: str) -> None:
        self._class, self._keywords = cls, keywords
        self.location = location_of(cls)
        if inspect.isabstract(cls):
            names = listed(sorted(cast("Any", cls).__abstractmethods__))
            raise InvalidConfig(
                f"{where}: {self.location} is abstract ({names}); list a class that defines them"
            )
        self.state_type = generic_argument(cls, Actor)
        if is_type_variable(self.state_type):
            raise InvalidHandler(
                f"{self.location} leaves the type of its state open; derive a class that names it: "
                f"class ...({cls.__name__}[Balance])"
            )
        _check_constructor(cls, keywords, where)
        self.declared = declared_by(cls)
        self.functions = handler_methods(cls)
        self.hooks: Mapping[str, Function] = {
            name: function
            for name in ("on_activate", "on_passivate")
            if (function := inspect.getattr_static(cls, name)) is not inspect.getattr_static(Actor, name)
        }

    def instance_maker(self) -> Function:
        """See `Origin`."""
        return partial(self._class, **self._keywords) if self._keywords else self._class

    def find_method(self, name: str) -> Any:
        """See `Origin`."""
        return inspect.getattr_static(self._class, name, None)

    def bind(self, function: Function) -> Function:
        """See `Origin`; the constructor has it."""
        return function


def handler_methods(cls: type[Any]) -> list[tuple[Callable[..., Any], HandlerOptions]]:
    """Every handler, bases first; an override keeps the decorator of what it overrides."""
    options: dict[str, HandlerOptions] = {}
    for owner in reversed(cls.__mro__):
        for name, value in vars(owner).items():
            found = declared_options(value)
            if found is not None:
                options[name] = found
    methods = [(inspect.getattr_static(cls, name), found) for name, found in options.items()]
    # `deposit = None` in a subclass takes the handler away, as it does for `__hash__`.
    return [(method, found) for method, found in methods if method is not None]


def _check_constructor(cls: type[Any], keywords: Mapping[str, Any], where: str) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = [p.name for p in parameters if p.kind not in (*_VARIADIC, inspect.Parameter.POSITIONAL_ONLY)]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    location = location_of(cls)
    _check_keywords(
        keywords, None if anything else named, f"{where}: {location}.using()", "the constructor takes"
    )
    missing = [name for name in required if name not in keywords]
    if missing:
        example = ", ".join(f"{name}=..." for name in missing)
        raise InvalidConfig(
            f"{where}: the constructor of {location} needs {listed(missing)}; write {cls.__name__}.using({example})"
        )


def _check_keywords(keywords: Iterable[str], allowed: list[str] | None, what: str, takes: str) -> None:
    unknown = [] if allowed is None else [name for name in keywords if name not in allowed]
    if unknown:
        raise InvalidConfig(
            f"{what}: unexpected keyword {listed(unknown)}; {takes} {listed(allowed or []) or 'no keywords'}"
        )


class KindOrigin:
    """An `EntityKind` with free functions."""

    free = True

    def __init__(self, source: EntityKind[Any], keywords: Mapping[str, Any], where: str) -> None:
        self._keywords = keywords
        self.location = source.location
        self.declared = source.declared
        self.state_type = source.state_type
        self.functions = source.functions
        self.hooks: Mapping[str, Function] = source.hooks
        recoveries = [options.on_interrupted for _, options in source.functions]
        recoveries.append(source.declared.recovery)
        functions = [function for function, _ in source.functions]
        functions += [function for function in recoveries if callable(function)]
        allowed: list[str] | None = []
        for function, leading in [*((f, 2) for f in functions), *((f, 1) for f in source.hooks.values())]:
            needs = _needs(function, leading)
            allowed = None if allowed is None or needs is None else [*allowed, *needs]
            missing = [name for name, required in (needs or {}).items() if required and name not in keywords]
            if missing:
                raise InvalidConfig(
                    f"{where}: {location_of(function)} needs {listed(missing)}; list the kind with "
                    f".using({', '.join(f'{name}=...' for name in missing)})"
                )
        names = None if allowed is None else list(dict.fromkeys(allowed))
        _check_keywords(keywords, names, f"{where}: {source.location}.using()", "its functions take")

    def instance_maker(self) -> Function:
        """See `Origin`."""
        return _no_instance

    def find_method(self, name: str) -> Any:
        """See `Origin`; a free function has no class to look in."""
        return None

    def bind(self, function: Function) -> Function:
        """See `Origin`."""
        needs = _needs(function, 1 if function in self.hooks.values() else 2)
        taken = {name: value for name, value in self._keywords.items() if needs is None or name in needs}
        return partial(function, **taken) if taken else function


def _needs(function: Callable[..., Any], leading: int) -> dict[str, bool] | None:
    """The further parameters of a free function, and whether each is required; None: takes anything."""
    parameters = list(inspect.signature(function).parameters.values())[leading:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p.default is p.empty for p in parameters if p.kind not in _VARIADIC}


def _no_instance() -> None:
    """Free functions have no instance."""
