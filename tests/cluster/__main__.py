"""Simulated clusters by seed.

python -m tests.cluster --seed 7                 one seed, with its timeline if it fails
python -m tests.cluster --seed 7 --timeline      and with it in any case
python -m tests.cluster --seeds 1000 --jobs 2    many
python -m tests.cluster --for-s 600 --jobs 2     as many as there is time for, new ones each time
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time

from atomic_actors.testing import SimulationFailed, timeline
from tests.cluster.play import play_seed
from tests.cluster.runs import Totals, run_seeds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=None, help="the (first) seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--for-s", type=float, default=0.0, help="go on for so many seconds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--timeline", action="store_true", help="show what happened")
    parser.add_argument("--entity", default=None, help="only what concerns this one, `kind/id`")
    arguments = parser.parse_args()
    if arguments.seeds == 1 and not arguments.for_s:
        return show(arguments.seed or 0, arguments.timeline, arguments.entity)
    first = arguments.seed
    if first is None:
        first = random.SystemRandom().randrange(1 << 40) if arguments.for_s else 0
    seeds = itertools.count(first) if arguments.for_s else range(first, first + arguments.seeds)
    end_s = time.monotonic() + arguments.for_s if arguments.for_s else float("inf")

    def on_progress(totals: Totals) -> bool:
        print(f"\r{totals}", end="", flush=True, file=sys.stderr)
        return time.monotonic() < end_s

    totals = run_seeds(seeds, arguments.jobs, on_progress)
    print(f"\nfirst seed {first}: {totals}")
    print(", ".join(f"{count:,} {kind}" for kind, count in totals.faults.most_common()))
    for text in totals.failures.values():
        print(text)
    return 1 if totals.failures else 0


def show(seed: int, with_timeline: bool, entity: str | None) -> int:
    """Play one seed, and say what became of it."""
    try:
        play = play_seed(seed)
    except SimulationFailed as failure:
        print(failure)
        return 1
    if with_timeline:
        print(timeline(play.simulation.history, entity=entity))
    print(f"seed {seed}: {play.swarm}\n{play.simulation.faults.fired.total()} faults, all as promised")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
