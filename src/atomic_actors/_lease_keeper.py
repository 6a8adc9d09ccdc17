"""Renews leases from an OS thread, so that a busy event loop does not lose them.

The thread owns a blocking client and publishes plain values: for every partition the instant *before*
the last successful renewal was sent. It changes nothing else and calls nobody: moving cancel scopes
from a thread would cancel healthy turns after a stall.

A loop that has not answered for `loop_stall_limit_s` is as good as dead: the keeper stops renewing, so
that another node may take over, and logs the stacks, so that a person can see who blocked it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
from attrs import define, field, frozen

from atomic_actors._errors import StoreIncompatible
from atomic_actors._telemetry import logger

__all__ = (
    "Instant",
    "Keeper",
    "LeaseClient",
    "LeaseKeeper",
    "NodeIdentity",
    "elapsed_s",
    "instant_now",
    "instants_from",
)

#: CLOCK_MONOTONIC and CLOCK_BOOTTIME, in seconds: only the second one runs while a machine sleeps.
Instant = tuple[float, float]

NEVER: Final[Instant] = (float("-inf"), float("-inf"))

#: How soon a failed renewal is tried again, and how often: after that there is no lease left to save.
RETRY_INTERVAL_S: Final = 0.1
RETRIES_MAX: Final = 20

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def _machine_instant() -> Instant:
    monotonic_s = time.monotonic()
    return monotonic_s, monotonic_s if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


_read_instant: Callable[[], Instant] = _machine_instant


@contextmanager
def instants_from(read: Callable[[], Instant]) -> Generator[None]:
    """Let every lease of this process be measured by another clock, for simulations."""
    global _read_instant
    before, _read_instant = _read_instant, read
    try:
        yield
    finally:
        _read_instant = before


def instant_now() -> Instant:
    """Now, on both clocks that never go back."""
    return _read_instant()


def elapsed_s(since: Instant) -> float:
    """Seconds since an instant: the larger of what the two clocks say."""
    now = instant_now()
    return max(now[0] - since[0], now[1] - since[1])


#: The nodes of this process that have not ended.
_live_nodes: Final[set[str]] = set()


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process_start_time(pid: int) -> str:
    """The kernel's start time of a live process; "" where there is none, or no /proc."""
    stat = _read_text(f"/proc/{pid}/stat")
    # The second field is the command in parentheses and may hold anything; the one behind it is the
    # state. A process that its parent has not waited for yet is as dead as one that is gone.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _is_hidden(pid: int) -> bool:
    """Whether a process is there, of another user, of which /proc does not tell us (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@frozen
class NodeIdentity:
    """Which process a node is, so that its successors on the same host can tell that it is dead."""

    node_id: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_time: str
    #: How long its own leases last, which others may have set to less; 0 where it did not say.
    lease_ttl_s: float = 0.0

    @classmethod
    def of_this_process(cls, lease_ttl_s: float = 0.0) -> NodeIdentity:
        """A new identity for a node of this process."""
        try:
            pid_namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            pid_namespace = ""
        pid = os.getpid()
        node_id = os.urandom(8).hex()
        _live_nodes.add(node_id)
        return cls(
            node_id=node_id,
            boot_id=_read_text("/proc/sys/kernel/random/boot_id"),
            pid_namespace=pid_namespace,
            pid=pid,
            start_time=_process_start_time(pid),
            lease_ttl_s=lease_ttl_s,
        )

    def retire(self) -> None:
        """The node has ended, though its process lives on."""
        _live_nodes.discard(self.node_id)

    def encode(self) -> bytes:
        """The form that is stored beside the lease."""
        return json.dumps(
            {
                "node": self.node_id,
                "boot": self.boot_id,
                "pidns": self.pid_namespace,
                "pid": self.pid,
                "start": self.start_time,
                "lease": self.lease_ttl_s,
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> NodeIdentity | None:
        """Read a stored form; None where it is not one (written by another version)."""
        try:
            plain = json.loads(data)
            node_id, boot_id, pid_namespace = str(plain["node"]), str(plain["boot"]), str(plain["pidns"])
            lease_ttl_s = float(plain.get("lease", 0))
            identity = cls(
                node_id, boot_id, pid_namespace, int(plain["pid"]), str(plain["start"]), lease_ttl_s
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        # What is no time at all would keep a lease, and a node, alive without end.
        return identity if 0 <= lease_ttl_s < float("inf") else None

    @classmethod
    def id_in(cls, data: bytes) -> str:
        """The node id in a stored form; "" where there is none that can be read."""
        identity = cls.decode(data)
        return identity.node_id if identity is not None else ""

    def knows_dead(self, other: NodeIdentity) -> bool:
        """Whether `other` was a node of this very host and is certainly gone.

        Only where boot id and pid namespace are known and equal: then its pid is free, or belongs to
        a process that started at another time.
        """
        if not self.boot_id or not self.pid_namespace or not other.start_time:
            return False
        if (self.boot_id, self.pid_namespace) != (other.boot_id, other.pid_namespace):
            return False
        if other.pid == self.pid and other.start_time == self.start_time:
            return other.node_id not in _live_nodes
        start_time = _process_start_time(other.pid)
        return start_time != other.start_time if start_time else not _is_hidden(other.pid)


class LeaseClient(Protocol):
    """A blocking client that renews leases; used by one thread."""

    def open(self) -> None:
        """Connect ahead of the first renewal. Raises where the store is away."""
        ...

    def renew(self, partitions: Sequence[int], claims: Sequence[str]) -> Sequence[bool | None]:
        """Renew; False for each claim that is not the current one, None where that is not known.

        Raises where the store is away.
        """
        ...

    def close(self) -> None:
        """Close its connection."""
        ...


@define(eq=False)
class Keeper(ABC):
    """What whoever renews the leases shares with the event loop.

    Single items of lists and single floats are replaced, never changed, so no lock is needed.
    """

    partitions: int
    interval_s: float
    #: The claim id to renew for each partition; "" for none. Written by the loop.
    claims: list[str] = field(init=False)
    #: When the last successful renewal was sent; `NEVER` once the lease is known to be lost. Written by the keeper.
    renewed: list[Instant] = field(init=False)
    #: `time.monotonic()` of the loop's last sign of life. Written by the loop.
    beat: float = field(factory=time.monotonic, init=False)
    #: Why the keeper has ended, if it was not asked to. Written by the keeper.
    crash: BaseException | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.claims = [""] * self.partitions
        self.renewed = [NEVER] * self.partitions

    @abstractmethod
    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Start to renew; `on_crash` is called if it ends by an error of ours."""

    @abstractmethod
    async def aclose(self, timeout_s: float) -> None:
        """End it, and wait so long for that at most."""

    def held(self) -> list[tuple[int, str]]:
        """The partitions to renew, each with its claim."""
        return [(partition, claim) for partition, claim in enumerate(self.claims) if claim]

    def note(self, held: Sequence[tuple[int, str]], answers: Sequence[bool | None], sent: Instant) -> int:
        """Take in what became of renewals that were sent then; returns of how many that is not known."""
        for (partition, claim), renewed in zip(held, answers, strict=True):
            # The loop may have given the partition up, or claimed it anew, in the meantime.
            if renewed is not None and self.claims[partition] == claim:
                self.renewed[partition] = sent if renewed else NEVER
        return sum(renewed is None for renewed in answers)


@define(eq=False)
class LeaseKeeper(Keeper):
    """The thread. The event loop writes `claims` and `beat`; the thread writes `renewed`."""

    client: LeaseClient
    loop_stall_limit_s: float
    _stop: threading.Event = field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _loop_thread_id: int = field(factory=threading.get_ident, init=False)

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Start the thread; `on_crash` is called from it if it ends by an error of ours."""

        def run() -> None:
            try:
                self._run()
            except BaseException as error:
                self.crash = error
                on_crash(error)
            finally:
                self.client.close()

        self._thread = threading.Thread(target=run, name="atomic-actors lease keeper", daemon=True)
        self._thread.start()

    async def aclose(self, timeout_s: float) -> None:
        """End the thread, and wait so long for it at most; a cancel does not shorten that."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop, timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Ask the thread to end and wait for it; blocks, so call it in a worker thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        stalled = False
        failures = 0
        try:
            # Now, while the loop has little to do: connecting takes several turns of the interpreter's
            # lock, and beside a busy loop each of them may take long.
            self.client.open()
        except Exception as error:
            failures = 1
            logger.warning("cannot connect to renew leases: %s: %s", type(error).__name__, error)
        wait_s = self.interval_s
        while not self._stop.wait(wait_s):
            wait_s = self.interval_s
            silence_s = time.monotonic() - self.beat
            if silence_s > self.loop_stall_limit_s:
                if not stalled:
                    self._report_stall(silence_s)
                stalled = True
                continue
            stalled = False
            try:
                unknown = self._renew()
                if unknown:
                    raise ConnectionError(f"{unknown} of them had no answer")
            except StoreIncompatible:
                raise  # another try would get the same answer
            except Exception as error:
                # The store is away: leases run out by themselves, and the loop's watchdog sees to it.
                failures += 1
                if failures == 1:
                    logger.warning("cannot renew leases: %s: %s", type(error).__name__, error)
                # A store that restarts is back soon, and the leases do not wait for it.
                if failures <= RETRIES_MAX:
                    wait_s = min(RETRY_INTERVAL_S, self.interval_s)
            else:
                failures = 0

    def _renew(self) -> int:
        """Renew what is held; returns of how many it is not known whether they were renewed."""
        held = self.held()
        if not held:
            return 0
        sent = instant_now()
        answers = self.client.renew([partition for partition, _ in held], [claim for _, claim in held])
        return self.note(held, answers, sent)

    def _report_stall(self, silence_s: float) -> None:
        frame = sys._current_frames().get(self._loop_thread_id)  # pyright: ignore[reportPrivateUsage]
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)\n"
        logger.error(
            "the event loop has not answered for %.1f s; leases are not renewed until it does. "
            "Move blocking work to anyio.to_thread.run_sync. It is here:\n%s",
            silence_s,
            stack,
        )
