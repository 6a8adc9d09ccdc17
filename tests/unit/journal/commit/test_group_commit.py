"""Group commit, where the conformance suite cannot look: what is sent when, and a history that is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import anyio
import pytest
from attrs import define, field
from msgspec.structs import replace

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
    Renew,
    Renewed,
    Replay,
    Result,
    Stale,
    Step,
    Sweep,
    Take,
    Verdict,
)
from atomic_actors.journal.commit._batches import OVERTAKEN_MAX, belongs_to_owner
from atomic_actors.journal.commit._commit_queue import CommitLimits
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.commit._store_clock import StoreClock

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
    return Append(partition=partition, entity=entity, uid="0" * 32, body=b"0\na\nname\n\n", claim=claim)


OWNERS: list[Step] = [
    Take(partition=1, entity="account/a", claim="claim", policy=""),
    Finish(
        partition=1, entity="account/a", claim="claim", turn=1, verdicts=(), state=None, expected_version=0
    ),
    Interrupt(partition=1, entity="account/a", claim="claim", turn=1, uids=()),
    Sweep(partition=1, claim="claim"),
    RelayIn(partition=2, source=1, incarnation=7, entries=()),
]
OTHERS: list[Step] = [
    Take(partition=2, entity="account/a", claim="claim", policy=""),
    RelayIn(partition=1, source=2, incarnation=7, entries=()),
    ClaimPartition(partition=1, claim="claim-2", node=b"node"),
    Park(1, "account/a"),
    Audit(1),
]


#: Stays, as an append does, but takes nothing for a claim that is gone.
REPLAY = Replay(partition=1, entity="account/a", uid="0" * 32, new_uid="1" * 32, at_head=False, claim="claim")


async def test_what_was_relayed_to_another_service_belongs_to_its_source() -> None:
    assert belongs_to_owner(RelayIn(partition=2, source="shop/1", incarnation=7, entries=()), "shop/1")
    others = [
        *OWNERS,
        *OTHERS,
        RelayIn(partition=1, source="shop/2", incarnation=7, entries=()),
        RelayIn(partition=1, source="shop/1", incarnation=7, entries=()),
    ]
    assert [step for step in others if belongs_to_owner(step, "shop/1")] == others[-1:]
    assert [step for step in others if belongs_to_owner(step, 1)] == OWNERS
    assert not belongs_to_owner(REPLAY, 1)


@pytest.mark.parametrize("in_flight", [True, False])
async def test_steps_of_a_lost_history_are_not_sent_again(in_flight: bool) -> None:
    store, answers = Held(), dict[int, Result | JournalUnavailable]()
    steps: list[Step] = [*OWNERS, *OTHERS, append(1, "claim"), append(2, "claim", "account/b")]
    async with GroupCommit(inner=store, limits=CommitLimits(max_batches_in_flight=1)) as journal:
        if not in_flight:
            journal.enqueue(Audit(3), lambda _: None)
            await store.asked()
        for position, step in enumerate(steps):
            journal.enqueue(step, lambda result, position=position: answers.update({position: result}))  # type: ignore[misc]
        if in_flight:
            await store.asked()
            assert store.batches == [steps]
        journal.fence_off(1)
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


async def test_a_replay_stays_where_a_history_is_lost() -> None:
    store, answers = Held(is_away=False), list[Result | JournalUnavailable]()
    async with GroupCommit(inner=store, limits=CommitLimits(max_batches_in_flight=1)) as journal:
        journal.enqueue(Audit(3), lambda _: None)
        await store.asked()
        journal.enqueue(REPLAY, answers.append)
        journal.fence_off(1)
        store.answer()
        await journal.wait_drained()
    assert store.batches[-1] == [replace(REPLAY, claim="")]
    assert answers == [Renewed(1)]


async def test_an_answer_counts_though_its_partition_was_forsaken() -> None:
    store, answers = Held(is_away=False), list[Result | JournalUnavailable]()
    async with GroupCommit(inner=store) as journal:
        journal.enqueue(OWNERS[0], answers.append)
        await store.asked()
        journal.fence_off(1)
        store.answer()
        await journal.wait_drained()
    assert answers == [Renewed(1)]


async def test_a_store_is_found_again_when_nothing_is_left_to_send() -> None:
    store, answers = Held(), list[Result | JournalUnavailable]()
    async with GroupCommit(inner=store, limits=CommitLimits(failure_threshold=1)) as journal:
        for step in OWNERS:
            journal.enqueue(step, answers.append)
        await store.asked()
        journal.fence_off(1)
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


class Direct(Held):
    """A store that is sent to without waiting; the test answers."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.calls: list[tuple[list[Step], Callable[[BatchResult | Exception], None]]] = []
        self._refuses = refuses

    def send(self, steps: Sequence[Step], on_answer: Callable[[BatchResult | Exception], None]) -> bool:
        if self._refuses:
            return False
        self.calls.append((list(steps), on_answer))
        return True


@define
class Crashes:
    """Keeps what it is told."""

    seen: list[BaseException] = field(factory=list[BaseException])

    def crashed(self, error: BaseException) -> None:
        self.seen.append(error)


def renewed(count: int) -> BatchResult:
    return BatchResult([Renewed(1)] * count, 1)


async def test_a_callback_that_raises_ends_the_node_and_not_in_silence() -> None:
    store, crashes = Direct(), Crashes()

    def raises(_: object) -> None:
        raise ValueError("by a listener")

    async with GroupCommit(inner=store, crashes=crashes) as journal:
        journal.submit(Renew(0, "claim"), raises)
        ((_, on_answer),) = store.calls
        on_answer(renewed(1))
    assert [str(error) for error in crashes.seen] == ["by a listener"]


async def test_answers_are_handed_out_in_the_order_of_the_batches() -> None:
    store, got = Direct(), list[tuple[int, object]]()
    async with GroupCommit(inner=store) as journal:
        journal.submit(Renew(0, "claim"), lambda result: got.append((0, result)))
        for number in range(1, 40):
            journal.enqueue(Renew(0, "claim"), lambda result, number=number: got.append((number, result)))  # type: ignore[misc]
        await anyio.wait_all_tasks_blocked()
        assert len(store.calls) == 2
        (first, answer_first), (second, answer_second) = store.calls
        answer_second(renewed(len(second)))
        assert got == []
        answer_first(renewed(len(first)))
        assert [number for number, _ in got] == list(range(len(first) + len(second)))
        for steps, on_answer in store.calls[2:]:
            on_answer(renewed(len(steps)))
    assert [number for number, _ in got] == list(range(40))


async def test_a_few_steps_beside_a_batch_leave_with_its_answer() -> None:
    store, got = Direct(), list[object]()
    async with GroupCommit(inner=store) as journal:
        journal.submit(Renew(0, "claim"), got.append)
        journal.submit(Renew(1, "claim"), got.append)
        await anyio.wait_all_tasks_blocked()
        assert len(store.calls) == 1
        store.calls[0][1](renewed(1))
        await anyio.wait_all_tasks_blocked()
        assert [steps for steps, _ in store.calls] == [[Renew(0, "claim")], [Renew(1, "claim")]]
        store.calls[1][1](renewed(1))
        assert len(got) == 2


async def test_a_commit_overtakes_only_messages_of_its_own_entity() -> None:
    store = Direct()
    commit = Finish(
        partition=1,
        entity="account/a",
        claim="claim",
        turn=1,
        verdicts=(Verdict(uid="0" * 32, event="complete"),),
        state=None,
        expected_version=0,
    )

    def ignore(_: object) -> None:
        pass

    def answer() -> None:
        steps, on_answer = store.calls[-1]
        on_answer(renewed(len(steps)))

    async with GroupCommit(inner=store) as journal:
        await anyio.wait_all_tasks_blocked()
        # What waits beside a batch, then its answer: the commit comes before any task runs.
        for other, overtakes in (("account/a", True), ("account/b", True), ("account/a", False)):
            journal.submit(Audit(0), ignore)
            await anyio.wait_all_tasks_blocked()
            journal.submit(append(1, "claim", other), ignore)
            answer()
            journal.enqueue(commit, ignore, overtakes=overtakes)
            alone = other == "account/a" and overtakes
            assert store.calls[-1][0] == ([commit] if alone else [append(1, "claim", other), commit])
            answer()
            await anyio.wait_all_tasks_blocked()
            if alone:
                assert store.calls[-1][0] == [append(1, "claim")]
                answer()
        # Not for ever: at last the message goes along.
        journal.submit(Audit(0), ignore)
        await anyio.wait_all_tasks_blocked()
        journal.submit(append(1, "claim"), ignore)
        answer()
        for _ in range(OVERTAKEN_MAX):
            journal.enqueue(commit, ignore, overtakes=True)
            assert store.calls[-1][0] == [commit]
            answer()
        journal.enqueue(commit, ignore, overtakes=True)
        assert store.calls[-1][0] == [append(1, "claim"), commit]
        answer()


async def test_a_batch_that_was_not_sent_is_not_overtaken() -> None:
    store, got = Direct(refuses=True), list[object]()
    store.is_away = False
    async with GroupCommit(inner=store) as journal:
        journal.submit(Renew(0, "claim"), got.append)
        store._refuses = False
        for number in range(1, 20):
            journal.submit(Renew(number, "claim"), got.append)
        await store.asked()
        store.answer()
        await anyio.wait_all_tasks_blocked()
        for steps, on_answer in store.calls:
            on_answer(renewed(len(steps)))
    assert store.batches[0][0] == Renew(0, "claim")


async def test_appends_alone_go_in_the_order_of_their_entities() -> None:
    store, got = Direct(), list[object]()
    names = [*"abcab", "c"]

    def message(position: int) -> Append:
        return replace(append(1, "", f"account/{names[position]}"), uid=f"{position:032}")

    def keep(position: int) -> Callable[[object], None]:
        return lambda _: got.append(position)

    async with GroupCommit(inner=store) as journal:
        journal.submit(Audit(0), got.append)
        await anyio.wait_all_tasks_blocked()
        for position in range(len(names)):
            journal.submit(message(position), keep(position))
        store.calls[0][1](renewed(1))
        await anyio.wait_all_tasks_blocked()
        steps, on_answer = store.calls[1]
        assert list(steps) == [message(position) for position in (0, 3, 1, 4, 2, 5)]
        on_answer(renewed(len(steps)))
    assert got[1:] == [0, 3, 1, 4, 2, 5]


async def test_where_the_store_is_slow_a_commit_goes_along_with_the_next_batch() -> None:
    store = Direct()
    commits = [
        Finish(
            partition=1,
            entity=f"account/{name}",
            claim="claim",
            turn=1,
            verdicts=(Verdict(uid="0" * 32, event="complete"),),
            state=None,
            expected_version=0,
        )
        for name in "abcd"
    ]

    def ignore(_: object) -> None:
        pass

    now_s = 0.0
    async with GroupCommit(inner=store, store_clock=StoreClock(lambda: now_s)) as journal:
        for took_s, batches in ((0.001, [1, 1]), (0.002, [1, 1]), (0.01, [1])):
            before = len(store.calls)
            journal.enqueue(commits[0], ignore)
            now_s += took_s
            store.calls[before][1](renewed(1))
            # The store has just shown how quick it is: one commit is on its way, and another one comes.
            before = len(store.calls)
            journal.enqueue(commits[1], ignore)
            journal.enqueue(commits[2], ignore)
            await anyio.wait_all_tasks_blocked()
            assert [len(steps) for steps, _ in store.calls[before:]] == batches
            now_s += 0.001
            while before < len(store.calls):
                steps, on_answer = store.calls[before]
                on_answer(renewed(len(steps)))
                before += 1
                await anyio.wait_all_tasks_blocked()


async def test_what_was_forsaken_is_not_waited_for() -> None:
    store, got = Direct(refuses=True), list[object]()
    async with GroupCommit(inner=store, limits=CommitLimits(max_batches_in_flight=1)) as journal:
        journal.submit(Audit(0), got.append)
        await store.asked()
        journal.enqueue(Take(partition=1, entity="account/a", claim="claim", policy=""), got.append)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(journal.wait_drained)
            await anyio.wait_all_tasks_blocked()
            journal.fence_off(1)
            store.is_away = False
            store.answer()
    assert got == [GONE, Renewed(1)]


async def test_nobody_waits_for_what_was_left() -> None:
    got: list[object] = []
    async with GroupCommit(inner=Direct()) as journal:
        pass
    with pytest.raises(JournalUnavailable, match="closed") as error:
        journal.submit(Audit(0), got.append)
    assert not error.value.sent
    journal.enqueue(Take(partition=1, entity="account/a", claim="claim", policy=""), got.append)
    (answer,) = got
    assert isinstance(answer, JournalUnavailable)
    assert journal.statistics().pending == 0


async def test_left_before_anything_ran() -> None:
    with anyio.fail_after(2), pytest.raises(ExceptionGroup) as raised:
        async with GroupCommit(inner=Direct()):
            raise KeyError("body")
    assert raised.group_contains(KeyError)
