"""What a timeline looks like."""

from __future__ import annotations

from atomic_actors.testing.checkers._checkers import check_history
from atomic_actors.testing.checkers._history import History
from atomic_actors.testing.checkers._timeline import timeline
from tests.checkers.story import A, C, D, Story, new_story


def tell() -> Story:
    story = new_story()
    story.wait(0.25)
    call = story.call("m1", message={"amount": 5})
    story.accept("m1")
    story.take("m1")
    story.begin("m1")
    story.wait(0.25)
    story.fault("pause", 1, "3.5 s")
    story.accept("m2", entity=D)
    story.wait(2.5)
    story.claim(0, 3)
    story.settle("m1")
    story.take("m1")
    story.begin("m1")
    story.wait(0.125)
    story.stop("m1", node=1, attempt=1, how="cancelled")
    story.stop("m1")
    story.end("m1")
    story.commit()
    story.send("s1", "m1", target=C)
    story.answer(call, "reply", 5)
    story.free(1)
    story.fault("crash", 3)
    story.fault("store down")
    return story


ONE_ENTITY = """\
       time s  n1  n2  n3 store  what
        0.000   #   .   .   .    claims partition 0, epoch 1
        0.250   .   .   .   .    account/a call 1: client ask {'amount': 5}
        0.250   .   .   .   *    account/a m1 accepted (sent): Deposit
        0.250   .   .   .   *    account/a turn 1 for node 1, epoch 1: m1 attempt 1
        0.250   >   .   .   .    account/a m1 begins, attempt 1, epoch 1
        0.500   !   .   .   .    !! node 1 pause: 3.5 s
        3.000   |   .   #   .    claims partition 0, epoch 2
        3.000   |   .   .   *    account/a m1 back at the head (requeue)
        3.000   |   .   .   *    account/a turn 1 of node 3, epoch 2 is settled, version 0 -> 0
        3.000   |   .   .   *    account/a turn 2 for node 3, epoch 2: m1 attempt 2
        3.000   |   .   >   .    account/a m1 begins, attempt 2, epoch 2
        3.125   <   .   |   .    account/a m1 cancelled
        3.125   .   .   <   .    account/a m1 returned
        3.125   .   .   .   *    account/a m1 ends: complete
        3.125   .   .   .   *    account/a turn 2 of node 3, epoch 2 is settled, version 0 -> 1
        3.125   .   .   .   *    account/a m1 sends s1 to account/c
        3.125   .   .   .   .    account/a call 1 is answered reply 5
        3.125   .   .   !   .    !! node 3 crash
        3.125   .   .   .   !    !! store down
"""


def test_one_entity_with_the_claims_of_its_partition_and_all_faults() -> None:
    assert timeline(tell().history, entity=A) == ONE_ENTITY


def test_everything() -> None:
    lines = timeline(tell().history).splitlines()
    assert len(lines) == 1 + len(tell().history.records)
    # The others' records stand among those of the one entity, and nothing else is different.
    assert set(ONE_ENTITY.splitlines()) < set(lines)
    (of_another,) = [line for line in lines if "account/d" in line]
    assert of_another == "        0.500   |   .   .   *    account/d m2 accepted (sent): Deposit"
    assert [line for line in lines if "partition 1" in line] == [
        "        0.000   .   #   .   .    claims partition 1, epoch 1",
        "        3.125   .   o   .   .    frees partition 1, epoch 1",
    ]


def test_around_a_violation() -> None:
    story = new_story()
    for number in range(200):
        story.accept(f"m{number}")
    story.turn("m1")
    violation = check_history(story.history, healed=False)[0]
    lines = timeline(story.history, around=violation.position).splitlines()
    (marked,) = [line for line in lines if line.startswith("=>")]
    assert marked == "=>      0.000   .   .   *    account/a turn 1 for node 1, epoch 1: m1 attempt 1"
    assert lines.index(marked) == 1 + 40
    assert len(lines) == 1 + 40 + 1 + 4


def test_around_the_beginning() -> None:
    lines = timeline(tell().history, around=0).splitlines()
    assert lines[1].startswith("=>")
    assert len(lines) == 1 + len(tell().history.records)


def test_the_width() -> None:
    lines = timeline(tell().history, width=40).splitlines()
    assert max(len(line) for line in lines) == 40
    assert lines[3] == "        0.250   .   .   .   .    acco..."


def test_nothing_at_all() -> None:
    assert timeline(History()) == "       time s  store  what\n"
