"""Shuts a node down: takes no more messages, lets turns finish, interrupts the rest, releases the partitions."""

from __future__ import annotations

from typing import Final

import anyio
from attrs import define, field

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node._sender import Sender
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.operations._handover import Handover
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.node.volatile._activations import VolatileKinds
from atomic_actors.node.volatile._host import VolatileHost

__all__ = ("SETTLE_LIMIT_S", "Leaving")

#: How long the shutdown may take behind a shield, once running turns are no longer waited for.
SETTLE_LIMIT_S: Final = 5.0


@define(eq=False, kw_only=True)
class Leaving:
    """The shutdown of a system.

    Args:
        host: takes volatile messages of other nodes; None where there can be none, as for `messenger`.
    """

    journal: CommitQueue
    membership: Membership
    supervisor: Supervisor
    volatile: VolatileKinds
    handover: Handover
    sender: Sender
    host: VolatileHost | None
    messenger: NodeMessenger | None
    #: Around what waits for running turns: `hurry` cancels it.
    _patience: anyio.CancelScope = field(factory=anyio.CancelScope, init=False)

    def hurry(self) -> None:
        """Do not wait for running turns any more."""
        self._patience.cancel()

    async def leave(self, *, wait: bool) -> None:
        """Stop taking, let running turns finish, interrupt the rest, give the partitions up."""
        self.sender.stop()
        self.membership.stop_claiming()
        if self.host is not None:
            self.host.close()
        if wait:
            with self._patience:
                if self.handover.drain_timeout_s:
                    self._patience.deadline = anyio.current_time() + self.handover.drain_timeout_s
                self.supervisor.stop_taking()
                await self._announce()
                await self.handover.hand_over_all()
                await self.volatile.drain()
                await self.supervisor.drain()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + SETTLE_LIMIT_S) as settling:
            await self._settle()
        if settling.cancelled_caught:
            logger.warning("the store did not answer in time; the leases will run out by themselves")
        self.sender.abandon_all()

    async def _announce(self) -> None:
        """Say that it leaves, so that the others take over what is given up one by one."""
        self.membership.nodes.drain()
        if self.journal.available:
            try:
                await self.membership.nodes.announce()
            except (JournalUnavailable, StoreIncompatible) as error:
                logger.info("the other nodes could not be notified that this one is shutting down: %s", error)

    async def _settle(self) -> None:
        supervisor = self.supervisor
        supervisor.stop_taking()
        interrupted = supervisor.catalog.running()
        if interrupted:
            logger.warning("%d turns are interrupted by the shutdown", len(interrupted))
        supervisor.cancel_partitions()
        self.volatile.lost()
        await supervisor.wait_ended()
        await self.volatile.wait_ended()
        if self.journal.available:
            await self.journal.wait_drained()
            await self._release()
            if self.messenger is not None:
                await self.messenger.leave()

    async def _release(self) -> None:
        try:
            freed = self.membership.owned()
            await self.membership.release_all()
            await self.membership.nodes.leave()
            for partition in freed:
                await self.handover.notify_next(partition)
        except (JournalUnavailable, StoreIncompatible) as error:
            logger.warning("the partitions could not be released; their leases will run out: %s", error)
