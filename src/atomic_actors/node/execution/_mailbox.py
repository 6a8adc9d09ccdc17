"""The mailbox of an activation: a single slot, since the store offers one dispatch of an entity at a time."""

from __future__ import annotations

from attrs import define, field

from atomic_actors.base._oneshot import OneShot
from atomic_actors.journal._protocol import Offer

__all__ = ("Mailbox",)


@define(eq=False)
class Mailbox:
    """What an activation has been offered, and what may come."""

    #: What is to become a turn.
    offer: Offer | None = field(default=None, init=False)
    #: What the activation's task waits with while there is nothing to do.
    waiter: OneShot[None] | None = field(default=None, init=False)
    #: Appends and takes whose answers may bring a dispatch; while there are any the entity does not go to sleep.
    admitted: int = field(default=0, init=False)
    #: The doorbell rang while it was busy: what it announced may not be in the next answer.
    recheck_due: bool = field(default=False, init=False)
    #: About how many messages of this node wait in the store, for the order in which steps are sent.
    backlog: int = field(default=0, init=False)
    #: The highest turn that was begun here or before: an answer that comes twice is not begun twice.
    last_turn: int = field(default=0, init=False)
