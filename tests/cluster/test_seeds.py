"""A thousand simulated clusters. `AA_TESTS_SOAK_S=600` goes on with new seeds for so many seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from hashlib import sha256

import pytest

from atomic_actors.testing.simulation._faults import FAULTS
from tests.cluster.play import FAULTS_MIN, STEPS_MIN, play_seed
from tests.cluster.runs import Totals, run_seeds

SEEDS = 1_000
JOBS = 2
#: A slow machine plays fewer seeds in so many seconds, but no fewer than this.
LIMIT_S = float(os.environ.get("AA_TESTS_CLUSTERS_S", "240"))
SEEDS_MIN = 150


def check(totals: Totals) -> None:
    print(totals)
    assert not totals.failures, "\n\n".join(list(totals.failures.values())[:3])


@pytest.mark.slow
@pytest.mark.timeout(0)  # faulthandler and CI have limits of their own; a shared machine may be slow
def test_a_thousand_clusters() -> None:
    end_s = time.monotonic() + LIMIT_S
    totals = run_seeds(
        range(SEEDS), JOBS, lambda so_far: so_far.seeds < SEEDS_MIN or time.monotonic() < end_s
    )
    check(totals)
    assert totals.seeds >= SEEDS_MIN
    assert totals.replayed >= totals.seeds // 100
    assert totals.steps_min >= STEPS_MIN
    assert totals.faults_min >= FAULTS_MIN
    # A fault that never fires proves nothing.
    missing = [kind for kind in FAULTS if totals.faults[kind] < 10]
    assert not missing, f"{missing}: {totals.faults}"


@pytest.mark.timeout(0)
@pytest.mark.skipif("AA_TESTS_SOAK_S" not in os.environ, reason="set AA_TESTS_SOAK_S to seconds")
def test_new_clusters() -> None:
    first = int.from_bytes(os.urandom(4), "big")
    end_s = time.monotonic() + float(os.environ["AA_TESTS_SOAK_S"])
    check(run_seeds(range(first, first + 10**9), JOBS, lambda _: time.monotonic() < end_s))


@pytest.mark.parametrize("seed", [5, 1009])
@pytest.mark.parametrize("hash_seed", ["1", "3"])
def test_a_seed_is_the_same_in_every_process(hash_seed: str, seed: int) -> None:
    """The order of sets and of hashes must not decide anything: else nothing could be replayed elsewhere."""
    program = (
        "from hashlib import sha256; from tests.cluster.play import play_seed;"
        f"print(sha256(repr(play_seed({seed}).simulation.history.records).encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()
    here = sha256(repr(play_seed(seed).simulation.history.records).encode()).hexdigest()
    assert there == here


def test_seeds_differ() -> None:
    assert play_seed(1).simulation.history.records != play_seed(2).simulation.history.records
