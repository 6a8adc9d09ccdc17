"""A partition while this node owns it: its claim, its scope, and when it is swept."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.journal._protocol import Sweep, Swept
from atomic_actors.node.execution._deferred import LOOK_AHEAD_MS
from atomic_actors.node.ownership._membership import Membership

__all__ = ("OwnedPartition", "SweepPlan")

#: How many sweeps of a new owner find what the one before has put off, as long as each finds more.
LOOKS_AHEAD: Final = 100
#: How long an owner rests before it looks through the dispatches of its own claim again. There is one that it does
#: not know only after a call was sent twice and its first copy came late.
OWN_INTERVAL_S: Final = 10.0


@define(eq=False, kw_only=True)
class SweepPlan:
    """When a partition is swept, and what each sweep asks for. Pure."""

    next_sweep_s: float = 0.0
    is_sweeping: bool = False
    #: Sweeps that look at what an earlier owner put off.
    looks_ahead: int = LOOKS_AHEAD
    #: Where the look through the dispatches of its own claim goes on; "" while it rests, until `next_own_s`.
    own_from: str = ""
    next_own_s: float = 0.0

    def next_step(self, number: int, claim: str, now_s: float, limit: int) -> Sweep:
        """The step that finds work; now and then it asks for a page of this claim's own dispatches, too."""
        own_from = self.own_from if self.own_from or self.next_own_s <= now_s else None
        ahead_ms = LOOK_AHEAD_MS if self.looks_ahead else 0
        return Sweep(partition=number, claim=claim, limit=limit, ahead_ms=ahead_ms, own_from=own_from)

    def answered(self, step: Sweep, swept: Swept, now_s: float) -> None:
        """A sweep is answered: the next one goes on where its page ends."""
        if step.own_from is not None:
            self.own_from = swept.own_next
            if not swept.own_next:
                self.next_own_s = now_s + OWN_INTERVAL_S

    def rejected(self, step: Sweep, now_s: float) -> None:
        """A sweep was rejected: the next ones ask for no page, as the page may be why."""
        if step.own_from is not None:
            self.own_from, self.next_own_s = "", now_s + OWN_INTERVAL_S


@define(eq=False, kw_only=True)
class OwnedPartition:
    """One claim of a partition. `task_group` is there once its task has begun.

    Args:
        epoch: the claim's; it grows with every change of owner, and is the fencing token of its turns.
        membership: what is known of the lease.
        is_leaving: nothing more is taken, but for entities that turns of this node wait for.
    """

    number: int
    claim: str
    epoch: int
    membership: Membership
    is_leaving: bool = False
    task_group: TaskGroup | None = field(default=None, init=False)
    #: Its scope has ended: nothing starts in it any more.
    is_closed: bool = field(default=False, init=False)
    ended: anyio.Event = field(factory=anyio.Event, init=False)
    sweeps: SweepPlan = field(factory=SweepPlan, init=False)

    @property
    def is_open(self) -> bool:
        """Whether what starts in it may begin; in a scope that is cancelled it would only be cut off."""
        group = self.task_group
        return not self.is_closed and (group is None or not group.cancel_scope.cancel_called)

    @property
    def is_owned(self) -> bool:
        """Whether this is the claim that the node has, as far as it knows."""
        return self.membership.claims[self.number] == self.claim

    def is_valid(self) -> bool:
        """Whether the claim's lease certainly still holds. Asked before every turn."""
        return self.membership.claims[self.number] == self.claim and self.membership.leases.is_valid(
            self.number
        )

    def lose(self, why: str) -> None:
        """Stop owning it now: the store, or the clock, says that it is not this node's under this claim."""
        if self.is_owned:
            self.membership.lose(self.number, why)

    def cancel(self) -> None:
        """End its scope: turns that are not on their way to the store are interrupted."""
        if self.task_group is not None:
            self.task_group.cancel_scope.cancel()
