"""The private server of a directory, for a program without an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

from atomic_actors.base._errors import EmbeddedServerError
from atomic_actors.base._store_url import StoreLocation, StoreScheme
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.embedded._embedded import (
    EmbeddedLocation,
    ensure_running,
    join_server,
    leave_server,
)
from atomic_actors.journal.embedded._server import User, files_of

__all__ = ("EmbeddedUser",)

T = TypeVar("T")


def _run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function in an event loop of its own: the caller's thread may have one, as in notebooks."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(anyio.run(function))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="atomic-actors-embedded", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class EmbeddedUser:
    """This process as a user of the server; the last user to leave stops it.

    Args:
        directory: where the server's data and socket are.
        binary: the server program; by default the one that is found.
    """

    def __init__(self, directory: Path, binary: str | None) -> None:
        self._user = User(files_of(directory))
        self._binary = binary
        self._location: EmbeddedLocation | None = None

    def join(self) -> StoreLocation:
        """Start the server, or join it.

        Raises:
            EmbeddedServerError: it cannot be started or joined.
        """
        try:
            self._location = _run(partial(join_server, self._user, binary=self._binary))
        except BaseException:
            self.leave()
            raise
        return StoreLocation(scheme=StoreScheme.UNIX, path=str(self._location.socket_path))

    def bring_back(self) -> None:
        """Start the server again if it has died.

        Raises:
            JournalUnavailable: it cannot be started.
        """
        assert self._location is not None, "join first"
        try:
            _run(partial(ensure_running, self._location))
        except EmbeddedServerError as error:
            raise JournalUnavailable(str(error), sent=False) from error

    def leave(self) -> None:
        """Use it no longer.

        Raises:
            EmbeddedServerError: this was the last user, and the server cannot be stopped.
        """
        _run(partial(leave_server, self._user))
