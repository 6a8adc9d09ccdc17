"""The demo's data and the plain computation over it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from atomic_actors.tools.demo import _data
from atomic_actors.tools.demo._data import (
    CONTENT_SHA256,
    FLIGHT_COUNT,
    NO_TAIL_NUMBER,
    Flight,
    FlightFileDamaged,
    load_flights,
    load_lines,
)
from atomic_actors.tools.demo._logbook import Logbook, compare, compute_logbooks

ROOT = Path(__file__).parents[2]
FILE = Path(_data.__file__).with_name(_data.FILE_NAME)


def build_flights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_flights", ROOT / "scripts" / "build_flights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_has_every_flight_of_the_month() -> None:
    lines = load_lines()
    assert len(lines) == FLIGHT_COUNT == 27_004
    assert {flight.day for flight in load_flights()} == set(range(1, 32))
    assert hashlib.sha256(gzip.decompress(FILE.read_bytes())).hexdigest() == CONTENT_SHA256


def test_flights_are_in_time_order() -> None:
    moments = [(flight.day, flight.sched_dep_time) for flight in load_flights()]
    assert moments == sorted(moments)


def test_a_flight_gives_its_line_back() -> None:
    lines = load_lines()
    assert [flight.line() for flight in load_flights()] == lines


def test_aircraft() -> None:
    flights = load_flights()
    assert len({flight.aircraft for flight in flights}) == 3_149
    nameless = [flight for flight in flights if flight.aircraft == NO_TAIL_NUMBER]
    assert len(nameless) == 155
    assert all(flight.cancelled for flight in nameless)


def test_title() -> None:
    assert load_flights(1)[0].title == "UA 1545 EWR-IAH, 1 January 05:15"


def test_limit() -> None:
    assert load_lines(10) == load_lines()[:10]
    with pytest.raises(ValueError, match="limit: expected 1 or more"):
        load_lines(0)


def test_a_line_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 14 fields, got 2"):
        Flight.parse("1,2")


def changed_content() -> bytes:
    return gzip.compress(gzip.decompress(FILE.read_bytes()).replace(b"N14228", b"N14229", 1))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"not a gzip file", "cannot be unpacked"),
        (FILE.read_bytes()[:-100], "cannot be unpacked"),
        (changed_content(), "has sha256"),
    ],
    ids=["other", "cut off", "changed"],
)
def test_a_damaged_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, text: str
) -> None:
    (tmp_path / _data.FILE_NAME).write_bytes(content)
    monkeypatch.setattr(_data, "files", lambda _: tmp_path)
    with pytest.raises(FlightFileDamaged, match=text):
        load_lines()


def test_the_script_rebuilds_the_file() -> None:
    script = build_flights()
    assert script.TARGET == FILE
    try:
        source = script.find_source()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert script.build(source) == gzip.decompress(FILE.read_bytes())


# --- the plain computation -------------------------------------------------------------------------------


def test_logbooks_add_up() -> None:
    lines = load_lines()
    books = compute_logbooks(lines)
    assert books == compute_logbooks(lines)
    flights = load_flights()
    assert sum(book.flights for book in books.values()) == FLIGHT_COUNT
    assert sum(book.cancelled for book in books.values()) == sum(f.cancelled for f in flights) == 521
    assert sum(book.minutes_in_air for book in books.values()) == sum(f.air_time or 0 for f in flights)
    assert sum(book.miles for book in books.values()) == sum(f.distance for f in flights if not f.cancelled)
    assert sum(book.minutes_late for book in books.values()) == sum(
        f.dep_delay for f in flights if f.dep_delay is not None and f.dep_delay > 0
    )


def lines_of(aircraft: str) -> list[str]:
    return [flight.line() for flight in load_flights() if flight.aircraft == aircraft]


@pytest.mark.parametrize("change", ["swapped", "doubled", "lost"])
def test_the_digest_sees_order_loss_and_doubling(change: str) -> None:
    lines = lines_of("N730MQ")
    other = {
        "swapped": [lines[1], lines[0], *lines[2:]],
        "doubled": [lines[0], *lines],
        "lost": lines[:-1],
    }[change]
    right, wrong = compute_logbooks(lines), compute_logbooks(other)
    assert right["N730MQ"].digest != wrong["N730MQ"].digest
    if change == "swapped":
        assert compare(right, wrong)[0].field == "digest"


def test_compare() -> None:
    left = {"A": Logbook(flights=2), "B": Logbook(flights=1), "C": Logbook()}
    right = {"A": Logbook(flights=3), "C": Logbook(), "D": Logbook(flights=4)}
    assert compare(left, left) == []
    found = [(row.aircraft, row.field, row.expected, row.found) for row in compare(left, right)]
    assert found == [
        ("A", "flights", "2", "3"),
        ("B", "logbook", "1 flights", "none"),
        ("D", "logbook", "none", "4 flights"),
    ]
