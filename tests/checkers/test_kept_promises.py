"""Histories that keep every promise: nothing is reported of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atomic_actors.testing.checkers._checkers import check_history
from tests.checkers.story import B, C, D, Story, new_story

Tell = Callable[[Story], None]

RIGHT: dict[str, Tell] = {}


def right(tell: Tell) -> Tell:
    RIGHT[tell.__name__] = tell
    return tell


@right
def nothing_happens(story: Story) -> None:
    pass


@right
def a_message_lives(story: Story) -> None:
    call = story.call("m1")
    story.accept("m1")
    story.turn("m1")
    story.answer(call, "reply", 1)


@right
def runs_and_single_turns(story: Story) -> None:
    story.accept("m1", "m2", "m3")
    story.turn("m1", "m2")
    story.turn("m3")


@right
def a_replay_goes_before_what_waits(story: Story) -> None:
    story.accept("m1", "m2")
    story.accept("m3", source="replayed", at_head=True)
    for uid in ("m3", "m1", "m2"):
        story.turn(uid)


@right
def a_run_fails_in_the_middle(story: Story) -> None:
    story.accept("m1", "m2", "m3", "m4")
    story.take("m1", "m2", "m3")
    story.run("m1")
    story.begin("m2")
    story.stop("m2", how="raised")
    story.end("m1")
    # One by one, the last one first or the first one first.
    story.back("m3", is_counted=False)
    story.back("m2", event="retry")
    story.commit()
    for uid in ("m2", "m3", "m4"):
        story.turn(uid)


@right
def records_of_a_put_back_come_in_any_order(story: Story) -> None:
    story.accept("m1", "m2", "m3")
    story.take("m1", "m2", "m3")
    story.begin("m1")
    story.stop("m1", how="raised")
    story.back("m1", event="retry")
    story.back("m2", "m3", is_counted=False)
    story.commit(grows=False)
    story.turn("m1")
    story.turn("m2", "m3")


@right
def a_replay_at_the_head_while_a_turn_runs(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1")
    story.accept("m3", source="replayed", at_head=True)
    story.settle("m1")
    for uid in ("m1", "m3", "m2"):
        story.turn(uid)


@right
def some_end_before_they_start(story: Story) -> None:
    story.accept("m1", "m2", "m3")
    story.end("m1", event="withdraw")
    story.end("m2", event="expire")
    story.turn("m3")


@right
def every_way_to_end(story: Story) -> None:
    words = {"refuse": "refused", "fail": "failed", "interrupt": "interrupted"}
    for uid, (event, word) in enumerate(words.items()):
        call = story.call(str(uid))
        story.accept(str(uid))
        story.take(str(uid))
        story.begin(str(uid))
        story.stop(str(uid), how="raised")
        story.end(str(uid), event=event)
        story.commit(grows=False)
        story.answer(call, word)  # type: ignore[arg-type]


@right
def a_failed_message_that_no_handler_could_read(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.end("m1", event="fail")
    story.commit(grows=False)


@right
def a_node_crashes_in_a_handler(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1")
    story.begin("m1")
    story.fault("crash", 1)
    story.claim(0, 3)
    story.settle("m1")
    story.turn("m1")
    story.turn("m2")


@right
def a_node_crashes_before_the_handler(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.fault("crash", 1)
    story.claim(0, 3)
    story.settle("m1")
    assert story.attempts["account/a", "m1"] == 1
    story.turn("m1")


@right
def an_on_interrupted_method_runs(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    story.fault("crash", 1)
    story.claim(0, 3)
    story.settle("m1")
    story.take("m1")
    story.begin("m1", recovering=True)
    story.stop("m1", recovering=True)
    story.end("m1")
    story.commit()


@right
def a_paused_node_wakes_up_in_its_handler(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1", "m2")
    story.begin("m1")
    story.fault("pause", 1)
    story.claim(0, 3)
    story.settle("m1", "m2")
    story.take("m1")
    story.begin("m1")
    # It goes on, and even begins the next of its run, before it hears that it is no owner any more.
    story.stop("m1", node=1, attempt=1)
    story.begin("m2", where=(1, 1), attempt=1)
    story.stop("m1")
    story.end("m1")
    story.commit()
    story.take("m2")
    story.run("m2")
    story.end("m2")
    story.commit()
    story.stop("m2", node=1, attempt=1, how="cancelled")


@right
def a_handler_of_an_old_epoch_begins_after_the_end(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.fault("pause", 1)
    story.claim(0, 3)
    story.settle("m1")
    story.turn("m1")
    story.begin("m1", where=(1, 1), attempt=1)


@right
def a_partition_changes_hands(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.free()
    story.claim(0, 2)
    # The same claim, sent twice, is one.
    story.claim(0, 2, 2)
    story.turn("m2")


@right
def a_step_of_the_outbox(story: Story) -> None:
    story.accept("m1", "m2")
    story.take("m1", "m2")
    story.run("m1", "m2")
    story.end("m1", "m2")
    story.commit()
    story.send("s1", "m1", target=C)
    story.send("s2", "m1", target=D)
    story.send("s3", "m2", target=C)
    story.send("s4", "m2", target=B)
    story.accept("s4", entity=B, source="outbox")
    story.wait()
    story.accept("s2", entity=D, source="outbox")
    story.accept("s1", "s3", entity=C, source="outbox")
    story.turn("s1", "s3", entity=C)
    story.turn("s2", entity=D)
    story.turn("s4", entity=B)


@right
def a_commit_that_is_written_down_late(story: Story) -> None:
    story.accept("m1")
    story.take("m1")
    story.run("m1")
    story.wait()
    story.accept("s1", "s2", entity=B, source="outbox")
    story.send("s1", "m1", target=B)
    story.send("s2", "m1", target=B)
    story.commit()
    story.end("m1")
    story.turn("s1", "s2", entity=B)


@right
def answers_of_every_kind(story: Story) -> None:
    unsent, withdrawn, told, unheard = (story.call(uid) for uid in ("m0", "m1", "m2", "m3"))
    story.answer(unsent, "never")
    story.accept("m1", "m2", "m3")
    story.end("m1", event="withdraw")
    story.answer(withdrawn, "never")
    story.answer(told, "accepted")
    story.turn("m2")
    story.answer(unheard, "unknown")
    story.turn("m3")
    late = story.call("m3", verb="result")
    story.answer(late, "reply")
    nameless = story.call()
    story.answer(nameless, "reply")
    story.call("m4")


@right
def a_state_that_stays(story: Story) -> None:
    story.accept("m1", "m2")
    story.turn("m1")
    story.take("m2")
    story.run("m2")
    story.end("m2")
    story.commit(grows=False)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("healed", [True, False], ids=["healed", "cut-off"])
def test_nothing_is_reported(name: str, healed: bool) -> None:
    story = new_story()
    RIGHT[name](story)
    assert check_history(story.history, healed=healed) == []
