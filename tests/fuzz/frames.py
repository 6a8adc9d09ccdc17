"""Frames of other nodes, damaged or made up: the listener goes on, and whoever waits gets one answer."""

from __future__ import annotations

import logging
from random import Random
from typing import Any, Final, cast

from attrs import Factory, define

from atomic_actors.base._errors import AtomicActorsError
from atomic_actors.codec._envelope import encode_plain
from atomic_actors.codec._frames import Frame, ReplyFrame
from atomic_actors.journal._protocol import split_outcome
from atomic_actors.node._inbox import NodeInbox
from atomic_actors.node.routing._node_messenger import NodeMessenger
from tests.fuzz.corrupter import corrupt, plain_value
from tests.fuzz.effort import Broken, Target
from tests.unit.node.volatile.test_routes import World

__all__ = ("FRAMES",)

FRAMES_EACH: Final = 12


class _Rest:
    """What else of a node gets frames."""

    def pushed(self, frame: ReplyFrame) -> None:
        """As the router does; whether anyone waits for it is the router's to know."""
        split_outcome(frame.outcome)

    def refresh_soon(self) -> None:
        """Another node says that a partition is free."""


@define(eq=False)
class _Inbox(NodeInbox):
    """Notices errors that the messenger would only log."""

    errors: list[Exception] = Factory(list)

    def receive(self, frame: Frame) -> None:
        try:
            super().receive(frame)
        except ValueError:
            raise  # an outcome that is none
        except Exception as error:
            self.errors.append(error)
            raise


def _good_frames(world: World) -> list[list[Any]]:
    owner, claim = world.owner, world.claim
    payload = encode_plain("x")
    return [
        ["ask", 0, claim, "ear/e", "0", payload, "sender", 7, 1, 3_000, ["a/b"]],
        ["tell", 0, claim, "ear/e", "1", payload, "sender", 7, 2],
        ["forget", "sender", 1, 1],
        ["told", 1, 1, "completed", payload],
        ["told", 1, 2, "refused", encode_plain({"name": "No", "details": None})],
        ["told", 1, 1, "failed", ["ValueError", "no"]],
        ["told", 1, 2, "error", ["invalid_reply", "no"]],
        ["told", 1, 1, "moved", None],
        ["told", 1, 2, "dropped", None],
        ["reply", "ear/e", "0" * 32, b"completed\n\xc0"],
        ["claim", 0],
        ["of a newer release", owner],
    ]


def _damage(random: Random, frame: list[Any]) -> bytes:
    if random.random() < 0.3:
        return corrupt(random, [encode_plain(frame)])
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(frame) + 1)
        way = random.randrange(4)
        if way == 0:
            frame = [*frame[:at], plain_value(random), *frame[at:]]
        elif way == 1:
            frame = frame[:at]
        else:
            frame = [*frame[:at], plain_value(random), *frame[at + 1 :]]
    return encode_plain(frame if random.random() < 0.95 else plain_value(random))


def _attempt(random: Random) -> None:
    world = World()
    host = world.hosts[world.owner]
    rest = cast("Any", _Rest())
    messenger = NodeMessenger(cast("Any", None))
    messenger._receiver = inbox = _Inbox(rest, rest, host, world.routes)  # pyright: ignore[reportPrivateUsage]
    # The answers that a damaged frame asks for go to anybody: nobody is there.
    world.carry = lambda to, data, on_sent: None  # type: ignore[method-assign]
    names = [world.send(ask=True), world.send(ask=True), world.send(ask=False)]
    sent: list[bytes] = []
    for _ in range(FRAMES_EACH):
        data = _damage(random, random.choice(_good_frames(world)))
        sent.append(data)
        try:
            messenger._on_payload(data)  # pyright: ignore[reportPrivateUsage]
            world.wait(0.02)
        except Exception as error:
            raise Broken("a frame ended the listener, or the sweeper", sent, error) from error
        if inbox.errors:
            raise Broken("a checked frame broke its handler", sent, inbox.errors[0]) from inbox.errors[0]
    world.wait(9)
    for name in names:
        values = world.boxes[name].values
        good = all(isinstance(value, bytes | int | AtomicActorsError) for value in values)
        if len(values) != 1 or not good:
            raise Broken(f"who waits got {values!r}", sent)


def _quietly(random: Random) -> None:
    # A frame that cannot be handled is logged with its traceback: as it should, and far too often here.
    logger = logging.getLogger("atomic_actors")
    before, logger.disabled = logger.disabled, True
    try:
        _attempt(random)
    finally:
        logger.disabled = before


FRAMES: Final = Target("frames", _quietly, 200)
