"""How long fuzzing goes on, and what a failure says.

Each target takes one input from one seed. By default a test tries a fixed number of seeds, the same ones in every
run. With `AA_TESTS_FUZZ_S=600` each test goes on for so many seconds with new seeds, and says how many it tried.
"""

from __future__ import annotations

import os
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from random import Random
from typing import Final, TypeVar

from attrs import frozen
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

__all__ = (
    "Broken",
    "Target",
    "explore",
    "fuzz",
    "random_of",
    "replay_command",
    "run_seeds",
    "seeds",
    "soak_s",
)

VARIABLE: Final = "AA_TESTS_FUZZ_S"
#: What one input may take of this thread's time, and may add to the memory of this process.
INPUT_LIMIT_S: Final = 2.0
MEMORY_LIMIT_BYTES: Final = 300_000_000
#: Hypothesis is asked for so many inputs at once.
ROUND: Final = 500
SHOWN_MAX: Final = 1_000

T = TypeVar("T")


class Broken(AssertionError):
    """An input did what no input may do."""

    def __init__(self, what: str, given: object, cause: BaseException | None = None) -> None:
        shown = repr(given)
        if len(shown) > SHOWN_MAX:
            shown = f"{shown[: SHOWN_MAX - 3]}... ({len(shown)} characters)"
        why = "" if cause is None else f": {type(cause).__name__}: {str(cause)[:SHOWN_MAX]}"
        super().__init__(f"{what}{why}\n  input: {shown}")


@frozen
class Target:
    """Something to attack.

    Args:
        name: for people, and for the seeds: two targets get different inputs of one seed.
        attempt: tries one input; raises `Broken`, or whatever it was that escaped.
        inputs: how many seeds a run tries that has no time of its own.
    """

    name: str
    attempt: Callable[[Random], object]
    inputs: int


def soak_s() -> float:
    """How many seconds each test goes on; 0 for the fixed seeds."""
    return float(os.environ.get(VARIABLE) or 0)


def random_of(name: str, number: int) -> Random:
    """The choices of one input; the same on every machine."""
    return Random(f"{name}:{number}")


def replay_command(name: str, number: int) -> str:
    """What runs one input again."""
    return f"python -m tests.fuzz --target {name} --seed {number} --inputs 1"


def _memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_seeds(target: Target, numbers: Iterable[int], input_limit_s: float = INPUT_LIMIT_S) -> int:
    """Try the input of each seed; returns how many there were.

    Args:
        target: what to attack.
        numbers: the seeds.
        input_limit_s: what one input may take of this thread's time.

    Raises:
        AssertionError: one broke something; the text says how to see it again.
    """
    tried = 0
    for number in numbers:
        memory_bytes, began_s = _memory_bytes(), time.thread_time()
        try:
            target.attempt(random_of(target.name, number))
        except Exception as error:
            raise AssertionError(f"{error}\n  replay: {replay_command(target.name, number)}") from error
        took_s, grown_bytes = time.thread_time() - began_s, _memory_bytes() - memory_bytes
        again = replay_command(target.name, number)
        assert took_s < input_limit_s, f"one input took {took_s:.1f} s\n  replay: {again}"
        assert grown_bytes < MEMORY_LIMIT_BYTES, f"one input took {grown_bytes} bytes\n  replay: {again}"
        tried += 1
    return tried


def until(limit_s: float, first: int) -> Iterator[int]:
    """Seeds from `first` on, for `limit_s` seconds."""
    end_s = time.monotonic() + limit_s
    for number in count(first):
        if time.monotonic() >= end_s:
            return
        yield number


def seeds(inputs: int) -> Iterable[int]:
    """The seeds of a test: `inputs` fixed ones, or new ones for as long as the variable says."""
    return until(soak_s(), secrets.randbits(40)) if soak_s() else range(inputs)


def fuzz(target: Target) -> int:
    """Attack one target as a test does; returns how many inputs were tried."""
    tried = run_seeds(target, seeds(target.inputs))
    if soak_s():
        print(f"{target.name}: {tried} inputs")
    return tried


def explore(name: str, strategy: SearchStrategy[T], check: Callable[[T], None], inputs: int) -> int:
    """Check what Hypothesis makes up, `inputs` times or for as long as the variable says.

    Returns:
        How many inputs were tried.
    """
    tried = 0

    def counted(value: T) -> None:
        nonlocal tried
        tried += 1
        check(value)

    def round_of(examples: int, *, fixed: bool) -> Callable[[], None]:
        options = settings(
            max_examples=examples,
            derandomize=fixed,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        return options(given(strategy)(counted))

    if not soak_s():
        round_of(inputs, fixed=True)()
        return tried
    for number in until(soak_s(), secrets.randbits(40)):
        seed(number)(round_of(ROUND, fixed=False))()
    print(f"{name}: {tried} inputs of Hypothesis")
    return tried
