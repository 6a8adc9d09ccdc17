"""Opens a store for one command, and leaves it again whatever happens.

The command joins as a system without actors: it claims no partition and runs no turn. It must end: when
the store does not answer, and at Ctrl-C.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import anyio
from anyio.abc import TaskStatus
from attrs import define, field, frozen
from cyclopts import Parameter

from atomic_actors._system import ActorSystem
from atomic_actors.base._config import Config
from atomic_actors.base._errors import AtomicActorsError, EmbeddedServerError, InvalidConfig, StoreUnavailable
from atomic_actors.base._store_url import StoreScheme, parse_store_url
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.embedded._embedded import embedded_directory
from atomic_actors.journal.embedded._server import files_of
from atomic_actors.tools.cli._screen import Screen

__all__ = ("Place", "Stopped", "StoreOptions", "config_of", "operate")

T = TypeVar("T")

#: How long it may take until the store has answered for the first time.
OPEN_LIMIT_S: Final = 20.0
#: The same where a server must be started first, and may have much to load. Its own limits are tighter.
OPEN_LIMIT_EMBEDDED_S: Final = 300.0
WATCH_INTERVAL_S: Final = 0.2


class Stopped(BaseException):
    """A signal ended the command; everything was left in good order."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


@Parameter(name="*")
@frozen(kw_only=True)
class Place:
    """Which service of which store a command is about."""

    url: Annotated[
        str | None, Parameter(help="Where the store is. Default: $ATOMIC_ACTORS_URL, or embedded:")
    ] = None
    namespace: Annotated[
        str | None, Parameter(help="The application's part of the store. Default: $ATOMIC_ACTORS_NAMESPACE")
    ] = None
    service: Annotated[str | None, Parameter(help="The set of kinds. Default: $ATOMIC_ACTORS_SERVICE")] = None
    partitions: Annotated[
        int | None,
        Parameter(help="How many the service was made with. Default: $ATOMIC_ACTORS_PARTITIONS, or 64"),
    ] = None


@Parameter(name="*")
@frozen(kw_only=True)
class StoreOptions(Place):
    """The same, for commands that open the store."""

    backend: Annotated[
        Literal["asyncio", "trio"], Parameter(help="The event loop to run the command on.")
    ] = "asyncio"


def config_of(place: Place, **overrides: Any) -> Config:
    """The settings of the environment, with what the command line says instead.

    Raises:
        InvalidConfig: a variable or an option has a value that cannot work.
    """
    names = ("namespace", "service", "partitions")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(place, name)) is not None}
    if place.url is not None:
        location, in_url = parse_store_url(place.url)
        given["url"] = place.url
        # The URL wins over the parts of another one in the environment. Only who signs in may come from
        # there, so that no password has to stand on a command line.
        local = location.scheme in (StoreScheme.EMBEDDED, StoreScheme.MEMORY)
        dropped = {"host", "port", "db", *in_url, *(("username", "password") if local else ())}
        given |= dict.fromkeys(sorted(dropped))
    return Config.from_env(**{**given, **overrides})


def _check_exists(config: Config) -> None:
    """Refuse a store that cannot be there; looking must not create one."""
    if config.location.scheme is StoreScheme.MEMORY:
        raise InvalidConfig(
            "url: 'memory:' lives inside one process, where no command can look; name the store with --url"
        )
    if config.location.scheme is not StoreScheme.EMBEDDED:
        return
    directory = embedded_directory(config.url)
    shown = os.path.abspath(directory)
    if not directory.is_dir():
        why = f"there is no directory {shown}, so there is no embedded store in it"
    elif not files_of(directory).data.is_dir():
        why = f"the directory {shown} holds no embedded store"
    else:
        return
    raise EmbeddedServerError(
        f"{why}; name the store with --url or ATOMIC_ACTORS_URL, or start the application first"
    )


@define(eq=False)
class _Operation(Generic[T]):
    """One command at work on the store."""

    config: Config
    screen: Screen
    work: Callable[[ActorSystem], Awaitable[T]]
    signal: signal.Signals | None = field(default=None, init=False)
    #: Why the store was given up, where it did not answer.
    gave_up: str = field(default="", init=False)
    error: AtomicActorsError | None = field(default=None, init=False)
    value: list[T] = field(factory=list[T], init=False)

    async def run(self) -> T:
        async with anyio.create_task_group() as group:
            await group.start(self._watch_signals, group.cancel_scope)
            # Errors do not go through task groups here: those would wrap them.
            try:
                await self._with_store()
            except (AtomicActorsError, JournalUnavailable) as error:
                self.error = self._explained(error)
            group.cancel_scope.cancel()
        if self.value and self.error is None:
            return self.value[0]
        if self.signal is not None:
            raise Stopped(self.signal)
        assert self.error is not None
        raise self.error

    def _explained(self, error: AtomicActorsError | JournalUnavailable) -> AtomicActorsError:
        if isinstance(error, (StoreUnavailable, JournalUnavailable)):
            explained = StoreUnavailable(f"no answer from {self.config.location}: {error}")
            explained.__cause__ = error
            return explained
        return error

    async def _with_store(self) -> None:
        embedded = self.config.location.scheme is StoreScheme.EMBEDDED
        limit_s = OPEN_LIMIT_EMBEDDED_S if embedded else OPEN_LIMIT_S
        opening = self.screen.status(f"opening {self.config.location}")
        opening.start()
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + limit_s) as scope:
                async with ActorSystem(self.config) as system:
                    scope.deadline = math.inf
                    opening.stop()
                    await self._work_watched(system, scope)
        finally:
            opening.stop()
        if scope.cancelled_caught:
            raise StoreUnavailable(self.gave_up or f"it did not open within {limit_s:g} seconds")
        if self.error is not None:
            raise self.error

    async def _work_watched(self, system: ActorSystem, scope: anyio.CancelScope) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_store, system, scope)
            try:
                self.value.append(await self.work(system))
            except AtomicActorsError as error:
                self.error = error
            group.cancel_scope.cancel()

    async def _watch_store(self, system: ActorSystem, scope: anyio.CancelScope) -> None:
        """A system outlives an unreachable store and goes on asking; a person does not wait that long."""
        available = True
        while available:
            await anyio.sleep(WATCH_INTERVAL_S)
            available = system.statistics().store.available
        self.gave_up = "the store stopped answering"
        scope.cancel()

    async def _watch_signals(
        self, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                self.signal = signal.Signals(number)
                scope.cancel()


def operate(options: StoreOptions, screen: Screen, work: Callable[[ActorSystem], Awaitable[T]]) -> T:
    """Run `work` with a system that has no actors, on the store that the options name.

    Raises:
        InvalidConfig: the options or the environment name no store that a command can look into.
        EmbeddedServerError: there is no embedded store, or its server cannot be started.
        StoreUnavailable: the store does not answer, or stopped answering.
        AtomicActorsError: what `work` raised.
        Stopped: SIGINT or SIGTERM came before `work` was done.
    """
    # Whether a store is safe enough to accept messages is for the application to say; a person who looks
    # for what went wrong must get in all the same.
    config = config_of(
        options, actors=[], handle_signals=False, allow_eviction=True, allow_no_persistence=True
    )
    _check_exists(config)
    return anyio.run(_Operation(config, screen, work).run, backend=options.backend)
