"""Whether a store went back in time: read off the commit numbers, in whatever order the answers are read."""

from __future__ import annotations

import random

import pytest

from atomic_actors.journal._history import CommitHistory, HistoryLoss
from tests.journals import Losses


def history_of(*numbers: int) -> tuple[CommitHistory, list[HistoryLoss]]:
    """Of a partition 0 that answered these commit numbers, one after the other."""
    losses = Losses()
    history = CommitHistory(losses)
    for number in numbers:
        history.read(history.ask(), [(0, number)])
    return history, losses


def test_numbers_that_grow_are_no_loss() -> None:
    history, losses = history_of(1, 1, 2, 7, 7)
    assert (losses, history.losses, history.numbers) == ([], 0, {0: 7})


def test_a_lower_number_is_a_loss() -> None:
    history, losses = history_of(7, 4)
    assert losses == [HistoryLoss(0, 7, 4)]
    assert history.numbers == {0: 4}
    history.read(history.ask(), [(0, 4)])
    history.read(history.ask(), [(0, 5)])
    assert len(losses) == history.losses == 1
    history.read(history.ask(), [(0, 3)])
    assert losses[1] == HistoryLoss(0, 5, 3)


def test_an_emptied_store() -> None:
    assert history_of(3, 0)[1] == [HistoryLoss(0, 3, 0)]
    assert history_of(0, 0)[1] == []


def test_answers_that_are_read_the_other_way_round() -> None:
    history, losses = history_of(1)
    older, younger = history.ask(), history.ask()
    history.read(younger, [(0, 3), (1, 1)])
    history.read(older, [(0, 2), (2, 5)])
    assert losses == []
    assert history.numbers == {0: 3, 1: 1, 2: 5}


def test_answers_from_before_the_loss_that_are_read_after_it() -> None:
    history, losses = history_of(5)
    in_flight = history.ask()
    history.read(history.ask(), [(0, 2)])
    history.read(in_flight, [(0, 6)])
    assert history.numbers == {0: 2}
    history.read(history.ask(), [(0, 3)])
    assert len(losses) == 1


def test_what_was_never_answered_only_makes_it_higher() -> None:
    history, losses = history_of(5)
    history.ask()
    history.read(history.ask(), [(0, 6)])
    assert losses == []


def test_each_partition_by_itself_and_one_notice_a_loss() -> None:
    losses = Losses()
    history = CommitHistory(losses)
    history.read(history.ask(), [(0, 4), (1, 4), (2, 4)])
    history.read(history.ask(), [(0, 3), (1, 4), (2, 0)])
    assert losses == [HistoryLoss(0, 4, 3), HistoryLoss(2, 4, 0)]
    assert history.losses == 1


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_reading_without_a_loss(seed: int) -> None:
    draw = random.Random(seed)
    history, losses = history_of()
    number, in_flight = 0, []
    for _ in range(200):
        number += draw.randrange(2)
        in_flight.append((history.ask(), number))
        while len(in_flight) > draw.randrange(4):
            question, answered = in_flight.pop(draw.randrange(len(in_flight)))
            history.read(question, [(0, answered)])
    assert losses == []
