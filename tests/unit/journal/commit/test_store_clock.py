"""The store's time between two answers, and the leading one of several primaries."""

from __future__ import annotations

from attrs import define

from atomic_actors.journal.commit._store_clock import TIME_KEPT_S, LeadingClock, StoreClock


@define
class Watch:
    """A clock that the test moves."""

    now_s: float = 100.0

    def read(self) -> float:
        return self.now_s


def test_time_goes_on_between_two_answers() -> None:
    watch = Watch()
    clock = StoreClock(watch.read)
    clock.note(5_000, watch.now_s)
    watch.now_s += 1.5
    assert (clock.now_ms(), clock.last_ms) == (6_500, 5_000)
    clock.note(6_000, watch.now_s)
    assert clock.now_ms() == 6_000


def test_the_primary_that_is_ahead_leads() -> None:
    watch = Watch()
    shared = StoreClock(watch.read)
    clock = LeadingClock(shared)
    clock.note(5_000, watch.now_s)
    watch.now_s += 1.0
    clock.note(5_900, watch.now_s)  # 100 ms behind
    assert shared.now_ms() == clock.now_ms() == 6_000
    assert shared.last_ms == clock.last_ms == 5_000
    clock.note(6_001, watch.now_s)
    assert shared.last_ms == clock.last_ms == 6_001


def test_the_leading_time_is_looked_at_anew_after_a_while() -> None:
    watch = Watch()
    shared = StoreClock(watch.read)
    clock = LeadingClock(shared)
    clock.note(5_000, watch.now_s)
    watch.now_s += TIME_KEPT_S + 1
    clock.note(5_001, watch.now_s)
    assert shared.last_ms == 5_001
