"""What a message carries is nobody's business but its handler's: no log, no event and no text of ours repeats it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from attrs import define, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    AskTimeout,
    Command,
    EntityRef,
    HandlerFailed,
    KeyReused,
    PayloadTooLarge,
    QueueDepthExceeded,
    RawMessage,
    Refused,
    handler,
)
from tests.redis.test_append_only_file import contents
from tests.servers import Server
from tests.system.support import NewSystem, Stage, Watcher, until

pytestmark = pytest.mark.anyio

CANARY = "canary-4929-1184-0037"
EVENTS = (
    "accepted",
    "dispatched",
    "completed",
    "refused",
    "failed",
    "interrupted",
    "dead-lettered",
)


@frozen
class Pay(Command[str]):
    card: str
    end: str = ""


@define
class Declined(Refused):
    card: str


@define
class Cards:
    card: str = ""


class Till(Actor[Cards], kind="till"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler
    async def pay(self, message: Pay) -> str:
        self.state.card = message.card
        match message.end:
            case "refuse":
                raise Declined(message.card)
            case "fail":
                raise RuntimeError("the terminal is broken")
            case "wrong reply":
                wrong: Any = {"card": message.card}
                return wrong  # type: ignore[no-any-return]
            case "wrong state":
                self.state.card = [message.card]  # type: ignore[assignment]
            case "hold":
                await self.stage.visit("held")
            case _:
                pass
        return message.card


TILL = Till.ref("one")


async def tell_too_many(system: ActorSystem) -> None:
    for _ in range(4):
        await system.tell(TILL, Pay(CANARY), expires_in_s=0.05)


async def use_every_way_to_go_wrong(new_system: NewSystem, stage: Stage, seen: list[str]) -> None:
    stage.hold("held")
    system = new_system(
        Till.using(stage=stage), max_payload_bytes=1000, max_depth=3, max_attempts=1, drain_timeout_s=0.01
    )
    watcher = Watcher(system, *EVENTS)
    async with system:
        receipt = await system.tell(TILL, Pay(CANARY), key="k")
        assert await system.result(receipt) == CANARY
        with pytest.raises(Refused):
            await system.ask(TILL, Pay(CANARY, "refuse"))
        with pytest.raises(HandlerFailed) as failed:
            await system.ask(TILL, Pay(CANARY, "fail"))
        # What does not fit its type is quoted, to whoever sent it, in the dead letter and in the event; not in a log.
        for wrong in (Pay(CANARY, "wrong reply"), Pay(CANARY, "wrong state")):
            with pytest.raises(HandlerFailed):
                await system.ask(TILL, wrong)
        with pytest.raises(KeyReused) as reused:
            await system.tell(TILL, Pay(CANARY, "other"), key="k")
        with pytest.raises(PayloadTooLarge) as too_large:
            await system.tell(TILL, Pay(CANARY * 100))
        with pytest.raises(HandlerFailed):
            await system.ask(TILL, RawMessage("Pay", {"card": CANARY, "end": 5}))
        await system.tell(TILL, Pay(CANARY, "hold"))
        await stage.wait_for("held")
        with pytest.raises(AskTimeout) as late:
            await system.ask(TILL, Pay(CANARY), timeout_s=0.02)
        with pytest.raises(QueueDepthExceeded) as full:
            await tell_too_many(system)
        errors = [each.value for each in (failed, reused, too_large, late, full)]
        seen += [repr(error) + str(error) for error in errors]
        seen += [repr(system.statistics()), repr(await system.where(TILL)), repr(await system.audit())]
        letters = await system.dead_letters.list()
        assert any(letter.message["card"] == CANARY for letter in letters)
        seen += [repr(letter) for letter in letters if letter.error_type == RuntimeError.__name__]
        seen += [repr(receipt), repr(system), repr(EntityRef("till", "one"))]
        # The turn that is held is interrupted now.
    seen += [repr(event) for event in watcher.events if not (event.error or "").startswith("Invalid")]
    assert {"completed", "refused", "failed", "accepted", "dispatched"} <= set(watcher.names)


async def test_no_text_of_ours_repeats_a_payload(
    new_system: NewSystem, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    await use_every_way_to_go_wrong(new_system, stage, seen)
    logged = [caplog.handler.format(record) for record in caplog.records]
    assert len(seen) > 15
    for text in (*seen, *logged):
        assert CANARY not in text, text


async def test_what_was_forgotten_is_gone(valkey_server: Server, stage: Stage) -> None:
    """After a purge, and the time that replies are kept, the store has nothing of a message."""
    new_system = NewSystem(valkey_server.url)
    async with new_system(Till.using(stage=stage), result_ttl_s=0.4, accept_timeout_s=0.2) as system:
        with pytest.raises(HandlerFailed):
            await system.ask(TILL, Pay(CANARY, "fail"), key="k")
        with pytest.raises(Refused):
            await system.ask(TILL, Pay(CANARY, "refuse"))
        (letter,) = await system.dead_letters.list()
        assert CANARY in everything(valkey_server, new_system.namespace)
        assert await system.dead_letters.purge(letter.message_id) == 1

        async def is_gone() -> bool:
            return CANARY not in everything(valkey_server, new_system.namespace)

        await until(is_gone)


def everything(server: Server, namespace: str) -> str:
    """All that a namespace has in a server."""
    return "".join(
        f"{key!r}{value!r}"
        for key, value in contents(server).items()
        if key.startswith(b"{" + namespace.encode())
    )
