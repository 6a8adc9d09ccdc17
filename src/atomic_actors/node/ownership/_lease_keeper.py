"""Renews leases from an OS thread, so that a busy event loop does not lose them.

The thread owns a blocking client and publishes plain values: for every partition the instant *before*
the last successful renewal was sent. It changes nothing else and calls no other part: moving cancel scopes
from a thread would cancel healthy turns after a stall.

A loop that has not answered for `loop_stall_limit_s` is as good as dead: the keeper stops renewing, so
that another node may take over, and logs the stacks, so that a person can see what blocked it.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Protocol

import anyio
import anyio.to_thread
from attrs import define, field

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._telemetry import logger
from atomic_actors.node.ownership._instants import NEVER, Instant, instant_now

__all__ = ("Keeper", "LeaseClient", "LeaseKeeper")


#: How soon a failed renewal is tried again, and how often: after that there is no lease left to save.
RETRY_INTERVAL_S: Final = 0.1
RETRIES_MAX: Final = 20


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
    """Renews leases, and shares with the event loop which ones and since when.

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
    def start(self) -> None:
        """Start to renew. An error of ours that ends it is put into `crash`."""

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


@define(eq=False, kw_only=True)
class LeaseKeeper(Keeper):
    """The thread. The event loop writes `claims` and `beat`; the thread writes `renewed`."""

    client: LeaseClient
    loop_stall_limit_s: float
    _stop: threading.Event = field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _loop_thread_id: int = field(factory=threading.get_ident, init=False)

    def start(self) -> None:
        """Start the thread."""

        def run() -> None:
            try:
                self._run()
            except BaseException as error:
                # `Membership` finds it, and ends the system with it.
                self.crash = error
                logger.error("leases are not renewed any more: %s: %s", type(error).__name__, error)
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
                    raise ConnectionError(f"{unknown} of them got no answer")
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
            "the event loop has not run for %.1f s; leases are not renewed until it does. "
            "Move blocking work to anyio.to_thread.run_sync. The loop is blocked here:\n%s",
            silence_s,
            stack,
        )
