"""Checks a simulation's history against what the package promises.

Each rule is one promise, a small class that looks at every record once (`_rules_turns`, `_rules_messages`). None of
them knows the runtime: they compare records with each other and nothing else.
"""

from __future__ import annotations

from typing import Final

from atomic_actors.testing.checkers._history import History
from atomic_actors.testing.checkers._rule import Rule, Violation
from atomic_actors.testing.checkers._rules_messages import (
    AnswersTrue,
    NothingLost,
    OneFinal,
    OutboxOnce,
    VersionChain,
)
from atomic_actors.testing.checkers._rules_turns import Fifo, OneStart, OneTurn, SingleOwner

__all__ = ("RULES", "Rule", "Violation", "check_history")

#: Every rule's name, in the order in which they are asked.
RULES: Final = tuple(
    rule.name
    for rule in (
        Fifo,
        OneTurn,
        OneStart,
        SingleOwner,
        OneFinal,
        VersionChain,
        OutboxOnce,
        AnswersTrue,
        NothingLost,
    )
)


def check_history(history: History, *, healed: bool, leases_honoured: bool = False) -> list[Violation]:
    """Check all rules over a history; takes time in proportion to its length.

    Args:
        history: what happened, oldest first.
        healed: it ends after a time without faults in which everything could come to its end. Then what is
            missing is a violation too.
        leases_honoured: also report handlers that overlap across a change of owner although nothing was done to
            the older one's node or to a clock: see `OneTurn`.

    Returns:
        What was broken, in the order of the records that broke it; empty if nothing was.
    """
    rules: list[Rule] = [
        Fifo(healed=healed),
        OneTurn(healed=healed, leases_honoured=leases_honoured),
        OneStart(healed=healed),
        SingleOwner(healed=healed),
        OneFinal(healed=healed),
        VersionChain(healed=healed),
        OutboxOnce(healed=healed),
        AnswersTrue(healed=healed),
        NothingLost(healed=healed),
    ]
    for record in history.records:
        for rule in rules:
            rule.see(record)
    violations = [violation for rule in rules for violation in rule.end()]
    return sorted(violations, key=lambda violation: violation.position)
