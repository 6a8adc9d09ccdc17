"""Dead letters of which a part is damaged."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from attrs import define
from msgspec.structs import replace

from atomic_actors.journal._protocol import BatchResult, DeadLetterPage, Step, StoredLetter
from atomic_actors.node.operations import _dead_letters
from tests.journals import WrappedJournal
from tests.system.support import PATIENCE_S, Break, Desk, NewSystem, Stage, desk, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def store_url() -> str:
    return "memory:"


@define(eq=False)
class EarlyJournal(WrappedJournal):
    """All letters but the first say that they died long ago: the page behind them is the first one again."""

    first_id: str = ""

    def _damage(self, letter: StoredLetter) -> StoredLetter:
        self.first_id = self.first_id or letter.message_id
        return letter if letter.message_id == self.first_id else replace(letter, died_ms=1)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        answer = await self.store.execute(steps)
        results = [
            DeadLetterPage(tuple(map(self._damage, result.letters)), result.complete)
            if isinstance(result, DeadLetterPage)
            else result
            for result in answer.results
        ]
        return BatchResult(results, answer.now_ms)


async def test_pages_that_repeat_end(
    new_system: NewSystem, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dead_letters, "PAGE", 1)
    async with new_system(Desk.using(stage=stage), wrap=EarlyJournal, partitions=1) as system:
        for number in range(3):
            await system.tell(desk(str(number)), Break("on purpose"))

        async def all_died() -> bool:
            return (await system.audit()).dead_letters == 3

        await until(all_died)
        with anyio.fail_after(PATIENCE_S):
            letters = await system.dead_letters.list()
        assert len(letters) == len({letter.message_id for letter in letters}) == 2
