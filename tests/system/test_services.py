"""Two services over one store: what one offers, the other finds and sends to."""

from __future__ import annotations

import secrets
from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    AskCycle,
    AtomicActorsError,
    Command,
    Config,
    EntityRef,
    HandlerFailed,
    KeyReused,
    KindConflict,
    NotSupported,
    OutcomeUnknown,
    Query,
    RawMessage,
    Refused,
    ResultExpired,
    UnknownKind,
    UnknownMessageType,
    UsageError,
    handler,
)
from atomic_actors.base._records import partition_of
from atomic_actors.codec._envelope import make_uid
from tests.servers import Server
from tests.system.support import PATIENCE_S, QUICK, Stage, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

#: More than the other service has, so that a partition of one may not exist in the other.
BILLING_PARTITIONS = 7


@frozen
class Charge(Command[int]):
    amount: int


@frozen
class Charges(Query[list[int]]):
    pass


@frozen
class Broke(Command[None]):
    """Fails."""


@frozen
class AskBack(Command[int]):
    """Asks the order who asks."""

    order: str


@define
class TooMuch(Refused):
    limit: int


@define
class Ledger:
    amounts: list[int] = Factory(list)


class Invoice(Actor[Ledger], kind="invoice"):
    """Of service billing."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler(transactional=True)
    async def charge(self, message: Charge) -> int:
        if message.amount > 1_000:
            raise TooMuch(1_000)
        self.stage.log.append(f"charge {message.amount}")
        self.state.amounts.append(message.amount)
        return sum(self.state.amounts)

    @handler
    async def read(self, message: Charges) -> list[int]:
        return self.state.amounts

    @handler
    async def broke(self, message: Broke) -> None:
        raise RuntimeError("broken")

    @handler
    async def ask_back(self, message: AskBack) -> int:
        return await self.context.ask(Order.ref(message.order), Total())


@frozen
class Place(Command[None]):
    """Adds charges to the outbox."""

    invoice: str
    amounts: list[int]


@frozen
class PlaceRaw(Command[None]):
    kind: str
    name: str


@frozen
class Total(Command[int]):
    """Asks the invoice."""

    invoice: str = ""
    ask_back: bool = False


class Order(Actor[Ledger], kind="order"):
    """Of service shop."""

    @handler(transactional=True)
    async def place(self, message: Place) -> None:
        self.state.amounts += message.amounts
        for amount in message.amounts:
            self.outbox.add(Invoice.ref(message.invoice), Charge(amount))

    @handler(transactional=True)
    async def place_raw(self, message: PlaceRaw) -> None:
        self.outbox.add(EntityRef(message.kind, "i"), RawMessage(message.name, {"amount": 1}))

    @handler
    async def total(self, message: Total) -> int:
        if not message.invoice:
            return sum(self.state.amounts)
        if message.ask_back:
            return await self.context.ask(Invoice.ref(message.invoice), AskBack(self.context.entity.id))
        return sum(await self.context.ask(Invoice.ref(message.invoice), Charges()))


class Echo(Actor, kind="echo", durable=False):
    @handler
    async def charge(self, message: Charge) -> int:
        return message.amount


class Other(Actor, kind="other"):
    @handler
    async def charge(self, message: Charge) -> int:
        return message.amount


@define(eq=False)
class Town:
    """Services over one server."""

    server: Server
    namespace: str
    stage: Stage

    def system(self, service: str, *actors: Any, **settings: Any) -> ActorSystem:
        return ActorSystem(
            Config(
                url=self.server.url,
                namespace=self.namespace,
                service=service,
                actors=list(actors),
                allow_no_persistence=True,
                **{**QUICK, **settings},
            )
        )

    def billing(self, **settings: Any) -> ActorSystem:
        actors = settings.pop("actors", [Invoice.using(stage=self.stage)])
        return self.system("billing", *actors, **{"partitions": BILLING_PARTITIONS, **settings})

    def shop(self, **settings: Any) -> ActorSystem:
        return self.system("shop", Order, **settings)

    def sender(self, **settings: Any) -> ActorSystem:
        return self.system("desk", **settings)


@pytest.fixture(params=["valkey", "redis"])
def town(request: pytest.FixtureRequest, stage: Stage) -> Town:
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return Town(server, f"town-{secrets.token_hex(6)}", stage)


def reads_of(system: ActorSystem) -> int:
    """How often the registry was read."""
    return system._running.sender.call_checker.remote_kinds.reads


INVOICE = Invoice.ref("i")


# --- every verb reaches the other service ----------------------------------------------------------------


@pytest.mark.parametrize("has_actors", [True, False])
async def test_verbs(town: Town, has_actors: bool) -> None:
    async with town.billing() as billing, town.shop() if has_actors else town.sender() as system:
        assert await system.ask(INVOICE, Charge(5)) == 5
        assert reads_of(system) == 1
        receipt = await system.tell(INVOICE, Charge(2))
        assert await system.result(receipt) == 7
        assert await system.result(receipt.message_id) == 7
        receipts = await system.tell_many([(INVOICE, Charge(number)) for number in range(3)])
        assert [await system.result(receipt) for receipt in receipts] == [7, 8, 10]
        assert await system.ask(INVOICE, RawMessage("Charge", {"amount": 1})) == 11
        with pytest.raises(TooMuch) as refused:
            await system.ask(INVOICE, Charge(5_000))
        assert refused.value.limit == 1_000
        with pytest.raises(HandlerFailed, match="RuntimeError: broken"):
            await system.ask(INVOICE, Broke())
        assert len(await billing.dead_letters.list()) == 1
        # The warm path looks nothing up.
        assert reads_of(system) == 1
        assert billing.statistics().owned_partitions == BILLING_PARTITIONS


async def test_results_are_kept_as_long_as_their_service_says(town: Town) -> None:
    async with town.billing(result_ttl_s=60.0), town.sender(result_ttl_s=3_600.0) as sender:
        await sender.ask(INVOICE, Charge(5))
        then_ms = sender._running.sender.store_clock.now_ms() - 120_000
        with pytest.raises(ResultExpired):
            await sender.result(f"{INVOICE}/{make_uid(then_ms, 1)}")


async def test_a_way_to_volatile_kinds_that_is_opened_again(town: Town) -> None:
    async with town.system("echoes", Echo), town.sender() as sender:
        assert await sender.ask(Echo.ref("x"), Charge(1)) == 1
        service_journals = sender._running.sender.call_checker.service_journals
        service_journals._opened["echoes"].scope.cancel()

        async def is_closed() -> bool:
            return service_journals.get("echoes") is None

        await until(is_closed)
        for route in sender._running.sender.routes._routes.values():  # type: ignore[union-attr]
            route.node_id = ""  # the owner has to be looked up
        assert await sender.ask(Echo.ref("x"), Charge(2)) == 2


async def test_who_waits_is_told_that_the_way_is_closed(town: Town) -> None:
    async with town.sender() as sender:
        async with town.billing():
            assert await sender.ask(INVOICE, Charge(5)) == 5
        running, told = sender._running, list[str]()

        async def ask() -> None:
            with pytest.raises(OutcomeUnknown, match="the connection to its service was closed") as error:
                await sender.ask(INVOICE, Charge(1), timeout_s=0)
            told.append(error.value.message_id)

        async def is_accepted() -> bool:
            return any(pending.accepted for (pending,) in running.sender.router._pending.values())

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ask)
            await until(is_accepted)
            running.sender.call_checker.service_journals._opened["billing"].scope.cancel()
        async with town.billing():
            assert await sender.result(told[0]) == 6


async def test_keys(town: Town) -> None:
    async with town.billing(), town.sender() as sender:
        assert await sender.ask(INVOICE, Charge(5), key="once") == 5
        assert await sender.ask(INVOICE, Charge(5), key="once") == 5
        with pytest.raises(KeyReused):
            await sender.ask(INVOICE, Charge(6), key="once")
        assert await sender.ask(INVOICE, Charges()) == [5]


async def test_operations(town: Town) -> None:
    async with town.billing() as billing, town.sender() as sender:
        await sender.ask(INVOICE, Charge(5))
        where = await sender.where(INVOICE)
        assert where.partition == partition_of("invoice/i", BILLING_PARTITIONS)
        assert (where.is_here, where.is_active, where.version) == (False, False, 1)
        assert (await billing.where(INVOICE)).is_here
        assert await sender.pause(INVOICE)
        receipt = await sender.tell(INVOICE, Charge(1))
        assert (await sender.where(INVOICE)).waiting == 1
        assert await sender.withdraw(receipt)
        assert await sender.resume(INVOICE)
        assert await sender.ask(INVOICE, Charge(1)) == 6
        assert (await sender.counts("invoice")).active == 0
        assert not await sender.passivate(INVOICE)


async def test_many_entities_in_every_partition(town: Town) -> None:
    async with town.billing(), town.sender() as sender:
        refs = [Invoice.ref(f"i-{number}") for number in range(40)]
        assert {partition_of(str(ref), BILLING_PARTITIONS) for ref in refs} == set(range(BILLING_PARTITIONS))
        async with anyio.create_task_group() as task_group:
            for number, ref in enumerate(refs):
                task_group.start_soon(sender.ask, ref, Charge(number))
        for number, ref in enumerate(refs):
            assert await sender.ask(ref, Charges()) == [number]
        # All of them share one look-up, or two: of those who came before the first, and while it was under way.
        assert reads_of(sender) <= 2


async def test_nobody_hosts_it_now(town: Town) -> None:
    async with town.billing():
        pass
    async with town.sender() as sender:
        receipt = await sender.tell(INVOICE, Charge(5))
        async with town.billing():
            assert await sender.result(receipt) == 5


async def test_a_kind_of_the_same_service_on_another_node(town: Town) -> None:
    async with town.system("shop", Other, partitions=1) as owner:
        async with town.system("shop", Order, partitions=1) as system:
            # Nobody looks kinds of one's own service up twice, either.
            assert await system.ask(Other.ref("x"), Charge(3)) == 3
            assert owner.statistics().completed == 1
            assert reads_of(system) == 1


# --- mistakes ----------------------------------------------------------------------------------------------


async def test_a_kind_belongs_to_one_service(town: Town) -> None:
    async with town.billing():
        pass
    with pytest.raises(KindConflict, match=r"'invoice' belongs to service 'billing'.*of service 'shop'"):
        async with town.system("shop", Invoice.using(stage=town.stage), Other):
            pass
    async with town.sender() as sender:
        with pytest.raises(UnknownKind):
            await sender.ask(Other.ref("x"), Charge(1))
    # With the same service, it goes on.
    async with town.billing() as billing:
        assert await billing.ask(INVOICE, Charge(1)) == 1


async def test_an_unknown_kind(town: Town) -> None:
    async with town.billing(), town.shop() as shop, town.sender() as sender:
        known = r"invoice \(service billing\), order \(service shop\)"
        with pytest.raises(UnknownKind, match=rf"'nobody' is not known here; it has no actors; .*{known}"):
            await sender.tell(EntityRef("nobody", "x"), Charge(1))
        with pytest.raises(UnknownKind, match=rf"Config\(actors=\[...\]\) has order; .*{known}"):
            await shop.ask(EntityRef("nobody", "x"), Charge(1))
        with pytest.raises(UnknownKind):
            await sender.where(EntityRef("nobody", "x"))
        with pytest.raises(UnknownKind):
            await sender.result("nobody/x/" + "0" * 32)


async def test_a_storm_of_unknown_kinds(town: Town) -> None:
    async with town.sender() as sender:
        failed = 0

        async def ask(kind: str) -> None:
            nonlocal failed
            with pytest.raises(UnknownKind):
                await sender.ask(EntityRef(kind, "x"), Charge(1))
            failed += 1

        for _ in range(3):
            async with anyio.create_task_group() as task_group:
                for number in range(200):
                    task_group.start_soon(ask, f"nobody-{number % 50}")
        assert failed == 600
        assert reads_of(sender) <= 5


async def test_a_kind_that_appears_later(town: Town) -> None:
    async with town.sender() as sender:
        with pytest.raises(UnknownKind):
            await sender.ask(INVOICE, Charge(1))
        async with town.billing():

            async def is_known() -> bool:
                try:
                    return await sender.ask(INVOICE, Charge(1)) == 1
                except UnknownKind:
                    return False

            await until(is_known)


async def test_an_unknown_message(town: Town) -> None:
    async with town.billing(), town.sender() as sender:
        for message in (RawMessage("Refund", {}), Total()):
            with pytest.raises(
                UnknownMessageType, match=r"'invoice' of service 'billing'.*Broke, Charge, Charges"
            ):
                await sender.ask(INVOICE, message)
        with pytest.raises(UnknownMessageType, match="not a message"):
            await sender.tell(INVOICE, "Charge")  # type: ignore[arg-type]
        assert (await sender.where(INVOICE)).waiting == 0


async def test_a_volatile_kind_of_another_service(town: Town) -> None:
    async with town.system("echoes", Echo), town.sender() as sender:
        assert await sender.ask(Echo.ref("x"), Charge(1)) == 1
        await sender.tell(Echo.ref("x"), Charge(2))
        with pytest.raises(NotSupported, match="kind 'echo' is volatile"):
            await sender.ask(Echo.ref("x"), Charge(1), key="k")
        async with town.sender() as another:
            with pytest.raises(NotSupported, match="kind 'echo' is volatile"):
                await another.result(f"echo/x/{make_uid(1, 1)}")


async def test_a_sender_fixes_no_partitions(town: Town) -> None:
    async with town.system("billing", partitions=3) as sender:
        async with town.billing():
            # It said 3, and the service has 7.
            assert await sender.ask(INVOICE, Charge(1)) == 1
            assert (await sender.where(INVOICE)).partition == partition_of("invoice/i", BILLING_PARTITIONS)


# --- turns -------------------------------------------------------------------------------------------------


async def test_asks_of_turns(town: Town) -> None:
    async with town.billing(), town.shop() as shop:
        await shop.ask(INVOICE, Charge(4))
        assert await shop.ask(Order.ref("o"), Total("i")) == 4
        with pytest.raises(HandlerFailed, match=r"AskCycle.*order/o -> invoice/i -> order/o"):
            await shop.ask(Order.ref("o"), Total("i", ask_back=True))
        assert issubclass(AskCycle, AtomicActorsError)


async def test_outbox(town: Town) -> None:
    async with town.billing() as billing, town.shop() as shop:
        await shop.ask(Order.ref("o"), Place("i", [1, 2, 3]))

        async def arrived() -> bool:
            return await billing.ask(INVOICE, Charges()) == [1, 2, 3]

        await until(arrived)
        assert (await shop.audit()).outbound == 0
        assert (await shop.audit()).is_balanced
        assert (await billing.audit()).accepted >= 3


async def test_outbox_to_what_is_not_known(town: Town) -> None:
    async with town.billing() as billing, town.shop() as shop:
        with pytest.raises(HandlerFailed, match=r"UnknownKind.*'nobody'.*invoice \(service billing\)"):
            await shop.ask(Order.ref("o"), PlaceRaw("nobody", "Charge"))
        with pytest.raises(HandlerFailed, match=r"UnknownMessageType.*'Refund'"):
            await shop.ask(Order.ref("o"), PlaceRaw("invoice", "Refund"))
        await shop.ask(Order.ref("o"), PlaceRaw("invoice", "Charge"))

        async def arrived() -> bool:
            return await billing.ask(INVOICE, Charges()) == [1]

        await until(arrived)


async def test_outbox_in_order_and_once_while_the_target_comes_and_goes(town: Town) -> None:
    async with town.billing():
        pass
    sources = [Order.ref(f"o-{number}") for number in range(4)]
    async with town.shop() as shop:
        total = 0
        for start in (0, 100, 200):
            for offset in range(10):
                for number, order in enumerate(sources):
                    amounts = [start + offset * 2 + part for part in (0, 1)]
                    await shop.ask(order, Place(f"i-{number}", amounts))
                    total += 2
            # Its owners come and go while the relay works.
            async with town.billing() as billing:
                await billing.ask(Invoice.ref("i-0"), Charges())
        assert total == 240
        expected = [start + number for start in (0, 100, 200) for number in range(20)]
        async with town.billing() as billing:
            for number in range(4):

                async def arrived(number: int = number) -> bool:
                    return await billing.ask(Invoice.ref(f"i-{number}"), Charges()) == expected

                await until(arrived)
        assert (await shop.audit()).outbound == 0


async def test_outbox_left_behind_by_a_node_that_has_ended(town: Town) -> None:
    """The next node has never sent to that service: the stream tells it where to go."""
    async with town.billing():
        pass
    async with town.shop() as shop:
        shop._running.supervisor.relay.service_journals = None
        await shop.ask(Order.ref("o"), Place("i", [1, 2]))
        assert (await shop.audit()).outbound == 2
    async with town.shop(), town.billing() as billing:

        async def arrived() -> bool:
            return await billing.ask(INVOICE, Charges()) == [1, 2]

        await until(arrived)


# --- deploys -----------------------------------------------------------------------------------------------


@frozen
class Refund(Command[int]):
    amount: int


class NewInvoice(Actor[Ledger], kind="invoice"):
    """The next release: it takes refunds, too."""

    @handler(transactional=True)
    async def charge(self, message: Charge) -> int:
        self.state.amounts.append(message.amount)
        return sum(self.state.amounts)

    @handler
    async def read(self, message: Charges) -> list[int]:
        return self.state.amounts

    @handler(transactional=True)
    async def refund(self, message: Refund) -> int:
        self.state.amounts.append(-message.amount)
        return sum(self.state.amounts)


async def test_a_sender_hears_of_the_next_release(town: Town) -> None:
    async with town.billing(), town.sender() as sender:
        assert await sender.ask(INVOICE, Charge(5)) == 5
        with pytest.raises(UnknownMessageType):
            await sender.ask(INVOICE, Refund(1))
    async with town.sender() as sender:
        async with town.billing():
            assert await sender.ask(INVOICE, Charge(5)) == 10
        sender._running.sender.call_checker.remote_kinds._entries[
            "invoice"
        ].read_s -= 2  # it was read some time ago
        async with town.billing(actors=[NewInvoice]):
            assert await sender.ask(INVOICE, Refund(1)) == 9


async def test_two_releases_side_by_side(town: Town) -> None:
    """The old release owns everything, and the message is for the new one: it waits, and is not lost."""
    async with town.billing(actors=[NewInvoice]):
        pass
    async with town.sender() as sender:
        async with town.billing() as old:
            await sender.ask(INVOICE, Charge(5))
            receipt = await sender.tell(INVOICE, Refund(2))
            behind = await sender.tell(INVOICE, Charge(1))

            async def is_left() -> bool:
                return old.statistics().unhandled == 1

            await until(is_left)
            assert await sender.ask(Invoice.ref("another"), Charge(1)) == 1
            assert await old.dead_letters.list() == []
            assert (await sender.where(INVOICE)).waiting == 2
            with anyio.move_on_after(0.01):
                await sender.result(receipt)
        async with town.billing(actors=[NewInvoice]) as new:
            assert await sender.result(receipt, timeout_s=PATIENCE_S) == 3
            assert await sender.result(behind, timeout_s=PATIENCE_S) == 4
            assert new.statistics().unhandled == 0
            assert (await new.audit()).is_balanced


def test_errors_are_the_callers() -> None:
    assert issubclass(KindConflict, UsageError)
