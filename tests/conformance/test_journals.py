"""Every journal of ours passes the suite that we ship."""

from __future__ import annotations

import pytest

from atomic_actors.journal._memory import MemoryJournal
from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.testing import JournalSuite, Subject

pytestmark = pytest.mark.anyio

START_MS = 1_700_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def read_ms(self) -> int:
        return self.now_ms

    def pass_ms(self, duration_ms: int) -> None:
        self.now_ms += duration_ms


class TestMemoryJournal(JournalSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        clock = Clock()

        def open_journal(settings: JournalSettings) -> MemoryJournal:
            return MemoryJournal(settings, now_ms=clock.read_ms)

        return Subject(open_journal, clock.pass_ms)
