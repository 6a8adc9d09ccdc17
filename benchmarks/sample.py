"""One sample in this process: `python -m benchmarks.sample NAME --backend trio` prints it as JSON.

The program runs every sample in a fresh child, so that no heap or garbage of one leaks into the next.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable, Sequence

import anyio
from attrs import asdict, evolve, fields

from benchmarks._measure import Sample, Settings, peak_resident_bytes
from benchmarks._store import running_store
from benchmarks.catalog import BACKENDS, NAMES, OTHER_FLOORS, ROWS
from benchmarks.floors import FLOORS


def find(name: str) -> Callable[[Settings], Awaitable[Sample]]:
    """The coroutine function of a floor or a row."""
    if name in FLOORS:
        return FLOORS[name]
    # Late, so that a floor's process holds nothing of the runtime.
    from benchmarks import cluster, rows

    function: Callable[[Settings], Awaitable[Sample]] = {**rows.SAMPLES, **cluster.SAMPLES}[name]
    return function


def run(name: str, settings: Settings) -> Sample:
    """Measure one floor or row on the backend that the settings name."""
    function = find(name)
    if settings.backend == "uvloop":
        sample = anyio.run(function, settings, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        sample = anyio.run(function, settings, backend=settings.backend)
    return evolve(sample, details={**sample.details, "peak_resident_bytes": peak_resident_bytes()})


def run_with_own_store(name: str, settings: Settings) -> Sample:
    """The same, on a server started for this sample unless the settings name a port."""
    if settings.port:
        return run(name, settings)
    with running_store(ROWS[name].server if name in ROWS else "valkey") as store:
        return run(name, evolve(settings, port=store.port))


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Let the command line set each field of `Settings`."""
    for attribute in fields(Settings):
        flag = "--" + attribute.name.replace("_", "-")
        if attribute.name == "port":
            parser.add_argument(flag, type=int, default=0, help="a running server's; 0 starts a private one")
        elif attribute.name == "backend":
            parser.add_argument(flag, choices=BACKENDS, default=attribute.default)
        else:
            parser.add_argument(flag, type=type(attribute.default), default=attribute.default)


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The settings that `add_settings_arguments` has read."""
    return Settings(**{attribute.name: getattr(arguments, attribute.name) for attribute in fields(Settings)})


def command_line_of(name: str, settings: Settings) -> list[str]:
    """The arguments, after `python`, that run this sample in a child process."""
    arguments = ["-m", "benchmarks.sample", name]
    for field_name, value in asdict(settings).items():
        arguments += ["--" + field_name.replace("_", "-"), str(value)]
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sample and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample", description=__doc__)
    parser.add_argument("name", choices=sorted({*NAMES, *FLOORS, *OTHER_FLOORS}))
    add_settings_arguments(parser)
    parsed = parser.parse_args(arguments)
    print(json.dumps(asdict(run_with_own_store(parsed.name, settings_from(parsed)))))


if __name__ == "__main__":
    main()
