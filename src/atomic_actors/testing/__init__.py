"""Tools for those who test with, or write parts for, `atomic_actors`. Needs the extra `testing`.

`simulate` and `run_simulation` run your actors in a simulated cluster, in virtual time, with crashes and faults that
one seed decides. `JournalSuite` is the conformance suite of journals: inherit from it and give it a `Subject`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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
    RefusedWith,
    SequentialModel,
    check_linearizable,
    operations_of,
)
from atomic_actors.testing._simulate import run_simulation, simulate  # noqa: E402
from atomic_actors.testing._simulated_faults import CALL_FAULTS, FRAME_FAULTS  # noqa: E402
from atomic_actors.testing._simulated_node import NodeCrashed, SimulatedNode  # noqa: E402
from atomic_actors.testing._simulation import Simulation, SimulationFailed  # noqa: E402
from atomic_actors.testing._timeline import timeline  # noqa: E402

if TYPE_CHECKING:
    from atomic_actors.testing._contract_strategies import from_contract, kind_contract
    from atomic_actors.testing._new_systems import NewActorSystem
    from atomic_actors.testing._state_machine import ActorStateMachine
    from atomic_actors.testing._strategies import entities, messages
    from atomic_actors.testing._valkey_server import ValkeyServer

_LATE: Final = {
    "ActorStateMachine": "_state_machine",
    "NewActorSystem": "_new_systems",
    "ValkeyServer": "_valkey_server",
    "entities": "_strategies",
    "from_contract": "_contract_strategies",
    "kind_contract": "_contract_strategies",
    "messages": "_strategies",
}


def __getattr__(name: str) -> Any:
    """Import what needs Hypothesis, or much time, only when it is asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)


__all__ = (
    "CALL_FAULTS",
    "FRAME_FAULTS",
    "RULES",
    "ActorStateMachine",
    "History",
    "JournalSuite",
    "NewActorSystem",
    "NodeCrashed",
    "Operation",
    "RefusedWith",
    "SequentialModel",
    "SimulatedNode",
    "Simulation",
    "SimulationFailed",
    "Subject",
    "ValkeyServer",
    "Violation",
    "check_history",
    "check_linearizable",
    "entities",
    "from_contract",
    "kind_contract",
    "messages",
    "operations_of",
    "run_simulation",
    "simulate",
    "timeline",
)
