"""The worker process: loads the system, enters it, serves until it is asked to stop or its parent is gone.

Started by the `Manager` as `python -m atomic_actors.tools.workers.worker`. SIGTERM and SIGINT are handled as
`handle_signals=True` does: the first one leaves in good order, the second does not wait for running turns.

A thread, the guard, waits for the parent's end of the channel to close. It needs no event loop, so even a
worker whose loop is blocked does not stay behind as an orphan.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final, Literal

import anyio
import attrs
from anyio.abc import TaskStatus
from attrs import define, field

from atomic_actors._system import ActorSystem
from atomic_actors.base._errors import AtomicActorsError, StoreUnavailable, UsageError
from atomic_actors.base._store_url import StoreScheme
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.tools.workers._reports import Numbers, Ready, Reporter
from atomic_actors.tools.workers._target import EXIT_FAILED, CannotServe, load_target, make_system

__all__ = ("main",)

NUMBERS_INTERVAL_S: Final = 1.0
#: For the way out of a worker whose parent is gone, where its settings say "unbounded".
ORPHAN_DRAIN_LIMIT_S: Final = 60.0
#: And beyond that, until it is ended by force.
ORPHAN_MARGIN_S: Final = 10.0
EXIT_ORPHANED: Final = 70


@define(eq=False)
class _Guard:
    """Ends this process when its parent is gone."""

    channel: socket.socket
    #: Whether the parent reads what this process prints.
    captured: bool
    drain_limit_s: float = field(default=0.0, init=False)

    def start(self) -> None:
        threading.Thread(target=self._run, name="atomic-actors guard", daemon=True).start()

    def _run(self) -> None:
        try:
            while self.channel.recv(1):
                pass
        except OSError:
            pass  # a reset says the same
        if self.captured:
            _print_nowhere()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.drain_limit_s)
        os.kill(os.getpid(), signal.SIGTERM)  # do not wait for running turns any more
        time.sleep(ORPHAN_MARGIN_S)
        os._exit(EXIT_ORPHANED)


def _print_nowhere() -> None:
    """Its reader is gone, and printing must not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)


@define(eq=False, kw_only=True)
class _Worker:
    """One run of the process."""

    target: str
    #: What the target names.
    found: Any
    workers: int
    reporter: Reporter
    guard: _Guard
    store: str = field(default="the store", init=False)
    code: int = field(default=0, init=False)

    async def run(self) -> int:
        async with anyio.create_task_group() as group:
            # Errors do not go through task groups here: those would wrap them.
            await self._serve_or_report(group)
            group.cancel_scope.cancel()
        return self.code

    async def _serve_or_report(self, group: anyio.abc.TaskGroup) -> None:
        entered = False
        try:
            with anyio.CancelScope() as entering:
                await group.start(self._watch_early_signals, entering)
                system = await make_system(self.target, self.found)
                self._prepare(system)
                async with system:
                    entered = True
                    await self._serve(system)
        except CannotServe as error:
            self.code = self.reporter.fail(str(error), error.code, error.traceback)
        except UsageError as error:
            self.code = self.reporter.fail(f"{self.target}: {error}", 1 if entered else 2)
        except (StoreUnavailable, JournalUnavailable) as error:
            self.code = self.reporter.fail(f"no answer from {self.store}: {error}", EXIT_FAILED)
        except AtomicActorsError as error:
            self.code = self.reporter.fail(str(error) or type(error).__name__, EXIT_FAILED)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.code = self.reporter.fail(text, EXIT_FAILED, traceback.format_exc())

    def _prepare(self, system: ActorSystem) -> None:
        config = system.config
        if self.workers > 1 and config.location.scheme is StoreScheme.MEMORY:
            raise CannotServe(
                f"{self.target}: url='memory:' lives inside one process, and {self.workers} cannot share it; "
                "name another store, or use --workers 1"
            )
        self.store = str(config.location)
        system.config = attrs.evolve(config, handle_signals=True)
        self.guard.drain_limit_s = config.drain_timeout_s or ORPHAN_DRAIN_LIMIT_S

    async def _watch_early_signals(
        self, entering: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Before the system watches for signals itself, one of them gives up what has been begun."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                entering.cancel()

    async def _serve(self, system: ActorSystem) -> None:
        config = system.config
        self.reporter.report(Ready(str(config.location), config.drain_timeout_s))
        while True:
            numbers = system.statistics()
            self.reporter.report(
                Numbers(
                    at_s=time.monotonic(),
                    turns=numbers.turns,
                    owned=numbers.owned_partitions,
                    partitions=config.partitions,
                    activations=numbers.activations + numbers.volatile_activations,
                )
            )
            await anyio.sleep(NUMBERS_INTERVAL_S)


@define(kw_only=True)
class _Arguments:
    target: str
    channel: int
    number: int
    workers: int
    backend: Literal["asyncio", "trio"]
    uvloop: bool
    captured: bool


def _read(words: Sequence[str] | None) -> _Arguments:
    parser = argparse.ArgumentParser(prog="atomic_actors.tools.workers.worker")
    parser.add_argument("target")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--backend", choices=("asyncio", "trio"), required=True)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--captured", action="store_true")
    return _Arguments(**vars(parser.parse_args(words)))


def _log_to_standard_error(number: int) -> None:
    """Unless the application has configured logging."""
    if not logging.getLogger().handlers:
        logging.basicConfig(
            format=f"%(asctime)s worker {number} %(levelname)s %(name)s: %(message)s", level=logging.WARNING
        )


def main(words: Sequence[str] | None = None) -> int:
    """Serve; returns the exit code: 0 after a stop in good order."""
    arguments = _read(words)
    channel = socket.socket(fileno=arguments.channel)
    os.set_inheritable(arguments.channel, False)
    # For the parent alone; a signal to every process of a name must not end the workers.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard = _Guard(channel, arguments.captured)
    guard.start()
    reporter = Reporter(channel)
    try:
        found = load_target(arguments.target)
    except CannotServe as error:
        return reporter.fail(str(error), error.code, error.traceback)
    _log_to_standard_error(arguments.number)
    worker = _Worker(
        target=arguments.target, found=found, workers=arguments.workers, reporter=reporter, guard=guard
    )
    options: dict[str, Any] = {"use_uvloop": True} if arguments.uvloop else {}
    return anyio.run(worker.run, backend=arguments.backend, backend_options=options)


if __name__ == "__main__":
    sys.exit(main())
