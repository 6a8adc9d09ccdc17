"""What calls functions of the store's library that are not steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ("FunctionCaller",)


class FunctionCaller(Protocol):
    """A journal, for what shares its connection."""

    async def call(self, function: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Call a function of the library with at least one key, and return its answer.

        Raises:
            JournalUnavailable: there was no usable answer.
            StoreIncompatible: the store's library or its user does not allow it.
        """
        ...
