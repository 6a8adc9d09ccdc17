"""Two services while their store goes away and comes back, on a server of the test's own."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from atomic_actors import ActorSystem, NotExecuted, OutcomeUnknown, StoreUnavailable, SystemNotRunning
from atomic_actors.journal._kind_registry import KindRecord
from atomic_actors.journal._protocol import JournalUnavailable
from tests.servers import start_server
from tests.system.support import Stage, until
from tests.system.test_services import (
    INVOICE,
    Charge,
    Charges,
    NewInvoice,
    Order,
    Place,
    Total,
    Town,
    reads_of,
)

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@pytest.fixture
def town(tmp_path: Path, stage: Stage) -> Generator[Town]:
    with start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="always") as server:
        yield Town(server, f"town-{secrets.token_hex(6)}", stage)


async def test_a_look_up_needs_the_store(town: Town) -> None:
    async with town.sender(store_timeout_s=0.3, accept_timeout_s=1.0) as sender:
        town.server.stop()
        with pytest.raises(StoreUnavailable, match="nothing was sent"):
            await sender.tell(INVOICE, Charge(1))
        with pytest.raises(StoreUnavailable, match="nothing was sent"):
            await sender.ask(INVOICE, Charge(1), timeout_s=0.5)
        with pytest.raises(OutcomeUnknown, match="could not be looked up"):
            await sender.result(f"{INVOICE}/{'0' * 32}")
        assert not await sender.withdraw(f"{INVOICE}/{'0' * 32}")
        town.server.start()


async def test_a_look_up_that_ends_when_the_system_is_left(town: Town) -> None:
    looking, may_answer = anyio.Event(), anyio.Event()
    errors: list[Exception] = []

    async def ask(sender: ActorSystem) -> None:
        with pytest.raises(SystemNotRunning) as error:
            await sender.ask(Order.ref("o"), Total(), timeout_s=0)
        errors.append(error.value)

    async with town.shop():
        pass
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            async with town.sender() as sender:
                known = sender._running.sender.call_checker.remote_kinds
                registry = known.registry
                assert registry is not None
                found = await registry.find_kinds(["order"])

                class Slow:
                    async def find_kinds(self, names: object) -> dict[str, KindRecord]:
                        looking.set()
                        await may_answer.wait()
                        # The service is this node's own, as it were: there is no other way to open.
                        return {"order": evolve(found["order"], service="desk")}

                known.registry = Slow()  # type: ignore[assignment]
                task_group.start_soon(ask, sender)
                await looking.wait()
            may_answer.set()
    assert len(errors) == 1


async def test_an_outlet_outlives_a_restart_of_the_store(town: Town) -> None:
    quick = {"store_timeout_s": 0.3, "accept_timeout_s": 1.0}
    async with town.billing(**quick), town.sender(**quick) as sender:
        assert await sender.ask(INVOICE, Charge(1)) == 1
        town.server.restart()

        async def is_back() -> bool:
            try:
                return await sender.ask(INVOICE, Charge(1), timeout_s=1.0) >= 2
            except (NotExecuted, OutcomeUnknown):
                return False

        await until(is_back, 10.0)
        assert reads_of(sender) == 1


async def test_a_turn_that_looks_up_waits_for_the_store(town: Town, stage: Stage) -> None:
    """Its handler has run: that it cannot look the other service up now must not make it a dead letter."""
    async with town.billing(actors=[NewInvoice]):
        pass
    quick = {"store_timeout_s": 0.2, "lease_ttl_s": 20.0, "lease_margin_s": 5.0, "accept_timeout_s": 5.0}
    async with town.shop(**quick) as shop:
        known = shop._running.sender.call_checker.remote_kinds
        registry, failures = known.registry, 0
        assert registry is not None

        class Away:
            async def find_kinds(self, names: object) -> dict[str, object]:
                nonlocal failures
                failures += 1
                if failures == 2:
                    known.registry = registry
                raise JournalUnavailable("away", sent=False)

        known.registry = Away()  # type: ignore[assignment]
        await shop.ask(Order.ref("o"), Place("i", [7]), timeout_s=10.0)
        assert failures == 2
        assert shop.statistics().failed == 0
        async with town.billing(actors=[NewInvoice]) as billing:

            async def arrived() -> bool:
                return await billing.ask(INVOICE, Charges()) == [7]

            await until(arrived)


async def test_the_target_dies_while_the_outbox_is_on_its_way(town: Town) -> None:
    """The whole store goes away under both, again and again: everything arrives once, in order."""
    quick = {"store_timeout_s": 0.3, "lease_ttl_s": 10.0, "lease_margin_s": 2.0}
    async with town.billing(actors=[NewInvoice], **quick) as billing, town.shop(**quick) as shop:
        sent: list[int] = []
        for number in range(60):
            if number in (20, 40):
                town.server.kill9()
                town.server.start()

            async def is_placed(number: int = number) -> bool:
                try:
                    await shop.ask(Order.ref("o"), Place("i", [number]), key=f"n-{number}", timeout_s=2.0)
                except (NotExecuted, OutcomeUnknown):
                    return False
                return True

            await until(is_placed, 10.0)
            sent.append(number)

        async def arrived() -> bool:
            return await billing.ask(INVOICE, Charges(), timeout_s=2.0) == sent

        await until(arrived, 10.0)

        async def is_acknowledged() -> bool:
            return (await shop.audit()).outbound == 0

        await until(is_acknowledged)


async def test_kinds_are_registered_again_where_the_store_forgot_them(town: Town) -> None:
    async with town.billing(actors=[NewInvoice]) as billing:
        await billing.ask(INVOICE, Charge(1))
        town.server.call("FLUSHALL")
        registry = billing._running.store.kinds
        assert registry is not None

        async def is_known() -> bool:
            return await registry.list_kinds() == {"invoice": "billing"}

        await until(is_known, 10.0)
        assert (await registry.find_kinds(["invoice"]))["invoice"].partitions == 7
