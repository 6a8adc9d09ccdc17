"""The conformance suite: whatever passes it may be used as a journal.

    class TestMyJournal(JournalSuite):
        @pytest.fixture
        def subject(self) -> Subject:
            return Subject(open_my_journal)

Every test runs in each of the probe's modes: steps sent once, twice, again after a lost answer, and
delivered once more late.
"""

from __future__ import annotations

import pytest

from atomic_actors.testing.journal_suite._lifecycle import Lives
from atomic_actors.testing.journal_suite._losses import Losses
from atomic_actors.testing.journal_suite._nodes import Nodes
from atomic_actors.testing.journal_suite._operators import People
from atomic_actors.testing.journal_suite._owners import Owners
from atomic_actors.testing.journal_suite._probe import MODES, OpenProbe, Subject, probe_opener
from atomic_actors.testing.journal_suite._queues import Queues
from atomic_actors.testing.journal_suite._streams import Streams
from atomic_actors.testing.journal_suite._sweeps import Sweeps

__all__ = ("JournalSuite",)


class JournalSuite(Lives, Queues, Owners, Losses, Nodes, People, Streams, Sweeps):
    """Every promise of `journal._protocol`, as tests.

    Inherit from it in a class whose name begins with `Test`, and give it a fixture `subject`. The tests
    are coroutines: mark the class with `pytest.mark.anyio`, and give an `anyio_backend` fixture.
    """

    @pytest.fixture
    def subject(self) -> Subject:
        """The journal to test; overridden by those who inherit."""
        raise NotImplementedError("give the suite a fixture `subject` that returns a Subject")

    @pytest.fixture(params=MODES)
    def open_probe(self, request: pytest.FixtureRequest, subject: Subject) -> OpenProbe:
        """What the tests open their journal with."""
        return probe_opener(subject, request.param)
