"""Group commit, where the conformance suite cannot look: steps that belong to a history that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import anyio
import pytest
from attrs import define, field

from atomic_actors.journal._group_commit import GroupCommit
from atomic_actors.journal._protocol import (
    Append,
    Audit,
    BatchResult,
    ClaimPartition,
    Finish,
    Interrupt,
    JournalSettings,
    JournalUnavailable,
    Park,
    RelayIn,
    Renewed,
    Result,
    Stale,
    Step,
    Sweep,
    Take,
)

pytestmark = pytest.mark.anyio

GONE = Stale("claim")


@define(eq=False)
class Held:
    """A store that keeps each batch until it is told what to answer."""

    settings: JournalSettings = field(factory=lambda: JournalSettings(partitions=4))
    batches: list[list[Step]] = field(factory=list)
    is_away: bool = True
    _asked: anyio.Event = field(factory=anyio.Event)
    _answer: anyio.Event = field(factory=anyio.Event)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        self.batches.append(list(steps))
        self._asked.set()
        await self._answer.wait()
        if self.is_away:
            raise JournalUnavailable("away", sent=True)
        return BatchResult([Renewed(1)] * len(steps), 1)

    async def asked(self) -> None:
        with anyio.fail_after(2):
            await self._asked.wait()

    def answer(self) -> None:
        self._answer.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


def append(partition: int, claim: str, entity: str = "account/a") -> Append:
    return Append(partition, entity, "0" * 32, b"0\na\nname\n\n", claim=claim)


OWNERS: list[Step] = [
    Take(1, "account/a", "claim", ""),
    Finish(1, "account/a", "claim", 1, (), None, 0),
    Interrupt(1, "account/a", "claim", 1, ()),
    Sweep(1, "claim"),
    RelayIn(2, 1, 7, ()),
]
OTHERS: list[Step] = [
    Take(2, "account/a", "claim", ""),
    RelayIn(1, 2, 7, ()),
    ClaimPartition(1, "claim-2", b"node"),
    Park(1, "account/a"),
    Audit(1),
]


@pytest.mark.parametrize("in_flight", [True, False])
async def test_steps_of_a_lost_history_are_not_sent_again(in_flight: bool) -> None:
    store, answers = Held(), dict[int, Result | JournalUnavailable]()
    steps: list[Step] = [*OWNERS, *OTHERS, append(1, "claim"), append(2, "claim", "account/b")]
    async with GroupCommit(store, max_batches_in_flight=1) as journal:
        if not in_flight:
            journal.enqueue(Audit(3), lambda _: None)
            await store.asked()
        for position, step in enumerate(steps):
            journal.enqueue(step, lambda result, position=position: answers.update({position: result}))  # type: ignore[misc]
        if in_flight:
            await store.asked()
            assert store.batches == [steps]
        journal.forsake(1)
        # What is in flight may still be answered; what only waits will never be sent.
        assert answers == ({} if in_flight else dict.fromkeys(range(len(OWNERS)), GONE))
        store.answer()
        with anyio.fail_after(2):
            while len(store.batches) < 2:
                await anyio.lowlevel.checkpoint()
            store.is_away = False
            await journal.wait_drained()
    assert answers.pop(len(steps) - 1) == Renewed(1)
    again = store.batches[-1]
    assert [step for step in again if step in OWNERS] == []
    assert [step for step in again if not isinstance(step, Append)] == OTHERS
    # A message stays accepted, but is not taken by a claim that nobody holds any more.
    assert [step for step in again if isinstance(step, Append)] == [
        append(1, ""), append(2, "claim", "account/b")
    ]  # fmt: skip
    assert {position for position, answer in answers.items() if answer == GONE} == set(range(len(OWNERS)))


async def test_an_answer_counts_though_its_partition_was_forsaken() -> None:
    store, answers = Held(is_away=False), list[Result | JournalUnavailable]()
    async with GroupCommit(store) as journal:
        journal.enqueue(OWNERS[0], answers.append)
        await store.asked()
        journal.forsake(1)
        store.answer()
        await journal.wait_drained()
    assert answers == [Renewed(1)]


async def test_a_store_is_found_again_when_nothing_is_left_to_send() -> None:
    store, answers = Held(), list[Result | JournalUnavailable]()
    async with GroupCommit(store, failure_threshold=1) as journal:
        for step in OWNERS:
            journal.enqueue(step, answers.append)
        await store.asked()
        journal.forsake(1)
        store.answer()
        with anyio.fail_after(2):
            while len(answers) < len(OWNERS):
                await anyio.lowlevel.checkpoint()
            assert answers == [GONE] * len(OWNERS)
            assert not journal.available
            store.is_away = False
            await journal.wait_drained()
        assert journal.available
    assert store.batches[-1] == [Audit(0)]
