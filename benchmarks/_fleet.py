"""Worker processes of a row: started, watched, killed, and who owns what, as the store says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import redis
from attrs import define, field

from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal.redis._wire import Wire
from benchmarks._measure import Settings, cpu_seconds

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 30.0
#: Ownership counts as settled once it has not changed for so long.
SETTLED_AFTER_S = 1.0
LOOK_INTERVAL_S = 0.05


class FleetFailed(Exception):
    """A process did not start, ended by itself, or ownership never came to rest."""


@define(eq=False)
class Child:
    """A process that says things on its standard output, line by line."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, command: Sequence[str], cwd: Path = ROOT) -> Child:
        """Start it; what it says on standard error is shown."""
        return cls(
            subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def hear(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        line = ""
        with anyio.move_on_after(timeout_s):
            line = await anyio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        if not line:
            self.kill()
            raise FleetFailed(f"{self.process.args} said nothing within {timeout_s:g} s, or has ended")
        return line.strip()

    async def expect(self, word: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it says a word."""
        line = await self.hear(timeout_s)
        if line != word:
            self.kill()
            raise FleetFailed(f"{self.process.args} was to say {word!r} and said {line!r}")

    def say(self, word: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    async def stop(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Ask it to leave; returns the seconds until it has. Kills it if it does not."""
        began_s = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            await anyio.to_thread.run_sync(self.process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise FleetFailed(f"{self.process.args} did not leave within {timeout_s:g} s") from None
        return time.perf_counter() - began_s


@define(eq=False)
class Fleet:
    """The workers of one sample.

    Args:
        settings: the store and the backend.
        kinds: which actors they run, by the names of `benchmarks.worker`.
        options: more of its options.
    """

    settings: Settings
    kinds: Sequence[str]
    options: Sequence[str] = ()
    workers: list[Child] = field(factory=list)
    _wire: Wire = field(factory=lambda: Wire(JournalSettings()))

    def _start(self) -> Child:
        settings = self.settings
        worker = Child.start(
            [
                *(sys.executable, "-m", "benchmarks.worker", *self.kinds),
                *("--port", str(settings.port), "--backend", settings.backend, *self.options),
            ]
        )
        self.workers.append(worker)
        return worker

    async def start(self, count: int) -> None:
        """Start workers, at the same time, and wait until they run."""
        for worker in [self._start() for _ in range(count)]:
            await worker.expect("ready")

    async def join(self) -> Child:
        """Start one worker more and wait until it runs."""
        worker = self._start()
        await worker.expect("ready")
        return worker

    def kill(self, worker: Child) -> None:
        """End a worker as a crash would."""
        self.workers.remove(worker)
        worker.kill()

    async def stop(self, worker: Child) -> float:
        """Ask a worker to leave; returns the seconds until it has."""
        self.workers.remove(worker)
        return await worker.stop()

    async def owners(self) -> list[int]:
        """The process that owns each partition, by the store's leases; 0 where nobody does."""
        return await anyio.to_thread.run_sync(self._read_owners)

    def _read_owners(self) -> list[int]:
        with redis.Redis("127.0.0.1", self.settings.port) as client:
            pipeline = client.pipeline(transaction=False)
            for partition in range(JournalSettings().partitions):
                pipeline.hget(self._wire.lease_key(partition).decode(), "n")
            holders: list[bytes | None] = pipeline.execute()
        return [json.loads(holder)["pid"] if holder else 0 for holder in holders]

    def cpu_seconds(self) -> dict[str, float]:
        """What the store, the workers and this process have used so far."""
        with redis.Redis("127.0.0.1", self.settings.port) as client:
            store: int = client.info("server")["process_id"]  # type: ignore[index]
        return {
            "store": cpu_seconds(store),
            "workers": cpu_seconds(*(worker.pid for worker in self.workers)),
            "sender": cpu_seconds(os.getpid()),
        }

    async def settled(self) -> Counter[int]:
        """Wait until every partition has a living owner and none changes hands; returns their shares."""
        give_up_s = time.monotonic() + SETTLE_TIMEOUT_S
        before: list[int] = []
        since_s = time.monotonic()
        while time.monotonic() < give_up_s:
            owners = await self.owners()
            if owners != before or not set(owners) <= {worker.pid for worker in self.workers}:
                before, since_s = owners, time.monotonic()
            elif time.monotonic() - since_s >= SETTLED_AFTER_S:
                return Counter(owners)
            await anyio.sleep(LOOK_INTERVAL_S)
        raise FleetFailed(f"ownership did not come to rest: {Counter(before)}")

    def busiest(self, shares: Counter[int]) -> Child:
        """The worker with the most partitions."""
        return max(self.workers, key=lambda worker: shares[worker.pid])


@asynccontextmanager
async def fleet(settings: Settings, kinds: Sequence[str], count: int, *options: str) -> AsyncIterator[Fleet]:
    """Workers that run; whatever is left of them is ended on the way out."""
    some = Fleet(settings, kinds, options)
    try:
        await some.start(count)
        yield some
    finally:
        for worker in some.workers:
            worker.process.terminate()
        with anyio.CancelScope(shield=True):
            for worker in some.workers:
                try:
                    await anyio.to_thread.run_sync(worker.process.wait, 5.0)
                except subprocess.TimeoutExpired:
                    worker.kill()


@asynccontextmanager
async def askers(settings: Settings, count: int, clients: int) -> AsyncIterator[list[Child]]:
    """Processes that are about to ask, with so many clients together: they wait for a line, and say their sample."""
    children: list[Child] = []
    try:
        for number in range(count):
            first, last = (clients * end // count for end in (number, number + 1))
            command = [sys.executable, "-m", "benchmarks.asker", str(first), str(last)]
            command += ["--port", str(settings.port), "--backend", settings.backend]
            command += ["--warmup-s", str(settings.warmup_s), "--window-s", str(settings.window_s)]
            children.append(Child.start(command))
        for child in children:
            await child.expect("ready")
        yield children
    finally:
        for child in children:
            child.kill()
