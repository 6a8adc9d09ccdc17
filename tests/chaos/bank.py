"""The accounts that the chaos tests run: each keeps books of its own from which loss and doubling show.

Everything that an account is sent belongs to a *stream* (one sender, one receiver) and has the next number
of it. The receiver notes the last number of every stream. A number that is left out is a *gap*: right only
if its message is a dead letter. One that fills a gap is *late*: right only if it is a replay. Whatever else
comes out of turn is *wrong*.

Every handler, before anything else, writes what it is about to do to a *witness* file that is appended to
by every process, and after everything else how it ended; the kernel puts the lines in order. An account also
keeps the fencing token of the last turn that was committed: one that is lower is *wrong*, too.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from attrs import Factory, define, field, frozen

from atomic_actors import Actor, Command, Context, EntityRef, Query, Refused, StoreUnavailable, handler

__all__ = ("OPENING", "Account", "Book", "Decline", "Declined", "Look", "Move", "Rates", "Receive", "Witness")

OPENING = 1000


@define(eq=False)
class Witness:
    """Writes a line for each handler that begins and for each that ends.

    The line: what happened, message id, attempt, fencing token, process, sort of handler, and when.
    """

    path: Path
    #: The longest that an effectful handler waits in its middle.
    pace_s: float = 0.005
    _descriptor: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def turn(self, context: Context[Any], sort: str) -> Generator[None]:
        """The whole of a handler: `begun` here, and in the end `done`, `raised` or `cancelled`."""
        # As it was at the beginning: a zombie's end has to show with which claim it began.
        turn = f"{context.message_id} {context.attempt} {context.fencing_token} {os.getpid()} {sort}"
        self._write("begun", turn)
        try:
            yield
        except Exception:
            self._write("raised", turn)
            raise
        except BaseException:
            self._write("cancelled", turn)
            raise
        self._write("done", turn)

    def _write(self, what: str, turn: str) -> None:
        os.write(self._descriptor, f"{what} {turn} {time.monotonic_ns()}\n".encode())


@frozen
class Move(Command[int]):
    """Take money out and send it on. The reply is the number."""

    stream: str
    number: int
    to: str
    amount: int
    #: Whether the receiver's handler is effectful.
    slow: bool


@frozen
class SlowMove(Command[int]):
    """The same, by a handler with an effect outside."""

    stream: str
    number: int
    to: str
    amount: int
    slow: bool


@frozen
class Receive(Command[None]):
    stream: str
    number: int
    amount: int


@frozen
class SlowReceive(Command[None]):
    stream: str
    number: int
    amount: int


@frozen
class Decline(Command[None]):
    text: str


@define
class Declined(Refused):
    text: str


@define
class Book:
    amount: int = OPENING
    #: The last number of each stream to here.
    last: dict[str, int] = Factory(dict)
    #: The last number of each stream from here.
    sent: dict[str, int] = Factory(dict)
    gaps: list[str] = Factory(list)
    late: list[str] = Factory(list)
    wrong: list[str] = Factory(list)
    #: The fencing token of the last turn.
    token: int = 0

    def note(self, stream: str, number: int, token: int) -> None:
        if token < self.token:
            self.wrong.append(f"{stream}#{number} with token {token} after {self.token}")
        self.token = token
        last = self.last.get(stream, 0)
        if number > last:
            self.gaps += [f"{stream}#{missing}" for missing in range(last + 1, number)]
            self.last[stream] = number
        elif (name := f"{stream}#{number}") in self.gaps:
            self.gaps.remove(name)
            self.late.append(name)
        else:
            self.wrong.append(f"{name} after {last}")


@frozen
class Look(Query[Book]):
    pass


@frozen
class GetFee(Query[int]):
    pass


class Rates(Actor, kind="rates"):
    """What effectful turns of accounts ask, so that an ask within a turn is cut off too."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness

    @handler
    async def fee(self, message: GetFee) -> int:
        with self.witness.turn(self.context, "t"):
            return 0


class Account(Actor[Book], kind="account"):
    def __init__(self, witness: Witness) -> None:
        self.witness = witness

    @handler(transactional=True)
    async def move(self, message: Move) -> int:
        with self.witness.turn(self.context, "t"):
            return self._move(message, 0)

    @handler
    async def slow_move(self, message: SlowMove) -> int:
        with self.witness.turn(self.context, "e"):
            await self._dawdle()
            fee = 0
            while message.number % 4 == 0:
                try:
                    fee = await self.context.ask(Rates.ref("of-the-day"), GetFee())
                    break
                except StoreUnavailable:
                    # Nothing was sent. If the store stays away, the turn ends with its lease.
                    await anyio.sleep(0.05)
            return self._move(message, fee)

    def _move(self, message: Move | SlowMove, fee: int) -> int:
        self.state.note(message.stream, message.number, self.context.fencing_token)
        self.state.amount -= message.amount
        number = self.state.sent.get(message.to, 0) + 1
        self.state.sent[message.to] = number
        receive = SlowReceive if message.slow else Receive
        self.outbox.add(
            EntityRef("account", message.to), receive(self.context.entity.id, number, message.amount - fee)
        )
        return message.number

    @handler(transactional=True)
    async def receive(self, message: Receive) -> None:
        with self.witness.turn(self.context, "t"):
            self._receive(message)

    @handler
    async def slow_receive(self, message: SlowReceive) -> None:
        with self.witness.turn(self.context, "e"):
            await self._dawdle()
            self._receive(message)

    def _receive(self, message: Receive | SlowReceive) -> None:
        self.state.note(message.stream, message.number, self.context.fencing_token)
        self.state.amount += message.amount

    @handler(transactional=True)
    async def decline(self, message: Decline) -> None:
        with self.witness.turn(self.context, "t"):
            self.state.amount = -1
            self.outbox.add(Account.ref("a0"), Receive("nobody", 1, 1))
            raise Declined(message.text)

    @handler
    async def look(self, message: Look) -> Book:
        return self.state

    async def _dawdle(self) -> None:
        # In several parts: one who was paused meanwhile and lost the entity has to be cancelled in the next one.
        for _ in range(4):
            await anyio.sleep(random.random() * self.witness.pace_s / 4)
