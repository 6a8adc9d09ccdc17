"""How partitions are given up: in order, within their time limits, and so that the next owner learns of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from attrs import Factory, define, evolve, field
from trio.testing import MockClock

from atomic_actors.base._errors import DrainTimeout, NotSupported, UnknownNode
from atomic_actors.journal._protocol import BatchResult, JournalUnavailable, LeaseState, ReadLease, Step
from atomic_actors.journal.memory._directory import MemoryDirectory
from atomic_actors.node.operations._handover import SETTLE_LIMIT_S, Handover
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._instants import instants_from
from atomic_actors.node.ownership._peers import NodeRecord, Peers

PARTITIONS = 4
LEASE_S = 10.0
DRAIN_S = 30.0


def record_of(host: str, *, pid: int = 1) -> NodeRecord:
    """A node of another machine."""
    return NodeRecord(
        identity=NodeIdentity(node_id=host, boot_id=host, pid_namespace="", pid=pid, start_time="1"),
        host=host,
        service="default",
        kinds=frozenset({"account"}),
    )


@define(eq=False)
class FakeSupervisor:
    """Where turns run: a test says how long they take to end."""

    log: list[str]
    #: Until all turns of a partition have ended, and until interrupted ones are unwound.
    drain_s: float = 0.0
    unwind_s: float = 0.0
    leaving: set[int] = Factory(set)

    @property
    def node(self) -> FakeSupervisor:
        return self

    @property
    def deferred(self) -> FakeSupervisor:
        return self

    def lost(self, partition: int) -> None:
        self.log.append(f"forget what is deferred in {partition}")

    def stop_taking_in(self, number: int) -> None:
        self.leaving.add(number)

    async def drain(self) -> None:
        self.log.append("drain")

    async def drain_partition(self, partition: int) -> None:
        assert partition in self.leaving
        await trio.sleep(self.drain_s)
        self.log.append(f"drained {partition}")

    async def end_partition(self, partition: int) -> None:
        self.log.append(f"end {partition}")
        await trio.sleep(self.unwind_s)


@define(eq=False)
class FakeVolatile:
    """Volatile entities, which end at once."""

    log: list[str]
    releasing: set[int] = Factory(set)

    def lost(self, partition: int) -> None:
        self.log.append(f"end volatile {partition}")

    async def drain(self, partition: int | None = None) -> None:
        self.log.append("drain volatile" if partition is None else f"drain volatile {partition}")

    async def wait_ended(self, partition: int) -> None: ...


@define(eq=False)
class FakeMembership:
    """The partitions that this node owns, and what became of them."""

    log: list[str]
    nodes: Peers
    volatile: FakeVolatile
    claims: list[str] = Factory(lambda: ["claim"] * PARTITIONS)
    partitions: int = PARTITIONS
    #: What the next release meets.
    refusal: JournalUnavailable | None = None
    is_released: bool = True

    def owned(self) -> list[int]:
        return [number for number, claim in enumerate(self.claims) if claim]

    def lose(self, partition: int, why: str) -> None:
        self.claims[partition] = ""
        self.log.append(f"lose {partition}: {why}")

    async def release(self, partition: int) -> bool:
        assert partition in self.volatile.releasing
        self.log.append(f"release {partition}")
        if self.refusal is not None:
            raise self.refusal
        if self.is_released:
            self.claims[partition] = ""
        return self.is_released

    def refresh_soon(self) -> None:
        self.log.append("refresh")


@define(eq=False)
class FakeExchange:
    log: list[str]

    def push(self, node_id: str, frame: object) -> None:
        self.log.append(f"notify {node_id}")


@define(eq=False)
class FakeJournal:
    """The leases as the store shows them."""

    holders: list[str] = Factory(lambda: [""] * PARTITIONS)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        await trio.lowlevel.checkpoint()
        assert all(isinstance(step, ReadLease) for step in steps)
        return BatchResult([self._lease(self.holders[step.partition]) for step in steps], 0)

    def _lease(self, holder: str) -> LeaseState:
        node = record_of(holder).identity.encode() if holder else b""
        return LeaseState(node=node, epoch=3, claim="claim" if holder else "", renewals=1)


@define(eq=False)
class Stage:
    """A handover between fakes; what happens is logged in order."""

    directory: MemoryDirectory | None = Factory(MemoryDirectory)
    drain_timeout_s: float = DRAIN_S
    log: list[str] = Factory(list)
    journal: FakeJournal = Factory(FakeJournal)
    nodes: Peers = field(init=False)
    supervisor: FakeSupervisor = field(init=False)
    volatile: FakeVolatile = field(init=False)
    membership: FakeMembership = field(init=False)
    handover: Handover = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.nodes = Peers(self.directory, record_of("here"), LEASE_S, False)
        self.supervisor = FakeSupervisor(self.log)
        self.volatile = FakeVolatile(self.log)
        self.membership = FakeMembership(self.log, self.nodes, self.volatile)
        parts: dict[str, Any] = {
            "journal": self.journal,
            "membership": self.membership,
            "supervisor": self.supervisor,
            "volatile": self.volatile,
            "messenger": FakeExchange(self.log),
        }
        self.handover = Handover(**parts, drain_timeout_s=self.drain_timeout_s)

    async def announce(self, *hosts: str) -> None:
        """Other nodes announce themselves, and this one sees them."""
        assert self.directory is not None
        for host in hosts:
            await self.directory.announce(host, record_of(host).encode())
        await self.nodes.announce()

    def leave_to_others(self) -> None:
        """From now on nothing should be this node's."""
        self.nodes.record = evolve(self.nodes.record, is_draining=True)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """On virtual time, by which leases are measured as well."""

    async def main() -> None:
        with instants_from(lambda: (trio.current_time(), trio.current_time())):
            await scene()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# --- one partition ---------------------------------------------------------------------------------------


def test_a_partition_is_drained_ended_released_and_announced_in_this_order() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("there")
        stage.leave_to_others()
        await stage.handover.hand_over(2)
        assert stage.log == [
            "drain volatile 2",
            "drained 2",
            "end 2",
            "end volatile 2",
            "release 2",
            "forget what is deferred in 2",
            "end volatile 2",
            "notify there",
        ]
        assert stage.volatile.releasing == set()

    play(scene)


@pytest.mark.parametrize(
    ("drain_timeout_s", "lasts_s", "ends"),
    [(DRAIN_S, 29.0, True), (DRAIN_S, 31.0, False), (0.0, 1e6, True)],
    ids=["in time", "too late", "without a limit"],
)
def test_turns_that_do_not_end_in_time_are_interrupted(
    drain_timeout_s: float, lasts_s: float, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        stage = Stage(drain_timeout_s=drain_timeout_s)
        stage.supervisor.drain_s = lasts_s
        began_s = trio.current_time()
        await stage.handover.hand_over(0)
        passed_s = trio.current_time() - began_s
        assert math.isclose(passed_s, lasts_s if ends else drain_timeout_s, rel_tol=1e-6)
        assert ("drained 0" in stage.log) is ends
        assert "release 0" in stage.log

    play(scene)
    assert ("interrupted" in caplog.text) is not ends


def test_a_turn_that_does_not_unwind_leaves_the_partition_to_its_lease() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.supervisor.unwind_s = SETTLE_LIMIT_S + 1
        began_s = trio.current_time()
        await stage.handover.hand_over(0)
        assert math.isclose(trio.current_time() - began_s, SETTLE_LIMIT_S, rel_tol=1e-6)
        assert stage.log[-1] == "lose 0: a turn in it did not end"
        assert "release 0" not in stage.log
        assert stage.volatile.releasing == set()

    play(scene)


def test_a_partition_that_is_not_free_afterwards_is_lost() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.membership.is_released = False
        await stage.handover.hand_over(0)
        assert "lose 0: it could not be released" in stage.log

    play(scene)


def test_a_store_that_is_away_leaves_the_partition_to_its_lease() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("there")
        stage.leave_to_others()
        stage.membership.refusal = JournalUnavailable("it is away", sent=True)
        await stage.handover.hand_over(0)
        # The next owner would find the lease held: it is not notified.
        assert stage.log[-1] == "lose 0: it could not be released: it is away"

    play(scene)


def test_a_partition_that_is_this_nodes_again_is_claimed_at_once() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.handover.notify_next(0)
        assert stage.log == ["refresh"]

    play(scene)


def test_without_a_next_owner_no_node_is_notified() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.leave_to_others()
        await stage.handover.notify_next(0)
        assert stage.log == []

    play(scene)


# --- all of them -----------------------------------------------------------------------------------------


def test_all_are_given_up_side_by_side() -> None:
    async def scene() -> None:
        stage = Stage(drain_timeout_s=1.0)
        await stage.announce("there")
        stage.leave_to_others()
        stage.supervisor.drain_s = 50.0
        began_s = trio.current_time()
        await stage.handover.hand_over_all()
        # It waits for their turns without a limit: who leaves sets one around it.
        assert math.isclose(trio.current_time() - began_s, 50.0, rel_tol=1e-6)
        assert stage.membership.owned() == []
        assert "drain" not in stage.log

    play(scene)


def test_the_last_node_lets_everything_end_before_it_gives_anything_up() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.leave_to_others()
        await stage.handover.hand_over_all()
        assert stage.log[:2] == ["drain volatile", "drain"]
        assert stage.membership.owned() == []

    play(scene)


# --- asking other nodes ----------------------------------------------------------------------------------


def test_a_drain_ends_when_the_node_owns_nothing() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("here", "there")
        stage.journal.holders[:] = ["here", "there", "there", ""]

        async def give_up() -> None:
            for number in (1, 2):
                await trio.sleep(1)
                stage.journal.holders[number] = "here"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            began_s = trio.current_time()
            await stage.handover.drain("there", 30.0)
            assert 2 <= trio.current_time() - began_s < 2.5
        assert stage.log == ["notify there"]
        assert [peer.is_draining for peer in stage.nodes.peers()] == [True]

    play(scene)


def test_a_drain_that_takes_too_long_says_which_node() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("there")
        stage.journal.holders[1] = "there"
        with pytest.raises(DrainTimeout, match=r"^there: partitions are still owned after 3 s"):
            await stage.handover.drain("there", 3.0)

    play(scene)


def test_a_drain_of_an_unknown_node() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("there")
        with pytest.raises(UnknownNode, match="'nowhere'"):
            await stage.handover.drain("nowhere", 3.0)

    play(scene)


def test_a_store_without_a_directory_cannot_be_asked_for_a_drain() -> None:
    async def scene() -> None:
        stage = Stage(directory=None)
        for drain in (stage.handover.drain_all(1.0), stage.handover.drain("there", 1.0)):
            with pytest.raises(NotSupported, match="no directory"):
                await drain

    play(scene)


def test_a_drain_of_all_asks_every_node_and_does_not_wait_for_the_dead() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("here", "dead", "there")
        stage.journal.holders[:] = ["", "dead", "", ""]
        # Only this node is heard of once more: the drain itself does that.
        began_s = trio.current_time()
        await stage.handover.drain_all(LEASE_S * 3)
        assert sorted(stage.log) == ["notify dead", "notify there", "refresh"]
        assert LEASE_S <= trio.current_time() - began_s < LEASE_S * 1.1
        assert stage.nodes.is_draining

    play(scene)


# --- reports ---------------------------------------------------------------------------------------------


def test_the_reports_join_the_directory_and_the_leases() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.announce("here", "there")
        stage.journal.holders[:] = ["here", "there", "there", ""]
        assert [(owner.partition, owner.node_id) for owner in await stage.handover.partitions()] == [
            (0, "here"),
            (1, "there"),
            (2, "there"),
            (3, ""),
        ]
        infos = await stage.handover.nodes()
        assert [(info.node_id, info.partitions, info.is_here) for info in infos] == [
            ("here", 1, True),
            ("there", 2, False),
        ]
        assert all(info.is_live and not info.is_draining for info in infos)
        await trio.sleep(LEASE_S)
        await stage.nodes.announce()
        assert [info.is_live for info in await stage.handover.nodes()] == [True, False]

    play(scene)
