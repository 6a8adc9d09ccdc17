"""Steps that the store refuses, at times when the node has other things to do."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from attrs import define, field

from atomic_actors.journal._protocol import BatchResult, Journal, Rejected, Step, Sweep
from tests.journals import WrappedJournal
from tests.system.support import PATIENCE_S, Desk, NewSystem, Stage

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
