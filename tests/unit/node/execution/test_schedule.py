"""Deadlines of handlers, and heads that wait for their back-off."""

from __future__ import annotations

from typing import Any, cast

from attrs import define

from atomic_actors.node.execution._schedule import Schedule
from atomic_actors.node.execution._turn_scope import TurnScope


@define(eq=False)
class Scope:
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


def running(until_s: float) -> TurnScope:
    turn = TurnScope()
    turn.scope, turn.deadline_s = cast("Any", Scope()), until_s
    return turn


def test_a_handler_is_cut_after_its_deadline_and_not_before() -> None:
    schedule, turn = Schedule(), running(10.0)
    schedule.watch(turn)
    schedule.cut_late(9.99)
    assert turn.cut_by is None
    schedule.cut_late(10.1)
    assert turn.cut_by == "deadline"
    assert cast("Any", turn.scope).cancelled
    assert turn.deadline_s == 0


def test_one_place_serves_the_turns_of_an_activation() -> None:
    schedule, turn = Schedule(), running(10.0)
    schedule.watch(turn)
    turn.deadline_s = 12.0  # the next message
    schedule.watch(turn)
    schedule.cut_late(11.0)
    assert turn.cut_by is None
    schedule.cut_late(12.1)
    assert turn.cut_by == "deadline"


def test_an_earlier_deadline_counts_at_once() -> None:
    schedule, turn = Schedule(), running(60.0)
    schedule.watch(turn)
    turn.deadline_s = 10.0
    schedule.watch(turn)
    schedule.cut_late(10.1)
    assert turn.cut_by == "deadline"


def test_a_handler_that_has_ended_is_left_alone() -> None:
    schedule, turn = Schedule(), running(10.0)
    schedule.watch(turn)
    turn.deadline_s = 0.0
    schedule.cut_late(20.0)
    assert turn.cut_by is None
    assert turn.watched_until_s == 0


def test_a_scope_is_cut_once() -> None:
    turn = running(10.0)
    turn.cut("child")
    turn.cut("deadline")
    assert turn.cut_by == "child"


def test_retries_come_in_the_order_of_time() -> None:
    schedule = Schedule()
    schedule.retry_at(300, 1, "counter/c")
    schedule.retry_at(100, 0, "counter/a")
    schedule.retry_at(200, 2, "counter/b")
    assert schedule.take_retries(99) == []
    assert schedule.take_retries(200) == [(0, "counter/a"), (2, "counter/b")]
    assert schedule.take_retries(1_000) == [(1, "counter/c")]
    assert schedule.take_retries(1_000) == []
