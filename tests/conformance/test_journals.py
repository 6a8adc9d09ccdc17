"""The journals without a server pass the suite that we ship."""

from __future__ import annotations

import anyio
import pytest

from atomic_actors.journal._protocol import (
    Audit,
    Claimed,
    ClaimPartition,
    JournalSettings,
    JournalUnavailable,
    RelayEntry,
    RelayIn,
    Replay,
    Resume,
)
from atomic_actors.journal.commit._commit_queue import CommitLimits
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.memory._journal import MemoryJournal
from atomic_actors.testing import JournalSuite, Subject
from atomic_actors.testing.journal_suite._probe import Probe
from tests.conformance.clock import Clock

pytestmark = pytest.mark.anyio


class TestMemoryJournal(JournalSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        clock = Clock()

        def open_journal(settings: JournalSettings) -> MemoryJournal:
            return MemoryJournal(settings, now_ms=clock.read_ms)

        return Subject(open_journal, clock.pass_ms)


async def test_what_is_over_is_not_seen_before_it_is_purged() -> None:
    clock = Clock()
    config = JournalSettings(result_ttl_ms=100, dedupe_ttl_ms=100)
    async with MemoryJournal(config, now_ms=clock.read_ms) as journal:
        probe = Probe(journal=journal, mode="once", subject=Subject(MemoryJournal))
        await probe.own()
        step = probe.message(key="k", digest="d")
        await probe.finish(await probe.taken(step), "complete")
        clock.pass_ms(100)
        # The very first call after the end: nothing has been purged yet.
        assert await probe.state_of(step) == "absent"
        fresh = probe.message(key="k", digest="other")
        await probe.accept(fresh)


async def test_bells() -> None:
    bells: list[tuple[int, str]] = []
    async with MemoryJournal(JournalSettings(), on_bell=lambda *bell: bells.append(bell)) as journal:
        probe = Probe(journal=journal, mode="once", subject=Subject(MemoryJournal))
        await probe.own()
        dispatch = await probe.taken(probe.message())
        # The commit of the turn that is on takes what is next: nobody needs to hear of it.
        await probe.accept(probe.message(claim="claim-0"))
        assert bells == []
        stale = probe.message("account/b", claim="claim-0")
        await probe.accept(stale)
        await probe.once(Resume(0, "account/c"))
        await probe.once(
            RelayIn(
                partition=0,
                source=1,
                incarnation=7,
                entries=(RelayEntry(1, "account/d", probe.new_uid(), probe.body()),),
            )
        )
        await probe.finish(dispatch, "fail")
        dead = dispatch.messages[0].uid
        await probe.once(
            Replay(partition=0, entity="account/a", uid=dead, new_uid=probe.new_uid(), at_head=False)
        )
        assert bells == [(0, f"account/{name}") for name in "bcda"]


async def test_closed_journal_says_that_nothing_was_sent() -> None:
    journal = MemoryJournal(JournalSettings())
    with pytest.raises(JournalUnavailable, match="not open") as caught:
        await journal.execute([Audit(0)])
    assert not caught.value.sent
    async with journal, journal:
        pass
    with pytest.raises(JournalUnavailable, match="not open"):
        await journal.execute([Audit(0)])


async def test_execute_is_a_checkpoint() -> None:
    async with MemoryJournal(JournalSettings()) as journal:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.execute([ClaimPartition(partition=0, claim="claim-1", node=b"node")])
        assert scope.cancelled_caught
        # The answer was lost and not the step, as with a store: sending again finds it done.
        answer = await journal.execute([ClaimPartition(partition=0, claim="claim-1", node=b"node")])
        assert isinstance(answer.results[0], Claimed)
        assert answer.results[0].epoch == 1


async def test_time_does_not_go_back() -> None:
    clock = Clock()
    async with MemoryJournal(JournalSettings(), now_ms=clock.read_ms) as journal:
        before = (await journal.execute([Audit(0)])).now_ms
        clock.pass_ms(-1_000)
        assert (await journal.execute([Audit(1)])).now_ms == before


class TestGroupCommitOverMemory(JournalSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        clock = Clock()

        def open_journal(settings: JournalSettings) -> GroupCommit:
            # Batches smaller than the suite's, so that one call's steps are spread over several.
            return GroupCommit(
                inner=MemoryJournal(settings, now_ms=clock.read_ms), limits=CommitLimits(max_batch_steps=3)
            )

        return Subject(open_journal, clock.pass_ms)
