"""The nodes of the service as this one sees them: which are alive, which are gone, which should own what.

It announces this node again and again, and watches how often the others do. One whose count does not change for a
lease on this node's clock is taken for dead, one that was a process of this host and is gone at once. Views of
two nodes may differ for a moment: then both believe that a partition should be theirs, or neither does. Claims
settle the first, and the next refresh the second.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import anyio
import anyio.to_thread
from attrs import define, evolve, field, frozen

from atomic_actors.base._telemetry import logger
from atomic_actors.journal._directory import Directory, NodeEntry
from atomic_actors.journal._protocol import PROTOCOL_VERSION
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._instants import Instant, elapsed_s, instant_now
from atomic_actors.node.ownership._placement import Candidate, place

__all__ = ("NodeRecord", "Peer", "Peers")

#: An entry of a node that has been dead for so many leases is taken off.
FORGET_AFTER_LEASES: Final = 10
#: How long a node that does not announce itself watches others: a little longer than they may keep silent.
WATCHED_LEASES: Final = 1.05
#: Pairs of a node and a partition above which the table is computed in a thread: that takes some 10 ms.
PAIRS_INLINE_MAX: Final = 5_000


@frozen(kw_only=True)
class NodeRecord:
    """What a node says of itself."""

    identity: NodeIdentity
    host: str
    service: str
    kinds: frozenset[str]
    weight: float = 1.0
    protocol: int = PROTOCOL_VERSION
    release: str = ""
    #: It gives up what it owns, and takes nothing new.
    is_draining: bool = False

    @classmethod
    def of_this_node(
        cls, identity: NodeIdentity, service: str, kinds: Iterable[str], weight: float
    ) -> NodeRecord:
        """The record of a node of this process."""
        return cls(
            identity=identity,
            host=socket.gethostname(),
            service=service,
            kinds=frozenset(kinds),
            weight=weight,
            release=_release(),
        )

    def encode(self) -> bytes:
        """The stored form."""
        return _encode(self)

    @classmethod
    def decode(cls, data: bytes) -> NodeRecord | None:
        """Read a stored form; None where it is not one (written by another version)."""
        return _decode(data)


# A node says the same of itself each time it is heard of, several times a lease.


@lru_cache(maxsize=1)
def _release() -> str:
    try:
        return version("atomic_actors")
    except PackageNotFoundError:
        return ""


@lru_cache(maxsize=16)
def _encode(record: NodeRecord) -> bytes:
    plain = {
        "identity": json.loads(record.identity.encode()),
        "host": record.host,
        "service": record.service,
        "kinds": sorted(record.kinds),
        "weight": record.weight,
        "protocol": record.protocol,
        "release": record.release,
        "draining": record.is_draining,
    }
    return json.dumps(plain, separators=(",", ":")).encode()


@lru_cache(maxsize=1_024)
def _decode(data: bytes) -> NodeRecord | None:
    try:
        plain: dict[str, Any] = json.loads(data)
        identity = NodeIdentity.decode(json.dumps(plain["identity"]).encode())
        if identity is None:
            return None
        record = NodeRecord(
            identity=identity,
            host=str(plain["host"]),
            service=str(plain["service"]),
            kinds=frozenset(map(str, plain["kinds"])),
            weight=float(plain["weight"]),
            protocol=int(plain["protocol"]),
            release=str(plain["release"]),
            is_draining=bool(plain["draining"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return record if 0 < record.weight < float("inf") else None


@define(eq=False, kw_only=True)
class Peer:
    """Another node, and since when its count has not changed."""

    node_id: str
    #: None where it is of a version that cannot be read here.
    record: NodeRecord | None
    beats: int
    since: Instant
    is_draining: bool
    #: It was a process of this host and is gone, or its lease ran out; until it is heard of again.
    is_dead: bool = False


@define(eq=False)
class Peers:
    """What this node knows of the others, and shows of itself.

    Args:
        directory: where nodes announce themselves; None for a store that has none, where this node is alone.
        record: what this node says of itself.
        lease_ttl_s: how long a node's count must not change until it is taken for dead.
        same_host_takeover: whether a process of this host that is gone is dead at once.
    """

    directory: Directory | None
    record: NodeRecord
    lease_ttl_s: float
    same_host_takeover: bool
    _peers: dict[str, Peer] = field(factory=dict[str, Peer], init=False)
    #: This node has taken itself off: a refresh that was under way must not bring it back.
    _has_left: bool = field(default=False, init=False)
    _table: tuple[tuple[Candidate, ...], int, tuple[str, ...]] = field(default=((), 0, ()), init=False)

    @property
    def node_id(self) -> str:
        """This node."""
        return self.record.identity.node_id

    @property
    def is_draining(self) -> bool:
        """Whether this node gives up what it owns."""
        return self.record.is_draining

    def drain(self) -> None:
        """Take nothing new from now on, and say so with the next announcement."""
        self.record = evolve(self.record, is_draining=True)

    # Seeing each other.

    async def announce(self) -> None:
        """Show that this node is alive, and see who else is.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        if self.directory is None or self._has_left:
            return
        self._observe(await self.directory.announce(self.node_id, self.record.encode()))
        for peer in list(self._peers.values()):
            if not self.is_live(peer) and elapsed_s(peer.since) >= FORGET_AFTER_LEASES * self.lease_ttl_s:
                await self.directory.forget(peer.node_id, peer.beats)

    async def read(self) -> Sequence[NodeEntry]:
        """Every node in the directory.

        A node that announces itself knows who lives. Any other watches now until it does, a lease at most.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        if self.directory is None:
            return ()
        entries = await self.directory.read()
        if any(entry.node_id == self.node_id for entry in entries):
            return entries
        since, before = instant_now(), self._peers
        self._observe(entries)
        first = {**self._peers, **before}
        while elapsed_s(since) < WATCHED_LEASES * self.lease_ttl_s and any(
            peer is first.get(peer.node_id) and not peer.is_dead for peer in self._peers.values()
        ):
            await anyio.sleep(self.lease_ttl_s / 10)
            entries = await self.directory.read()
            self._observe(entries)
        return entries

    async def leave(self) -> None:
        """Take this node off.

        Raises:
            JournalUnavailable: the store gave no answer; the others see by themselves that it is gone.
        """
        self._has_left = True
        if self.directory is not None:
            await self.directory.forget(self.node_id)

    def _observe(self, entries: Iterable[NodeEntry]) -> None:
        before, self._peers = self._peers, {}
        for entry in entries:
            if entry.node_id == self.node_id:
                if entry.is_draining and not self.is_draining:
                    logger.warning("this node was asked to drain; it is releasing its partitions")
                    self.drain()
                continue
            peer = before.get(entry.node_id)
            if peer is None or peer.beats != entry.beats:
                peer = Peer(
                    node_id=entry.node_id,
                    record=NodeRecord.decode(entry.record),
                    beats=entry.beats,
                    since=instant_now(),
                    is_draining=entry.is_draining,
                )
            peer.is_draining = entry.is_draining
            self._peers[entry.node_id] = peer
        self.find_dead()

    def find_dead(self) -> bool:
        """Check whether processes of this host are gone; returns whether one was found that was not known."""
        found = False
        if self.same_host_takeover:
            for peer in self._peers.values():
                if not peer.is_dead and peer.record is not None and self.knows_dead(peer.record.identity):
                    peer.is_dead = found = True
        return found

    def knows_dead(self, identity: NodeIdentity) -> bool:
        """Whether a node was a process of this very host, is certainly gone, and may be succeeded at once."""
        return self.same_host_takeover and self.record.identity.knows_dead(identity)

    def suspect(self, node_id: str) -> None:
        """A lease of a node has run out: it is dead until it is heard of again.

        Unless it was heard of just now: then it is this node that has not read the lease for long.
        """
        peer = self._peers.get(node_id)
        if peer is not None and elapsed_s(peer.since) >= self.lease_ttl_s / 2:
            peer.is_dead = True

    def is_live(self, peer: Peer) -> bool:
        """Whether a node has announced itself within a lease: ours or its own, whichever is longer."""
        claimed_s = peer.record.identity.lease_ttl_s if peer.record is not None else 0.0
        return not peer.is_dead and elapsed_s(peer.since) < max(self.lease_ttl_s, claimed_s)

    def peers(self) -> list[Peer]:
        """The other nodes of the namespace, dead ones among them."""
        return list(self._peers.values())

    # Placement.

    def _candidates(self) -> tuple[Candidate, ...]:
        records = [
            peer.record
            for peer in self._peers.values()
            if peer.record is not None and not peer.is_draining and self.is_live(peer)
        ]
        candidates = [
            Candidate(record.identity.node_id, record.weight, record.kinds)
            for record in (self.record, *records)
            if record.service == self.record.service
            and record.protocol == self.record.protocol
            and not record.is_draining
        ]
        return tuple(sorted(candidates, key=lambda candidate: candidate.node_id))

    def forget_placement(self) -> None:
        """Compute the table anew when it is next asked for."""
        self._table = ((), 0, ())

    async def placement(self, partitions: int) -> tuple[str, ...]:
        """The id of the node that should own each partition; "" where none can."""
        candidates = self._candidates()
        known_for, known_partitions, table = self._table
        if candidates != known_for or partitions != known_partitions:
            if len(candidates) * partitions > PAIRS_INLINE_MAX:
                table = await anyio.to_thread.run_sync(place, candidates, partitions)
            else:
                table = place(candidates, partitions)
            self._table = (candidates, partitions, table)
        return table
