"""Tools for those who test with, or write parts for, `atomic_actors`. Needs the extra `testing`.

`simulate` and `run_simulation` run your actors in a simulated cluster, in virtual time, with crashes and faults that
one seed decides. `JournalSuite` is the conformance suite of journals: inherit from it and give it a `Subject`.
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

from atomic_actors.testing._checkers import RULES, Violation, check_history  # noqa: E402
from atomic_actors.testing._history import History  # noqa: E402
from atomic_actors.testing._journal_probe import Subject  # noqa: E402
from atomic_actors.testing._journal_suite import JournalSuite  # noqa: E402
from atomic_actors.testing._linearizability import (  # noqa: E402
    Operation,
    SequentialModel,
    check_linearizable,
    operations_of,
)
from atomic_actors.testing._simulated_faults import CALL_FAULTS, FRAME_FAULTS  # noqa: E402
from atomic_actors.testing._simulated_node import NodeCrashed, SimulatedNode  # noqa: E402
from atomic_actors.testing._simulation import (  # noqa: E402
    Simulation,
    SimulationFailed,
    run_simulation,
    simulate,
)
from atomic_actors.testing._timeline import timeline  # noqa: E402

__all__ = (
    "CALL_FAULTS",
    "FRAME_FAULTS",
    "RULES",
    "History",
    "JournalSuite",
    "NodeCrashed",
    "Operation",
    "SequentialModel",
    "SimulatedNode",
    "Simulation",
    "SimulationFailed",
    "Subject",
    "Violation",
    "check_history",
    "check_linearizable",
    "operations_of",
    "run_simulation",
    "simulate",
    "timeline",
)
