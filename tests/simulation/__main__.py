"""Runs schedules by seed: `python -m tests.simulation --seed 7 --backend trio`, or `--seeds 500`."""

from __future__ import annotations

import argparse
import traceback

from tests.simulation.plan import draw_schedule
from tests.simulation.world import run_schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the (first) seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="trio")
    parser.add_argument("--trace", action="store_true", help="print what happened")
    arguments = parser.parse_args()
    red = 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        schedule = draw_schedule(seed, arguments.backend)
        world = run_schedule(schedule)
        if arguments.trace:
            print(schedule)
            print("\n".join(world.oracle.trace))
            print(dict(world.weather.step_kinds), dict(world.weather.fired), dict(world.errors))
        if world.oracle.broken:
            red += 1
            print(f"seed {seed} ({arguments.backend}): " + "\n    ".join(world.oracle.broken[:5]), flush=True)
            if world.error is not None and arguments.trace:
                traceback.print_exception(world.error)
    print(f"{arguments.seeds} schedules, {red} broken")
    return 1 if red else 0


if __name__ == "__main__":
    raise SystemExit(main())
