"""Histories that break the rules about messages."""

from __future__ import annotations

from atomic_actors.testing.checkers._history import Committed
from tests.checkers.broken import breaks, change_last
from tests.checkers.story import B, C, Story

# --- one-final -----------------------------------------------------------------------------------------


@breaks("one-final")
def it_ends_twice(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.end("m1", event="fail")


@breaks("one-final")
def it_ends_and_was_not_accepted(story: Story) -> None:
    story.end("m1", event="expire")


@breaks("one-final")
def it_is_accepted_twice(story: Story) -> None:
    story.accept("m1", "m1")
    story.turn("m1")


@breaks("one-final")
def it_is_accepted_again_after_its_end(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.accept("m1")


@breaks("one-final")
def it_is_taken_after_its_end(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.take("m1")


@breaks("one-final")
def it_begins_after_its_end(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.end("m1", event="interrupt")
    story.commit(grows=False)
    story.begin("m1")
    story.stop("m1")


# --- version-chain -------------------------------------------------------------------------------------


@breaks("version-chain")
def a_version_is_left_out(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.versions["account/a"] = 2
    story.turn("m2")


@breaks("version-chain")
def a_version_comes_again(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.versions["account/a"] = 0
    story.turn("m2")


@breaks("version-chain")
def the_first_version_is_not_the_first(story: Story) -> None:
    story.accept("m1")
    story.versions["account/a"] = 3
    story.turn("m1")


@breaks("version-chain")
def a_version_grows_by_two(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    change_last(story, Committed, version_after=2)


@breaks("version-chain")
def a_version_shrinks(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.turn("m2")
    change_last(story, Committed, version_after=0)


@breaks("version-chain")
def another_state_is_found(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.states["account/a"] = "another"
    story.turn("m2")


@breaks("version-chain")
def a_state_changes_without_a_version(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    change_last(story, Committed, version_after=0)


# --- outbox-once ---------------------------------------------------------------------------------------


def send_two(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.send("s1", "m1")
    story.send("s2", "m1")


@breaks("outbox-once")
def they_arrive_in_the_wrong_order(story: Story) -> None:
    send_two(story)
    story.accept("s2", "s1", entity=C, source="outbox")
    story.turn("s2", "s1", entity=C)


@breaks("outbox-once")
def they_arrive_in_the_wrong_order_within_the_commit(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.accept("s2", "s1", entity=B, source="outbox")
    story.send("s1", "m1", target=B)
    story.send("s2", "m1", target=B)
    story.turn("s2", "s1", entity=B)


@breaks("outbox-once", when_healed=True)
def one_never_arrives(story: Story) -> None:
    send_two(story)
    story.accept("s1", entity=C, source="outbox")
    story.turn("s1", entity=C)


@breaks("outbox-once")
def one_arrives_twice(story: Story) -> None:
    send_two(story)
    story.accept("s1", "s2", "s1", entity=C, source="outbox")
    story.turn("s1", "s2", entity=C)


@breaks("outbox-once")
def one_was_never_sent(story: Story) -> None:
    story.accept("s1", entity=C, source="outbox")
    story.turn("s1", entity=C)


@breaks("outbox-once")
def one_arrives_before_it_is_sent(story: Story) -> None:
    story.accept("m1")
    story.accept("s1", entity=C, source="outbox")
    story.wait()
    story.turn("m1")
    story.send("s1", "m1")
    story.turn("s1", entity=C)


@breaks("outbox-once")
def one_is_sent_twice(story: Story) -> None:
    send_two(story)
    story.send("s1", "m1")
    story.accept("s1", "s2", entity=C, source="outbox")
    story.turn("s1", "s2", entity=C)


@breaks("outbox-once")
def a_turn_sends_that_failed(story: Story) -> None:
    story.accept("m1")
    story.turn("m1", event="fail")
    story.send("s1", "m1")
    story.accept("s1", entity=C, source="outbox")
    story.turn("s1", entity=C)


@breaks("outbox-once")
def a_turn_sends_before_it_fails(story: Story) -> None:
    story.accept("m1")
    story.send("s1", "m1")
    story.turn("m1", event="fail")
    story.accept("s1", entity=C, source="outbox")
    story.turn("s1", entity=C)


@breaks("outbox-once")
def a_turn_sends_and_never_ends(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.send("s1", "m1")
    story.accept("s1", entity=C, source="outbox")
    story.turn("s1", entity=C)
    story.settle("m1")
    # So that it is not lost, too.
    story.wait()
    story.turn("m1")


@breaks("outbox-once")
def a_turn_sends_long_after_its_end(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.wait()
    story.send("s1", "m1")
    story.accept("s1", entity=C, source="outbox")
    story.turn("s1", entity=C)


# --- answers-true --------------------------------------------------------------------------------------


@breaks("answers-true")
def a_reply_before_the_end(story: Story) -> None:
    call = story.call("m1")
    story.accept("m1")
    story.answer(call, "reply")
    story.turn("m1")


@breaks("answers-true")
def a_reply_of_one_that_failed(story: Story) -> None:
    call = story.call()
    story.accept("m1")
    story.turn("m1", event="fail")
    story.answer(call, "reply", uid="m1")


@breaks("answers-true")
def a_refusal_of_one_that_completed(story: Story) -> None:
    call = story.call("m1")
    story.accept("m1")
    story.turn("m1")
    story.answer(call, "refused")


@breaks("answers-true")
def a_failure_of_one_that_was_refused(story: Story) -> None:
    call = story.call("m1")
    story.accept("m1")
    story.turn("m1", event="refuse")
    story.answer(call, "failed")


@breaks("answers-true")
def an_interruption_of_one_that_failed(story: Story) -> None:
    call = story.call("m1")
    story.accept("m1")
    story.turn("m1", event="fail")
    story.answer(call, "interrupted")


@breaks("answers-true")
def never_and_it_ran_before(story: Story) -> None:
    call = story.call("m1")
    story.accept("m1")
    story.turn("m1")
    story.answer(call, "never")


@breaks("answers-true")
def never_and_it_runs_later(story: Story) -> None:
    call = story.call("m1")
    story.answer(call, "never")
    story.accept("m1")
    story.turn("m1")


@breaks("answers-true")
def answered_twice(story: Story) -> None:
    call = story.call()
    story.answer(call, "unknown")
    story.answer(call, "unknown")


@breaks("answers-true")
def answered_and_never_called(story: Story) -> None:
    story.answer(1, "unknown")


# --- nothing-lost --------------------------------------------------------------------------------------


@breaks("nothing-lost")
def a_receipt_of_what_was_not_accepted(story: Story) -> None:
    story.answer(story.call("m1", verb="tell"), "accepted")


@breaks("nothing-lost")
def a_receipt_before_it_was_accepted(story: Story) -> None:
    story.answer(story.call(verb="tell"), "accepted", uid="m1")
    story.accept("m1")
    story.turn("m1")


@breaks("nothing-lost", when_healed=True)
def it_waits_for_ever(story: Story) -> None:
    story.accept("m1")


@breaks("nothing-lost", when_healed=True)
def it_runs_for_ever(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")


@breaks("nothing-lost", when_healed=True)
def it_is_put_back_for_ever(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.settle("m1")
