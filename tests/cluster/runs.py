"""Many seeds, side by side in processes, and what all of them met."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from attrs import define, field

from atomic_actors.testing import SimulationFailed
from tests.cluster.play import Play, play_seed, steps_of, watching_of

#: One seed in so many is run twice, and the two histories are compared.
REPLAYED_ONE_IN = 100
SEEDS_IN_A_CHUNK = 10
CHUNKS_A_PROCESS = 5


@define
class Totals:
    """What seeds met, all together."""

    seeds: int = 0
    #: Steps that reached for the store; and how many of them only renew or look at leases.
    steps: int = 0
    watching: int = 0
    #: The seed with the fewest steps, and with the fewest faults.
    steps_min: int = 1 << 62
    faults_min: int = 1 << 62
    faults: Counter[str] = field(factory=Counter)
    nodes: int = 0
    records: int = 0
    errors: Counter[str] = field(factory=Counter)
    replayed: int = 0
    virtual_s: float = 0.0
    processor_s: float = 0.0
    #: Text by seed.
    failures: dict[int, str] = field(factory=dict)

    def add(self, other: Totals) -> None:
        self.seeds += other.seeds
        self.steps += other.steps
        self.watching += other.watching
        self.steps_min = min(self.steps_min, other.steps_min)
        self.faults_min = min(self.faults_min, other.faults_min)
        self.faults.update(other.faults)
        self.nodes += other.nodes
        self.records += other.records
        self.errors.update(other.errors)
        self.replayed += other.replayed
        self.virtual_s += other.virtual_s
        self.processor_s += other.processor_s
        self.failures.update(other.failures)

    def count(self, play: Play) -> None:
        """Take in one seed that was played to its end."""
        simulation = play.simulation
        steps, fired = steps_of(simulation), simulation.faults.fired
        self.steps += steps
        self.watching += watching_of(simulation)
        self.steps_min = min(self.steps_min, steps)
        self.faults_min = min(self.faults_min, fired.total())
        self.faults.update(fired)
        self.nodes += len(simulation.nodes)
        self.records += len(simulation.history.records)
        self.errors.update(play.errors)
        self.virtual_s += simulation.history.records[-1].at_s

    def __str__(self) -> str:
        speed = self.steps / max(self.processor_s, 1e-9)
        return (
            f"{self.seeds:,} seeds ({self.replayed} of them twice), {self.steps:,} steps, {self.watching:,} of them looks "
            f"at leases ({speed:,.0f} a second and core), {self.faults.total():,} faults, {self.nodes:,} nodes, "
            f"{self.virtual_s / 3600:.1f} h of virtual time in {self.processor_s / 60:.1f} min of a core; "
            f"{len(self.failures)} failed"
        )


def replay_command(seed: int) -> str:
    """What a person types to see a seed again."""
    return f"python -m tests.cluster --seed {seed}"


def run_chunk(seeds: list[int]) -> Totals:
    """Play seeds one after the other, in this process."""
    totals = Totals()
    # A run makes few cycles and much that lives until its end: to look through it again and again costs a tenth.
    gc.disable()
    gc.freeze()
    for seed in seeds:
        gc.collect()
        began_s = time.process_time()
        totals.seeds += 1
        try:
            play = play_seed(seed)
            totals.count(play)
            if seed % REPLAYED_ONE_IN == 0:
                totals.replayed += 1
                again = play_seed(seed).simulation.history.records
                if repr(again) != repr(play.simulation.history.records):
                    totals.failures[seed] = "two runs of the same seed differ"
        except SimulationFailed as failure:
            totals.failures[seed] = f"{replay_command(seed)}\n{failure}"
        except Exception as error:  # whatever it is, it belongs to a seed
            totals.failures[seed] = f"{replay_command(seed)}\n{error!r}"
        totals.processor_s += time.process_time() - began_s
    return totals


def run_seeds(
    seeds: Iterable[int], jobs: int, on_progress: Callable[[Totals], bool] = lambda _: True
) -> Totals:
    """Play seeds in `jobs` processes, until there are no more or `on_progress` says no."""
    totals = Totals()
    chunks = _chunks(seeds)
    context = multiprocessing.get_context("spawn")
    # What is compiled for the actors of each run is kept by the interpreter: a process that plays hundreds grows slow.
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=CHUNKS_A_PROCESS) as pool:
        running: set[Future[Totals]] = set()
        goes_on = True
        while goes_on or running:
            while goes_on and len(running) < 2 * jobs:
                chunk = next(chunks, None)
                if chunk is None:
                    goes_on = False
                    break
                running.add(pool.submit(run_chunk, chunk))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                totals.add(future.result())
            goes_on = on_progress(totals) and goes_on
    return totals


def _chunks(seeds: Iterable[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    for seed in seeds:
        chunk.append(seed)
        if len(chunk) == SEEDS_IN_A_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
