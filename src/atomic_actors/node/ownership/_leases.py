"""The leases of this node, and what it saw of the leases of others.

The owner measures from *before* a renewal was sent, and a claimant from when it saw the last one, each on its own
clock, so that the owner's own idea of a lease always ends first; `_membership` shows it as a picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field, frozen

from atomic_actors.journal._protocol import LeaseHeld, LeaseState
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._instants import NEVER, Instant, elapsed_s, instant_now
from atomic_actors.node.ownership._lease_keeper import Keeper
from atomic_actors.node.ownership._peers import Peers

__all__ = ("LeaseTimes", "OwnLeases", "SeenLeases")


@frozen(kw_only=True)
class LeaseTimes:
    """How long leases last."""

    #: How long others must see no renewal before they take over.
    ttl_s: float
    #: How much earlier their owner believes them to end.
    margin_s: float

    @property
    def usable_s(self) -> float:
        """How long their owner relies on them."""
        return self.ttl_s - self.margin_s


@define(eq=False)
class OwnLeases:
    """The leases that this node holds.

    Args:
        partitions: how many the service has.
        keeper: renews the leases; None for a store that lives in this process, where no lease ends.
        times: how long they last.
    """

    partitions: int
    keeper: Keeper | None
    times: LeaseTimes
    #: The claim id for each owned partition; "" where this node is not the owner. Read on the hot path.
    claims: list[str] = field(init=False)
    #: Epochs of the owned partitions: the fencing tokens.
    epochs: list[int] = field(init=False)
    _renewed: list[Instant] = field(init=False)
    _usable_s: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.claims = [""] * self.partitions
        self.epochs = [0] * self.partitions
        self._renewed = self.keeper.renewed if self.keeper is not None else [NEVER] * self.partitions
        self._usable_s = self.times.usable_s

    def is_valid(self, partition: int) -> bool:
        """Whether the lease certainly still holds. Asked before every turn."""
        if not self.claims[partition]:
            return False
        return self.keeper is None or elapsed_s(self._renewed[partition]) < self._usable_s

    def owned(self) -> list[int]:
        """The partitions that this node owns."""
        return [partition for partition, claim in enumerate(self.claims) if claim]

    def has_run_out(self, partition: int) -> bool:
        """Whether a lease, of an owned partition or one that is held, was not renewed in time."""
        return self.keeper is not None and elapsed_s(self._renewed[partition]) >= self._usable_s

    def hold(self, partition: int, claim: str, sent: Instant) -> None:
        """Keep the lease of a partition alive, which was renewed by what was sent then."""
        self._renewed[partition] = sent
        if self.keeper is not None:
            self.keeper.claims[partition] = claim

    def take(self, partition: int, claim: str, epoch: int) -> None:
        """Own a partition."""
        self.epochs[partition] = epoch
        self.claims[partition] = claim

    def forget(self, partition: int) -> None:
        """Neither own a partition nor keep its lease alive."""
        self.claims[partition] = ""
        self._renewed[partition] = NEVER
        if self.keeper is not None:
            self.keeper.claims[partition] = ""


@frozen(eq=False, kw_only=True)
class _Seen:
    """A lease of another owner, and since when it has not changed."""

    claim: str
    renewals: int
    since: Instant
    holder: NodeIdentity | None
    #: An earlier claim of this very node, under which nothing runs any more.
    is_ours: bool


@define(eq=False)
class SeenLeases:
    """What a claimant saw of the leases of others."""

    nodes: Peers
    ttl_s: float
    _seen: dict[int, _Seen] = field(factory=dict[int, _Seen], init=False)

    def __iter__(self) -> Iterator[int]:
        """The partitions that have a lease."""
        return iter(self._seen)

    def observe(self, partition: int, held: LeaseHeld | LeaseState) -> None:
        """Take in an answer of the store."""
        if not held.claim:
            self.forget(partition)
            return
        seen = self._seen.get(partition)
        if seen is None or (seen.claim, seen.renewals) != (held.claim, held.renewals):
            holder = NodeIdentity.decode(held.node)
            self._seen[partition] = _Seen(
                claim=held.claim,
                renewals=held.renewals,
                since=instant_now(),
                holder=holder,
                is_ours=holder is not None and holder.node_id == self.nodes.node_id,
            )

    def forget(self, partition: int) -> None:
        """A partition has no lease, or one of this node."""
        self._seen.pop(partition, None)

    def takeable(self, partition: int) -> tuple[str, int]:
        """The lease that may be taken over, as `(claim, renewals)`; `("", 0)` for a free one only."""
        seen = self._seen.get(partition)
        if seen is None:
            return "", 0
        is_dead = seen.holder is not None and self.nodes.knows_dead(seen.holder)
        may_be_taken = seen.is_ours or is_dead or self._left_s(seen) <= 0
        return (seen.claim, seen.renewals) if may_be_taken else ("", 0)

    def left_s(self, partition: int) -> float:
        """How long a lease may last yet; 0 where there is none."""
        seen = self._seen.get(partition)
        return self._left_s(seen) if seen is not None else 0.0

    def _left_s(self, seen: _Seen) -> float:
        # As long as ours, or as its holder says, if that is longer.
        claimed_s = seen.holder.lease_ttl_s if seen.holder is not None else 0.0
        return max(self.ttl_s, claimed_s) - elapsed_s(seen.since)

    def first_end_s(self, limit_s: float) -> float:
        """How long until the first of them ends that has not ended yet; `limit_s` at most."""
        for seen in self._seen.values():
            left_s = self._left_s(seen)
            if left_s > 0:
                limit_s = min(limit_s, left_s)
        return limit_s

    def suspect_holders(self) -> None:
        """Take the holders of leases that ran out for dead, until they are heard of again."""
        for seen in self._seen.values():
            if seen.holder is not None and self._left_s(seen) <= 0:
                self.nodes.suspect(seen.holder.node_id)
