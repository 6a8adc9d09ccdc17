"""Tools for those who test with, or write parts for, `atomic_actors`. Needs the extra `testing`.

`JournalSuite` is the conformance suite of journals: inherit from it and give it a `Subject`.
"""

from __future__ import annotations

import pytest

# Before the imports below, so that a failing check of the suite says what it compared.
pytest.register_assert_rewrite(
    "atomic_actors.testing._journal_probe",
    "atomic_actors.testing._journal_suite",
    "atomic_actors.testing._journal_suite_lives",
    "atomic_actors.testing._journal_suite_owners",
    "atomic_actors.testing._journal_suite_people",
    "atomic_actors.testing._journal_suite_queues",
    "atomic_actors.testing._journal_suite_streams",
)

from atomic_actors.testing._journal_probe import Subject  # noqa: E402
from atomic_actors.testing._journal_suite import JournalSuite  # noqa: E402

__all__ = ("JournalSuite", "Subject")
