"""The client that users hold: the verbs, typed, and one session for each process."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from threading import RLock
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast, overload

import attrs

from atomic_actors.actors._messages import Message
from atomic_actors.base._config import Config
from atomic_actors.base._errors import InvalidConfig, SystemNotRunning
from atomic_actors.base._records import EntityRef, Receipt, check_key
from atomic_actors.client._session import Session, check_location, close_quietly
from atomic_actors.contracts._call_checks import OnCancel, check_on_cancel, check_seconds, split_pair

__all__ = ("Client",)

R = TypeVar("R")

MAX_CONNECTIONS: Final = 16

#: Sessions of a parent process. They are kept, so that no finalizer waits for a lock that is never released.
_abandoned: list[Session] = []


class SessionSlot:
    """The session of a client in this process: made at the first use, and anew in a forked child."""

    def __init__(self, config: Config, max_connections: int) -> None:
        self._config = config
        self._max_connections = max_connections
        self._lock = RLock()
        self.session: Session | None = None
        self.is_closed = False
        _slots.add(self)

    def open(self) -> Session:
        """The session.

        Raises:
            SystemNotRunning: the client is closed.
            InvalidConfig, EmbeddedServerError: as `Session`.
        """
        session = self.session
        if session is not None and session.pid == os.getpid():
            return session
        with self._lock:
            self.check_not_closed()
            session = self.session
            if session is None or session.pid != os.getpid():
                session = self.session = Session(self._config, self._max_connections)
            return session

    def check_not_closed(self) -> None:
        """Raise `SystemNotRunning` if the client is closed."""
        if self.is_closed:
            raise SystemNotRunning("the client is closed; make a new one")

    def let_go(self) -> Session | None:
        """Close the slot; the caller closes the session that was in it."""
        with self._lock:
            self.is_closed = True
            session, self.session = self.session, None
        return session if session is not None and session.pid == os.getpid() else None

    def forget(self) -> None:
        """In a forked child: let go of the parent's session; the next call makes a new one."""
        # The lock may have been held by a thread that the child does not have.
        self._lock = RLock()
        session, self.session = self.session, None
        if session is not None:
            session.abandon()
            _abandoned.append(session)


_slots: weakref.WeakSet[SessionSlot] = weakref.WeakSet()


def _after_fork() -> None:
    for slot in list(_slots):
        slot.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _make_config(store: str | Config | None, settings: dict[str, Any]) -> Config:
    unknown = [name for name in settings if name not in attrs.fields_dict(Config)]
    if unknown:
        raise InvalidConfig(f"{unknown[0]}: there is no such setting; a Client takes those of Config")
    if isinstance(store, Config):
        return attrs.evolve(store, **settings)
    if store is None:
        return Config(**settings)
    return Config(url=store, **settings)


class Client:
    """Sends to entities from programs without an event loop: Flask, Django, scripts, notebooks.

    It runs no actors; those live in the processes of an `ActorSystem` over the same store. Its verbs, errors
    and idempotency keys are the system's. Any number of threads may share one client. It connects at its
    first call. A forked child gets connections of its own, so a client may be made before a server forks its
    workers. Close it with `close()`, or use it in `with`.

    Args:
        store: the URL of the store, or a whole `Config`, whose `actors` are of no account; `Config()` where
            left out.
        namespace: as in `Config`.
        service: as in `Config`.
        partitions: as in `Config`; the same number as the actor systems have.
        ask_timeout_s: as in `Config`.
        accept_timeout_s: as in `Config`.
        max_connections: how many connections a process may open, beside one for replies. A call holds one
            while it sends, and none while it waits for a reply.
        **settings: any other setting of `Config`, such as `password` or `allow_no_persistence`.

    Raises:
        InvalidConfig: a setting cannot work, or the store is `memory:`.
    """

    def __init__(
        self,
        store: str | Config | None = None,
        *,
        namespace: str | None = None,
        service: str | None = None,
        partitions: int | None = None,
        ask_timeout_s: float | None = None,
        accept_timeout_s: float | None = None,
        max_connections: int = MAX_CONNECTIONS,
        **settings: Any,
    ) -> None:
        named = {
            "namespace": namespace,
            "service": service,
            "partitions": partitions,
            "ask_timeout_s": ask_timeout_s,
            "accept_timeout_s": accept_timeout_s,
        }
        settings |= {name: value for name, value in named.items() if value is not None}
        self.config = _make_config(store, settings)
        check_location(self.config)
        if type(cast("object", max_connections)) is not int or max_connections < 1:
            raise InvalidConfig(
                f"max_connections: expected a whole number of at least 1, got {max_connections!r}"
            )
        self._slot = SessionSlot(self.config, max_connections)

    def __repr__(self) -> str:
        slot = self._slot
        state = "closed" if slot.is_closed else "open" if slot.session is not None else "not connected yet"
        return f"<Client {self.config.namespace}/{self.config.service} at {self.config.location}, {state}>"

    # Sending.

    @overload
    def ask(
        self,
        entity: EntityRef,
        message: Message[R],
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> R: ...
    @overload
    def ask(
        self,
        entity: Message[R],
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> R: ...
    def ask(
        self,
        entity: EntityRef | Message[Any],
        message: Message[Any] | None = None,
        *,
        timeout_s: float | None = None,
        key: str | None = None,
        on_cancel: OnCancel = "withdraw",
    ) -> Any:
        """Send a message and wait for its reply.

        Args:
            entity: who gets it; or, alone, a message that names its entity with `EntityId`.
            message: the command or query.
            timeout_s: how long to wait, and the message's deadline: what has not begun by then does not
                run. `ask_timeout_s` where left out; 0 waits without end.
            key: an idempotency key: the same key and content for the same entity is the same message.
            on_cancel: what to do if the wait is cut off, by Ctrl-C or by what a signal handler raises: withdraw
                the message if no attempt was made, or leave it (`"detach"`).

        Returns:
            The handler's reply, of the type that the message declares.

        Raises:
            NotExecuted: it never ran (`QueueDepthExceeded`, `StoreUnavailable`, `Withdrawn`, `Expired`);
                sending it again is safe.
            AskTimeout: not known yet; `result(error.message_id)` re-attaches.
            Refused: the handler refused the message; the same class that it raised.
            HandlerFailed, Interrupted: it ran, wholly or partly; it is a dead letter now.
            KeyReused: the key was used before with other content.
            StoreIncompatible, StoreUnsafe: the store is the wrong one.
            UsageError: the call itself is wrong; nothing was sent.
        """
        check_on_cancel(on_cancel)
        if key is not None:
            check_key(key)
        timeout_s = check_seconds("timeout_s", timeout_s, self.config.ask_timeout_s)
        return self._slot.open().ask(entity, message, timeout_s, key, on_cancel)

    @overload
    def tell(
        self,
        entity: EntityRef,
        message: Message[R],
        *,
        key: str | None = None,
        expires_in_s: float | None = None,
    ) -> Receipt[R]: ...
    @overload
    def tell(
        self, entity: Message[R], *, key: str | None = None, expires_in_s: float | None = None
    ) -> Receipt[R]: ...
    def tell(
        self,
        entity: EntityRef | Message[Any],
        message: Message[Any] | None = None,
        *,
        key: str | None = None,
        expires_in_s: float | None = None,
    ) -> Receipt[Any]:
        """Send a message; it is accepted, durably, when this returns.

        Args:
            entity: who gets it; or, alone, a message that names its entity with `EntityId`.
            message: the command or query.
            key: an idempotency key, as for `ask`.
            expires_in_s: seconds after which it may no longer begin; never where left out.

        Returns:
            A receipt, for `result` and `withdraw`.

        Raises:
            NotExecuted: it was not accepted; sending it again is safe.
            AcceptanceUnknown: no answer came within `accept_timeout_s`.
            KeyReused, StoreIncompatible, StoreUnsafe, UsageError: as for `ask`.
        """
        if key is not None:
            check_key(key)
        if expires_in_s is not None and not check_seconds("expires_in_s", expires_in_s, 0):
            raise InvalidConfig(
                "expires_in_s: expected more than 0 seconds; leave it out to wait indefinitely"
            )
        return self._slot.open().tell(entity, message, key, expires_in_s)

    def tell_many(
        self, messages: Sequence[tuple[EntityRef, Message[Any]] | Message[Any]]
    ) -> list[Receipt[Any]]:
        """Send many messages; in order for each entity, not atomic across entities.

        Returns:
            One receipt for each message, in order.

        Raises:
            AtomicActorsError: the first message that was not accepted says why; a note says how many were
                accepted. All of them are checked before the first is sent.
        """
        return self._slot.open().tell_many([split_pair(pair) for pair in messages])

    @overload
    def result(self, message: Receipt[R], timeout_s: float | None = None) -> R: ...
    @overload
    def result(self, message: str, timeout_s: float | None = None) -> Any: ...
    def result(self, message: Receipt[Any] | str, timeout_s: float | None = None) -> Any:
        """Wait for the outcome of a message that was sent before, here or elsewhere.

        Args:
            message: the receipt, or a message id (then the reply is plain data).
            timeout_s: how long to wait; `ask_timeout_s` where left out.

        Raises:
            UnknownMessage: the store has no such message.
            ResultExpired: it ended more than `result_ttl_s` ago.
            Otherwise as `ask`.
        """
        timeout_s = check_seconds("timeout_s", timeout_s, self.config.ask_timeout_s)
        return self._slot.open().result(message, timeout_s)

    def withdraw(self, message: Receipt[Any] | str) -> bool:
        """Take a message back, if no attempt was made to run it.

        Returns:
            Whether it was withdrawn: then it never runs.
        """
        return self._slot.open().withdraw(message)

    # Life.

    def close(self) -> None:
        """Close the connections, and stop the private server of `embedded:` if it has no other user.

        May be called twice. Threads that still wait get `OutcomeUnknown`.

        Raises:
            EmbeddedServerError: the private server cannot be stopped.
        """
        session = self._slot.let_go()
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        self._slot.check_not_closed()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_value is None:
            self.close()
        elif (session := self._slot.let_go()) is not None:
            # What made us leave matters more to the caller than what goes wrong on the way out.
            close_quietly(session)
