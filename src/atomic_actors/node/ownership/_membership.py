"""Which partitions this node owns, and until when.

Leases trust no wall clock. A claimant takes over only after it has seen the same `(claim,
renewals)` for a full lease on its own clock (as the DynamoDB lock client does), or at once where the
holder was a process of this host that is certainly dead. The owner measures from *before* a renewal was
sent, so that its own idea of the lease always ends first:

    owner      sent ------------- lease - margin --> scopes end
    store         renewed
    claimant         saw it ----------------- lease ----------> may take over

The claim id fences every step in the store whatever the clocks do; the lease only keeps two owners'
handlers from running at the same time.

Which free partitions to claim, and which of its own to hand over, the placement says (`_peers`, `_placement`).
Only the owner gives a partition up: it hands it over, and the next owner finds the lease free.

A partition that has lost history is given up at once and claimed again, with a new incarnation, as soon as
that can be. What this node had under way is settled, before it is taken for messages that never ran.
Then nothing runs until a lease has passed since the loss was noticed: a node that owned the partition in
the history that is gone may not have noticed yet.
"""

from __future__ import annotations

import os
import time
from typing import Final, Protocol

import anyio
from attrs import define, field

from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import (
    Claimed,
    ClaimPartition,
    JournalUnavailable,
    LeaseHeld,
    LeaseState,
    ReadLease,
    Rejected,
    Release,
    Released,
    Renew,
    Stale,
    Sweep,
    Swept,
)
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.ownership._instants import Instant, elapsed_s, instant_now
from atomic_actors.node.ownership._leases import OwnLeases, SeenLeases
from atomic_actors.node.ownership._peers import Peers

__all__ = ("Membership", "PartitionHost")

WATCH_INTERVAL_S: Final = 0.05
#: How often the nodes and the leases are read, as a part of a lease.
REFRESHES_PER_LEASE: Final = 4
#: The shortest time between two refreshes, however often one is asked for.
REFRESH_PAUSE_S: Final = 0.01
#: How often a release is tried that still finds turns to settle.
RELEASE_TRIES: Final = 5


@define(eq=False, kw_only=True)
class _Loss:
    """A partition that has lost history, until it is this node's again."""

    since: Instant
    #: Only this node knows what ran: it claims the partition anew whatever the placement says.
    was_owned: bool
    #: The claim by which it is held already, while nothing runs in it yet; "" where it is not.
    claim: str = ""
    epoch: int = 0
    #: Nothing waits in the store any more that a handler here had begun with.
    settled: bool = False


class PartitionHost(Protocol):
    """Runs what is in the partitions that this node owns."""

    def claimed(self, partition: int) -> None:
        """A partition is this node's now."""
        ...

    def lost(self, partition: int, why: str) -> None:
        """A partition is not this node's any more."""
        ...

    def settle_swept(self, partition: int, swept: Swept) -> None:
        """Settle what a sweep found, of earlier claims and of this one, in a partition that is about to be released."""
        ...

    async def settle_lost(self, partition: int, claim: str) -> bool:
        """Settle what was under way in a partition that has lost history, before anything runs under its new claim.

        Returns:
            Whether everything is settled.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        ...

    async def hand_over(self, partition: int) -> None:
        """Another node should own a partition: end what runs in it, and release it."""
        ...


@define(eq=False, kw_only=True)
class Membership:
    """Claims partitions, watches leases, gives them up.

    Args:
        journal: where claims are made.
        nodes: who else is there.
        leases: what this node holds.
    """

    journal: CommitQueue
    nodes: Peers
    leases: OwnLeases
    host: PartitionHost = field(init=False)
    #: Those of `leases`, which are read on the hot path.
    claims: list[str] = field(init=False)
    epochs: list[int] = field(init=False)
    _seen: SeenLeases = field(init=False)
    _losses: dict[int, _Loss] = field(factory=dict[int, _Loss], init=False)
    _leaving: bool = field(default=False, init=False)
    #: Damaged partitions that have been logged.
    _damaged: set[int] = field(factory=set[int], init=False)
    #: Partitions that are being handed over.
    _handing: set[int] = field(factory=set[int], init=False)
    _refresh_now: anyio.Event = field(factory=anyio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.claims, self.epochs = self.leases.claims, self.leases.epochs
        self._seen = SeenLeases(self.nodes, self.leases.times.ttl_s)

    def start(self, host: PartitionHost) -> None:
        """Use `host` for what is in the partitions; then they may be claimed."""
        self.host = host

    @property
    def partitions(self) -> int:
        """How many partitions the service has."""
        return self.leases.partitions

    def owns(self, partition: int) -> bool:
        """Whether a partition is this node's, as far as it knows."""
        return bool(self.claims[partition])

    def owned(self) -> list[int]:
        """The partitions that this node owns."""
        return self.leases.owned()

    # Who is there, what to claim, what to hand over.

    async def refresh(self) -> tuple[str, ...]:
        """See who is there, and claim what is free or may be taken over and should be ours.

        Returns:
            The node that should own each partition.

        Raises:
            JournalUnavailable: the store gave no answer, for any of them.
        """
        try:
            await self.nodes.announce()
        except JournalUnavailable as error:
            # In a cluster the directory's primary may be away alone. What was seen last has to do; claims decide.
            logger.debug("the directory of nodes cannot be read now: %s", error)
        self._seen.suspect_holders()
        table = await self.nodes.placement(self.partitions)
        claim, node = os.urandom(8).hex(), self.nodes.record.identity.encode()
        steps: list[ClaimPartition | ReadLease | Renew] = [
            self._claim_step(partition, claim, node)
            if self._is_wanted(partition, table)
            else ReadLease(partition)
            for partition, held in enumerate(self.claims)
            if not held and not self._claimed_anew(partition)
        ]
        if self.leases.keeper is None:
            # A store in this process has no thread for that; several systems may share it all the same.
            steps += [Renew(partition, held) for partition, held in enumerate(self.claims) if held]
        sent = instant_now()
        results = await self.journal.execute_each(steps)
        failures = [result for result in results if isinstance(result, JournalUnavailable)]
        if failures and len(failures) == len(results):
            raise failures[0]
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, LeaseHeld | LeaseState):
                self._seen.observe(step.partition, result)
            elif isinstance(result, Claimed) and isinstance(step, ClaimPartition):
                self._on_claimed(step, result, sent)
            elif isinstance(step, Renew) and isinstance(result, Stale):
                self._not_renewed(step)
            elif isinstance(result, Rejected):
                self.damaged(step.partition, result.text)
        return table

    def damaged(self, partition: int, why: str) -> None:
        """The store cannot read something that a whole partition needs: log it, once."""
        if partition not in self._damaged:
            self._damaged.add(partition)
            logger.error("partition %d is damaged in the store; its entities cannot run: %s", partition, why)

    def _not_renewed(self, step: Renew) -> None:
        if self.claims[step.partition] == step.claim:
            self.lose(step.partition, "another owner has it")

    def _is_wanted(self, partition: int, table: tuple[str, ...]) -> bool:
        if self._leaving:
            return False
        loss = self._losses.get(partition)
        return table[partition] == self.nodes.node_id or (loss is not None and loss.was_owned)

    def _claim_step(self, partition: int, claim: str, node: bytes) -> ClaimPartition:
        expected_claim, expected_renewals = self._seen.takeable(partition)
        return ClaimPartition(
            partition=partition,
            claim=claim,
            node=node,
            expected_claim=expected_claim,
            expected_renewals=expected_renewals,
            new_incarnation=partition in self._losses,
            epoch_above=self.epochs[partition],
        )

    def _on_claimed(self, step: ClaimPartition, result: Claimed, sent: Instant) -> None:
        partition, loss = step.partition, self._losses.get(step.partition)
        if loss is None:
            self._hold(partition, step.claim, sent)
            self._take(partition, step.claim, result.epoch)
        elif step.new_incarnation:
            loss.claim, loss.epoch = step.claim, result.epoch
            self._hold(partition, step.claim, sent)
        # Else this very claim brought the loss to light: the next one replaces it (`SeenLeases.observe`).

    async def refresh_and_take_over(self) -> tuple[str, ...]:
        """Refresh, and once more if claims were found that may be taken over; returns what `refresh` does.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        table = await self.refresh()
        if any(self._may_take_over(partition, table) for partition in self._seen):
            table = await self.refresh()
        return table

    def _may_take_over(self, partition: int, table: tuple[str, ...]) -> bool:
        return bool(self._is_wanted(partition, table) and self._seen.takeable(partition)[0])

    def refresh_soon(self) -> None:
        """Something has changed: refresh at once, not when it is time."""
        self._refresh_now.set()

    async def run(self) -> None:
        """Watch the leases, claim what this node should own, hand over the rest. Runs until cancelled."""
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._watch)
            while True:
                await self._wait_for_refresh()
                if not self.journal.available:
                    continue
                try:
                    table = await self.refresh_and_take_over()
                    await self._end_losses()
                except JournalUnavailable as error:
                    logger.info("cannot read the leases of the partitions now: %s", error)
                    continue
                for partition in self._to_hand_over(table):
                    self._handing.add(partition)
                    task_group.start_soon(self._hand_over, partition)

    async def _wait_for_refresh(self) -> None:
        """Return when it is time for the next refresh: soon where a lease ends, or one is asked for."""
        wait_s = self._seen.first_end_s(self.leases.times.ttl_s / REFRESHES_PER_LEASE)
        await anyio.sleep(REFRESH_PAUSE_S)
        with anyio.move_on_after(max(0.0, wait_s - REFRESH_PAUSE_S)):
            await self._refresh_now.wait()
        self._refresh_now = anyio.Event()

    def _to_hand_over(self, table: tuple[str, ...]) -> list[int]:
        if self._leaving:
            return []  # all of them are given up already
        is_ours = self.nodes.node_id
        return [
            partition
            for partition in self.owned()
            if table[partition] != is_ours and partition not in self._handing
        ]

    async def _hand_over(self, partition: int) -> None:
        try:
            await self.host.hand_over(partition)
        finally:
            self._handing.discard(partition)

    async def _watch(self) -> None:
        """End what outlived its lease. Sleeps, *re-reads* what the keeper published, then decides."""
        while True:
            keeper = self.leases.keeper
            if keeper is not None:
                keeper.beat = time.monotonic()
                if keeper.crash is not None:
                    raise keeper.crash
                ended = [partition for partition in self.owned() if self.leases.has_run_out(partition)]
                for partition in ended:
                    self.lose(partition, "its lease was not renewed in time")
                if ended:
                    logger.warning("the leases of %d partitions were not renewed in time", len(ended))
            if self.nodes.find_dead():
                self.refresh_soon()
            await anyio.sleep(WATCH_INTERVAL_S)

    def _hold(self, partition: int, claim: str, sent: Instant) -> None:
        """Keep the lease of a partition alive."""
        self._seen.forget(partition)
        self.leases.hold(partition, claim, sent)

    def _take(self, partition: int, claim: str, epoch: int) -> None:
        self.leases.take(partition, claim, epoch)
        self.host.claimed(partition)

    # Lost history.

    def lose_history(self, partition: int, why: str) -> None:
        """Stop owning a partition whose store went back in time, and claim it anew when that can be."""
        before = self._losses.get(partition)
        was_owned = bool(self.claims[partition]) or (before is not None and before.was_owned)
        self._losses[partition] = _Loss(since=instant_now(), was_owned=was_owned)
        if self.claims[partition]:
            self.lose(partition, why)
        else:
            self.leases.forget(partition)

    def _claimed_anew(self, partition: int) -> bool:
        """Whether a partition that lost history is held already; if its lease ran out, it is not any more."""
        loss = self._losses.get(partition)
        if loss is None or not loss.claim:
            return False
        if self.leases.has_run_out(partition):
            loss.claim = ""
            self.leases.forget(partition)
        return bool(loss.claim)

    async def _end_losses(self) -> None:
        """Settle what was under way in partitions that lost history, and go on with those that have rested."""
        for partition, loss in list(self._losses.items()):
            if self._claimed_anew(partition) and not loss.settled:
                settled = await self._try_to_settle(partition, loss.claim)
                if settled is None:
                    continue
                loss.settled = settled
            if self._losses.get(partition) is not loss or self._leaving:
                continue  # it lost history once more meanwhile
            if loss.claim and not loss.settled:
                loss.claim = ""
                self.leases.forget(partition)
            elif self._claimed_anew(partition) and elapsed_s(loss.since) >= self.leases.times.ttl_s:
                del self._losses[partition]
                self._take(partition, loss.claim, loss.epoch)

    async def _try_to_settle(self, partition: int, claim: str) -> bool | None:
        """As `settle_lost`; None where the partition's store gives no answer, so that the others need not wait for it."""
        try:
            return await self.host.settle_lost(partition, claim)
        except JournalUnavailable as error:
            logger.info("cannot settle partition %d now: %s", partition, error)
            return None

    def lose(self, partition: int, why: str) -> None:
        """Stop owning a partition now. Its scope ends; its dispatches are for the next owner to settle."""
        if not self.claims[partition]:
            return
        self.leases.forget(partition)
        self.host.lost(partition, why)

    # Giving up.

    def stop_claiming(self) -> None:
        """This node is about to leave: claim nothing more."""
        self._leaving = True

    async def release(self, partition: int) -> bool:
        """Give a partition up, in which nothing runs any more; returns whether it is free now.

        Raises:
            JournalUnavailable: the store gave no answer; the lease runs out by itself.
        """
        claim = self.claims[partition]
        if not claim:
            return True
        own_from = ""
        for _ in range(RELEASE_TRIES):
            result = await self.journal.request(Release(partition, claim))
            if not isinstance(result, Rejected):
                if self.claims[partition] == claim:  # it may have been lost, and claimed anew, meanwhile
                    self.leases.forget(partition)
                return isinstance(result, Released)
            left = await self.journal.request(Sweep(partition=partition, claim=claim, own_from=own_from))
            if isinstance(left, Swept):
                self.host.settle_swept(partition, left)
                own_from = left.own_next
        return False

    async def _try_to_release(self, partition: int) -> bool:
        try:
            return await self.release(partition)
        except JournalUnavailable as error:
            logger.info("partition %d could not be released; its lease will run out: %s", partition, error)
            return False

    async def release_all(self) -> int:
        """Give up every partition, as `release` does; returns how many could not be released.

        Raises:
            JournalUnavailable: the store gave no answer, for any of them; the leases run out by themselves.
        """
        self.stop_claiming()
        held = {partition: self.claims[partition] for partition in self.owned()}
        for partition, loss in self._losses.items():
            if loss.claim and (loss.settled or await self._try_to_settle(partition, loss.claim)):
                held[partition] = loss.claim
        owned = list(held)
        steps = [Release(partition, claim) for partition, claim in held.items()]
        results = await self.journal.execute_each(steps)
        kept = 0
        for partition, result in zip(owned, results, strict=True):
            is_free = isinstance(result, Released)
            if isinstance(result, Rejected) and self.claims[partition]:
                is_free = await self._try_to_release(partition)
            self.leases.forget(partition)
            kept += not is_free
        failures = [result for result in results if isinstance(result, JournalUnavailable)]
        if failures and len(failures) == len(results):
            raise failures[0]
        return kept
