"""Steps from any thread to the store, and their results; survives a short outage of the store.

A step that may have reached the store is sent again, unchanged, until it is answered or its time is up,
which is safe because every step may be sent twice. One that certainly did not is given up soon.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, Final, TypeVar

import redis
from coredis.exceptions import RedisError
from redis import exceptions

from atomic_actors.base._config import Config
from atomic_actors.base._telemetry import logger
from atomic_actors.client._connections import (
    BlockingAnswers,
    ConnectionPool,
    NoConnectionFree,
    StoreBusy,
    as_async_error,
    exchange,
    meaning_of,
    run_now,
)
from atomic_actors.client._servers import Connection, Servers
from atomic_actors.journal._protocol import JournalUnavailable, Result, Step
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.redis._answers import read_results
from atomic_actors.journal.redis._library import COMMIT, is_missing, load_library, register_service
from atomic_actors.journal.redis._replication import replication_of
from atomic_actors.journal.redis._store_checks import check_store_safety
from atomic_actors.journal.redis._wire import Call, Wire

__all__ = ("BlockingStore", "Pause")

T = TypeVar("T")

#: Waits so many seconds before a step is sent again; True if that is not needed any more.
Pause = Callable[[float], bool]

RETRY_DELAY_FIRST_S: Final = 0.02
#: How often one attempt follows what the nodes of a cluster say, or puts a lost library back.
TRIES_MAX: Final = 5
#: Stands for the keys that belong to no partition.
META: Final = -1

if sys.platform == "linux":

    def _elapsed_s() -> float:
        """Seconds that also pass while the machine sleeps: the store's time goes on."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    _elapsed_s = time.monotonic


def _sleep(delay_s: float) -> bool:
    time.sleep(delay_s)
    return False


class Health:
    """How a part of the store answers lately; several threads may look and write."""

    __slots__ = ("failures", "next_try_s")

    def __init__(self) -> None:
        #: Attempts in a row without a usable answer.
        self.failures = 0
        #: When one caller may find out whether it is back, on the monotonic clock.
        self.next_try_s = 0.0


class BlockingStore:
    """Executes steps; safe for any number of threads.

    Args:
        config: the namespace and service, their limits, and how patient to be.
        servers: where the store is.
        pool: the connections to it.
    """

    def __init__(self, config: Config, servers: Servers, pool: ConnectionPool) -> None:
        self._config = config
        self._servers = servers
        self._pool = pool
        self.settings = journal_settings(config)
        self._replication = replication_of(config)
        self._wire = Wire(self.settings)
        self._wire_lock = RLock()
        self._meta = f"{{{config.namespace}:meta}}".encode()
        #: Places whose library and settings were looked at since they were last unreachable.
        self._greeted: set[str] = set()
        self._greet_lock = RLock()
        #: The store's time and our own when it was read; None before the first answer.
        self._clock: tuple[int, float] | None = None
        #: What is known of how the store answers lately: of all of it, or of each partition of a cluster.
        self._health: dict[int, Health] = {}

    def __repr__(self) -> str:
        return f"<BlockingStore {self._config.namespace}:{self._config.service} {self._pool!r}>"

    # Time.

    def now_ms(self, until_s: float) -> int:
        """The store's time: the last answer's, and what has passed here since. The first call connects.

        Raises:
            JournalUnavailable: the store cannot be reached.
            StoreIncompatible, StoreUnsafe: it can, and it is the wrong one.
        """
        if self._clock is None:
            self._persist(lambda: self._read_clock(until_s), META, until_s, _sleep)
        assert self._clock is not None
        then_ms, then_s = self._clock
        return then_ms + int((_elapsed_s() - then_s) * 1000)

    def _read_clock(self, until_s: float) -> None:
        place = self._place_of(self._meta)
        with self._pool.using(place, until_s) as connection:
            self._greet(connection, place)

    # Steps.

    def share_calls(self, steps: Sequence[Step]) -> list[Sequence[int]]:
        """The positions of the steps that may go in one call, for each call."""
        if self._servers.merges_partitions:
            return [range(len(steps))] if steps else []
        groups: dict[int, list[int]] = {}
        for position, step in enumerate(steps):
            groups.setdefault(step.partition, []).append(position)
        return list(groups.values())

    def commit(self, steps: Sequence[Step], until_s: float, pause: Pause = _sleep) -> Sequence[Result] | None:
        """Execute steps that may share a call, again and again until they are answered.

        Args:
            steps: what to do.
            until_s: when to give up, on the monotonic clock.
            pause: waits between two attempts.

        Returns:
            One result a step; None if `pause` reported that they are not needed any more.

        Raises:
            JournalUnavailable: no usable answer; its `sent` says whether they may have happened.
            StoreIncompatible, StoreUnsafe: the store is the wrong one.
        """
        with self._wire_lock:
            call = self._wire.encode(steps)
        partition = steps[0].partition
        key = self._wire.lease_key(partition)
        return self._persist(lambda: self._attempt(key, call, until_s), partition, until_s, pause)

    def try_once(self, step: Step, until_s: float) -> Result | None:
        """Execute one step; None without an answer, which is logged."""
        with self._wire_lock:
            call = self._wire.encode((step,))
        try:
            return self._attempt(self._wire.lease_key(step.partition), call, until_s)[0]
        except JournalUnavailable as error:
            logger.debug("no answer to %r: %s", step, error)
            return None

    def _persist(self, attempt: Callable[[], T], partition: int, until_s: float, pause: Pause) -> T | None:
        part = 0 if self._servers.merges_partitions else partition
        health = self._health.setdefault(part, Health())
        threshold, interval_s = self._config.store_failure_threshold, self._config.store_ping_interval_s
        sent, delay_s = False, RETRY_DELAY_FIRST_S
        while True:
            if not sent:
                self._check_available(health)
            try:
                result = attempt()
            except NoConnectionFree:
                if not sent:
                    raise
                left_s = until_s - time.monotonic()
            except StoreBusy:
                left_s = until_s - time.monotonic()
                if left_s <= 0 and not sent:
                    raise
            except JournalUnavailable as error:
                sent = sent or error.sent
                health.failures += 1
                health.next_try_s = time.monotonic() + interval_s
                left_s = until_s - time.monotonic()
                if not sent and (left_s <= 0 or health.failures >= threshold):
                    raise
            else:
                health.failures = 0
                return result
            if left_s <= 0:
                raise JournalUnavailable("no usable answer in time", sent=True)
            if pause(min(delay_s, left_s)):
                return None
            delay_s = min(delay_s * 2, interval_s)

    def _check_available(self, health: Health) -> None:
        """Let one caller in a while ask whether the store is back; refuse the others at once."""
        if health.failures < self._config.store_failure_threshold:
            return
        now_s = time.monotonic()
        if now_s < health.next_try_s:
            raise JournalUnavailable("the store does not answer", sent=False)
        health.next_try_s = now_s + self._config.store_ping_interval_s

    # One attempt.

    def _place_of(self, key: bytes) -> str:
        try:
            return self._servers.place_of(key)
        except redis.RedisError as error:
            raise meaning_of(error, sent=False) from error

    def _attempt(self, key: bytes, call: Call, until_s: float) -> Sequence[Result]:
        place, asking = self._place_of(key), False
        command = (b"FCALL", COMMIT, b"%d" % len(call.keys), *call.keys, *call.arguments)
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                with self._pool.using(place, until_s) as connection:
                    self._greet(connection, place)
                    if asking:
                        exchange(connection, self._left_s(until_s), b"ASKING")
                    reply: Any = exchange(connection, self._left_s(until_s), *command)
                    self._wait_for_replicas(connection, call, until_s)
            except exceptions.AskError as error:
                if not tries_left:
                    raise JournalUnavailable(
                        f"the cluster keeps redirecting the call: {error}", sent=False
                    ) from error
                asking = not isinstance(error, exceptions.MovedError)
                place = self._redirected(place, error)
                continue
            except redis.RedisError as error:
                if is_missing(as_async_error(error)) and tries_left:
                    # It was flushed: the connection setup loads the library.
                    self._greeted.discard(place)
                    continue
                meaning = meaning_of(error, sent=True)
                if isinstance(meaning, JournalUnavailable):
                    self._greeted.discard(place)
                raise meaning from error
            except NoConnectionFree:
                raise
            except JournalUnavailable:
                self._greeted.discard(place)
                raise
            self._clock = (int(reply[0]), _elapsed_s())
            return read_results(call.steps, reply[2:])
        raise AssertionError("unreachable")

    def _wait_for_replicas(self, connection: Connection, call: Call, until_s: float) -> None:
        """Return once enough replicas have what the call has written, or has seen.

        Raises:
            JournalUnavailable: too few have it in time.
            StoreIncompatible: it cannot be found out.
        """
        replication = self._replication
        if replication is None:
            return
        key = self._wire.partition(next(reversed(call.partitions))).prefix + b":ack"
        answer: Any = None
        for command in replication.commands(key):
            answer = exchange(connection, self._left_s(until_s) + replication.timeout_s, *command)
        refusal = replication.refusal(answer)
        if refusal is not None:
            raise refusal

    def _redirected(self, place: str, error: exceptions.AskError) -> str:
        try:
            return self._servers.redirected(place, error)
        except redis.RedisError as final:
            raise meaning_of(final, sent=False) from final

    def _left_s(self, until_s: float) -> float:
        return min(until_s - time.monotonic(), self._config.store_timeout_s)

    def _greet(self, connection: Connection, place: str) -> None:
        """Look at a place before anything is sent there for the first time, or after it was away.

        Raises:
            JournalUnavailable: it does not answer.
            StoreIncompatible, StoreUnsafe: it is the wrong one.
        """
        if place in self._greeted:
            return
        with self._greet_lock:
            if place in self._greeted:
                return
            answers = BlockingAnswers(connection, self._config.store_timeout_s).as_connection
            try:
                run_now(
                    check_store_safety(
                        answers,
                        allow_eviction=self._config.allow_eviction,
                        allow_no_persistence=self._config.allow_no_persistence,
                    )
                )
                run_now(load_library(answers))
                if self._place_of(self._meta) == place:
                    run_now(register_service(answers, self.settings, fixes_partitions=False))
                seconds, microseconds = exchange(connection, self._config.store_timeout_s, b"TIME")
            except (RedisError, redis.RedisError, OSError) as error:
                raise meaning_of(error, sent=False) from error
            self._clock = (int(seconds) * 1000 + int(microseconds) // 1000, _elapsed_s())
            self._greeted.add(place)
