"""Reading annotations: where a class was written, what its names mean there, what a generic was given."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast, get_args, get_origin, get_type_hints

from atomic_actors.base._errors import InvalidHandler

if TYPE_CHECKING:
    from typing_extensions import TypeVar
else:
    from typing import TypeVar
if TYPE_CHECKING:
    ReplyT_co = TypeVar("ReplyT_co", covariant=True, default=Any)
else:
    ReplyT_co = TypeVar("ReplyT_co", covariant=True)

__all__ = (
    "UNSAID",
    "_substitute",
    "generic_argument",
    "is_type_variable",
    "location_of",
    "module_namespace",
    "resolve_annotation",
)

#: What `generic_argument` answers where no parameter was given.
UNSAID: Final[Any] = object()


def location_of(thing: Any) -> str:
    """`module.Class` or `module.Class.method`, for the texts of errors."""
    name = getattr(thing, "__qualname__", None)
    return repr(thing) if name is None else f"{thing.__module__}.{name}"


def module_namespace(cls: Any) -> dict[str, Any]:
    """The globals of the module that defines `cls`; empty where that module is gone."""
    module = sys.modules.get(cls.__module__)
    return {} if module is None else vars(module)


def resolve_annotation(
    annotation: Any, global_names: dict[str, Any], local_names: Mapping[str, Any] | None = None
) -> Any:
    """Evaluate an annotation that may be, or may contain, a string. `Annotated` stays.

    Raises:
        NameError: a name in it is not defined in either namespace.
    """
    holder = SimpleNamespace(__annotations__={"it": annotation})
    locals_or_globals = None if local_names is None else dict(local_names)
    return get_type_hints(holder, global_names, locals_or_globals, include_extras=True)["it"]


def generic_argument(form: Any, generic: type) -> Any:
    """What `form` puts for the type variable of `generic`.

    Args:
        form: a subclass of `generic`, or such a class with parameters: `Deposit`, `Command[int]`.
        generic: a generic class of one type variable: `Message`, `Actor`.

    Returns:
        The type, with strings in it resolved; a type variable where a generic subclass leaves it
        open; `UNSAID` where no parameter is given anywhere.

    Raises:
        InvalidHandler: the parameter is a string that cannot be resolved.
    """
    return _argument(form, generic, None)


def _argument(form: Any, generic: type, owner: type | None) -> Any:
    origin: Any = get_origin(form) or form
    base: Any
    base_class: Any
    arguments = get_args(form)
    if owner is not None:
        arguments = tuple(_resolve_parameter(argument, owner) for argument in arguments)
    if origin is generic:
        return arguments[0] if arguments else UNSAID
    for base in cast("dict[str, Any]", vars(origin)).get("__orig_bases__", origin.__bases__):
        base_class = get_origin(base) or base
        if not (isinstance(base_class, type) and issubclass(base_class, generic)):
            continue
        found = _argument(base, generic, origin)
        if found is not UNSAID:
            return _substitute(
                found, dict(zip(getattr(origin, "__parameters__", ()), arguments, strict=False))
            )
    return UNSAID


def _resolve_parameter(argument: Any, owner: type) -> Any:
    try:
        return resolve_annotation(argument, module_namespace(owner))
    except NameError as error:
        raise InvalidHandler(
            f"{location_of(owner)}: a type parameter of its base class cannot be resolved: {error}; define it "
            "at the top of the module, outside `if TYPE_CHECKING`"
        ) from None


def _substitute(found: Any, values: Mapping[Any, Any]) -> Any:
    if is_type_variable(found):
        return values.get(found, found)
    parameters = getattr(found, "__parameters__", ())
    if isinstance(found, type) or not parameters:
        return found
    return found[tuple(values.get(parameter, parameter) for parameter in parameters)]


def is_type_variable(form: Any) -> bool:
    """Whether `form` is a type variable, of `typing` or of `typing_extensions`."""
    return type(form).__name__ == "TypeVar"
