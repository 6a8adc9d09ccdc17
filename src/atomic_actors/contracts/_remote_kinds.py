"""The kinds that other nodes have handlers for: looked up once, then known.

A message for a kind that is known costs no look-up. One for a kind, or of a name, that is not known costs
at most one read of the registry: all who ask while a read is under way share the next one, and what was
not there is not asked for again within a second.
"""

from __future__ import annotations

from typing import Final

import anyio
from anyio import current_time
from attrs import define, field

from atomic_actors.base._errors import StoreIncompatible, StoreUnavailable, UnknownKind, UnknownMessageType
from atomic_actors.base._telemetry import logger
from atomic_actors.contracts._contracts import RemoteKind, read_record
from atomic_actors.journal._kind_registry import KindRegistry
from atomic_actors.journal._protocol import JournalUnavailable

__all__ = ("RemoteKinds",)

#: How long the registry is not asked again for what was not there.
MISSING_S: Final = 1.0
#: How often what is known is read anew: limits may change with a release.
REFRESH_S: Final = 30.0
#: Kinds that were not there and are remembered; more are forgotten.
MISSING_MAX: Final = 1_000
#: Kinds that one read asks for.
READ_MAX: Final = 100
#: Kinds of one service that an error names.
NAMED_MAX: Final = 20


@define(eq=False, kw_only=True)
class _Entry:
    """What the last read of a kind gave."""

    kind: RemoteKind | None
    #: Which read it was, and when it was answered.
    read: int
    read_s: float
    #: Who is there instead, for the error.
    others: str = ""
    #: It is there, and this release cannot read it.
    unreadable: ValueError | None = None


@define(eq=False)
class RemoteKinds:
    """Looks kinds up, and remembers them.

    Args:
        registry: where kinds are registered; None where a node knows only its own.
        namespace: for the texts of errors.
        own: the kinds of this node.
    """

    registry: KindRegistry | None
    namespace: str
    own: tuple[str, ...]
    _entries: dict[str, _Entry] = field(factory=dict[str, _Entry], init=False)
    #: Kinds that the next read asks for.
    _wanted: set[str] = field(factory=set[str], init=False)
    #: Reads that were begun, and the last of them that failed.
    reads: int = field(default=0, init=False)
    _failed: tuple[int, JournalUnavailable] | None = field(default=None, init=False)
    _lock: anyio.Lock = field(factory=anyio.Lock, init=False)

    def get(self, kind: str) -> RemoteKind | None:
        """What is known of a kind, without a look-up."""
        entry = self._entries.get(kind)
        return entry.kind if entry is not None else None

    async def find(self, kind: str, name: str = "") -> RemoteKind:
        """What is known of a kind; looks it up if it, or the message, is not known.

        Args:
            kind: the kind's name.
            name: the wire name of a message that it must take; "" for none.

        Raises:
            UnknownKind: it was never registered.
            UnknownMessageType: no release of it that counts takes such a message.
            StoreUnavailable: it is not known, and the store gives no answer.
            StoreIncompatible: the registry cannot be read by this release.
        """
        if self.registry is None:
            raise self._unknown_kind(kind, "")
        entry = self._entries.get(kind)
        if entry is None or not _answers(entry, name):
            if entry is None or current_time() - entry.read_s >= MISSING_S:
                entry = await self._read_once(self.registry, kind)
            if entry.unreadable is not None:
                raise StoreIncompatible(f"{entry.unreadable}; another release of atomic_actors wrote it")
            if entry.kind is None:
                raise self._unknown_kind(kind, entry.others)
            if not _answers(entry, name):
                raise _unknown_message(entry.kind, name)
        assert entry.kind is not None
        return entry.kind

    async def _read_once(self, registry: KindRegistry, kind: str) -> _Entry:
        asked = self.reads
        self._wanted.add(kind)
        async with self._lock:
            entry = self._entries.get(kind)
            if entry is not None and entry.read > asked:
                return entry  # a read that began after this was asked for
            if self._failed is not None and self._failed[0] > asked:
                raise _unavailable(self._failed[1])
            try:
                await self._read(registry, kind)
            except JournalUnavailable as error:
                self._failed = (self.reads, error)
                raise _unavailable(error) from error
            return self._entries[kind]

    async def _read(self, registry: KindRegistry, first: str) -> None:
        self.reads += 1
        number = self.reads
        self._wanted.discard(first)
        names = [first, *(self._wanted.pop() for _ in range(min(len(self._wanted), READ_MAX - 1)))]
        records = await registry.find_kinds(names)
        others = ""
        if len(records) < len(names):
            others = _describe(await registry.list_kinds())
            self._forget_missing()
        now_s = current_time()
        for name in names:
            record = records.get(name)
            entry = self._entries[name] = _Entry(
                kind=None, read=number, read_s=now_s, others=others if record is None else ""
            )
            if record is not None:
                try:
                    entry.kind = read_record(name, record)
                except ValueError as error:
                    entry.unreadable = error

    def _forget_missing(self) -> None:
        missing = [name for name, entry in self._entries.items() if entry.kind is None]
        if len(missing) >= MISSING_MAX:
            for name in missing:
                del self._entries[name]

    async def keep_fresh(self) -> None:
        """Read anew what is known, now and then, until cancelled."""
        while self.registry is not None:
            await anyio.sleep(REFRESH_S)
            names = [name for name, entry in self._entries.items() if entry.kind is not None]
            try:
                for start in range(0, len(names), READ_MAX):
                    async with self._lock:
                        self._wanted.update(names[start + 1 : start + READ_MAX])
                        await self._read(self.registry, names[start])
            except JournalUnavailable as error:
                logger.debug("the kinds of other nodes could not be read again: %s", error)

    def _unknown_kind(self, kind: str, others: str) -> UnknownKind:
        own = f"Config(actors=[...]) has {', '.join(sorted(self.own))}" if self.own else "it has no actors"
        rest = ""
        if self.registry is not None:
            rest = (
                f"; namespace {self.namespace!r} has {others or 'no kinds'}. A kind is known once a node with it in "
                "Config(actors=[...]) has been started with this store and namespace"
            )
        return UnknownKind(f"kind {kind!r} is not known here; {own}{rest}")


def _answers(entry: _Entry, name: str) -> bool:
    return entry.kind is not None and (not name or entry.kind.takes(name))


def _unknown_message(kind: RemoteKind, name: str) -> UnknownMessageType:
    names = ", ".join(sorted(kind.messages or ())) or "none"
    return UnknownMessageType(
        f"kind {kind.name!r} of service {kind.service!r} has no handler for {name!r}; it has {names}. Deploy the "
        "service with a handler for it first"
    )


def _unavailable(error: JournalUnavailable) -> StoreUnavailable:
    return StoreUnavailable(f"nothing was sent: the kind is not known yet, and {error}")


def _describe(kinds: dict[str, str]) -> str:
    """`invoice, refund (service billing), item (service stock)`."""
    services: dict[str, list[str]] = {}
    for kind, service in kinds.items():
        services.setdefault(service, []).append(kind)
    return ", ".join(
        f"{', '.join(sorted(names)[:NAMED_MAX])}{', ...' if len(names) > NAMED_MAX else ''} (service {service})"
        for service, names in sorted(services.items())[:NAMED_MAX]
    )
