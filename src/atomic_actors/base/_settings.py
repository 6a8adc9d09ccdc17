"""What a setting is made of: its default, the rule that its values keep, and its paragraph for the docs.

`_config` writes every setting once, with these. A value is checked when the record that holds it is built,
and the text of an environment variable by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, Literal, TypeVar

import attrs
from attrs import Converter, field, frozen

from atomic_actors.base._errors import InvalidConfig

__all__ = (
    "FrozenMapping",
    "Rule",
    "choice",
    "count",
    "flag",
    "name",
    "parse_setting",
    "seconds",
    "setting",
    "text",
)

_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_FLAGS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@frozen(kw_only=True)
class Rule:
    """What a value must be."""

    kind: Literal["number", "whole", "flag", "text", "name", "choice", "actors", "kinds"]
    minimum: float = 0
    #: Whether the value must be greater than `minimum`, not only equal to it.
    above: bool = False
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    secret: bool = False
    unit: str = ""
    zero: str = ""

    def describe(self) -> str:
        """What a good value looks like, for error texts."""
        if self.kind == "choice":
            text = "one of " + ", ".join(map(repr, self.choices))
        elif self.kind == "flag":
            text = "True or False"
        elif self.kind == "name":
            text = "1 to 64 letters, digits, '_', '.' or '-'"
        elif self.kind == "text":
            text = "a str that is not empty"
        else:
            text = "a whole number" if self.kind == "whole" else "a number"
            text += f" of {self.unit}" if self.unit and self.unit not in ("ratio", "port") else ""
            text += f" {'above' if self.above else 'of at least'} {self.minimum:g}"
            text += f" and at most {self.maximum:g}" if self.maximum != math.inf else ""
            text += f" (0 means {self.zero})" if self.zero else ""
        return text + (" or None" if self.optional else "")

    def accept(self, value: Any) -> Any:
        """The value in its final type; raises ValueError when it breaks the rule."""
        if value is None and self.optional:
            return None
        if self.kind in ("number", "whole"):
            return self._accept_number(value)
        if self.kind == "flag":
            good = value is True or value is False
        elif self.kind == "choice":
            good = isinstance(value, str) and value in self.choices
        elif self.kind == "name":
            good = isinstance(value, str) and 1 <= len(value) <= 64 and _NAME_CHARACTERS.issuperset(value)
        else:
            good = isinstance(value, str) and value != "" and value.isprintable()
        if not good:
            raise ValueError
        return value

    def _accept_number(self, value: Any) -> int | float:
        whole = self.kind == "whole"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError
        if not math.isfinite(value) or value < self.minimum or value > self.maximum:
            raise ValueError
        if self.above and value <= self.minimum:
            raise ValueError
        return int(value) if whole else float(value)


def _convert(value: Any, attribute: attrs.Attribute[Any]) -> Any:
    accept: Callable[[Any], Any] | None = attribute.metadata["accept"]
    if accept is not None:
        return accept(value)
    rule: Rule = attribute.metadata["rule"]
    try:
        return rule.accept(value)
    except (ValueError, OverflowError):
        got = type(value).__name__ if rule.secret else f"{type(value).__name__} {value!r}"
        raise InvalidConfig(f"{attribute.name}: expected {rule.describe()}, got {got}") from None


def setting(
    default: Any, doc: str, rule: Rule, *, accept: Callable[[Any], Any] | None = None, **arguments: Any
) -> Any:
    """A field of a record of settings.

    Args:
        default: the value where none is given.
        doc: what it means, for the docs.
        rule: what a value must be.
        accept: makes the final value and raises `InvalidConfig`, where the rule alone cannot.
        **arguments: for `attrs.field`.
    """
    return field(
        default=default,
        converter=Converter(_convert, takes_field=True),  # type: ignore[misc, unused-ignore]
        metadata={"doc": doc, "rule": rule, "accept": accept},
        **arguments,
    )


def seconds(default: float, doc: str, *, zero: str = "") -> Any:
    """A time in seconds; `zero` says what 0 means, where it means something."""
    return setting(default, doc, Rule(kind="number", above=not zero, unit="seconds", zero=zero))


def count(default: int, unit: str, doc: str, *, zero: str = "") -> Any:
    """A whole number of `unit`; `zero` says what 0 means, where it means something."""
    return setting(default, doc, Rule(kind="whole", minimum=0 if zero else 1, unit=unit, zero=zero))


def flag(default: bool, doc: str) -> Any:
    """Yes or no."""
    return setting(default, doc, Rule(kind="flag"))


def text(default: str | None, doc: str, *, secret: bool = False, repr: Any = True) -> Any:
    """A text that is not empty; None where the default is."""
    return setting(default, doc, Rule(kind="text", optional=default is None, secret=secret), repr=repr)


def name(doc: str) -> Any:
    """A name that goes into keys of the store."""
    return setting("default", doc, Rule(kind="name"))


def choice(default: str, choices: tuple[str, ...], doc: str) -> Any:
    """One of a few words."""
    return setting(default, doc, Rule(kind="choice", choices=choices))


V = TypeVar("V")


@frozen(repr=False, eq=False)
class FrozenMapping(Mapping[str, V], Generic[V]):
    """A read-only mapping that, unlike `MappingProxyType`, can be pickled to another process."""

    _items: dict[str, V]

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


def parse_setting(variable: str, text: str, rule: Rule) -> Any:
    """The value that an environment variable's text means.

    Raises:
        InvalidConfig: it cannot be read; the text names the variable.
    """
    try:
        if rule.kind == "whole":
            return rule.accept(int(text))
        if rule.kind == "number":
            return rule.accept(float(text))
        if rule.kind == "flag":
            return _FLAGS[text.lower()]
        if rule.kind in ("actors", "kinds"):
            raise InvalidConfig(f"{variable}: cannot come from the environment; pass it as an argument")
        return rule.accept(text)
    except InvalidConfig:
        raise
    except (ValueError, KeyError, OverflowError):
        what = "one of 1, 0, true, false, yes, no, on, off" if rule.kind == "flag" else rule.describe()
        got = "another value" if rule.secret else repr(text)
        raise InvalidConfig(f"{variable}: expected {what.removesuffix(' or None')}, got {got}") from None
