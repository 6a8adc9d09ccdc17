"""The Lua library: its text, how it gets into a store, and a typed stub for each of its functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from coredis.connection import BaseConnection
from coredis.exceptions import ResponseError

from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import PROTOCOL_VERSION, JournalSettings
from atomic_actors.journal.redis._link import ask

__all__ = (
    "COMMIT",
    "LIBRARY",
    "REGISTER",
    "RENEW",
    "check_registration",
    "is_missing",
    "library_source",
    "load_library",
    "register_service",
    "registration",
)

#: The names carry the protocol's version, so that two versions can live in one store.
LIBRARY: Final = f"atomic_actors_{PROTOCOL_VERSION}"
COMMIT: Final = b"aa%d_commit" % PROTOCOL_VERSION
#: `FCALL aa1_renew <n> <lease keys> <claims>`: for each lease its renewals, or -1 where the claim is lost.
RENEW: Final = b"aa%d_renew" % PROTOCOL_VERSION
REGISTER: Final = b"aa%d_register" % PROTOCOL_VERSION


@cache
def library_source() -> bytes:
    """The text of the library: its parts in the order of their names."""
    folder = files("atomic_actors.journal.redis").joinpath("lua")
    parts = [part for part in folder.iterdir() if part.name.endswith(".lua")]
    return b"\n".join(part.read_bytes() for part in sorted(parts, key=lambda part: part.name))


def is_missing(error: object) -> bool:
    """Whether the store answered that it does not have the function."""
    return isinstance(error, ResponseError) and "function not found" in str(error).lower()


def _revision(source: bytes) -> int:
    """The revision that a library's text names; 0 where it names none."""
    found = re.search(rb"^-- revision: (\d+)$", source[:400], re.MULTILINE)
    return int(found[1]) if found else 0


async def load_library(connection: BaseConnection) -> None:
    """Put the library into the store where it is not there, or is there in an older revision.

    The name carries the protocol's version, so another version is never touched. Within a version, a
    newer revision answers every step that an older one knows: it replaces that one, and a store that
    has a newer one than ours is used as it is.

    Raises:
        StoreIncompatible: the store has other code under this name.
        RedisError: what the store answered, or that the connection is lost.
    """
    source = library_source()
    try:
        await ask(connection, b"FUNCTION LOAD", source)
    except ResponseError as error:
        if "already exists" not in str(error).lower():
            raise
    else:
        return
    listed = await ask(connection, b"FUNCTION LIST", b"LIBRARYNAME", LIBRARY, b"WITHCODE")
    for library in listed:
        if library[b"library_name"] != LIBRARY.encode():
            continue
        stored: bytes = library[b"library_code"]
        theirs, ours = _revision(stored), _revision(source)
        if stored == source or theirs > ours:
            return
        if 0 < theirs < ours:
            logger.warning("the store's library %s is replaced: revision %d by %d", LIBRARY, theirs, ours)
            await ask(connection, b"FUNCTION LOAD", b"REPLACE", source)
            return
    raise StoreIncompatible(
        f"the store has a library {LIBRARY} with other code: another release of atomic_actors uses it. Run "
        f"the same release everywhere; if none is running, remove it with FUNCTION DELETE {LIBRARY}"
    )


async def register_service(
    connection: BaseConnection, settings: JournalSettings, *, fixes_partitions: bool
) -> None:
    """Note the service's number of partitions where the namespace is new; else compare it.

    Args:
        connection: to the store.
        settings: the service and its partitions.
        fixes_partitions: False only compares.

    Raises:
        StoreIncompatible: the service has another number of partitions, or another protocol.
        RedisError: what the store answered, or that the connection is lost.
    """
    key, arguments = registration(settings, fixes_partitions=fixes_partitions)
    call: tuple[bytes | int, ...] = (REGISTER, 1, key, *arguments)
    check_registration(settings, await ask(connection, b"FCALL", *call))


def registration(settings: JournalSettings, *, fixes_partitions: bool) -> tuple[bytes, tuple[bytes, ...]]:
    """The key and the arguments of `REGISTER`."""
    meta = f"{{{settings.namespace}:meta}}".encode()
    arguments = (settings.service.encode(), b"%d" % settings.partitions, b"%d" % PROTOCOL_VERSION)
    return meta, arguments if fixes_partitions else (*arguments, b"compare")


def check_registration(settings: JournalSettings, answer: Sequence[Any]) -> None:
    """Compare what the store holds of a service.

    Raises:
        StoreIncompatible: the service has another number of partitions, or another protocol.
    """
    service = settings.service
    try:
        partitions, protocol = int(answer[0]), int(answer[1])
    except (ValueError, TypeError) as error:
        raise StoreIncompatible(
            f"the data of namespace {settings.namespace!r} for service {service!r} is damaged: {answer!r:.200}"
        ) from error
    if protocol != PROTOCOL_VERSION:
        raise StoreIncompatible(
            f"service {service!r} of namespace {settings.namespace!r} was made with protocol {protocol}; "
            f"this release speaks {PROTOCOL_VERSION}"
        )
    if partitions != settings.partitions:
        raise StoreIncompatible(
            f"service {service!r} of namespace {settings.namespace!r} has {partitions} partitions in the "
            f"store, but partitions={settings.partitions} here; the number is fixed when a service first appears"
        )
