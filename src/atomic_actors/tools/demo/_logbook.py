"""What is known of one aircraft, and how to compute it with no actor, no store and no kill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from attrs import define, fields

from atomic_actors.tools.demo._data import NO_TAIL_NUMBER

__all__ = ("Difference", "Logbook", "compare", "compute_logbooks")


@define(kw_only=True)
class Logbook:
    """The totals of one aircraft, and a digest of its flights that depends on their order.

    A flight that was lost, recorded twice or recorded out of turn changes `digest`.
    """

    flights: int = 0
    cancelled: int = 0
    miles: int = 0
    minutes_in_air: int = 0
    minutes_late: int = 0
    digest: str = ""


@define
class Difference:
    """An aircraft whose logbook is not what the file says; the texts name what was found."""

    aircraft: str
    field: str
    expected: str
    found: str


def compute_logbooks(lines: Iterable[str]) -> dict[str, Logbook]:
    """Every aircraft's logbook, straight from the lines of the file.

    It shares no code with the actor: it works on the file's own text, so that a message which came
    back from the store changed is found too.
    """
    books: dict[str, Logbook] = {}
    for line in lines:
        values = line.split(",")
        departed, delay, tail, air_time, distance = values[2], values[3], values[9], values[12], values[13]
        book = books.setdefault(tail or NO_TAIL_NUMBER, Logbook())
        book.flights += 1
        if departed:
            book.miles += int(distance)
        else:
            book.cancelled += 1
        if air_time:
            book.minutes_in_air += int(air_time)
        if delay and int(delay) > 0:
            book.minutes_late += int(delay)
        rolling = hashlib.blake2b(digest_size=16)
        rolling.update(book.digest.encode("ascii"))
        rolling.update(line.encode("utf-8"))
        book.digest = rolling.hexdigest()
    return books


def compare(expected: dict[str, Logbook], found: dict[str, Logbook]) -> list[Difference]:
    """One `Difference` for each aircraft that is missing, too much, or unlike; by name."""
    differences: list[Difference] = []
    for aircraft in sorted(expected.keys() | found.keys()):
        wanted, got = expected.get(aircraft), found.get(aircraft)
        if wanted == got:
            continue
        if wanted is None or got is None:
            differences.append(Difference(aircraft, "logbook", _presence(wanted), _presence(got)))
            continue
        for attribute in fields(Logbook):
            left, right = getattr(wanted, attribute.name), getattr(got, attribute.name)
            if left != right:
                differences.append(Difference(aircraft, attribute.name, str(left), str(right)))
                break
    return differences


def _presence(book: Logbook | None) -> str:
    return "none" if book is None else f"{book.flights} flights"
