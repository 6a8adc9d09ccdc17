"""How a partition that has lost history becomes this node's again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from attrs import Factory, define, evolve, field

from atomic_actors.base._config import Config
from atomic_actors.journal._protocol import (
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    JournalSettings,
    LeaseHeld,
    Released,
    Renew,
    Renewed,
    Result,
    Stale,
    Step,
    Swept,
)
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.memory._journal import MemoryJournal
from atomic_actors.node.ownership import _leases
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._instants import Instant
from atomic_actors.node.ownership._lease_keeper import LeaseKeeper
from atomic_actors.node.ownership._leases import LeaseTimes, OwnLeases, SeenLeases
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.ownership._peers import NodeRecord, Peers

pytestmark = pytest.mark.anyio

LEASE_S = 0.4
PATIENCE_S = 5.0


@define(eq=False)
class Node:
    """A membership and what it told the node."""

    store: MemoryJournal
    journal: GroupCommit
    membership: Membership = field(init=False)
    log: list[str] = Factory(list)
    claims: list[str] = Factory(list)
    times_s: list[float] = Factory(list)
    #: What `settle_lost` answers, one call after the other; then True.
    answers: list[bool] = Factory(list)
    _changed: anyio.Event = Factory(anyio.Event)

    def __attrs_post_init__(self) -> None:
        self.membership = Membership(
            journal=self.journal,
            nodes=Peers(
                None,
                NodeRecord.of_this_node(NodeIdentity.of_this_process(), "default", ["account"], 1.0),
                LEASE_S,
                False,
            ),
            leases=OwnLeases(1, None, LeaseTimes(ttl_s=LEASE_S, margin_s=LEASE_S / 4)),
        )
        self.membership.start(self)

    # What the membership asks of its host.

    def claimed(self, partition: int) -> None:
        self._note("claimed")

    def lost(self, partition: int, why: str) -> None:
        self._note(f"lost: {why}")

    def settle_swept(self, partition: int, swept: Swept) -> None:
        raise AssertionError("nothing is left")

    def _note(self, text: str) -> None:
        self.log.append(text)
        self.claims.append(self.membership.claims[0])
        self.times_s.append(anyio.current_time())
        self._changed.set()
        self._changed = anyio.Event()

    async def hand_over(self, partition: int) -> None:
        raise AssertionError("nobody else is there")

    async def settle_lost(self, partition: int, claim: str) -> bool:
        answer = self.answers.pop(0) if self.answers else True
        assert not self.membership.leases.is_valid(partition)
        assert isinstance((await self.store.execute([Renew(0, claim)])).results[0], Renewed)
        self._note(f"settled: {answer}")
        self.claims[-1] = claim
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE_S):
            while not condition():
                await self._changed.wait()

    async def audit(self) -> Audited:
        answer = (await self.store.execute([Audit(0)])).results[0]
        assert isinstance(answer, Audited)
        return answer


@asynccontextmanager
async def owner() -> AsyncGenerator[Node]:
    """A node that owns the one partition, and keeps claiming."""
    store = MemoryJournal(JournalSettings(partitions=1))
    async with GroupCommit(inner=store) as journal, anyio.create_task_group() as task_group:
        node = Node(store, journal)
        await node.membership.refresh_and_take_over()
        assert node.log == ["claimed"]
        task_group.start_soon(node.membership.run)
        yield node
        task_group.cancel_scope.cancel()


async def test_it_is_claimed_anew_and_rests_for_a_lease() -> None:
    async with owner() as node:
        before, first, epoch = await node.audit(), node.membership.claims[0], node.membership.epochs[0]
        noticed_s = anyio.current_time()
        node.membership.lose_history(0, "gone")
        assert node.membership.claims == [""]
        await node.until(lambda: node.log == ["claimed", "lost: gone", "settled: True", "claimed"])
        assert node.claims[-1] == node.claims[-2] != first
        # What was under way is settled at once, for until then it can be withdrawn as if it had never run.
        assert node.times_s[-2] - noticed_s < LEASE_S <= node.times_s[-1] - noticed_s
        assert (await node.audit()).incarnation > before.incarnation
        assert node.membership.epochs[0] > epoch
        assert node.membership.leases.is_valid(0)


async def test_nobody_else_gets_it_while_it_rests() -> None:
    async with owner() as node:
        first = node.membership.claims[0]
        node.membership.lose_history(0, "gone")
        # This node's own lease need not run out: nothing runs under it any more.
        await node.membership.refresh()
        await node.membership.refresh()
        stale, other = (
            await node.store.execute(
                [
                    Renew(0, first),
                    ClaimPartition(
                        partition=0, claim="other", node=b"other", expected_claim=first, expected_renewals=0
                    ),
                ]
            )
        ).results
        assert stale == Stale("claim")
        assert not isinstance(other, Claimed)
        assert node.membership.claims == [""]


async def test_it_is_lost_again_while_it_rests() -> None:
    async with owner() as node:
        node.membership.lose_history(0, "gone")
        await node.until(lambda: node.log[-1] == "settled: True")
        again_s = anyio.current_time()
        node.membership.lose_history(0, "gone")
        await node.until(lambda: node.log[-1] == "claimed" and len(node.log) > 1)
        assert node.log == ["claimed", "lost: gone", "settled: True", "settled: True", "claimed"]
        assert node.claims[2] != node.claims[3] == node.claims[4]
        assert node.times_s[-1] - again_s >= LEASE_S


async def test_what_cannot_be_settled_is_claimed_once_more() -> None:
    async with owner() as node:
        node.answers.append(False)
        node.membership.lose_history(0, "gone")
        await node.until(lambda: node.log[-2:] == ["settled: True", "claimed"])
        assert node.log[2] == "settled: False"
        assert node.claims[2] != node.claims[3] == node.claims[4]


async def test_leaving_while_it_rests_settles_and_gives_it_up() -> None:
    async with owner() as node:
        node.membership.lose_history(0, "gone")
        await node.membership.refresh()
        await node.membership.refresh()
        assert await node.membership.release_all() == 0
        assert node.log[-1] == "settled: True"
        claimed = (
            await node.store.execute([ClaimPartition(partition=0, claim="next", node=b"next")])
        ).results[0]
        assert isinstance(claimed, Claimed | Released)


async def test_a_late_release_leaves_a_newer_claim_alone() -> None:
    async with owner() as node:
        membership, first = node.membership, node.membership.claims[0]

        class Late:
            """The lease was lost while the release was on its way, and claimed anew before its answer was read."""

            async def request(self, step: Step) -> Result:
                result = (await node.store.execute([step])).results[0]
                membership.lose(0, "late")
                membership.journal = node.journal
                await membership.refresh()
                return result

        late: Any = Late()
        membership.journal = late
        await membership.release(0)
        assert node.log == ["claimed", "lost: late", "claimed"]
        assert membership.claims[0] not in ("", first)


async def test_a_longer_lease_of_somebody_else_is_waited_for() -> None:
    async with owner() as node:
        await node.membership.release_all()
        identity = NodeIdentity.of_this_process(lease_ttl_s=LEASE_S * 4)
        patient = evolve(identity, boot_id="elsewhere").encode()
        claim = ClaimPartition(partition=0, claim="other", node=patient)
        assert isinstance((await node.store.execute([claim])).results[0], Claimed)
        other = Node(node.store, node.journal)
        await other.membership.refresh()
        await anyio.sleep(LEASE_S * 1.2)
        await other.membership.refresh()
        assert other.log == []
        await anyio.sleep(LEASE_S * 3)
        await other.membership.refresh()
        assert other.log == ["claimed"]


@define(eq=False)
class DriftingClock:
    """A clock that is as much too fast as its rate says, and what `_leases` reads while it is set."""

    rate: float
    true_s: float = 1_000.0

    def now(self) -> Instant:
        return self.true_s * self.rate, self.true_s * self.rate

    def elapsed_s(self, since: Instant) -> float:
        return self.now()[0] - since[0]


@pytest.mark.parametrize("drift", [0.0, 0.01, 0.1], ids=lambda drift: f"{drift:.0%}")
def test_an_owner_ends_before_its_successor_begins(drift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default settings, and though the owner's clock is too slow and the other one's too fast."""
    config = Config()
    keeper = LeaseKeeper(
        client=cast("Any", None),
        partitions=1,
        interval_s=config.lease_renew_interval_s,
        loop_stall_limit_s=config.loop_stall_limit_s,
    )
    times = LeaseTimes(ttl_s=config.lease_ttl_s, margin_s=config.lease_margin_s)
    record = NodeRecord.of_this_node(NodeIdentity.of_this_process(), "default", ["account"], 1.0)
    owner = OwnLeases(1, keeper, times)
    seen = SeenLeases(Peers(None, record, times.ttl_s, False), times.ttl_s)

    def use(clock: DriftingClock) -> None:
        monkeypatch.setattr(_leases, "instant_now", clock.now)
        monkeypatch.setattr(_leases, "elapsed_s", clock.elapsed_s)

    slow, fast = DriftingClock(1 - drift), DriftingClock(1 + drift)
    owner.claims[0], keeper.renewed[0] = "claim", slow.now()
    use(fast)
    # The renewal needed no time to the store, and the other one looked at once: it cannot come sooner.
    seen.observe(0, LeaseHeld(b"elsewhere", 1, "claim", 1))
    overlap_s = 0.0
    while seen.left_s(0) > 0:
        slow.true_s += 0.001
        fast.true_s += 0.001
    use(slow)
    while owner.is_valid(0):
        slow.true_s += 0.001
        overlap_s += 0.001
    assert overlap_s == 0.0
