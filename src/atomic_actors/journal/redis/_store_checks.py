"""What a store must be like before anything is sent to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen
from coredis.connection import BaseConnection
from coredis.exceptions import ResponseError

from atomic_actors.base._errors import InvalidConfig, StoreIncompatible, StoreUnsafe
from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal.redis._link import ask

__all__ = ("SafetyRules", "check_names", "check_store_safety", "check_version", "read_information")

VERSION_MIN: Final = (7, 0)


@frozen(kw_only=True)
class SafetyRules:
    """Which stores are accepted though they may lose something."""

    #: Those that may evict keys when their memory is full.
    allow_eviction: bool = False
    #: Those that write no append-only file, or never force it to the disk.
    allow_no_persistence: bool = False

    async def check(self, connection: BaseConnection) -> None:
        """See `check_store_safety`.

        Raises:
            StoreUnsafe: the store may lose what it accepted.
        """
        await check_store_safety(
            connection,
            allow_eviction=self.allow_eviction,
            allow_no_persistence=self.allow_no_persistence,
        )


def check_names(settings: JournalSettings) -> None:
    """Refuse names that the store's keys cannot be made of.

    Raises:
        InvalidConfig: the namespace or the service is empty, or holds braces or control characters.
    """
    for name, text in (("namespace", settings.namespace), ("service", settings.service)):
        if not text or any(letter in "{}" or letter < " " for letter in text):
            raise InvalidConfig(f"{name}: {text!r} must not be empty or contain braces or control characters")


def check_version(connection: BaseConnection) -> None:
    """Refuse a store that is too old.

    Raises:
        StoreIncompatible: it is.
    """
    version = connection.server_version or "0"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < VERSION_MIN:
        raise StoreIncompatible(
            f"the store has version {version}; Redis 7.0 or newer, or Valkey, is required"
        )


def read_information(text: bytes) -> dict[str, str]:
    """The fields of an answer to INFO."""
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


async def _read_store_settings(connection: BaseConnection) -> tuple[str, str, str]:
    """Eviction policy, `yes` or `no` for the append-only file, its fsync policy; "" for what is not known."""
    names = (b"maxmemory-policy", b"appendonly", b"appendfsync")
    try:
        answer: Mapping[bytes, bytes] = await ask(connection, b"CONFIG GET", *names)
        policy, append_only, fsync = (answer[name].decode() for name in names)
        return policy, append_only, fsync
    except (ResponseError, KeyError):
        # Hosted stores forbid CONFIG; INFO has the same values, except for the fsync policy.
        pass
    try:
        memory = read_information(await ask(connection, b"INFO", b"memory"))
        persistence = read_information(await ask(connection, b"INFO", b"persistence"))
    except ResponseError:
        return "", "", ""
    append_only = {"1": "yes", "0": "no"}.get(persistence.get("aof_enabled", ""), "")
    return memory.get("maxmemory_policy", ""), append_only, ""


async def check_store_safety(
    connection: BaseConnection, *, allow_eviction: bool, allow_no_persistence: bool
) -> None:
    """Refuse a store that may lose what it accepted, unless the user allows it by name.

    Raises:
        StoreUnsafe: it may evict keys, writes no append-only file, or never forces it to the disk; the text
            says what to set.
    """
    if allow_eviction and allow_no_persistence:
        return
    policy, append_only, fsync = await _read_store_settings(connection)
    if not allow_eviction and policy != "noeviction":
        found = f"maxmemory-policy is {policy}" if policy else "maxmemory-policy cannot be read"
        raise StoreUnsafe(
            f"{found}: a full store may throw accepted messages away. Run `CONFIG SET maxmemory-policy "
            "noeviction` and write it into the server's configuration file, or set allow_eviction=True"
        )
    if not allow_no_persistence and append_only != "yes":
        found = f"appendonly is {append_only}" if append_only else "appendonly cannot be read"
        raise StoreUnsafe(
            f"{found}: a restart of the store may lose accepted messages. Run `CONFIG SET appendonly yes` "
            "and write it into the server's configuration file, or set allow_no_persistence=True"
        )
    # Not refused where it cannot be read: a hosted store forbids CONFIG, and its documentation says what it keeps.
    if not allow_no_persistence and fsync == "no":
        raise StoreUnsafe(
            "appendfsync is no: a power loss may take every message that the operating system had not "
            "written yet. Run `CONFIG SET appendfsync always` (or everysec, which may lose about a second) "
            "and write it into the server's configuration file, or set allow_no_persistence=True"
        )
