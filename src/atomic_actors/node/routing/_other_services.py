"""The connections to other services: one journal for each service that this node sends to.

A service has its own number of partitions and its own keys, so each needs a journal with its settings. One
is opened when something is first sent to the service, in a task of the system's own, and it stays open until
the system is left: a sender that is cancelled takes nothing with it.

    ServiceJournals
    └─ billing (task)
       └─ a commit queue around a journal with the settings of service "billing"
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors.base._errors import AtomicActorsError, StoreUnavailable
from atomic_actors.base._telemetry import logger
from atomic_actors.contracts._contracts import RemoteKind
from atomic_actors.contracts._remote_kinds import RemoteKinds
from atomic_actors.journal._protocol import Journal, JournalSettings, JournalUnavailable
from atomic_actors.journal.commit._commit_queue import CommitQueue, CrashSink
from atomic_actors.journal.commit._commit_queues import CommitQueues

__all__ = ("JournalFactory", "ServiceJournals")

#: How long opening may take for the relay, where no caller limits it.
OPEN_LIMIT_S: Final = 10.0


class JournalFactory(Protocol):
    """Makes the journals of other services in the same store."""

    def make_journal(self, settings: JournalSettings) -> Journal:
        """A journal of a service, which is not open yet."""
        ...


@define(eq=False)
class _ServiceJournal:
    """One other service. `ready` is set when it is open, or will not be. Learns of its journal's crash."""

    service: str
    scope: anyio.CancelScope = field(factory=anyio.CancelScope, init=False)
    ready: anyio.Event = field(factory=anyio.Event, init=False)
    #: Its journal, while it is open.
    journal: CommitQueue | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    def crashed(self, error: BaseException) -> None:
        """Close the way. That service's half of the store is wrong, which does not concern this service."""
        logger.error("the connection to service %r is closed: %s", self.service, error)
        self.error = error if isinstance(error, Exception) else None
        self.journal = None
        self.scope.cancel()


@define(eq=False, kw_only=True)
class ServiceJournals:
    """Opens and keeps the journals of other services.

    Args:
        namespace: whose services they are.
        service: this node's own.
        known: finds out which service a kind belongs to.
        journals: makes journals with other settings; None where there are no other services.
        queues: puts a commit queue around a journal.
        crashes: ends the system when one of them ends by its own fault.
    """

    namespace: str
    service: str
    known: RemoteKinds
    journals: JournalFactory | None
    queues: CommitQueues
    crashes: CrashSink
    _opened: dict[str, _ServiceJournal] = field(factory=dict[str, _ServiceJournal], init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)

    def start(self, task_group: TaskGroup) -> None:
        """Use `task_group` for the journals."""
        self._task_group = task_group

    def run(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `function()` in a task of the system's; it must not raise."""
        if self._task_group is not None:
            self._task_group.start_soon(function)

    def get(self, service: str) -> CommitQueue | None:
        """The journal of a service, if it is open."""
        opened = self._opened.get(service)
        return opened.journal if opened is not None else None

    async def open(self, kind: RemoteKind) -> CommitQueue:
        """The journal of a kind's service; opened, where it is not.

        Raises:
            StoreUnavailable: it cannot be opened now; nothing was sent.
            StoreIncompatible, StoreUnsafe: it can never be.
        """
        opened = self._opened.get(kind.service)
        if opened is None:
            opened = self._begin(kind)
        await opened.ready.wait()
        if opened.journal is not None:
            return opened.journal
        if isinstance(opened.error, AtomicActorsError):
            raise opened.error
        why = opened.error or "the actor system is shutting down"
        raise StoreUnavailable(
            f"nothing was sent: service {kind.service!r} cannot be reached: {why}"
        ) from opened.error

    def _begin(self, kind: RemoteKind) -> _ServiceJournal:
        if self._task_group is None or self.journals is None:
            raise StoreUnavailable(f"nothing was sent: service {kind.service!r} cannot be reached from here")
        opened = _ServiceJournal(kind.service)
        journal = self.queues.around(
            self.journals.make_journal(kind.journal_settings(self.namespace)), crashes=opened
        )
        self._opened[kind.service] = opened
        self._task_group.start_soon(self._keep_open, opened, journal)
        return opened

    async def _keep_open(self, opened: _ServiceJournal, journal: CommitQueue) -> None:
        try:
            with opened.scope:
                async with journal:
                    opened.journal = journal
                    opened.ready.set()
                    await anyio.sleep_forever()
        except (JournalUnavailable, AtomicActorsError) as error:
            opened.error = error
        except Exception as error:
            opened.error = error
            self.crashes.crashed(error)
        finally:
            opened.journal = None
            # The next message tries again.
            if self._opened.get(opened.service) is opened:
                del self._opened[opened.service]
            opened.ready.set()

    # What the relay needs: it runs on callbacks.

    def reach(self, service: str, kind: str, then: Callable[[CommitQueue | None], None]) -> None:
        """Call `then` with the journal of a service, now if it is open; with None if it cannot be opened.

        Args:
            service: the service's name.
            kind: one of its kinds, to learn its settings by.
            then: must not raise.
        """
        journal = self.get(service)
        if journal is not None:
            then(journal)
        elif self._task_group is None:
            then(None)
        else:
            self._task_group.start_soon(self._reach, service, kind, then)

    async def _reach(self, service: str, kind: str, then: Callable[[CommitQueue | None], None]) -> None:
        journal: CommitQueue | None = None
        with anyio.move_on_after(OPEN_LIMIT_S):
            try:
                known = self.known.get(kind) or await self.known.find(kind)
                if known.service == service:
                    journal = await self.open(known)
                else:
                    logger.error(
                        "messages wait for service %r, but kind %r belongs to %r",
                        service,
                        kind,
                        known.service,
                    )
            except AtomicActorsError as error:
                logger.warning("messages wait for service %r, which cannot be reached: %s", service, error)
        then(journal)

    def fence_off(self, partition: int) -> None:
        """A partition of this node has lost history: send nothing any more that was read from it."""
        for opened in self._opened.values():
            if opened.journal is not None:
                opened.journal.fence_off(f"{self.service}/{partition}")
