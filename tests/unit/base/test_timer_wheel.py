"""The timer wheel."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.base._timer_wheel import SPAN_S, TimerWheel

TIMES = st.floats(0, 3)


@given(st.lists(TIMES), st.lists(TIMES))
def test_each_item_is_found_once_and_never_early(deadlines: list[float], looks: list[float]) -> None:
    wheel = TimerWheel[tuple[float, int]]()
    for number, deadline_s in enumerate(deadlines):
        wheel.add(deadline_s, (deadline_s, number))
    taken: list[tuple[float, int]] = []
    last_s = 0.0
    for now_s in sorted(looks):
        found = wheel.due(now_s)
        assert all(deadline_s < now_s for deadline_s, _ in found)
        taken += found
        last_s = now_s
    left = list(wheel)
    assert sorted((*taken, *left)) == sorted((each, number) for number, each in enumerate(deadlines))
    # At most one span late.
    assert all(deadline_s > last_s - SPAN_S for deadline_s, _ in left)


@given(st.lists(TIMES), TIMES)
def test_spans_come_in_order_and_keep_the_order_of_adding(deadlines: list[float], now_s: float) -> None:
    wheel = TimerWheel[tuple[int, int]]()
    for number, deadline_s in enumerate(deadlines):
        wheel.add(deadline_s, (int(deadline_s / SPAN_S), number))
    assert all(before < after for before, after in pairwise(wheel.due(now_s)))


def test_what_is_late_when_it_is_added_is_found_at_the_next_look() -> None:
    wheel = TimerWheel[str]()
    assert wheel.due(100.0) == []
    wheel.add(1.0, "late")
    assert wheel.due(100.0) == []
    assert wheel.due(100.0 + 2 * SPAN_S) == ["late"]


def test_what_is_added_while_others_are_handled_waits_for_the_next_look() -> None:
    wheel = TimerWheel[str]()
    wheel.add(1.0, "a")
    seen: list[str] = []
    for item in wheel.due(2.0):
        seen.append(item)
        wheel.add(1.0, item + "'")
    assert seen == ["a"]
    assert wheel.due(2.0 + 2 * SPAN_S) == ["a'"]


def test_a_look_back_finds_nothing() -> None:
    wheel = TimerWheel[str]()
    wheel.add(1.0, "a")
    assert wheel.due(2.0) == ["a"]
    assert wheel.due(1.0) == []


def test_a_long_stop_costs_no_more_than_what_waits() -> None:
    """A process that stood still for a year goes on at once: a walk over every span would take minutes."""
    wheel = TimerWheel[str]()
    for deadline_s, item in ((0.2, "first"), (5e7, "last"), (5e13, "later")):
        wheel.add(deadline_s, item)
    assert wheel.due(1e8) == ["first", "last"]
    assert list(wheel) == ["later"]
    wheel.clear()
    assert list(wheel) == []
