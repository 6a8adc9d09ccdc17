"""Replies that owners push to this process, read by one thread for all that wait.

Nothing here is needed for correctness: what is lost, or comes while no listener is connected, costs a look into
the store.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import redis
from redis import exceptions

from atomic_actors.base._telemetry import logger
from atomic_actors.client._connections import close_copy
from atomic_actors.client._servers import Connection, Servers
from atomic_actors.codec._frames import ReplyFrame, decode_frame

__all__ = ("ReplyListener", "read_reply")

RECONNECT_DELAY_FIRST_S: Final = 0.05
RECONNECT_DELAY_MAX_S: Final = 1.0
#: A connection that is silent for so long is asked whether it is still there.
HEARTBEAT_S: Final = 5.0


def read_reply(payload: bytes) -> ReplyFrame:
    """What an owner pushes.

    Raises:
        ValueError: it is not a reply.
    """
    frame = decode_frame(payload)
    if not isinstance(frame, ReplyFrame):
        raise ValueError(f"not a reply, but a {type(frame).__name__}")
    return frame


class ReplyListener:
    """One daemon thread with one connection that is subscribed to one channel.

    Args:
        servers: makes the connection.
        channel: where replies to this process come.
        on_reply: called in the thread with entity, unique part and outcome; must not raise.
        answer_timeout_s: how long the connection may leave a question unanswered.
    """

    def __init__(
        self,
        servers: Servers,
        channel: str,
        on_reply: Callable[[str, str, bytes], None],
        answer_timeout_s: float,
    ) -> None:
        self._servers = servers
        self._channel = channel.encode()
        self._on_reply = on_reply
        self._answer_timeout_s = answer_timeout_s
        #: Whether a push that is sent now is heard, as far as one can tell.
        self.is_listening = False
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._has_warned = False

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            if self._stopping.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(target=self._run, name="atomic-actors-replies", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # No more threads, or the interpreter is about to end.
                logger.debug("pushed replies cannot be received; polling the store instead: %s", error)
                return
            self._thread = thread

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._stopping.set()
        sock = getattr(self._connection, "_sock", None)
        if sock is not None:
            try:
                # Wakes the thread, which then closes the connection itself.
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                logger.debug("the reply connection was closed already: %s", error)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._answer_timeout_s)

    def abandon(self) -> None:
        """In a forked child, where the thread does not run: close what was copied."""
        self._stopping.set()
        if self._connection is not None:
            close_copy(self._connection)

    # The thread.

    def _run(self) -> None:
        delay_s = RECONNECT_DELAY_FIRST_S
        while not self._stopping.is_set():
            try:
                self._listen()
            except exceptions.NoPermissionError as error:
                if not self._has_warned:
                    self._has_warned = True
                    logger.warning(
                        "pushed replies are not permitted; polling the store for every reply: %s", error
                    )
            except (redis.RedisError, OSError) as error:
                if not self._stopping.is_set():
                    logger.debug("the connection for pushed replies ended: %s", error)
            if self.is_listening:
                self.is_listening, delay_s = False, RECONNECT_DELAY_FIRST_S
            if self._stopping.wait(delay_s):
                return
            delay_s = min(delay_s * 2, RECONNECT_DELAY_MAX_S)

    def _listen(self) -> None:
        connection = self._servers.make(self._servers.place_of(self._channel))
        try:
            connection.connect()
            self._connection = connection
            connection.send_command("SUBSCRIBE", self._channel)
            is_asked = True
            while not self._stopping.is_set():
                if not connection.can_read(self._answer_timeout_s if is_asked else HEARTBEAT_S):
                    if is_asked:
                        raise redis.TimeoutError("no answer")
                    connection.send_command("PING", check_health=False)
                    is_asked = True
                    continue
                self._handle(connection.read_response())
                is_asked = False
        finally:
            self._connection = None
            connection.disconnect()

    def _handle(self, message: Any) -> None:
        match message:
            case [b"subscribe", *_]:
                self.is_listening = True
            case [b"message", _, bytes(payload)]:
                try:
                    reply = read_reply(payload)
                except ValueError as error:
                    logger.warning("a pushed reply cannot be decoded; polling the store for it: %s", error)
                    return
                self._on_reply(reply.entity_key, reply.uid, reply.outcome)
            case _:
                pass  # the answer to a PING
