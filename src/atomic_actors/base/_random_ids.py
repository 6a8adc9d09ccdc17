"""Random bits for the ids of messages."""

from __future__ import annotations

import os
from typing import Final

__all__ = ("_RandomPool",)


class _RandomPool:
    """Random bits for ids, read from the system some hundreds at a time: reading costs far more."""

    SIZE_BYTES: Final = 4_000
    TAKE_BYTES: Final = 10

    def __init__(self) -> None:
        self._pool, self._at = b"", 0
        self._pid = os.getpid()

    def take_bits(self) -> int:
        """80 random bits, never the same ones twice, not even in a forked child."""
        if self._at >= len(self._pool) or self._pid != os.getpid():
            self._pool, self._at, self._pid = os.urandom(self.SIZE_BYTES), 0, os.getpid()
        at = self._at
        self._at = at + self.TAKE_BYTES
        return int.from_bytes(self._pool[at : at + self.TAKE_BYTES], "big")
