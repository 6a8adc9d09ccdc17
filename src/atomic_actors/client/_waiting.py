"""Threads that wait for an outcome, and the other users of the same message."""

from __future__ import annotations

import threading
from typing import Any

from attrs import define, field

from atomic_actors.contracts._outcomes import Waiting

__all__ = ("Waiter", "Waiters")


class Waiter:
    """A thread that waits for a message: an ask or a result for its outcome, a tell for its acceptance.

    Invariant: `value` is set once, together with `done`; what it is set to is an outcome (bytes) or the
    exception to raise.
    """

    __slots__ = ("_gate", "accepted", "done", "entity", "is_joined", "key", "uid", "value", "waiting")

    def __init__(self, waiting: Waiting, entity: str, uid: str, key: str = "") -> None:
        self.waiting: Waiting = waiting
        self.entity = entity
        self.uid = uid
        self.key = key
        self.accepted = False
        #: Another caller relies on its message: cancelling this ask must not withdraw it.
        self.is_joined = False
        self.done = False
        self.value: bytes | BaseException | None = None
        # A lock that is held until there is a value: the cheapest thing that a thread can wait for.
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def message_id(self) -> str:
        """`kind/id/<uuid7>`."""
        return f"{self.entity}/{self.uid}"

    def resolve(self, value: bytes | BaseException) -> None:
        """Hand over what is known; later answers are dropped. Only `Waiters` calls it, under its lock."""
        if not self.done:
            self.value, self.done = value, True
            self._gate.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a value at most so long; returns whether there is one."""
        if self.done:
            return True
        return self._gate.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX)) or self.done


@define(eq=False)
class Waiters:
    """All waiters of a process."""

    _by_uid: dict[str, list[Waiter]] = field(factory=dict[str, list[Waiter]], init=False)
    #: Those who sent a key and have no answer yet: they may share one message.
    _by_key: dict[tuple[str, str], list[Waiter]] = field(
        factory=dict[tuple[str, str], list[Waiter]], init=False
    )
    _lock: Any = field(factory=threading.RLock, init=False)
    #: Why waiting is no longer possible.
    _closed: BaseException | None = field(default=None, init=False)

    def add(self, waiter: Waiter) -> None:
        """Begin to listen for a waiter's outcome."""
        with self._lock:
            self._by_uid.setdefault(waiter.uid, []).append(waiter)
            if waiter.key:
                self._by_key.setdefault((waiter.entity, waiter.key), []).append(waiter)
            if self._closed is not None:
                waiter.resolve(self._closed)

    def remove(self, waiter: Waiter) -> None:
        """`waiter` waits no longer."""
        with self._lock:
            _take_out(self._by_uid, waiter.uid, waiter)
            if waiter.key:
                _take_out(self._by_key, (waiter.entity, waiter.key), waiter)

    def answered(self, entity: str, uid: str, outcome: bytes | BaseException) -> None:
        """Hand an outcome to every waiter here."""
        with self._lock:
            # A made-up message id may carry the unique part of another entity's message.
            for waiter in self._by_uid.get(uid, ()):
                if waiter.entity == entity:
                    waiter.resolve(outcome)

    def join(self, waiter: Waiter, uid: str) -> None:
        """The waiter's key was used before: its message is that one."""
        with self._lock:
            _take_out(self._by_uid, waiter.uid, waiter)
            waiter.uid = uid
            # Where an ask of this process sent it, the last one to cancel withdraws it. Otherwise it is never withdrawn here.
            others = self._by_uid.get(uid, ())
            waiter.is_joined = all(other.is_joined or other.waiting != "ask" for other in others)
            self._by_uid.setdefault(uid, []).append(waiter)

    def mark_shared(self, uid: str) -> None:
        """A caller that does not wait relies on a message: no cancelled ask may withdraw it any more."""
        with self._lock:
            for waiter in self._by_uid.get(uid, ()):
                waiter.is_joined = True

    def is_shared(self, waiter: Waiter) -> bool:
        """Whether an ask that is cancelled, and removed, leaves its message to others."""
        with self._lock:
            if waiter.is_joined or (waiter.key and (waiter.entity, waiter.key) in self._by_key):
                return True
            return any(other.entity == waiter.entity for other in self._by_uid.get(waiter.uid, ()))

    def close(self, why: BaseException) -> None:
        """Resolve all waiters, now and later."""
        with self._lock:
            self._closed = why
            for waiters in self._by_uid.values():
                for waiter in waiters:
                    waiter.resolve(why)


def _take_out(table: dict[Any, list[Waiter]], place: Any, waiter: Waiter) -> None:
    waiters = table.get(place)
    if waiters is not None and waiter in waiters:
        waiters.remove(waiter)
        if not waiters:
            del table[place]
