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

A partition that has lost history is given up at once and claimed again, with a new incarnation, as soon as
that can be. What this node had under way is settled, before anybody takes it for a message that never ran.
Then nothing runs until a lease has passed since the loss was noticed: somebody who owned the partition in
the history that is gone may not have noticed yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from attrs import define, field

from atomic_actors._lease_keeper import (
    NEVER,
    Instant,
    LeaseKeeper,
    NodeIdentity,
    elapsed_s,
    instant_now,
)
from atomic_actors._telemetry import logger
from atomic_actors.journal._group_commit import GroupCommit
from atomic_actors.journal._protocol import (
    Claimed,
    ClaimPartition,
    JournalUnavailable,
    LeaseHeld,
    Release,
    Released,
)

__all__ = ("Membership",)

WATCH_INTERVAL_S: Final = 0.05


@define(eq=False)
class _Seen:
    """What a claimant saw of somebody else's lease, and since when it has not changed."""

    claim: str
    renewals: int
    since: Instant
    dead: bool


@define(eq=False)
class _Loss:
    """A partition that has lost history, until it is this node's again."""

    since: Instant
    #: The claim by which it is held already, while nothing runs in it yet; "" where it is not.
    claim: str = ""
    epoch: int = 0
    #: Nothing waits in the store any more that a handler here had begun with.
    settled: bool = False


@define(eq=False)
class Membership:
    """Claims partitions, watches leases, gives them up.

    Args:
        journal: where claims are made.
        identity: this process.
        partitions: how many the service has.
        keeper: renews the leases; None for a store that lives in this process, where no lease ends.
        lease_ttl_s: how long others must see no renewal before they take over.
        lease_margin_s: how much earlier this node believes its leases to end.
        same_host_takeover: whether to take over at once from a dead process of this host.
        on_claimed: called with a partition that is this node's now.
        on_lost: called with a partition that is not any more, and why.
        settle_lost: called with a partition that has lost history and its new claim, before anything runs
            in it; returns whether everything is settled.
    """

    journal: GroupCommit
    identity: NodeIdentity
    partitions: int
    keeper: LeaseKeeper | None
    lease_ttl_s: float
    lease_margin_s: float
    same_host_takeover: bool
    on_claimed: Callable[[int], None]
    on_lost: Callable[[int, str], None]
    settle_lost: Callable[[int, str], Awaitable[bool]]
    #: The claim id for each owned partition; "" where this node is not the owner. Read on the hot path.
    claims: list[str] = field(init=False)
    #: Epochs of the owned partitions: the fencing tokens.
    epochs: list[int] = field(init=False)
    _renewed: list[Instant] = field(init=False)
    _usable_s: float = field(init=False)
    _seen: dict[int, _Seen] = field(factory=dict[int, _Seen], init=False)
    _losses: dict[int, _Loss] = field(factory=dict[int, _Loss], init=False)
    _leaving: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.claims = [""] * self.partitions
        self.epochs = [0] * self.partitions
        self._renewed = self.keeper.renewed if self.keeper is not None else [NEVER] * self.partitions
        self._usable_s = self.lease_ttl_s - self.lease_margin_s

    def is_valid(self, partition: int) -> bool:
        """Whether the lease certainly still holds. Asked before every turn."""
        if not self.claims[partition]:
            return False
        return self.keeper is None or elapsed_s(self._renewed[partition]) < self._usable_s

    def owned(self) -> list[int]:
        """The partitions that this node owns."""
        return [partition for partition, claim in enumerate(self.claims) if claim]

    async def claim_free(self) -> int:
        """Claim every partition that is free or may be taken over; returns how many others hold.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        wanted = [partition for partition, held in enumerate(self.claims) if not held]
        claim = os.urandom(8).hex()
        steps = [
            self._claim_step(partition, claim) for partition in wanted if not self._claimed_anew(partition)
        ]
        sent = instant_now()
        answer = await self.journal.execute(steps)
        held = 0
        for step, result in zip(steps, answer.results, strict=True):
            if isinstance(result, Claimed):
                self._on_claimed(step, result, sent)
            elif isinstance(result, LeaseHeld):
                held += 1
                self._observe(step.partition, result)
        return held

    def _claim_step(self, partition: int, claim: str) -> ClaimPartition:
        return ClaimPartition(
            partition,
            claim,
            self.identity.encode(),
            *self._expected(partition),
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
        # Else the loss came to light by this very claim: the next one replaces it (`_observe`).

    async def claim_at_start(self) -> None:
        """Claim what is free, then at once what dead processes of this host left behind."""
        if await self.claim_free() and any(seen.dead for seen in self._seen.values()):
            await self.claim_free()

    async def run(self) -> None:
        """Watch the leases, and keep claiming what this node does not own. Runs until cancelled."""
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._watch)
            task_group.start_soon(self._keep_claiming)

    async def _keep_claiming(self) -> None:
        while True:
            await anyio.sleep(self.lease_ttl_s / 4)
            if self._leaving or not self.journal.available or all(self.claims):
                continue
            try:
                await self.claim_free()
                if any(partition in self._losses and seen.dead for partition, seen in self._seen.items()):
                    await self.claim_free()  # over the old claim that was found
                await self._end_losses()
            except JournalUnavailable as error:
                logger.info("cannot claim partitions now: %s", error)

    async def _watch(self) -> None:
        """End what outlived its lease. Sleeps, *re-reads* what the keeper published, then decides."""
        while True:
            if self.keeper is not None:
                self.keeper.beat = time.monotonic()
                if self.keeper.crash is not None:
                    raise self.keeper.crash
                ended = [
                    partition
                    for partition in self.owned()
                    if elapsed_s(self._renewed[partition]) >= self._usable_s
                ]
                for partition in ended:
                    self.lose(partition, "its lease was not renewed in time")
                if ended:
                    logger.warning("the leases of %d partitions were not renewed in time", len(ended))
            await anyio.sleep(WATCH_INTERVAL_S)

    def _expected(self, partition: int) -> tuple[str, int]:
        """The lease that may be taken over, as `(claim, renewals)`; `("", 0)` for a free one only."""
        seen = self._seen.get(partition)
        if seen is None or not (seen.dead or elapsed_s(seen.since) >= self.lease_ttl_s):
            return "", 0
        return seen.claim, seen.renewals

    def _observe(self, partition: int, held: LeaseHeld) -> None:
        holder = NodeIdentity.decode(held.node)
        dead = self.same_host_takeover and holder is not None and self.identity.knows_dead(holder)
        if partition in self._losses and holder is not None and holder.node_id == self.identity.node_id:
            dead = True  # an earlier claim of this node, under which nothing runs any more
        seen = self._seen.get(partition)
        if seen is not None and (seen.claim, seen.renewals) == (held.claim, held.renewals):
            seen.dead = dead  # it may have died since the last look, without another renewal
        else:
            self._seen[partition] = _Seen(held.claim, held.renewals, instant_now(), dead)

    def _hold(self, partition: int, claim: str, sent: Instant) -> None:
        """Keep the lease of a partition alive."""
        self._seen.pop(partition, None)
        self._renewed[partition] = sent
        if self.keeper is not None:
            self.keeper.claims[partition] = claim

    def _take(self, partition: int, claim: str, epoch: int) -> None:
        self.epochs[partition] = epoch
        self.claims[partition] = claim
        self.on_claimed(partition)

    # Lost history.

    def lose_history(self, partition: int, why: str) -> None:
        """Stop owning a partition whose store went back in time, and claim it anew when that can be."""
        self._losses[partition] = _Loss(instant_now())
        if self.claims[partition]:
            self.lose(partition, why)
        else:
            self._forget(partition)

    def _claimed_anew(self, partition: int) -> bool:
        """Whether a partition that lost history is held already; if its lease ran out, it is not any more."""
        loss = self._losses.get(partition)
        if loss is None or not loss.claim:
            return False
        if self.keeper is not None and elapsed_s(self._renewed[partition]) >= self._usable_s:
            loss.claim = ""
            self._forget(partition)
        return bool(loss.claim)

    async def _end_losses(self) -> None:
        """Settle what was under way in partitions that lost history, and go on with those that have rested.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        for partition, loss in list(self._losses.items()):
            if self._claimed_anew(partition) and not loss.settled:
                loss.settled = await self.settle_lost(partition, loss.claim)
            if self._losses.get(partition) is not loss or self._leaving:
                continue  # it lost history once more meanwhile
            if loss.claim and not loss.settled:
                loss.claim = ""
                self._forget(partition)
            elif self._claimed_anew(partition) and elapsed_s(loss.since) >= self.lease_ttl_s:
                del self._losses[partition]
                self._take(partition, loss.claim, loss.epoch)

    def lose(self, partition: int, why: str) -> None:
        """Stop owning a partition now. Its scope ends; its dispatches are for the next owner to settle."""
        if not self.claims[partition]:
            return
        self._forget(partition)
        self.on_lost(partition, why)

    def _forget(self, partition: int) -> None:
        self.claims[partition] = ""
        self._renewed[partition] = NEVER
        if self.keeper is not None:
            self.keeper.claims[partition] = ""

    async def release_all(self) -> int:
        """Give up every partition whose dispatches are settled; returns how many could not be released.

        Raises:
            JournalUnavailable: the store gave no answer; the leases run out by themselves.
        """
        self._leaving = True
        held = {partition: self.claims[partition] for partition in self.owned()}
        for partition, loss in self._losses.items():
            if loss.claim and (loss.settled or await self.settle_lost(partition, loss.claim)):
                held[partition] = loss.claim
        owned = list(held)
        steps = [Release(partition, claim) for partition, claim in held.items()]
        answer = await self.journal.execute(steps)
        kept = 0
        for partition, result in zip(owned, answer.results, strict=True):
            self._forget(partition)
            kept += not isinstance(result, Released)
        return kept
