"""Programming mistakes: told at the call site, in words that say what to do."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import Factory, define, field, frozen

import atomic_actors
from atomic_actors import (
    Actor,
    ActorSystem,
    AtomicActorsError,
    Command,
    Config,
    EntityRef,
    HandlerFailed,
    InvalidConfig,
    InvalidEntityId,
    InvalidHandler,
    InvalidPayload,
    InvalidState,
    KindConfig,
    NotExecuted,
    OutcomeUnknown,
    RawMessage,
    UnknownKind,
    UnknownMessageType,
    UsageError,
    handler,
)
from tests.system.support import Desk, NewSystem, Read, Stage, Write, desk

pytestmark = pytest.mark.anyio


@frozen
class Line:
    quantity: int


@frozen
class Order(Command[int]):
    lines: list[Line]
    note: str = ""


@frozen
class Reply(Command[int]):
    """Asks for a reply of this kind."""

    what: str


@frozen
class Nested(Command[list[Line]]):
    pass


class Shop(Actor, kind="shop"):
    @handler
    async def order(self, message: Order) -> int:
        return sum(line.quantity for line in message.lines)

    @handler
    async def reply(self, message: Reply) -> int:
        replies: dict[str, Any] = {"text": "ten", "none": None, "object": object(), "fine": 10}
        reply: int = replies[message.what]
        return reply

    @handler
    async def nested(self, message: Nested) -> list[Line]:
        return [Line(1), Line("two")]  # type: ignore[arg-type]


SHOP = Shop.ref("s")


async def test_unknown_kinds_and_messages(new_system: NewSystem) -> None:
    async with new_system(Shop, Desk.using(stage=Stage())) as system:
        for call in (system.ask, system.tell):
            with pytest.raises(UnknownKind, match=r"'shpo' is not known here; Config\(actors=.*desk, shop"):
                await call(EntityRef("shpo", "s"), Order([]))
            with pytest.raises(
                UnknownMessageType, match=r"kind 'shop' has no handler for 'Write'.*Nested, Order, Reply"
            ):
                await call(SHOP, Write("x"))
            with pytest.raises(UnknownMessageType, match="no handler for 'order'"):
                await call(SHOP, RawMessage("order", {}))
        wrong: Any
        for wrong in ("Order", 7, Order, {"lines": []}):
            with pytest.raises(UnknownMessageType, match="not a message"):
                await system.ask(SHOP, wrong)
        assert (await system.audit()).accepted == 0


async def test_payloads_that_do_not_fit(new_system: NewSystem) -> None:
    wrong: Any = "three"
    async with new_system(Shop) as system:
        for call in (system.ask, system.tell):
            with pytest.raises(InvalidPayload, match=r"Order\.lines\[1\]\.quantity.*int.*'three'|str"):
                await call(SHOP, Order([Line(1), Line(wrong)]))
        with pytest.raises(InvalidPayload):
            await system.ask(SHOP, RawMessage("Order", object()))
        assert (await system.audit()).accepted == 0


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"lines": [{"quantity": 1}, {"quantity": "x"}]}, r"lines\[1\]\.quantity"),
        ({"lines": [{}]}, r"lines\[0\].*quantity"),
        ({}, "lines"),
        ([1, 2], "Order"),
        (None, "Order"),
    ],
)
async def test_raw_payloads_that_do_not_decode(new_system: NewSystem, payload: Any, path: str) -> None:
    async with new_system(Shop) as system:
        with pytest.raises((InvalidPayload, HandlerFailed), match=path):
            await system.ask(SHOP, RawMessage("Order", payload))
        # Nothing is stuck behind it.
        assert await system.ask(SHOP, Order([Line(2)])) == 2


async def test_replies_that_do_not_encode(new_system: NewSystem) -> None:
    async with new_system(Shop) as system:
        for what in ("text", "none", "object"):
            with pytest.raises(HandlerFailed, match=r"InvalidReply.*Shop\.reply") as failed:
                await system.ask(SHOP, Reply(what))
            assert failed.value.error_type == "InvalidReply"
        with pytest.raises(HandlerFailed, match=r"Shop\.nested.*\[1\]\.quantity"):
            await system.ask(SHOP, Nested())
        assert await system.ask(SHOP, Reply("fine")) == 10
        assert len(await system.dead_letters.list()) == 4


# Ids


@pytest.mark.parametrize(
    "entity_id",
    [" ", "a/b/c", "a:b", "{tag}", "ü-ß-日本", "*", "%00", "x" * 512, "'; DROP", "=", "a b\u00a0c", "../.."],
)
async def test_odd_ids(new_system: NewSystem, entity_id: str) -> None:
    async with new_system(Desk.using(stage=Stage())) as system:
        receipt = await system.tell(desk(entity_id), Write("a"))
        assert await system.result(receipt.message_id) == 1
        assert await system.ask(desk(entity_id), Read()) == ["a"]
        assert receipt.entity.id == entity_id


@pytest.mark.parametrize(
    ("entity_id", "text"),
    [
        ("", "must not be empty"),
        ("a\nb", "control characters"),
        ("\x7f", "control characters"),
        ("x" * 513, "more than 512"),
        ("\ud800", "not valid Unicode"),
        (7, r"expected str, got int; write str\(7\)"),
        (None, "expected str"),
    ],
)
def test_bad_ids(entity_id: Any, text: str) -> None:
    with pytest.raises(InvalidEntityId, match=f"^id: .*{text}"):
        Desk.ref(entity_id)
    with pytest.raises(InvalidEntityId, match=r"^kind: "):
        EntityRef("", "x")


# Declarations: all of them at construction, before anything runs.


def test_a_handler_that_is_not_async() -> None:
    with pytest.raises(InvalidHandler, match=r"async def.*await anyio\.to_thread\.run_sync"):

        class Blocking(Actor):
            @handler  # type: ignore[type-var]
            def order(self, message: Order) -> int:
                return 1


def test_two_handlers_for_one_message() -> None:
    class Twice(Actor):
        @handler
        async def one(self, message: Order) -> int:
            return 1

        @handler
        async def two(self, message: Order) -> int:
            return 2

    with pytest.raises(InvalidHandler, match=r"Twice.one.*Twice.two.*'Order'"):
        ActorSystem(Config(actors=[Twice], url="memory:"))


@define
class Needy:
    amount: int


@define
class Forgetful:
    amount: int = 1
    secret: object = field(factory=object)


@define
class Impostor:
    """Says that it holds ints, and begins with text."""

    amounts: list[int] = Factory(lambda: ["one"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "text"),
    [(Needy, "Needy.*amount"), (Forgetful, "Forgetful.*secret"), (Impostor, r"Impostor.*amounts\[0\]")],
)
def test_states_that_do_not_round_trip(state: Any, text: str) -> None:
    bad = atomic_actors.EntityKind("bad", state=state)

    @bad.handler
    async def order(context: Any, message: Order) -> int:
        return 1

    with pytest.raises((InvalidState, UsageError), match=text):
        ActorSystem(Config(actors=[bad], url="memory:"))


def test_what_is_no_config() -> None:
    wrong: Any
    for wrong in ("memory:", {"url": "memory:"}, Config):
        with pytest.raises(InvalidConfig, match="expected a Config"):
            ActorSystem(wrong)
    for wrong in (Shop, "shop", None):
        with pytest.raises(InvalidConfig, match="actors: expected a list"):
            Config(actors=wrong, url="memory:")
    for wrong in ([Order], [Shop()], ["shop"], [Shop, Shop]):
        with pytest.raises(InvalidConfig, match=r"actors\[[01]\]"):
            ActorSystem(Config(actors=wrong, url="memory:"))
    with pytest.raises(InvalidConfig, match=r"Desk needs 'stage'.*Desk\.using\(stage=\.\.\.\)|needs 'stage'"):
        ActorSystem(Config(actors=[Desk], url="memory:"))
    with pytest.raises(InvalidConfig, match="unexpected keyword 'stag'"):
        ActorSystem(Config(actors=[Desk.using(stage=Stage(), stag=1)], url="memory:"))


def test_a_setting_for_a_kind_that_is_not_there() -> None:
    """A slip of the finger would otherwise leave the real kind with its defaults."""
    with pytest.raises(InvalidConfig, match=r"kinds.*'shpo'.*shop"):
        ActorSystem(Config(actors=[Shop], url="memory:", kinds={"shpo": KindConfig(max_attempts=3)}))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"url": "mysql://x"}, "url"),
        ({"url": "embedded://host/dir"}, "url|host"),
        ({"idle_timeout_s": -1}, "idle_timeout_s.*at least 0"),
        ({"max_attempts": 1.5}, "max_attempts.*whole number"),
        ({"ask_timeout_s": "5"}, "ask_timeout_s"),
        ({"lease_ttl_s": 0}, "lease_ttl_s.*above 0"),
        ({"on_dead": "stop"}, "on_dead.*'continue', 'park'"),
        ({"partitions": 0}, "partitions"),
        ({"kinds": {"shop": {"max_attempts": 3}}}, r"kinds\['shop'\].*KindConfig"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        Config(**settings)


# The errors themselves


def all_errors() -> list[type[AtomicActorsError]]:
    values = [getattr(atomic_actors, name) for name in atomic_actors.__all__]
    return [value for value in values if isinstance(value, type) and issubclass(value, AtomicActorsError)]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))
    assert "error" in codes


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (
            NotExecuted,
            "QueueDepthExceeded ActorLimitExceeded AskLimitExceeded OwnerUnavailable StoreUnavailable Withdrawn Expired "
            "SystemNotRunning NotExecuted",
        ),
        (OutcomeUnknown, "AcceptanceUnknown AskTimeout OutcomeUnknown"),
        (TimeoutError, "AskTimeout DrainTimeout"),
    ],
)
def test_what_is_known_is_in_the_class(base: type[Exception], names: str) -> None:
    found = {error.__name__ for error in all_errors() if issubclass(error, base)}
    assert found == set(names.split())
