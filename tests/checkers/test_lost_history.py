"""After a store has lost history: what is no longer asked for, and what still is."""

from __future__ import annotations

import pytest

from atomic_actors.testing.checkers._checkers import check_history
from atomic_actors.testing.checkers._history import Fault
from atomic_actors.testing.checkers._rule import HISTORY_LOST, lost_partitions
from tests.checkers.story import C, Story, new_story


def broken(story: Story, *, healed: bool = True, leases_honoured: bool = False) -> set[str]:
    found = check_history(story.history, healed=healed, leases_honoured=leases_honoured)
    return {violation.rule for violation in found}


def live_twice(story: Story, detail: str = "0") -> None:
    """Messages are accepted, run and send; then all of it is forgotten, and happens again."""
    for _ in range(2):
        call = story.call("m2")
        story.accept("m1", "m2")
        story.turn("m1")
        story.send("s1", "m1")
        story.take("m2")
        story.begin("m2")
        story.answer(call, "unknown")
        story.accept("s1", entity=C, source="outbox")
        story.turn("s1", entity=C)
        story.attempts.clear()
        story.turns.clear()
        story.versions.clear()
        story.states.clear()
        if detail:
            story.fault(HISTORY_LOST, detail=detail)
            # With the epoch of before: the store has forgotten that it gave it.
            story.claim(0, 1, 1)
            story.claim(1, 2, 1)


@pytest.mark.parametrize("detail", ["0 1", "1,0", "all of it"])
def test_everything_may_happen_again(detail: str) -> None:
    story = new_story()
    live_twice(story, detail)
    story.accept("m3", "m4")
    story.turn("m3")
    story.turn("m4")
    assert broken(story) == set()


def test_without_the_loss_it_is_all_wrong() -> None:
    story = new_story()
    live_twice(story, detail="")
    assert {"one-start", "one-final", "version-chain", "outbox-once", "one-turn"} <= broken(story)


def test_another_partitions_loss_excuses_nothing() -> None:
    story = new_story()
    story.accept("m1", entity=C)
    story.turn("m1", entity=C)
    story.accept("m1", "m2")
    story.turn("m1")
    story.fault(HISTORY_LOST, detail="1")
    story.turn("m1")
    assert broken(story) == {"one-final", "nothing-lost"}


def lose_after_one(story: Story) -> None:
    story.accept("m0")
    story.turn("m0")
    story.fault(HISTORY_LOST)
    story.claim(0, 3)
    story.claim(1, 4)


def test_what_was_accepted_and_forgotten_need_not_end() -> None:
    story = new_story()
    story.accept("m1")
    story.fault(HISTORY_LOST)
    assert broken(story) == set()


def test_what_is_accepted_since_has_to_end() -> None:
    story = new_story()
    lose_after_one(story)
    story.accept("m1")
    assert broken(story) == {"nothing-lost"}


def test_order_since() -> None:
    story = new_story()
    lose_after_one(story)
    story.accept("m1", "m2")
    story.turn("m2")
    story.turn("m1")
    assert broken(story) == {"fifo"}


def test_attempts_since() -> None:
    story = new_story()
    lose_after_one(story)
    story.accept("m1")
    story.take("m1")
    story.run("m1", "m1")
    story.end("m1")
    story.commit()
    assert broken(story) == {"one-start"}


def test_versions_since() -> None:
    story = new_story()
    lose_after_one(story)
    story.accept("m1", "m2")
    story.versions["account/a"] = 4
    story.turn("m1")
    story.versions["account/a"] = 7
    story.turn("m2")
    assert broken(story) == {"version-chain"}


def test_owners_since() -> None:
    story = new_story()
    lose_after_one(story)
    story.owners[0] = (1, 1)
    story.accept("m1")
    story.take("m1")
    story.owners[0] = (3, 2)
    story.settle("m1", event="interrupt")
    assert broken(story) == {"single-owner"}


def test_the_owner_of_before_may_go_on_until_the_next_claim() -> None:
    story = new_story()
    story.claim(0, 3)
    story.fault(HISTORY_LOST)
    story.owners[0] = (1, 1)
    story.accept("m1")
    story.turn("m1")
    assert broken(story) == set()


def test_the_outbox_since() -> None:
    story = new_story()
    lose_after_one(story)
    story.accept("m1")
    story.turn("m1")
    story.send("s1", "m1")
    story.send("s2", "m1")
    story.accept("s2", entity=C, source="outbox")
    story.accept("s1", entity=C, source="outbox")
    story.turn("s2", "s1", entity=C)
    assert broken(story) == {"outbox-once"}


def test_the_outbox_of_before_may_never_arrive() -> None:
    story = new_story()
    story.accept("m1", "m2")
    story.turn("m1")
    story.send("s1", "m1")
    story.fault(HISTORY_LOST, detail="1")
    story.turn("m2")
    story.send("s2", "m2")
    story.accept("s2", entity=C, source="outbox")
    story.turn("s2", entity=C)
    assert broken(story) == set()


def test_answers_of_calls_from_before_are_not_looked_at() -> None:
    story = new_story()
    call = story.call("m1")
    story.accept("m1")
    story.turn("m1")
    story.fault(HISTORY_LOST)
    story.answer(call, "interrupted")
    story.answer(story.call("m1", verb="result"), "never")
    assert broken(story) == set()
    story.answer(story.call("m2"), "reply")
    assert broken(story) == {"answers-true"}


def test_handlers_of_dispatches_from_before_may_overlap() -> None:
    story = new_story()
    story.accept("m1", "m2")
    story.take("m1", "m2")
    story.begin("m1")
    story.fault(HISTORY_LOST)
    story.claim(0, 1, 1)
    story.dispatched.clear()
    story.attempts.clear()
    story.take("m1")
    story.begin("m1")
    story.stop("m1", node=1)
    story.end("m1")
    story.commit()
    assert broken(story, healed=False) == set()
    story.accept("m3", "m4")
    story.take("m3", "m4")
    story.begin("m3")
    story.begin("m4")
    assert broken(story, healed=False) == {"one-turn"}


@pytest.mark.parametrize(
    ("detail", "expected"),
    [("3", {3}), ("1, 4 7", {1, 4, 7}), ("", None), ("partition 3", None), ("-1", None)],
)
def test_lost_partitions(detail: str, expected: set[int] | None) -> None:
    assert lost_partitions(Fault(0.0, 0, HISTORY_LOST, detail)) == expected


# --- leases that are honoured --------------------------------------------------------------------------


def overlap(story: Story, what: str, node: int) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    if what:
        story.fault(what, node)
    story.claim(0, 3)
    story.settle("m1")
    story.turn("m1")
    story.stop("m1", node=1, attempt=1)


@pytest.mark.parametrize(("what", "node"), [("pause", 1), ("clock drift", 1), ("clock drift", 0)])
def test_a_fault_of_the_older_node_excuses_an_overlap(what: str, node: int) -> None:
    story = new_story()
    overlap(story, what, node)
    assert broken(story, leases_honoured=True) == set()


@pytest.mark.parametrize(("what", "node"), [("", 0), ("pause", 3), ("store down", 0)])
def test_nothing_else_does(what: str, node: int) -> None:
    story = new_story()
    overlap(story, what, node)
    assert broken(story) == set()
    assert broken(story, leases_honoured=True) == {"one-turn"}


def test_a_crash_ends_what_runs() -> None:
    story = new_story()
    overlap(story, "crash", 1)
    assert broken(story, leases_honoured=True) == set()
