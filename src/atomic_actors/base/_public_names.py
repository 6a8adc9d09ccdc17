"""Sets the module of public classes and functions to the package that users import them from.

A traceback then reads `atomic_actors.StoreUnavailable`, a pickle holds that name, and so does `repr` of a class: the
module that happens to define it may change. trio and anyio do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any, get_type_hints

__all__ = ("set_public_module", "set_public_modules")


def set_public_modules(package: str, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
    """Let everything that a package exports say that it is from there.

    Args:
        package: the package's name.
        namespace: its globals.
        names: what it exports; a name that is not there yet is passed over.
    """
    for name in names:
        if name in namespace:
            set_public_module(package, namespace[name])


def set_public_module(package: str, thing: Any) -> None:
    """Let a class or function say that it is from a package; anything else is left as it is."""
    if isinstance(thing, type):
        _resolve_annotations(thing)
    elif not isinstance(thing, FunctionType):
        return
    thing.__module__ = package


def _resolve_annotations(cls: type[Any]) -> None:
    """Evaluate the class's annotations, which are strings, while it still says where their names are defined.

    `typing.get_type_hints` reads them in the module that the class says it is from; the package does not
    know `ClassVar`, `Any` and the like.
    """
    own = vars(cls).get("__annotations__")
    if own:
        # Not of the class itself: what it inherits may not be ours, and need not be readable.
        holder = type(cls.__name__, (), {"__annotations__": dict(own), "__module__": cls.__module__})
        own.update(get_type_hints(holder, include_extras=True))
