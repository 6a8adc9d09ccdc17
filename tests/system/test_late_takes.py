"""Copies of a take that arrive after its turn was committed: what they take, nobody has heard of.

A connection that was given up may deliver what was sent through it long after it was sent again. Here the journal in
memory does a take once more, when a test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import pytest
from attrs import define, field

from atomic_actors import ActorSystem, Receipt
from atomic_actors.journal._protocol import BatchResult, Journal, Release, Resume, Step, Sweep, Take, Taken
from atomic_actors.node.execution import _owned_partition, _supervisor
from tests.journals import WrappedJournal
from tests.system.support import PATIENCE_S, Desk, NewSystem, Stage, Watcher, Work, desk
from tests.system.test_races import parts_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def store_url() -> str:
    return "memory:"


@define(eq=False)
class RepeatingJournal(WrappedJournal):
    """Remembers what it was sent, and can do it again."""

    steps: list[Step] = field(factory=list[Step])
    _called: anyio.Event = field(factory=anyio.Event)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        answer = await super().execute(steps)
        self.steps += steps
        self._called.set()
        self._called = anyio.Event()
        return answer

    def takes(self) -> list[Take]:
        return [step for step in self.steps if isinstance(step, Take)]

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE_S):
            while not condition():
                await self._called.wait()

    async def take_late(self, entity: str) -> None:
        """A copy of the entity's last take arrives; its answer goes to nobody."""
        late = next(step for step in reversed(self.takes()) if step.entity == entity)
        resume = Resume(late.partition, late.entity)
        _, taken = (await self.store.execute([resume, late])).results
        assert isinstance(taken, Taken)
        assert taken.offer.dispatch is not None

    def looks(self) -> int:
        """How often an owner looked through its own dispatches."""
        return sum(isinstance(step, Sweep) and step.own_from is not None for step in self.steps)


@define(eq=False)
class Wrapper:
    """Makes systems whose journals repeat takes."""

    new_system: NewSystem
    stage: Stage
    journals: list[RepeatingJournal] = field(factory=list[RepeatingJournal])

    def wrap(self, inner: Journal) -> Journal:
        self.journals.append(RepeatingJournal(inner))
        return self.journals[-1]

    def __call__(self) -> ActorSystem:
        return self.new_system(Desk.using(stage=self.stage), wrap=self.wrap, partitions=1)

    @property
    def journal(self) -> RepeatingJournal:
        return self.journals[-1]


@pytest.fixture
def repeating(new_system: NewSystem, stage: Stage) -> Wrapper:
    return Wrapper(new_system, stage)


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_supervisor, "SWEEP_INTERVAL_S", 0.01)
    monkeypatch.setattr(_owned_partition, "OWN_INTERVAL_S", 0.0)


async def leave_unheard(system: ActorSystem, journal: RepeatingJournal) -> Receipt[str]:
    """The second message of a desk is dispatched, and its owner does not know."""
    await system.pause(desk())
    completed = Watcher(system, "completed")
    await system.tell(desk(), Work("first"))
    await system.resume(desk())
    await completed.wait()
    await system.pause(desk())
    receipt = await system.tell(desk(), Work("second"))
    await journal.take_late(str(desk()))
    return receipt


@pytest.mark.usefixtures("quick_looks")
async def test_what_a_late_take_began_is_found(repeating: Wrapper) -> None:
    async with repeating() as system:
        dispatched = Watcher(system, "dispatched")
        receipt = await leave_unheard(system, repeating.journal)
        await repeating.stage.wait_for("second")
        with anyio.fail_after(PATIENCE_S):
            await system.result(receipt.message_id)
        assert repeating.stage.log == ["first", "second"]
        assert [(event.message_id == receipt.message_id, event.attempt) for event in dispatched.events] == [
            (False, 1),
            (True, 1),
        ]


@pytest.mark.usefixtures("quick_looks")
async def test_a_look_leaves_what_runs_alone(repeating: Wrapper) -> None:
    stage = repeating.stage
    stage.hold("long")
    async with repeating() as system:
        await system.tell(desk(), Work("long"))
        await stage.wait_for("long")
        journal = repeating.journal
        taken, looked = len(journal.takes()), journal.looks()
        await journal.wait_for(lambda: journal.looks() > looked + 3)
        completed = Watcher(system, "completed")
        stage.release()
        await completed.wait()
        assert stage.log == ["long"]
        assert len(journal.takes()) == taken


async def test_a_look_rests_between_its_rounds(repeating: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_supervisor, "SWEEP_INTERVAL_S", 0.01)
    async with repeating():
        journal = repeating.journal
        await journal.wait_for(lambda: sum(isinstance(step, Sweep) for step in journal.steps) > 5)
        assert journal.looks() == 1


async def test_a_look_goes_on_where_its_page_ends(
    repeating: Wrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_supervisor, "SWEEP_INTERVAL_S", 0.01)
    monkeypatch.setattr(_supervisor, "SWEEP_LIMIT", 1)
    monkeypatch.setattr(_owned_partition, "OWN_INTERVAL_S", 0.0)
    stage, busy = repeating.stage, [desk(f"a-{number}") for number in range(3)]
    stage.hold("long")
    async with repeating() as system:
        for each in busy:
            await system.tell(each, Work("long"))
        # Three others stand before it, one in each page.
        await leave_unheard(system, repeating.journal)
        await stage.wait_for("second")
        stage.release()


async def test_what_a_late_take_began_is_given_back_when_the_system_is_left(repeating: Wrapper) -> None:
    async with repeating() as system:
        receipt = await leave_unheard(system, repeating.journal)
    assert isinstance(repeating.journal.steps[-1], Release)
    async with repeating() as system:
        dispatched = Watcher(system, "dispatched")
        # It runs, since it never began; an effectful message that was cut off would be a dead letter.
        await repeating.stage.wait_for("second")
        (event,) = await dispatched.wait()
        assert (event.message_id, event.attempt) == (receipt.message_id, 1)
        assert (await system.audit()).dead_letters == 0


async def test_what_a_late_take_began_is_given_back_when_its_partition_is(repeating: Wrapper) -> None:
    async with repeating() as system:
        receipt = await leave_unheard(system, repeating.journal)
        parts = parts_of(system)
        epoch = parts.membership.epochs[0]
        await parts.operations.handover.hand_over(0)
        # It was released, so that it can be claimed at once, and not only after its lease.
        await repeating.stage.wait_for("second")
        with anyio.fail_after(PATIENCE_S):
            await system.result(receipt.message_id)
        assert parts.membership.epochs[0] == epoch + 1
        assert (await system.audit()).dead_letters == 0
