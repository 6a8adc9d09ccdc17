"""One worker process: `python -m benchmarks.worker KINDS --port N` owns what it gets until SIGTERM.

It prints `ready` once its system runs. Rows that take more than one process start these.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from atomic_actors import ActorSystem, Config
from benchmarks.orders import Warehouse
from benchmarks.rows import EffectfulAccount, TransactionalAccount

ACTORS: dict[str, Any] = {
    "warehouse": Warehouse,
    "effectful": EffectfulAccount,
    "transactional": TransactionalAccount,
}


async def work(config: Config) -> None:
    """Run the system until a signal ends it."""
    async with ActorSystem(config):
        print("ready", flush=True)
        await anyio.sleep_forever()


def run(function: Callable[..., Any], backend: str, *arguments: Any) -> None:
    """`anyio.run` on one of the backends that rows are measured on."""
    if backend == "uvloop":
        anyio.run(function, *arguments, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(function, *arguments, backend=backend)


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the service and work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=tuple(ACTORS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--lease-ttl-s", type=float, default=2.0)
    parser.add_argument(
        "--strangers", action="store_true", help="look at nobody's process: as on other machines"
    )
    parsed = parser.parse_args(arguments)
    # That a worker leaves or dies is what the row is about.
    logging.getLogger("atomic_actors").setLevel(logging.ERROR)
    config = Config(
        url=f"redis://127.0.0.1:{parsed.port}",
        actors=[ACTORS[name] for name in parsed.kinds],
        lease_ttl_s=parsed.lease_ttl_s,
        same_host_takeover=not parsed.strangers,
        handle_signals=True,
    )
    run(work, parsed.backend, config)


if __name__ == "__main__":
    main()
