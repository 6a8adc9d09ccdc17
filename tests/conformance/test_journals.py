"""The journals without a server pass the suite that we ship."""

from __future__ import annotations

import pytest

from atomic_actors.journal._group_commit import GroupCommit
from atomic_actors.journal._memory import MemoryJournal
from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.testing import JournalSuite, Subject
from tests.conformance.clock import Clock

pytestmark = pytest.mark.anyio


class TestMemoryJournal(JournalSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        clock = Clock()

        def open_journal(settings: JournalSettings) -> MemoryJournal:
            return MemoryJournal(settings, now_ms=clock.read_ms)

        return Subject(open_journal, clock.pass_ms)


class TestGroupCommitOverMemory(JournalSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        clock = Clock()

        def open_journal(settings: JournalSettings) -> GroupCommit:
            # Batches smaller than the suite's, so that one call's steps are spread over several.
            return GroupCommit(MemoryJournal(settings, now_ms=clock.read_ms), max_batch_steps=3)

        return Subject(open_journal, clock.pass_ms)
