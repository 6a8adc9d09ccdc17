"""One sending process: `python -m benchmarks.asker FIRST LAST --port N`, a client for each entity from first to last.

It owns nothing. It prints `ready`, waits for a line on standard input, asks for as long as it is told to, and
prints its sample as JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence

import anyio
import anyio.to_thread

from atomic_actors import ActorSystem, Config, EntityRef
from benchmarks._measure import Settings, rate_of
from benchmarks.rows import Deposit, EffectfulAccount
from benchmarks.sample import add_settings_arguments, settings_from
from benchmarks.worker import run


async def _ask(system: ActorSystem, entity: EntityRef, amount: int = 1) -> None:
    await system.ask(entity, Deposit(amount))


async def ask_again_and_again(settings: Settings, first: int, last: int) -> None:
    """Say so when ready; begin at a word; say what came of it."""
    async with ActorSystem(Config(url=settings.url)) as system:
        refs = [EffectfulAccount.ref(f"a-{number}") for number in range(first, last)]
        for ref in refs:
            await _ask(system, ref, 0)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        sample, finished = await rate_of([functools.partial(_ask, system, ref) for ref in refs], settings)
        print(json.dumps({"value": sample.value, "finished": finished, **sample.details}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asker", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    add_settings_arguments(parser)
    parsed = parser.parse_args(arguments)
    settings = settings_from(parsed)
    run(ask_again_and_again, settings.backend, settings, parsed.first, parsed.last)


if __name__ == "__main__":
    main()
