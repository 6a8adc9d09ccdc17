"""Histories that break a promise: exactly that rule says so."""

from __future__ import annotations

import pytest

from atomic_actors.testing.checkers._checkers import RULES, check_history
from atomic_actors.testing.checkers._history import Accepted, Sent, Taken
from tests.checkers import broken_messages, broken_turns  # noqa: F401 - importing them notes what they hold
from tests.checkers.broken import WRONG, Tell
from tests.checkers.story import B, new_story


def broken_rules(tell: Tell, *, healed: bool) -> set[str]:
    story = new_story()
    tell(story)
    return {violation.rule for violation in check_history(story.history, healed=healed)}


@pytest.mark.parametrize(("rule", "way"), WRONG)
def test_the_rule_says_so(rule: str, way: str) -> None:
    tell, when_healed = WRONG[rule, way]
    assert broken_rules(tell, healed=True) == {rule}
    assert broken_rules(tell, healed=False) == (set() if when_healed else {rule})


def test_every_rule_is_broken_somewhere() -> None:
    assert {rule for rule, _ in WRONG} == set(RULES)


def test_a_violation_says_where() -> None:
    story = new_story()
    story.accept("m1", "m2")
    story.wait(2.5)
    story.turn("m2")
    (violation,) = check_history(story.history, healed=False)
    assert (violation.position, violation.at_s) == (4, 2.5)
    assert isinstance(story.history.records[violation.position], Taken)
    assert str(violation) == "[fifo] account/a: m2 is taken before m1 (at 2.500 s, record 4)"


def test_what_is_missing_is_reported_where_it_was_promised() -> None:
    story = new_story()
    story.accept("m1")
    story.turn("m1")
    story.send("s1", "m1")
    story.accept("m2", entity=B)
    story.wait()
    found = check_history(story.history, healed=True)
    assert [(violation.rule, violation.at_s) for violation in found] == [
        ("outbox-once", 0.0),
        ("nothing-lost", 0.0),
    ]
    kinds = [type(story.history.records[violation.position]) for violation in found]
    assert kinds == [Sent, Accepted]
