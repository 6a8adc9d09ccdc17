"""Every guard is needed: without it the checker finds what it keeps away, and with it, nothing."""

from __future__ import annotations

import pytest
from attrs import evolve, frozen

from tests.model.configurations import Configuration, Fault, Guard, MessageSpec, named
from tests.model.protocol import Protocol, render
from tests.model.search import search

STATES_MAX = 100_000

TRANSACTIONAL = MessageSpec(stamp="tdc3")
ONE = Configuration(
    "one effectful message", (MessageSpec(),), faults=1, allowed=frozenset({Fault.CRASH, Fault.PAUSE})
)
TWO = Configuration(
    "two effectful messages",
    (MessageSpec(), MessageSpec()),
    faults=1,
    allowed=frozenset({Fault.ANSWER_LOST, Fault.LATE_COPY, Fault.APPEND_AGAIN, Fault.PAUSE}),
)


@frozen
class Case:
    """A guard, and what goes wrong without it.

    Args:
        off: what is switched off.
        configuration: the smallest one that shows it.
        invariant: the one that breaks; "" for any of them.
        what: what is wrong then.
        actions: how long the shortest trace is.
    """

    off: tuple[Guard, ...]
    configuration: Configuration
    invariant: str
    what: str
    actions: int


CASES = (
    Case((Guard.CLAIM,), evolve(ONE, allowed=frozenset({Fault.CRASH})), "", "stale write", 8),
    Case(
        (Guard.CLAIM,),
        evolve(ONE, messages=(TRANSACTIONAL,), releases=1),
        "one_handler",
        "two handlers of entity 0 run, and both leases are good",
        18,
    ),
    Case((Guard.TURN,), TWO, "", "version conflict", 10),
    Case(
        (Guard.TURN, Guard.VERSION),
        TWO,
        "chain_is_whole",
        "the state of entity 0 and its version are of different turns",
        10,
    ),
    Case((Guard.DEDUPE,), TWO, "", "accepted twice", 2),
    Case(
        (Guard.STREAM_NUMBER,),
        evolve(named("a stream"), allowed=frozenset({Fault.ANSWER_LOST})),
        "",
        "accepted twice",
        11,
    ),
    Case((Guard.INTERRUPTION,), ONE, "", "message 0 started twice", 14),
    Case(
        (Guard.LOOK,),
        evolve(TWO, allowed=frozenset({Fault.LATE_COPY})),
        "unfinished",
        "nothing moves, and message 1 is dispatched",
        11,
    ),
    Case(
        (Guard.LEASE,),
        evolve(ONE, messages=(TRANSACTIONAL,), faults=0),
        "one_handler",
        "two handlers of entity 0 run, and both leases are good",
        13,
    ),
)


def name_of(case: Case) -> str:
    return " and ".join(guard.value for guard in case.off) + (f": {case.invariant}" if case.invariant else "")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_guard_is_needed(case: Case) -> None:
    only = (case.invariant,) if case.invariant else ()
    found = search(Protocol(case.configuration.without(*case.off), only), states_max=STATES_MAX).found
    assert found is not None
    print(
        f"without {name_of(case)}: {found.what}, after {len(found.trace)} actions",
        *render(found.trace),
        sep="\n",
    )
    assert (found.what, len(found.trace)) == (case.what, case.actions)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_with_all_guards_nothing_is_wrong(case: Case) -> None:
    report = search(Protocol(case.configuration), states_max=STATES_MAX)
    assert report.found is None
    assert report.complete or report.states >= STATES_MAX


def test_every_guard_has_a_case() -> None:
    # Without losing failovers a claim's epoch is as good as its id: see `test_counterexamples`.
    assert {guard for case in CASES for guard in case.off} == set(Guard) - {Guard.CLAIM_ID}


def test_the_version_check_stands_behind_the_turn_check() -> None:
    """Alone it keeps nothing away. Where the turn check fails, it keeps the chain of states whole."""
    assert search(Protocol(TWO.without(Guard.VERSION)), states_max=STATES_MAX).complete
    assert search(Protocol(TWO.without(Guard.TURN), ("chain_is_whole",)), states_max=STATES_MAX).complete
