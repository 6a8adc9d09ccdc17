"""The testing kit: simulation, checkers, strategies, the suite of journals. Imports everything but `tools`.

Needs the extra `testing`.

`simulate` and `run_simulation` run your actors in a simulated cluster, in virtual time, with crashes and faults that
one seed decides. `JournalSuite` is the conformance suite of journals: inherit from it and give it a `Subject`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pytest

# Before the imports below, so that a failing check of the suite says what it compared.
for _module in (
    "_probe",
    "_suite",
    "_lifecycle",
    "_losses",
    "_nodes",
    "_operators",
    "_owners",
    "_queues",
    "_streams",
    "_sweeps",
):
    pytest.register_assert_rewrite(f"atomic_actors.testing.journal_suite.{_module}")

from atomic_actors.base._public_names import set_public_module, set_public_modules  # noqa: E402
from atomic_actors.testing.checkers._checkers import RULES, Violation, check_history  # noqa: E402
from atomic_actors.testing.checkers._history import History  # noqa: E402
from atomic_actors.testing.checkers._linearizability import (  # noqa: E402
    Operation,
    RefusedWith,
    SequentialModel,
    check_linearizable,
    operations_of,
)
from atomic_actors.testing.checkers._timeline import timeline  # noqa: E402
from atomic_actors.testing.journal_suite._probe import Subject  # noqa: E402
from atomic_actors.testing.journal_suite._suite import JournalSuite  # noqa: E402
from atomic_actors.testing.simulation._faults import CALL_FAULTS, FRAME_FAULTS  # noqa: E402
from atomic_actors.testing.simulation._node import NodeCrashed, SimulatedNode  # noqa: E402
from atomic_actors.testing.simulation._simulate import run_simulation, simulate  # noqa: E402
from atomic_actors.testing.simulation._simulation import Simulation, SimulationFailed  # noqa: E402

if TYPE_CHECKING:
    from atomic_actors.testing.strategies._contracts import from_contract, kind_contract
    from atomic_actors.testing.strategies._messages import entities, messages
    from atomic_actors.testing.systems._new_systems import NewActorSystem
    from atomic_actors.testing.systems._state_machine import ActorStateMachine
    from atomic_actors.testing.systems._valkey_server import ValkeyServer

_LATE: Final = {
    "ActorStateMachine": "systems._state_machine",
    "NewActorSystem": "systems._new_systems",
    "ValkeyServer": "systems._valkey_server",
    "entities": "strategies._messages",
    "from_contract": "strategies._contracts",
    "kind_contract": "strategies._contracts",
    "messages": "strategies._messages",
}


def __getattr__(name: str) -> Any:
    """Import what needs Hypothesis, or much time, only when it is asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    set_public_module(__name__, found)
    return found


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

set_public_modules(__name__, globals(), __all__)
