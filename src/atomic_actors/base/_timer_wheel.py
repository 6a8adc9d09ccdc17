"""What becomes due soon, in buckets of equal spans of time: cheap to put in, and nothing to take out of order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

__all__ = ("take_due",)

T = TypeVar("T")


def take_due(buckets: dict[int, list[T]], first: int, last: int) -> Iterator[T]:
    """Empty the buckets from `first` to `last`, in order.

    Those who are called with what this yields may fill buckets behind `last` only.
    """
    numbers: range | list[int] = range(first, last + 1)
    if len(numbers) > len(buckets):
        # A process that stood still for a day has millions of spans behind it, and few things in them.
        numbers = sorted(number for number in buckets if number <= last)
    for number in numbers:
        yield from buckets.pop(number, ())
