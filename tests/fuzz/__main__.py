"""Fuzzing by hand: `python -m tests.fuzz --seconds 60 [--target NAME] [--seed N]`.

It goes through the targets for so many seconds together, each with its share, and prints how many inputs each had. A
failure prints the command that runs its input again. `memory` and `server` are whole systems; `server` starts a Valkey.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import anyio

from tests.fuzz.effort import replay_command, run_seeds
from tests.fuzz.targets import TARGETS
from tests.fuzz.test_stored_records import play_in_memory, play_on_server
from tests.servers import start_server

#: Tries the input of one seed; raises where something broke.
Attempt = Callable[[int], object]

SYSTEMS: Final = ("memory", "server")
PROGRESS_S: Final = 10.0


@contextmanager
def _opened(name: str, backend: str) -> Generator[Attempt]:
    """What tries one seed of a target."""
    if name == "memory":
        yield lambda number: anyio.run(play_in_memory, number, backend=backend)
    elif name == "server":
        with (
            tempfile.TemporaryDirectory() as directory,
            start_server("valkey", tmp_path=Path(directory), tcp=True, appendonly="no") as server,
        ):
            yield lambda number: anyio.run(partial(play_on_server, number, server), backend=backend)
    else:
        target = next(target for target in TARGETS if target.name == name)
        yield lambda number: run_seeds(target, (number,))


def _run(name: str, numbers: Iterable[int], limit_s: float, backend: str) -> tuple[int, int]:
    """Try seeds until the time is up; returns how many inputs there were and how many broke something."""
    tried = broken = 0
    end_s, next_s = time.monotonic() + limit_s, time.monotonic() + PROGRESS_S
    with _opened(name, backend) as attempt:
        for number in numbers:
            try:
                attempt(number)
            except Exception as error:
                broken += 1
                print(f"{name}, seed {number}: {error}\n  again: {replay_command(name, number)}", flush=True)
            tried += 1
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + PROGRESS_S
                print(f"{name}: {tried} inputs, {broken} broke something ...", flush=True)
            if time.monotonic() >= end_s:
                break
    return tried, broken


def main() -> int:
    names = [*(target.name for target in TARGETS), *SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--target", choices=names, action="append", help="this one alone; may be given again")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--inputs", type=int, default=0, help="so many seeds of each target, and no more")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="for whole systems")
    arguments = parser.parse_args()
    logging.getLogger("atomic_actors").addHandler(logging.NullHandler())
    chosen: list[str] = arguments.target or names
    total_broken = 0
    for name in chosen:
        last = arguments.seed + arguments.inputs
        numbers = range(arguments.seed, last) if arguments.inputs else count(arguments.seed)
        limit_s = float("inf") if arguments.inputs else arguments.seconds / len(chosen)
        tried, broken = _run(name, numbers, limit_s, arguments.backend)
        total_broken += broken
        print(f"{name}: {tried} inputs, {broken} broke something", flush=True)
    return 1 if total_broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
