"""The shapes of load: a closed loop of clients over a fixed window, and one client's latencies."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from attrs import Factory, define, frozen

Operation = Callable[[], Awaitable[object]]


class WrongTotal(Exception):
    """What the load did and what the entities or counters hold differ: the figure is worthless."""


@frozen
class Settings:
    """How much to measure, and against which store."""

    port: int
    backend: str = "asyncio"
    warmup_s: float = 0.5
    window_s: float = 3.0
    #: Messages of the rows that send a fixed number.
    messages: int = 20_000
    #: Entities of the row that touches very many.
    entities: int = 1_000_000
    #: Orders of the row with five workers.
    orders: int = 12_300
    #: How often a worker is killed, told to leave, or joins, in the rows about that.
    kills: int = 5

    @property
    def url(self) -> str:
        """The store's address."""
        return f"redis://127.0.0.1:{self.port}"


@frozen
class Sample:
    """One figure, with what explains it."""

    value: float
    details: dict[str, Any] = Factory(dict)


@define(eq=False)
class Tally:
    """What a closed loop has done, counted by its clients; one loop, so no lock."""

    finished: int = 0
    stopping: bool = False


async def rate_of(operations: Sequence[Operation], settings: Settings) -> tuple[Sample, int]:
    """Let one client per operation repeat it, and count what ends inside the window.

    Returns:
        The operations per second, and how many were finished in all, warm-up included.
    """
    tally = Tally()
    async with anyio.create_task_group() as group:
        for operation in operations:
            group.start_soon(_repeat, operation, tally)
        await anyio.sleep(settings.warmup_s)
        finished, started_s, cpu_s = tally.finished, time.perf_counter(), time.process_time()
        await anyio.sleep(settings.window_s)
        finished = tally.finished - finished
        elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        tally.stopping = True
    details = {"operations": finished, "elapsed_s": elapsed_s, "cpu_share": cpu_s / elapsed_s}
    return Sample(finished / elapsed_s, details), tally.finished


async def _repeat(operation: Operation, tally: Tally) -> None:
    while not tally.stopping:
        await operation()
        tally.finished += 1


async def latency_of(operation: Operation, settings: Settings) -> tuple[Sample, int]:
    """Let one client repeat the operation, timing each.

    Returns:
        The median in milliseconds (p99 in the details), and how many were finished in all.
    """
    clock = time.perf_counter
    warm = 0
    until_s = clock() + settings.warmup_s
    while clock() < until_s:
        await operation()
        warm += 1
    latencies_s: list[float] = []
    started_s = now_s = clock()
    until_s = started_s + settings.window_s
    while now_s < until_s:
        before_s = now_s
        await operation()
        now_s = clock()
        latencies_s.append(now_s - before_s)
    count = len(latencies_s)
    latencies_s.sort()
    details = {
        "operations": count,
        "elapsed_s": now_s - started_s,
        "per_second": count / (now_s - started_s),
        "p99_ms": latencies_s[min(count - 1, count * 99 // 100)] * 1000,
    }
    return Sample(statistics.median(latencies_s) * 1000, details), warm + count


def check_total(found: int, expected: int) -> None:
    """Raise `WrongTotal` unless every operation left its mark exactly once."""
    if found != expected:
        raise WrongTotal(f"{expected} operations were acknowledged, but the totals add up to {found}")


def cpu_seconds(*processes: int) -> float:
    """What processes have used of all processors together; NaN where there is no /proc.

    On a machine that does other work, too, it says more about the code than the time on the clock.
    """
    ticks = 0
    for process in processes:
        stat = Path(f"/proc/{process}/stat")
        if not stat.exists():
            return float("nan")
        # The second field is the command in parentheses and may hold anything.
        fields = stat.read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_resident_bytes() -> int:
    """The most memory this process has held at once.

    On Linux from /proc: `ru_maxrss` starts there with the size of the parent that spawned us.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
