"""When the demo kills."""

from __future__ import annotations

from random import Random
from typing import Final

__all__ = ("KillPlan",)

#: How often to kill again where a kill fell between two turns and interrupted nothing.
MORE_TRIES: Final = 5


class KillPlan:
    """When to kill, counted in accepted flights."""

    def __init__(self, total: int, kills: int, seed: int) -> None:
        random = Random(seed)
        # One in each of `kills` equal stretches of the middle, so that every run has work before and after.
        stretch = 0.7 * total / max(kills, 1)
        self._due = [int(0.15 * total + stretch * (place + random.random())) for place in range(kills)]
        self._total = total
        self._tries_left = MORE_TRIES

    def wants(self, accepted: int, in_turn: int) -> bool:
        """Whether now is the moment: far enough, and with turns to cut off."""
        if self._due and accepted >= self._due[0] and in_turn > 0:
            del self._due[0]
            return True
        return False

    def try_again(self, accepted: int) -> None:
        """The last kill interrupted nothing; plan another a little later."""
        if self._tries_left > 0:
            self._tries_left -= 1
            self._due.insert(0, accepted + self._total // 40)
