"""Finds the class of a refusal that came from another process, by the name and module stored with it."""

from __future__ import annotations

from attrs import define, field

from atomic_actors.base._errors import Refused

__all__ = ("RefusalClasses", "home_of")


def home_of(cls: type[Refused]) -> str:
    """`module.Class`: tells apart two refusals of one wire name."""
    return f"{cls.__module__}.{cls.__qualname__}"


@define(eq=False)
class RefusalClasses:
    """The refusal classes of this program.

    A refusal carries its wire name and its class's home. The class of that home is meant; where there is
    none (another code base, a moved module), the only class of that name; where there are several,
    it cannot be known, and the asker gets `Refused` itself.
    """

    _by_home: dict[str, type[Refused]] = field(factory=dict[str, type[Refused]], init=False)
    _by_name: dict[str, type[Refused] | None] = field(factory=dict[str, type[Refused] | None], init=False)

    def find(self, name: str, home: str) -> type[Refused] | None:
        """The class of a refusal, or None."""
        found = self._by_home.get(home)
        if found is None:
            # Classes may have been defined since the last look.
            self._scan_classes()
            found = self._by_home.get(home) or self._by_name.get(name)
        return found

    def _scan_classes(self) -> None:
        self._by_home.clear()
        self._by_name.clear()
        waiting = list(Refused.__subclasses__())
        while waiting:
            cls = waiting.pop()
            waiting.extend(cls.__subclasses__())
            # A slotted attrs class is made twice under one home, and is listed in the order of making.
            self._by_home.setdefault(home_of(cls), cls)
        for cls in self._by_home.values():
            self._by_name[cls.__name__] = None if cls.__name__ in self._by_name else cls
