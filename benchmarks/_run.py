"""Measure rows in alternation with their floors: floor, row, floor, row, ..."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

from benchmarks._measure import Sample, Settings
from benchmarks._store import Server, Store
from benchmarks.catalog import Row
from benchmarks.sample import command_line_of

ROOT = Path(__file__).resolve().parent.parent
#: Beyond warm-up and window, for starting Python and for the checks afterwards.
SAMPLE_TIMEOUT_S = 180.0
LONG_SAMPLE_TIMEOUT_S = 3600.0


class SampleFailed(Exception):
    """A sample's process ended with an error; its traceback is on standard error."""


@frozen
class Spread:
    """Median, smallest and largest of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread:
        """Sum up at least one figure."""
        ordered = sorted(figures)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@frozen
class Outcome:
    """One row on one backend, measured."""

    row: Row
    backend: str
    value: Spread | None = None
    #: The floor that counted: the best of the row's floors.
    floor: str | None = None
    floor_value: Spread | None = None
    #: Row divided by floor, round by round, so that a slow minute of the machine hits both.
    ratio: Spread | None = None
    samples: dict[str, list[Sample]] = field(factory=dict, repr=False)
    error: str | None = None
    #: Why there is no floor, where it is software of others.
    not_available: str | None = None

    @property
    def figure(self) -> float | None:
        """What the target is about: the median ratio or the median value."""
        spread = self.ratio if self.row.target.of == "ratio" else self.value
        return None if spread is None else spread.median

    @property
    def met(self) -> bool | None:
        """Whether the targets are met; None if nothing was measured, or a peer is not there."""
        row = self.row
        if self.figure is None or self.value is None:
            return None
        return row.target.met(self.figure) and (row.also is None or row.also.met(self.value.median))


@define(eq=False)
class Runner:
    """Runs samples as child processes against one server of each sort, emptied before each."""

    find_store: Callable[[Server], Store]
    settings: Settings
    repeats: int
    say: Callable[[str], None]

    def measure(self, row: Row, backend: str) -> Outcome:
        """Alternate the row with its floors; a failed sample ends this row, not the program."""
        samples: dict[str, list[Sample]] = {name: [] for name in (*row.floors, row.name)}
        repeats = 1 if row.once else self.repeats
        self.say(f"{row.name}, {backend}")
        try:
            for number in range(repeats):
                for name, taken in samples.items():
                    sample = self._sample(row, name, backend)
                    taken.append(sample)
                    missing = sample.details.get("not_available")
                    told = f"not available: {missing}" if missing else f"{sample.value:,.4g} {row.unit}"
                    self.say(f"  {number + 1}/{repeats} {name:28}{told:>12}")
        except (SampleFailed, subprocess.TimeoutExpired) as error:
            self.say(f"  failed: {error}")
            return Outcome(row, backend, samples=samples, error=str(error))
        return sum_up(row, backend, samples)

    def _sample(self, row: Row, name: str, backend: str) -> Sample:
        store = self.find_store(row.server)
        store.empty()
        settings = evolve(self.settings, backend=backend, port=store.port)
        command = [sys.executable, *command_line_of(name, settings)]
        child = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=LONG_SAMPLE_TIMEOUT_S if row.once else SAMPLE_TIMEOUT_S,
        )
        if child.returncode:
            raise SampleFailed(f"sample {name} on {backend} ended with status {child.returncode}")
        return Sample(**json.loads(child.stdout.splitlines()[-1]))


def sum_up(row: Row, backend: str, samples: dict[str, list[Sample]]) -> Outcome:
    """Medians and ratios of a row's samples, against the floor with the best median."""
    values = {name: [sample.value for sample in taken] for name, taken in samples.items()}
    own = values[row.name]
    if row.once:
        own = samples[row.name][0].details.get("values", own)
    missing = [sample.details.get("not_available") for name in row.floors for sample in samples[name]]
    if not row.floors or any(missing):
        why = next((text for text in missing if text), None)
        return Outcome(row, backend, Spread.of(own), samples=samples, not_available=why)
    best = max if row.higher_is_better else min
    floor = best(row.floors, key=lambda name: statistics.median(values[name]))
    ratios = [value / below for value, below in zip(own, values[floor], strict=True)]
    return Outcome(row, backend, Spread.of(own), floor, Spread.of(values[floor]), Spread.of(ratios), samples)


def machine_speed() -> float:
    """Million additions per second in a plain Python loop: tells a slow hour from a slow program."""
    rounds = 1_000_000
    best_s = float("inf")
    for _ in range(5):
        started_s, total = time.perf_counter(), 0
        for number in range(rounds):
            total += number
        best_s = min(best_s, time.perf_counter() - started_s)
    return rounds / best_s / 1e6


def environment(stores: Sequence[Store]) -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("anyio", "trio", "uvloop", "coredis")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "million_additions_per_second": machine_speed(),
        "store": " and ".join(store.version for store in stores),
        "packages": {name: metadata.version(name) for name in packages},
    }
