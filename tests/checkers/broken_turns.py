"""Histories that break the rules about turns."""

from __future__ import annotations

from atomic_actors.testing.checkers._history import Began, Claimed, Taken
from tests.checkers.broken import breaks, change_last
from tests.checkers.story import Story

# --- fifo ----------------------------------------------------------------------------------------------


@breaks("fifo")
def taken_before_an_earlier_one(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m2")
    story.turn("m1")


@breaks("fifo")
def a_run_in_the_wrong_order(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m2", "m1")


@breaks("fifo")
def a_run_with_a_gap(story: Story) -> None:
    story.accept("m1", "m2", "m3")
    story.turn("m1", "m3")
    story.turn("m2")


@breaks("fifo")
def a_replay_at_the_head_waits(story: Story) -> None:
    story.accept("m1")
    story.accept("m2", source="replayed", at_head=True)
    story.turn("m1")
    story.turn("m2")


@breaks("fifo")
def a_replay_at_the_tail_does_not_wait(story: Story) -> None:
    story.accept("m1")
    story.accept("m2", source="replayed")
    story.turn("m2")
    story.turn("m1")


@breaks("fifo")
def one_that_was_put_back_is_overtaken(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1")
    story.begin("m1")
    story.stop("m1", how="raised")
    story.back("m1", event="retry")
    story.commit(grows=False)
    story.turn("m2")
    story.turn("m1")


@breaks("fifo")
def a_run_that_was_put_back_is_turned_round(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1", "m2")
    story.settle("m1", "m2")
    story.turn("m2")
    story.turn("m1")


@breaks("fifo")
def handlers_of_a_run_begin_in_the_wrong_order(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1", "m2")
    story.run("m2", "m1")
    story.end("m1", "m2")
    story.commit()


@breaks("fifo")
def taken_and_never_accepted(story: Story) -> None:
    story.take("m1")
    story.settle("m1")
    story.accept("m2")
    story.turn("m2")


# --- one-turn ------------------------------------------------------------------------------------------


@breaks("one-turn")
def a_second_dispatch(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1")
    story.run("m1")
    story.take("m2")
    story.end("m1")
    story.run("m2")
    story.end("m2")
    story.commit()


@breaks("one-turn")
def a_turn_number_that_comes_twice(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.turns["account/a"] = 0
    story.turn("m2")


@breaks("one-turn")
def two_handlers_at_one_node(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1", "m2")
    story.begin("m1")
    story.begin("m2")
    story.stop("m1")
    story.stop("m2")
    story.end("m1", "m2")
    story.commit()


@breaks("one-turn")
def two_handlers_at_one_node_under_two_epochs(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    story.fault("pause", 1)
    story.claim(0, 1)
    story.settle("m1")
    story.turn("m1")


@breaks("one-turn")
def put_back_and_not_dispatched(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.back("m1")


@breaks("one-turn")
def put_back_and_still_waiting(story: Story) -> None:
    story.accept("m1")
    story.back("m1")
    story.turn("m1")


@breaks("one-turn")
def withdrawn_while_dispatched(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.end("m1", event="withdraw")
    story.commit(grows=False)


@breaks("one-turn")
def committed_twice(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.commit()


@breaks("one-turn")
def committed_and_not_dispatched(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    story.turns["account/a"] = 7
    story.commit()


def settle_under_a_new_epoch(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1")
    story.claim(0, 3)


@breaks("one-turn")
def a_handler_commits_its_state_after_its_lease(story: Story) -> None:
    settle_under_a_new_epoch(story)
    story.back("m1")
    story.commit()
    story.turn("m1")


@breaks("one-turn")
def a_handler_completes_after_its_lease(story: Story) -> None:
    settle_under_a_new_epoch(story)
    story.end("m1")
    story.commit(grows=False)


@breaks("one-turn")
def a_handler_completes_after_its_lease_and_its_commit_comes_first(story: Story) -> None:
    settle_under_a_new_epoch(story)
    story.commit(grows=False)
    story.end("m1")


@breaks("one-turn")
def a_handler_is_retried_after_its_lease(story: Story) -> None:
    settle_under_a_new_epoch(story)
    story.back("m1", event="retry")
    story.commit(grows=False)
    story.turn("m1")


# --- one-start -----------------------------------------------------------------------------------------


@breaks("one-start")
def an_attempt_begins_twice(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1", "m1")
    story.end("m1")
    story.commit()


@breaks("one-start")
def an_attempt_begins_both_ways(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1")
    story.begin("m1", recovering=True)
    story.stop("m1", recovering=True)
    story.end("m1")
    story.commit()


@breaks("one-start")
def the_first_attempt_is_not_the_first(story: Story) -> None:
    story.accept("m1")
    story.attempts["account/a", "m1"] = 1
    story.turn("m1")


@breaks("one-start")
def an_attempt_is_left_out(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    story.stop("m1", how="raised")
    story.back("m1", event="retry")
    story.commit(grows=False)
    story.attempts["account/a", "m1"] += 1
    story.turn("m1")


@breaks("one-start")
def an_attempt_that_began_is_given_back(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    story.stop("m1", how="cancelled")
    story.back("m1", is_counted=False)
    story.commit(grows=False)
    story.take("m1")
    story.end("m1", event="fail")
    story.commit(grows=False)


@breaks("one-start")
def begun_and_not_dispatched(story: Story) -> None:
    story.accept("m1")
    story.begin("m1", where=(1, 1), attempt=1)
    story.stop("m1", node=1, attempt=1)
    story.end("m1", event="interrupt")


@breaks("one-start")
def begun_at_another_node(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    change_last(story, Began, node=2)


@breaks("one-start")
def begun_under_another_epoch(story: Story) -> None:
    story.accept("m1")
    story.turn("m1")
    change_last(story, Began, epoch=2)


@breaks("one-start")
def begun_with_another_attempt(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1", attempt=2)
    story.end("m1", event="fail")
    story.commit(grows=False)


@breaks("one-start")
def stopped_and_not_begun(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.stop("m1")
    story.end("m1", event="fail")
    story.commit(grows=False)


@breaks("one-start")
def complete_and_never_begun(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.end("m1")
    story.commit()


@breaks("one-start")
def complete_while_its_handler_runs(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    story.end("m1")
    story.commit()
    story.stop("m1")


@breaks("one-start")
def complete_after_an_earlier_attempt(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1")
    story.settle("m1")
    story.take("m1")
    story.end("m1")
    story.commit()


@breaks("one-start")
def refused_and_never_begun(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.end("m1", event="refuse")
    story.commit(grows=False)


@breaks("one-start")
def withdrawn_after_an_attempt(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1")
    story.settle("m1")
    story.end("m1", event="withdraw")


# --- single-owner --------------------------------------------------------------------------------------


@breaks("single-owner")
def an_epoch_that_comes_twice(story: Story) -> None:
    story.claim(0, 3, 1)


@breaks("single-owner")
def an_epoch_that_goes_back(story: Story) -> None:
    story.claim(0, 3, 5)
    story.claim(0, 1, 4)
    story.owners[0] = (3, 5)
    story.accept("m1")
    story.turn("m1")


@breaks("single-owner")
def a_claim_that_was_given_up_comes_back(story: Story) -> None:
    story.free()
    story.claim(0, 1, 1)


@breaks("single-owner")
def taken_by_another_node(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.settle("m1", event="interrupt")
    change_last(story, Taken, node=2)


@breaks("single-owner")
def taken_under_an_old_epoch(story: Story) -> None:
    story.claim(0, 3)
    story.owners[0] = (1, 1)
    story.accept("m1")
    story.take("m1")
    story.owners[0] = (3, 2)
    story.settle("m1", event="interrupt")


@breaks("single-owner")
def committed_under_an_old_epoch(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1")
    story.claim(0, 3)
    story.owners[0] = (1, 1)
    story.end("m1")
    story.commit()


@breaks("single-owner")
def taken_in_a_free_partition(story: Story) -> None:
    story.accept("m1")
    story.free()
    story.take("m1")
    story.claim(0, 2)
    story.settle("m1", event="interrupt")


@breaks("single-owner")
def taken_in_a_partition_that_nobody_ever_claimed(story: Story) -> None:
    story.history.records = [record for record in story.history.records if not isinstance(record, Claimed)]
    story.accept("m1")
    story.take("m1")
    story.claim(0, 2)
    story.settle("m1", event="interrupt")


@breaks("single-owner")
def freed_by_another_node(story: Story) -> None:
    story.claim(0, 2)
    story.owners[0] = (1, 1)
    story.free()
