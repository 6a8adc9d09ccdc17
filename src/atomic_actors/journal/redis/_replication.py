"""Waits until replicas have what a call wrote, before its answer is used.

A primary answers before its replicas have heard of a write, so a failover may lose what was answered. `WAIT`
holds the connection's next answer back until so many replicas have everything that *this connection* wrote.
That is less than it seems: a call that is sent again on a new connection and finds its work done writes nothing,
and neither does one that reads what another node just wrote; for them, `WAIT` would answer at once. So a small
write of our own always goes between the call and the question. It lies behind all that the call has seen.

`WAITAOF` (Redis 7.2, Valkey) asks moreover whether it is on the disks, here and there. With `appendfsync everysec`
each answer takes until the next second; with `always`, too, some do: a replica that is asked a moment before it has
forced its file reports that a second later. And a replica with `always` answers `WAIT` only when it has. So it is used
only where the user asks for that proof.

A count that is not reached says nothing: the write is there and may reach the replicas later. The answer counts as
unknown, and the caller sends the call again.
"""

from __future__ import annotations

from typing import Any, Final, cast

from attrs import frozen
from coredis.connection import BaseConnection
from coredis.exceptions import AuthorizationError, UnknownCommandError

from atomic_actors.base._config import Config
from atomic_actors.base._errors import StoreIncompatible
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._direct_connection import Command, OnReply, ignore_reply

__all__ = ("Replication", "replication_of")

#: What the store's user needs beside `ACL_RULES`; Redis 7.0 does not know the second word.
REPLICATION_ACL_RULES: Final = "+wait +waitaof"


@frozen
class Replication:
    """How many replicas must have a write before its answer counts.

    Args:
        replicas_min: that many.
        timeout_s: how long to wait for them; after it the answer is unknown.
        on_disk: whether it must be on their disks, and on the primary's.
    """

    replicas_min: int
    timeout_s: float
    on_disk: bool = False

    async def check(self, connection: BaseConnection) -> None:
        """Find out whether the store lets us ask, by asking for nothing.

        Raises:
            StoreIncompatible: it does not.
            RedisError: the connection is lost.
        """
        question = (b"WAITAOF", b"0", b"0", b"1") if self.on_disk else (b"WAIT", b"0", b"1")
        answer = await connection.create_request(*question, decode=False, raise_exceptions=False)
        if isinstance(answer, AuthorizationError | UnknownCommandError):
            raise self._cannot_ask(answer)

    def _cannot_ask(self, error: Exception) -> StoreIncompatible:
        if isinstance(error, UnknownCommandError):
            return StoreIncompatible(
                'the store has no WAITAOF: replication="fsynced" needs Redis 7.2 or newer, or Valkey'
            )
        return StoreIncompatible(
            f"the store's user may not wait for replicas: {error}; it also needs {REPLICATION_ACL_RULES}"
        )

    def commands(self, key: bytes) -> tuple[Command, Command]:
        """The write, and the question whose answer `refusal` reads.

        Args:
            key: what to write; the name of no other key, in a slot of the call's server.
        """
        replicas, timeout_ms = b"%d" % self.replicas_min, b"%d" % max(int(self.timeout_s * 1000), 1)
        question = (
            (b"WAITAOF", b"1", replicas, timeout_ms) if self.on_disk else (b"WAIT", replicas, timeout_ms)
        )
        return (b"SET", key, b""), question

    def request(self, connection: BaseConnection, key: bytes, timeout_s: float) -> Any:
        """Queue both behind the calls that were queued just now; the answer is awaited.

        Raises:
            StoreConnectionError: the connection is lost.
        """
        write, question = [
            connection.create_request(*command, decode=False, raise_exceptions=False, timeout=timeout_s)
            for command in self.commands(key)
        ]
        del write  # if it was refused, so was the call
        return question

    def around(self, call: Command, key: bytes, on_reply: OnReply) -> list[tuple[Command, OnReply]]:
        """What to call a connection's `send_now` with: the call, the write and the question.

        Args:
            call: the call itself.
            key: as of `commands`.
            on_reply: gets the call's reply once it counts, or why it does not.
        """
        reply_of_call: Any = None

        def on_call(reply: Any) -> None:
            nonlocal reply_of_call
            reply_of_call = reply

        def on_answer(answer: Any) -> None:
            refusal = None if isinstance(reply_of_call, Exception) else self.refusal(answer)
            on_reply(reply_of_call if refusal is None else refusal)

        write, question = self.commands(key)
        return [(call, on_call), (write, ignore_reply), (question, on_answer)]

    def refusal(self, answer: Any) -> JournalUnavailable | StoreIncompatible | None:
        """Why an answer does not count yet; None if it does."""
        if isinstance(answer, AuthorizationError | UnknownCommandError):
            return self._cannot_ask(answer)
        if isinstance(answer, Exception):
            # It was demoted while we waited, or the connection is lost.
            return JournalUnavailable(f"the replicas did not acknowledge: {answer}", sent=True)
        local, count = cast("list[int]", answer) if self.on_disk else (1, answer)
        if local and count >= self.replicas_min:
            return None
        where = "it on their disks (with appendonly yes)" if self.on_disk else "it"
        return JournalUnavailable(
            f"{count} of {self.replicas_min} replicas have {where} after {self.timeout_s:g} s", sent=True
        )


def replication_of(config: Config) -> Replication | None:
    """What replicas must have before an answer counts; None for nothing."""
    if config.replication == "none":
        return None
    return Replication(
        config.replicas_min, config.replication_timeout_s, on_disk=config.replication == "fsynced"
    )
