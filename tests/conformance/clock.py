"""A clock that moves when a test says so."""

from __future__ import annotations

from attrs import define


@define(eq=False)
class Clock:
    now_ms: int = 1_700_000_000_000

    def read_ms(self) -> int:
        return self.now_ms

    def pass_ms(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
