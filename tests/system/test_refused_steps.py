"""Steps that the store refuses, at times when the node has other things to do."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from attrs import define, field

from atomic_actors import Interrupted
from atomic_actors.journal._protocol import BatchResult, Finish, Journal, Rejected, Step, Sweep
from atomic_actors.node.execution._supervisor import Supervisor
from tests.journals import WrappedJournal
from tests.system.support import PATIENCE_S, Desk, NewSystem, Stage, Work, desk

pytestmark = pytest.mark.anyio


@pytest.fixture
def store_url() -> str:
    return "memory:"


@define(eq=False)
class PagelessJournal(WrappedJournal):
    """Refuses each sweep that asks for a page of the owner's own dispatches."""

    refused: int = 0
    swept: anyio.Event = field(factory=anyio.Event)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        answer = await self.store.execute(steps)
        results = list(answer.results)
        for number, step in enumerate(steps):
            if isinstance(step, Sweep) and step.own_from is not None:
                results[number] = Rejected("invalid", "a dispatch is damaged")
                self.refused += 1
            elif isinstance(step, Sweep):
                self.swept.set()
        return BatchResult(results, answer.now_ms)


async def test_a_refused_page_leaves_the_next_sweep(new_system: NewSystem, stage: Stage) -> None:
    journals: list[PagelessJournal] = []

    def wrap(inner: Journal) -> Journal:
        journals.append(PagelessJournal(inner))
        return journals[-1]

    async with new_system(Desk.using(stage=stage), wrap=wrap, partitions=1):
        with anyio.fail_after(PATIENCE_S):
            await journals[0].swept.wait()
        assert journals[0].refused == 1


@define(eq=False)
class LateJournal(WrappedJournal):
    """Refuses commits, and answers only when it is told to."""

    reached: anyio.Event = field(factory=anyio.Event)
    answer: anyio.Event = field(factory=anyio.Event)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        if not any(isinstance(step, Finish) for step in steps):
            return await self.store.execute(steps)
        self.reached.set()
        await self.answer.wait()
        answer = await self.store.execute([step for step in steps if not isinstance(step, Finish)])
        others = iter(answer.results)
        refusal = Rejected("invalid", "its record is damaged")
        return BatchResult(
            [refusal if isinstance(step, Finish) else next(others) for step in steps], answer.now_ms
        )


async def test_a_commit_that_is_refused_after_its_task_has_ended(
    new_system: NewSystem, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler has run: it does not run again."""
    journals: list[LateJournal] = []

    def wrap(inner: Journal) -> Journal:
        journals.append(LateJournal(inner))
        return journals[-1]

    ended = Supervisor.wait_ended

    async def answer_at_the_end(supervisor: Supervisor) -> None:
        await ended(supervisor)
        journals[0].answer.set()

    monkeypatch.setattr(Supervisor, "wait_ended", answer_at_the_end)
    with anyio.fail_after(PATIENCE_S):
        async with new_system(Desk.using(stage=stage), wrap=wrap, drain_timeout_s=0.05) as system:
            receipt = await system.tell(desk(), Work("once"))
            await journals[0].reached.wait()
    assert stage.log == ["once"]
    async with new_system(Desk.using(stage=stage)) as system:
        await system.resume(desk())
        with anyio.fail_after(PATIENCE_S), pytest.raises(Interrupted):
            await system.result(receipt)
        assert (await system.audit()).is_balanced
    assert stage.log == ["once"]
