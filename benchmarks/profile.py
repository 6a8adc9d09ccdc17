"""`python -m benchmarks.profile ROW`: where one row or floor spends its time."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
from collections.abc import Sequence
from pathlib import Path

from attrs import asdict, evolve
from pyinstrument import Profiler

from benchmarks._measure import Sample, Settings
from benchmarks._store import running_store
from benchmarks.catalog import NAMES
from benchmarks.floors import FLOORS
from benchmarks.sample import add_settings_arguments, find, run, settings_from

SHOWN_FUNCTIONS = 40


def with_pyinstrument(name: str, settings: Settings, output: Path | None) -> Sample:
    """Sample the stack; print a tree, or write HTML."""
    # Off: the event loop is the program here, and the time of all its tasks counts.
    profiler = Profiler(async_mode="disabled")
    with profiler:
        sample = run(name, settings)
    if output is None:
        print(profiler.output_text(unicode=True, show_all=True))
    else:
        output.write_text(profiler.output_html())
    return sample


def with_cprofile(name: str, settings: Settings, output: Path | None) -> Sample:
    """Count every call; print the costliest, or write a file for pstats."""
    profiler = cProfile.Profile()
    sample = profiler.runcall(run, name, settings)
    if output is None:
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(SHOWN_FUNCTIONS)
    else:
        profiler.dump_stats(output)
    return sample


PROFILERS = {"pyinstrument": with_pyinstrument, "cprofile": with_cprofile}


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile one row or floor in this process, on a server of its own unless a port is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("name", choices=(*NAMES, *FLOORS), metavar="ROW", help=", ".join((*NAMES, *FLOORS)))
    parser.add_argument("--profiler", choices=tuple(PROFILERS), default="pyinstrument")
    parser.add_argument("--output", type=Path, metavar="FILE", help="HTML, or a pstats file with cprofile")
    add_settings_arguments(parser)
    parsed = parser.parse_args(arguments)
    settings, profile = settings_from(parsed), PROFILERS[parsed.profiler]
    find(parsed.name)  # imports what it needs, so that this is not part of the profile
    if settings.port:
        sample = profile(parsed.name, settings, parsed.output)
    else:
        with running_store() as store:
            sample = profile(parsed.name, evolve(settings, port=store.port), parsed.output)
    print(json.dumps(asdict(sample)))


if __name__ == "__main__":
    main()
