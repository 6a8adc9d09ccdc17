"""The search visits what there is, once, and gives the shortest way."""

from __future__ import annotations

import gc

import pytest
from attrs import frozen

from tests.model.search import search


@frozen
class Counter:
    """Counts up or doubles, to a limit."""

    limit: int
    bad: int = -1
    bad_at_rest: int = -1

    def first(self) -> int:
        return 1

    def moves(self, state: int) -> list[tuple[str, int]]:
        return [("one more", state + 1)] if state < self.limit else []

    def faults(self, state: int) -> list[tuple[str, int]]:
        return [("doubled", 2 * state)] if 2 * state <= self.limit else []

    def wrong(self, state: int) -> str | None:
        return "bad" if state == self.bad else None

    def wrong_at_rest(self, state: int) -> str | None:
        return "stuck" if state == self.bad_at_rest else None


def test_all_states_are_visited_once() -> None:
    report = search(Counter(100), states_max=1_000)
    assert report.complete
    assert (report.states, report.transitions, report.at_rest) == (100, 99 + 50, 1)
    assert report.found is None


def test_the_shortest_way_is_found() -> None:
    found = search(Counter(100, bad=21), states_max=1_000).found
    assert found is not None
    assert [label for label, _ in found.trace.steps].count("doubled") == 3
    assert len(found.trace) == 6
    assert found.trace.steps[-1][1] == 21


def test_the_first_state_is_looked_at() -> None:
    found = search(Counter(100, bad=1), states_max=1_000).found
    assert found is not None
    assert len(found.trace) == 0


def test_only_a_state_that_no_move_leaves_is_at_rest() -> None:
    assert search(Counter(100, bad_at_rest=99), states_max=1_000).found is None
    found = search(Counter(100, bad_at_rest=100), states_max=1_000).found
    assert found is not None
    assert found.what == "stuck"


def test_a_bound_is_not_taken_for_the_end() -> None:
    report = search(Counter(100), states_max=50)
    assert not report.complete
    assert report.states >= 50


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_is_left_as_it_was(was_enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_enabled else gc.disable)()
        search(Counter(10), states_max=100)
        assert gc.isenabled() is was_enabled
    finally:
        (gc.enable if before else gc.disable)()
