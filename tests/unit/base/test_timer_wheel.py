"""Buckets of what becomes due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.base._timer_wheel import take_due


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 40)))
def test_each_thing_is_due_once_and_in_order(places: list[int], looks: list[int]) -> None:
    buckets: dict[int, list[tuple[int, int]]] = {}
    for number, place in enumerate(places):
        buckets.setdefault(place, []).append((place, number))
    taken: list[tuple[int, int]] = []
    first = 0
    for last in sorted(looks):
        found = list(take_due(buckets, first, last))
        assert all(first <= place <= last for place, _ in found)
        taken += found
        first = last + 1
    assert taken == sorted((place, number) for number, place in enumerate(places) if place < first)


def test_a_long_stop_costs_no_more_than_what_waits() -> None:
    """A process that stood still for a year goes on at once: a walk over every span would take minutes."""
    buckets = {5: ["first"], 1_000_000_000: ["last"], 1 << 50: ["later"]}
    assert list(take_due(buckets, 0, 2_000_000_000)) == ["first", "last"]
    assert buckets == {1 << 50: ["later"]}
