"""An entity's state in memory: the value that handlers see, and the bytes it was made of."""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import define, field

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._errors import InvalidPayload, InvalidState, PayloadTooLarge

__all__ = ("EntityState", "Unreadable")


class Unreadable(Exception):
    """A stored state that does not decode: the entity parks, its messages wait."""


@define(eq=False)
class EntityState:
    """The state of one entity.

    Invariant: `staged` is what the value was encoded to when a handler last ended well; between turns
    it equals `committed`. A kind without state has b"" in both and None as its value.

    Args:
        limit_bytes: what an encoded state may have at the most (`max_payload_bytes`); 0 means unbounded.
    """

    kind: BoundKind
    entity: str
    limit_bytes: int
    #: How often it was committed; -1 until the store's version is known.
    version: int = field(default=-1, init=False)
    #: What the store has of it; b"" for a state that was never committed.
    committed: bytes = field(default=b"", init=False)
    #: What this turn's commit would write.
    staged: bytes = field(default=b"", init=False)
    #: The actor whose `state` attribute handlers use; None for free functions, and before it is made.
    holder: Any = field(default=None, init=False)
    _value: Any = field(default=None, init=False)

    @property
    def value(self) -> Any:
        """The value as handlers see it; `self.state = new` counts."""
        if self.holder is not None and self.kind.state_coder is not None:
            return self.holder.state
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        self._value = value
        if self.holder is not None:
            self.holder.state = value

    def hold_in(self, holder: Any) -> None:
        """Keep the value in `holder.state` from now on."""
        value = self._value
        self.holder = holder
        self.value = value

    def load(self, version: int, data: bytes) -> None:
        """Take over what the store has.

        Raises:
            Unreadable: the bytes do not decode.
        """
        self.version = version
        self.committed = data
        self.roll_back(data)

    def inherit(self, other: EntityState) -> None:
        """Take over the bytes of the activation before; the value is made of them later."""
        self.version = other.version
        self.committed = self.staged = other.committed

    def roll_back(self, data: bytes) -> None:
        """Make the value of `data`: the committed bytes, or those of a run's good prefix.

        Raises:
            Unreadable: the bytes do not decode.
        """
        self.staged = data
        coder = self.kind.state_coder
        if coder is None:
            return
        try:
            self.value = coder.decode(data) if data else self.kind.new_state()
        except (InvalidPayload, msgspec.DecodeError) as error:
            raise Unreadable(f"the stored state of {self.entity} does not decode: {error}") from error

    def encode(self, location: str) -> bytes:
        """The value's bytes; b"" for one that was never committed and is still as new.

        Raises:
            InvalidState: the value does not fit its type; `location` is the handler that made it.
            PayloadTooLarge: it is too large.
        """
        coder = self.kind.state_coder
        if coder is None:
            return b""
        try:
            data = coder.encode(self.value)
        except InvalidPayload as error:
            raise InvalidState(f"{location}: the state does not fit its type: {error}") from error
        if self.limit_bytes and len(data) > self.limit_bytes:
            raise PayloadTooLarge(f"{self.entity}: the state has {len(data)} bytes (max_payload_bytes)")
        if not self.staged and data == coder.encode(self.kind.new_state()):
            return b""
        return data
