"""The ways into a simulation: `simulate` in a Trio run, and `run_simulation` from ordinary code."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import trio
import trio.testing
from attrs import evolve

from atomic_actors._system import ActorSystem
from atomic_actors.base._config import Config
from atomic_actors.base._errors import UsageError
from atomic_actors.testing.simulation._faults import Faults
from atomic_actors.testing.simulation._simulation import Simulation
from atomic_actors.testing.simulation._virtual_time import virtual_time

__all__ = ("run_simulation", "simulate")

T = TypeVar("T")

#: What a simulation is made with, unless a test says otherwise: few partitions, and fewer looks at the clock.
SETTINGS: Final[dict[str, Any]] = {"url": "memory:", "partitions": 8, "tick_interval_s": 0.1}


@asynccontextmanager
async def simulate(
    *actors: Any,
    seed: int = 0,
    nodes: int = 1,
    faults: Collection[str] = (),
    fault_rate: float = 0.05,
    config: Config | None = None,
    restarts: bool = True,
    **settings: Any,
) -> AsyncGenerator[Simulation]:
    """A simulated cluster that runs your actors, in virtual time. Needs a Trio run around it.

    Args:
        actors: actor classes, as in `Config.actors`.
        seed: decides everything that is drawn; the same seed gives the same run.
        nodes: how many nodes there are.
        faults: which faults of calls and frames happen by themselves (`testing.CALL_FAULTS`, `testing.FRAME_FAULTS`).
        fault_rate: how likely each call and each frame meets one.
        config: the settings of the nodes, to begin with.
        restarts: whether a node that died is followed by another one.
        settings: more settings, as of `Config`.

    Raises:
        UsageError: an actor or a setting cannot work.
        RuntimeError: there is no Trio run; use `run_simulation`.
        SimulationFailed: by `check` and `settle`.
    """
    if nodes < 1:
        raise UsageError(f"nodes: at least 1, not {nodes}")
    if not 0 <= fault_rate <= 1:
        raise UsageError(f"fault_rate: from 0 to 1, not {fault_rate:g}")
    base = config if config is not None else Config(**SETTINGS)
    config = evolve(base, actors=[*base.actors, *actors], **settings)
    failure: Exception | None = None
    with virtual_time(seed) as clock, _quiet_logs():
        rng = random.Random(seed ^ 0x5EED)
        chosen = Faults(rng, faults, fault_rate, fault_rate)
        template = ActorSystem(config)
        async with trio.open_nursery() as nursery:
            simulation = Simulation(
                config=config,
                seed=seed,
                size=nodes,
                nursery=nursery,
                clock=clock,
                rng=rng,
                faults=chosen,
                template=template,
                restarts=restarts,
            )
            try:
                await simulation.begin()
                yield simulation
            except Exception as error:
                # Raised again behind the nursery, which would wrap it in a group.
                failure = error
            finally:
                simulation.end()
    if failure is not None:
        raise failure


class _quiet_logs:
    """Keep the runtime's own warnings out of a test's output: here things go wrong on purpose."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("atomic_actors")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL + 1)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


def run_simulation(
    main: Callable[[Simulation], Awaitable[T]],
    *actors: Any,
    seed: int = 0,
    **options: Any,
) -> T:
    """Run an async function in a simulated cluster, from ordinary code: no event loop is needed around it.

    Args:
        main: gets the `Simulation`.
        actors: actor classes.
        seed: as of `simulate`.
        options: as of `simulate`.

    Returns:
        What `main` returns.

    Raises:
        SimulationFailed: by `check` and `settle`.
    """

    async def run() -> T:
        async with simulate(*actors, seed=seed, **options) as simulation:
            return await main(simulation)
        raise AssertionError("a simulation does not suppress exceptions")

    return trio.run(run, clock=trio.testing.MockClock())
