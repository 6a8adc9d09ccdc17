"""What is known of kinds without handlers here: contracts, the cache, and how rarely the registry is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import Actor, Command, Config, KindConfig, Query, RawMessage, handler
from atomic_actors.actors._kinds import bind_kinds
from atomic_actors.base._errors import StoreIncompatible, StoreUnavailable, UnknownKind, UnknownMessageType
from atomic_actors.codec._codec import Codec
from atomic_actors.contracts import _remote_kinds
from atomic_actors.contracts._contracts import RemoteKind, contract_of, read_record
from atomic_actors.contracts._remote_kinds import RemoteKinds
from atomic_actors.journal._kind_registry import KindRecord
from atomic_actors.journal._protocol import JournalSettings, JournalUnavailable

pytestmark = pytest.mark.anyio

SETTINGS = JournalSettings(
    namespace="ns",
    service="billing",
    partitions=7,
    result_ttl_ms=1_000,
    dedupe_ttl_ms=2_000,
    partition_depth_limit=3,
    partition_dead_letter_limit=4,
    dead_letter_ttl_ms=5,
)


@frozen
class Charge(Command[int]):
    amount: int


@frozen
class Charges(Query[list[int]]):
    pass


class Invoice(Actor, kind="invoice"):
    @handler
    async def charge(self, message: Charge) -> int:
        return message.amount

    @handler
    async def charges(self, message: Charges) -> list[int]:
        return []


class Anything(Actor, kind="anything", durable=False):
    @handler("*")
    async def rest(self, message: RawMessage) -> None: ...


def contract(cls: type[Actor], **settings: int) -> bytes:
    config = Config(
        actors=[cls], kinds={cls.ref("x").kind: KindConfig(max_depth=settings.pop("max_depth", 0))}
    )
    codec = Codec()
    (kind,) = bind_kinds(config, codec).values()
    return contract_of(kind, codec, SETTINGS)


def record(*contracts: bytes) -> KindRecord:
    return KindRecord("billing", 7, contracts)


# --- contracts ---------------------------------------------------------------------------------------------


def test_a_contract_says_what_a_sender_needs() -> None:
    text = contract(Invoice, max_depth=12)
    assert text == contract(Invoice, max_depth=12)
    plain = json.loads(text)
    assert plain["messages"]["Charge"]["payload"]["$defs"]["Charge"]["properties"] == {
        "amount": {"type": "integer"}
    }
    assert plain["messages"]["Charge"]["reply"] == {"type": "integer"}
    assert [plain["messages"][name]["query"] for name in ("Charge", "Charges")] == [False, True]
    kind = read_record("invoice", record(text))
    assert (kind.service, kind.partitions, kind.durable, kind.max_depth) == ("billing", 7, True, 12)
    assert kind.messages == {"Charge", "Charges"}
    assert kind.journal_settings("ns") == SETTINGS


def test_a_contract_with_a_handler_for_the_rest() -> None:
    kind = read_record("anything", record(contract(Anything)))
    assert (kind.durable, kind.messages) == (False, None)
    assert kind.takes("whatever")


def test_two_releases() -> None:
    kind = read_record("invoice", record(contract(Invoice, max_depth=1), contract(Anything)))
    assert (kind.durable, kind.max_depth) == (True, 1)
    assert kind.takes("whatever")


def test_what_a_newer_release_says_is_skipped() -> None:
    plain = json.loads(contract(Invoice))
    plain |= {"contract": 2, "new": {"a": 1}}
    plain["messages"]["Charge"]["new"] = 1
    assert read_record("invoice", record(json.dumps(plain).encode())).takes("Charge")


@pytest.mark.parametrize("text", [b"", b"[]", b'{"contract": 1}'])
def test_an_unreadable_contract(text: bytes) -> None:
    with pytest.raises(ValueError, match="the contract of kind 'invoice' cannot be read"):
        read_record("invoice", record(text))


# --- the cache ---------------------------------------------------------------------------------------------


@define(eq=False)
class Registry:
    """A registry that a test can hold, break, and count."""

    records: dict[str, KindRecord] = Factory(dict)
    finds: list[list[str]] = Factory(list)
    lists: int = 0
    broken: bool = False
    gate: anyio.Event | None = None

    async def register_kinds(
        self, service: str, partitions: int, kinds: Mapping[str, bytes]
    ) -> dict[str, str]:
        raise NotImplementedError

    async def find_kinds(self, names: Sequence[str]) -> dict[str, KindRecord]:
        self.finds.append(list(names))
        if self.gate is not None:
            await self.gate.wait()
        await anyio.lowlevel.checkpoint()
        if self.broken:
            raise JournalUnavailable("it is away", sent=False)
        return {name: self.records[name] for name in names if name in self.records}

    async def list_kinds(self) -> dict[str, str]:
        self.lists += 1
        return {name: known.service for name, known in self.records.items()}


@define(eq=False)
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_remote_kinds, "current_time", clock)
    return clock


def new_known(registry: Registry | None) -> RemoteKinds:
    return RemoteKinds(registry, "ns", ("own",))


async def test_it_is_read_once(clock: Clock) -> None:
    registry = Registry({"invoice": record(contract(Invoice))})
    known = new_known(registry)
    assert known.get("invoice") is None
    kind = await known.find("invoice", "Charge")
    clock.now_s += 1e6
    assert await known.find("invoice", "Charges") is kind
    assert known.get("invoice") is kind
    assert registry.finds == [["invoice"]]


async def test_what_is_missing_is_not_asked_for_again_at_once(clock: Clock) -> None:
    registry = Registry({"order": record(contract(Invoice))})
    known = new_known(registry)
    for _ in range(10):
        with pytest.raises(
            UnknownKind, match=r"'invoice' is not known here; .* has own; .* order \(service billing\)"
        ):
            await known.find("invoice")
    assert len(registry.finds) == registry.lists == 1
    registry.records["invoice"] = record(contract(Invoice))
    clock.now_s += 0.9
    with pytest.raises(UnknownKind):
        await known.find("invoice")
    clock.now_s += 0.2
    assert (await known.find("invoice")).name == "invoice"


async def test_a_name_is_read_once_more_before_it_is_refused(clock: Clock) -> None:
    registry = Registry({"invoice": record(contract(Invoice))})
    known = new_known(registry)
    await known.find("invoice", "Charge")
    clock.now_s += 5
    for _ in range(5):
        with pytest.raises(UnknownMessageType, match=r"'Refund'; it has Charge, Charges"):
            await known.find("invoice", "Refund")
    assert len(registry.finds) == 2
    registry.records["invoice"] = record(contract(Anything), contract(Invoice))
    clock.now_s += 2
    assert (await known.find("invoice", "Refund")).takes("Refund")


async def test_who_asks_during_a_read_shares_the_next_one() -> None:
    registry = Registry({f"kind-{number}": record(contract(Invoice)) for number in range(20)})
    registry.gate = anyio.Event()
    known = new_known(registry)
    async with anyio.create_task_group() as task_group:
        for number in range(200):
            task_group.start_soon(known.find, f"kind-{number % 20}")
        await anyio.wait_all_tasks_blocked()
        registry.gate.set()
    assert len(registry.finds) <= 2
    assert sorted(name for names in registry.finds for name in names) == sorted(registry.records)


async def test_a_cancelled_reader_leaves_the_read_to_the_others() -> None:
    registry = Registry({"invoice": record(contract(Invoice)), "order": record(contract(Invoice))})
    registry.gate = anyio.Event()
    known = new_known(registry)
    found: list[RemoteKind] = []
    scope = anyio.CancelScope()

    async def find(kind: str, within: anyio.CancelScope | None = None) -> None:
        if within is None:
            found.append(await known.find(kind))
        else:
            with within:
                await known.find(kind)

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(find, "invoice", scope)
        await anyio.wait_all_tasks_blocked()
        task_group.start_soon(find, "invoice")
        task_group.start_soon(find, "order")
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        registry.gate.set()
    assert {kind.name for kind in found} == {"invoice", "order"}


async def test_a_store_that_is_away() -> None:
    registry = Registry({"invoice": record(contract(Invoice))}, broken=True)
    known = new_known(registry)
    failed = 0

    async def find() -> None:
        nonlocal failed
        with pytest.raises(StoreUnavailable, match=r"nothing was sent.*it is away"):
            await known.find("invoice")
        failed += 1

    async with anyio.create_task_group() as task_group:
        for _ in range(50):
            task_group.start_soon(find)
    # Those who came meanwhile share the failure, and do not each wait for one of their own.
    assert failed == 50
    assert len(registry.finds) <= 2
    registry.broken = False
    assert (await known.find("invoice")).name == "invoice"


async def test_an_unreadable_kind_is_no_unknown_one() -> None:
    registry = Registry({"invoice": record(b"?"), "order": record(contract(Invoice))})
    known = new_known(registry)
    with pytest.raises(StoreIncompatible, match="'invoice' cannot be read"):
        await known.find("invoice")
    assert (await known.find("order")).name == "order"


async def test_without_a_registry() -> None:
    known = new_known(None)
    with pytest.raises(UnknownKind, match=r"'invoice' is not known here; Config\(actors=\[...\]\) has own$"):
        await known.find("invoice")
