"""Makes the unique ids of messages."""

from __future__ import annotations

import os
from typing import Final

from atomic_actors.codec._envelope import make_uid

__all__ = ("UidMaker",)


class UidMaker:
    """Makes unique ids. Their random bits are read from the system some hundreds at a time: reading costs far more."""

    SIZE_BYTES: Final = 4_000
    TAKE_BYTES: Final = 10

    def __init__(self) -> None:
        self._pool, self._at = b"", 0
        self._pid = os.getpid()

    def make(self, now_ms: int) -> str:
        """A unique id that was born at `now_ms`; never the same one twice, not even in a forked child."""
        if self._at >= len(self._pool) or self._pid != os.getpid():
            self._pool, self._at, self._pid = os.urandom(self.SIZE_BYTES), 0, os.getpid()
        at = self._at
        self._at = at + self.TAKE_BYTES
        return make_uid(now_ms, int.from_bytes(self._pool[at : at + self.TAKE_BYTES], "big"))
