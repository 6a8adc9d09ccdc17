"""`python -m tests.model --states 1000000`: visit the states of the configurations and say what was seen."""

from __future__ import annotations

import argparse
import sys

from tests.model.configurations import CONFIGURATIONS
from tests.model.protocol import Protocol, render
from tests.model.search import search


def show_progress(states: int, waiting: int, depth: int) -> None:
    print(f"    {states:>9,} states, {waiting:,} to be left, {depth} actions deep", file=sys.stderr)


def main() -> int:
    """Search; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--states", type=int, default=1_000_000, help="at most so many of each configuration")
    parser.add_argument("--only", default="", help="only configurations whose name contains this")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    chosen = parser.parse_args()
    seconds, total = 0.0, 0
    for configuration in CONFIGURATIONS:
        if chosen.only not in configuration.name:
            continue
        report = search(
            Protocol(configuration),
            states_max=chosen.states,
            on_progress=None if chosen.quiet else show_progress,
        )
        total += report.states
        seconds += report.elapsed_s
        print(
            f"{configuration.name}: {report.states:,} states, {report.transitions:,} transitions, "
            f"{report.depth} deep, {report.at_rest:,} at rest, {report.elapsed_s:.1f} s, "
            f"{'complete' if report.complete else 'not complete'}"
        )
        if report.found is not None:
            print(f"WRONG: {report.found.what}", *render(report.found.trace), sep="\n")
            return 1
    print(f"{total:,} states in {seconds:.1f} s, and nothing is wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
