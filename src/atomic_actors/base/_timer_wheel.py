"""A timer wheel: what becomes due soon, grouped by equal spans of time.

Adding an item costs the same however many there are. Items are never removed early: one whose time no longer
matters is dropped when it comes up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ("SPAN_S", "TimerWheel")

T = TypeVar("T")

#: Items are found at most this much later than they are due, if polled often enough.
SPAN_S: Final = 0.05


class TimerWheel(Generic[T]):
    """Items by deadline, in seconds of any clock that does not go back."""

    __slots__ = ("_first", "_spans")

    def __init__(self) -> None:
        self._spans: dict[int, list[T]] = {}
        #: The first span that has not been looked at.
        self._first = 0

    def __iter__(self) -> Iterator[T]:
        """Everything that waits, in the order of adding within a span."""
        return (item for span in self._spans.values() for item in span)

    def add(self, deadline_s: float, item: T) -> None:
        """Have `item` found by the first look after `deadline_s`, which may have passed already."""
        number = int(deadline_s / SPAN_S) + 1
        if number < self._first:
            number = self._first
        span = self._spans.get(number)
        if span is None:
            self._spans[number] = [item]
        else:
            span.append(item)

    def due(self, now_s: float) -> list[T]:
        """Take out everything that is due, span by span. No item is found before its deadline."""
        first, last = self._first, int(now_s / SPAN_S)
        if last < first:
            return []
        self._first = last + 1
        spans = self._spans
        numbers: range | list[int] = range(first, last + 1)
        if len(numbers) > len(spans):
            # A process that stood still for a day has millions of spans behind it, and few things in them.
            numbers = sorted(number for number in spans if number <= last)
        return [item for number in numbers for item in spans.pop(number, ())]

    def clear(self) -> None:
        """Forget everything that waits."""
        self._spans.clear()
