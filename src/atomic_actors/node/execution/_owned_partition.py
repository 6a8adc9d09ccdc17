"""A partition while this node owns it: its scope, and what was cut off in it."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.journal._protocol import Dispatch, SettleLost, Sweep, Swept
from atomic_actors.node.execution._activation import Activation
from atomic_actors.node.execution._deferred import LOOK_AHEAD_MS

__all__ = ("OwnedPartition",)

#: How many sweeps of a new owner find what the one before has put off, as long as each finds more.
LOOKS_AHEAD: Final = 100
#: How long an owner rests before it looks through the dispatches of its own claim again. There is one that it does
#: not know only after a call was sent twice and its first copy came late.
OWN_INTERVAL_S: Final = 10.0


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
    #: Where the look through the dispatches of its own claim goes on; "" while it rests, until `next_own_s`.
    own_from: str = ""
    next_own_s: float = 0.0
    #: What handlers had begun when it was lost, by entity: the store may not know of it.
    cut_off: dict[str, tuple[Activation, Dispatch]] = field(factory=dict[str, tuple[Activation, Dispatch]])

    @property
    def is_open(self) -> bool:
        """Whether what starts in it may begin; in a scope that is cancelled it would only be cut off."""
        group = self.task_group
        return not self.is_closed and (group is None or not group.cancel_scope.cancel_called)

    def in_doubt(self, claim: str) -> list[SettleLost]:
        """The steps that settle under `claim` what was cut off."""
        return [
            SettleLost(
                self.number,
                activation.entity,
                claim,
                message.unique,
                activation.policy,
                message.attempt,
                message.interruptions,
                begun.recovering,
            )
            for activation, begun in self.cut_off.values()
            for message in begun.messages
        ]

    def new_sweep(self, now_s: float, limit: int) -> Sweep:
        """The step that finds work; now and then it asks for a page of this claim's own dispatches, too."""
        own_from = self.own_from if self.own_from or self.next_own_s <= now_s else None
        ahead_ms = LOOK_AHEAD_MS if self.looks_ahead else 0
        return Sweep(self.number, self.claim, limit, ahead_ms, own_from)

    def looked(self, step: Sweep, swept: Swept, now_s: float) -> None:
        """A sweep is answered: the next one goes on where its page ends."""
        if step.own_from is not None:
            self.own_from = swept.own_next
            if not swept.own_next:
                self.next_own_s = now_s + OWN_INTERVAL_S

    def refused(self, step: Sweep, now_s: float) -> None:
        """A sweep was refused: the next ones ask for no page, as the page may be why."""
        if step.own_from is not None:
            self.own_from, self.next_own_s = "", now_s + OWN_INTERVAL_S
