"""A partition while this node owns it: its scope, and what was cut off in it."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors._activation import Activation
from atomic_actors.journal._protocol import Dispatch

__all__ = ("OwnedPartition",)

#: How many sweeps of a new owner find what the one before has put off, as long as each finds more.
LOOKS_AHEAD: Final = 100


@define(eq=False)
class OwnedPartition:
    """An owned partition. `task_group` is there once its task has begun."""

    number: int
    claim: str
    task_group: TaskGroup | None = None
    #: Its scope has ended: nothing starts in it any more.
    is_closed: bool = False
    #: Activations to start as soon as there is a task group.
    waiting: list[Activation] = field(factory=list[Activation])
    ended: anyio.Event = field(factory=anyio.Event)
    next_sweep_s: float = 0.0
    sweeping: bool = False
    #: Sweeps that look at what an earlier owner put off.
    looks_ahead: int = LOOKS_AHEAD
    #: What handlers had begun when it was lost, by entity: the store may not know of it.
    cut_off: dict[str, tuple[Activation, Dispatch]] = field(factory=dict[str, tuple[Activation, Dispatch]])

    @property
    def is_open(self) -> bool:
        """Whether what starts in it may begin; in a scope that is cancelled it would only be cut off."""
        group = self.task_group
        return not self.is_closed and (group is None or not group.cancel_scope.cancel_called)
