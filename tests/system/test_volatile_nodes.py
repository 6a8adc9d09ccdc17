"""Volatile kinds with several nodes: whoever asks, the owner of the partition answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    ActorLimitExceeded,
    ActorSystem,
    AskTimeout,
    AtomicActorsError,
    Command,
    EntityRef,
    HandlerFailed,
    Interrupted,
    InvalidPayload,
    NotSupported,
    OwnerUnavailable,
    Query,
    QueueDepthExceeded,
    RawMessage,
    UnknownKind,
    UnknownMessageType,
    handler,
)
from atomic_actors.base._records import partition_of
from atomic_actors.node._assembly import Parts
from atomic_actors.node.ownership._placement import Candidate
from tests.servers import Server
from tests.system.support import PATIENCE_S, QUICK, Declined, Desk, NewSystem, Read, Stage, Work, desk, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@define
class Seen:
    words: list[str] = Factory(list)


@frozen
class Hear(Command[int]):
    word: str


@frozen
class Heard(Query[list[str]]):
    pass


@frozen
class Fail(Command[None]):
    refuse: bool = False


@frozen
class Big(Command[str]):
    size: int


@frozen
class TimeLeft(Query[float]):
    pass


@frozen
class Along(Command[list[str]]):
    """Asks the first of `route` to pass the rest along; the reply is everybody who was asked."""

    route: list[str]


@frozen
class Post(Command[None]):
    to: str
    words: list[str]


class Ear(Actor[Seen], kind="ear", durable=False):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def on_activate(self) -> None:
        self.stage.seen["activated"].append(self.context.entity.id)

    @handler
    async def hear(self, message: Hear) -> int:
        await self.stage.visit(message.word)
        self.state.words.append(message.word)
        return len(self.state.words)

    @handler
    async def heard(self, message: Heard) -> list[str]:
        return list(self.state.words)

    @handler
    async def fail(self, message: Fail) -> None:
        self.state.words.append("of a failed turn")
        if message.refuse:
            raise Declined("no", 7)
        raise RuntimeError("ear")

    @handler
    async def big(self, message: Big) -> str:
        return "x" * message.size

    @handler
    async def time_left(self, message: TimeLeft) -> float:
        return self.context.deadline - anyio.current_time()

    @handler
    async def along(self, message: Along) -> list[str]:
        return await pass_along(self, message)

    @handler
    async def post(self, message: Post) -> None:
        for word in message.words:
            self.outbox.add(Ear.ref(message.to), Hear(word))


class Office(Actor, kind="office"):
    @handler
    async def along(self, message: Along) -> list[str]:
        return await pass_along(self, message)


async def pass_along(actor: Actor[Any], message: Along) -> list[str]:
    me = str(actor.context.entity)
    if not message.route:
        return [me]
    return [
        me,
        *await actor.context.ask(EntityRef.parse(message.route[0]), Along(message.route[1:])),
    ]


class Deaf(Actor[Seen], kind="deaf"):
    @handler
    async def hear(self, message: Hear) -> int:
        return 0


EAR = Ear.ref("e")


@pytest.fixture
def new_system(store_server: Server) -> NewSystem:
    return NewSystem(store_server.url)


def parts_of(system: ActorSystem) -> Parts:
    parts: Any = vars(system)["_parts"]
    assert isinstance(parts, Parts)
    return parts


async def register_ears(new_system: NewSystem, stage: Stage) -> None:
    """A node that only sends knows of a kind once some node had it."""
    async with new_system(Ear.using(stage=stage)):
        pass


@asynccontextmanager
async def owner_and_others(
    new_system: NewSystem, stage: Stage, others: int = 1, **settings: Any
) -> AsyncGenerator[list[ActorSystem]]:
    """Nodes that all have the kind; the first one owns every partition."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(new_system(Ear.using(stage=stage), **settings))
            for _ in range(1 + others)
        ]


class Table:
    """A placement that the test decides: everything belongs to who came first, but for what was moved."""

    def __init__(self) -> None:
        self.first = ""
        self.moved: dict[int, str] = {}

    def place(self, candidates: Sequence[Candidate], partitions: int) -> tuple[str, ...]:
        ids = [candidate.node_id for candidate in candidates if candidate.kinds]
        if self.first not in ids:
            self.first = ids[0] if ids else ""
        return tuple(self.moved.get(partition, self.first) for partition in range(partitions))


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()
    monkeypatch.setattr("atomic_actors.node.ownership._peers.place", table.place)
    return table


async def hand_over(table: Table, giver: ActorSystem, taker: ActorSystem, partition: int) -> None:
    """Give a partition to another node."""
    there = parts_of(taker).membership
    table.moved[partition] = there.nodes.node_id
    for system in (giver, taker):
        parts_of(system).membership.nodes.forget_placement()
    parts_of(giver).membership.refresh_soon()

    async def has_it() -> bool:
        return bool(there.claims[partition])

    await until(has_it)


def elsewhere(kind: str, than: EntityRef) -> EntityRef:
    """An entity in another partition than that of `than`."""
    refs = (EntityRef(kind, f"{kind}-{number}") for number in range(99))
    return next(ref for ref in refs if partition_at(ref) != partition_at(than))


def partition_at(ref: EntityRef) -> int:
    return partition_of(str(ref), QUICK["partitions"])


async def test_everybody_asks_the_owner(new_system: NewSystem, stage: Stage) -> None:
    async with owner_and_others(new_system, stage, others=2) as systems:
        for number, system in enumerate(systems * 3):
            assert await system.ask(EAR, Hear(str(number))) == number + 1
        receipt = await systems[1].tell(EAR, Hear("told"))
        assert receipt.entity == EAR
        assert await systems[1].ask(EAR, RawMessage("Hear", {"word": "raw"})) == 11
        assert await systems[2].ask(EAR, Heard()) == [*map(str, range(9)), "told", "raw"]
        assert stage.seen["activated"] == ["e"]
        assert [system.statistics().volatile_activations for system in systems] == [1, 0, 0]
        # Nothing of this was written.
        assert (await systems[1].audit()).accepted == 0


async def test_a_warm_path_asks_the_store_nothing(
    new_system: NewSystem, stage: Stage, store_server: Server
) -> None:
    async with owner_and_others(new_system, stage, lease_ttl_s=60, lease_renew_interval_s=20) as (_, other):
        await other.ask(EAR, Hear("cold"))
        looked_up = parts_of(other).sender.routes
        assert looked_up is not None
        before = looked_up.looked_up
        store_server.call("CONFIG", "RESETSTAT")
        for number in range(50):
            await other.ask(EAR, Hear(str(number)))
        calls = {name: int(each["calls"]) for name, each in store_server.call("INFO", "commandstats").items()}
        assert looked_up.looked_up == before
        # One frame there and one back.
        assert 100 <= calls["cmdstat_publish"] <= 102
        # The sweeps of the owner's partitions may come in between.
        assert calls.get("cmdstat_fcall", 0) <= 10


async def test_failures_and_refusals_travel(new_system: NewSystem, stage: Stage) -> None:
    async with owner_and_others(new_system, stage, max_payload_bytes=10_000) as (_, other):
        await other.ask(EAR, Hear("kept"))
        with pytest.raises(HandlerFailed, match=r"^RuntimeError: ear$") as failed:
            await other.ask(EAR, Fail())
        assert failed.value.error_type == "RuntimeError"
        with pytest.raises(Declined) as declined:
            await other.ask(EAR, Fail(refuse=True))
        assert (declined.value.reason, declined.value.wrote) == ("no", 7)
        with pytest.raises(InvalidPayload, match="max_payload_bytes"):
            await other.ask(EAR, Big(20_000))
        assert await other.ask(EAR, Big(9_000)) == "x" * 9_000
        with pytest.raises(InvalidPayload, match="word"):
            await other.ask(EAR, RawMessage("Hear", {}))
        await other.tell(EAR, Fail())
        assert await other.ask(EAR, Heard()) == ["kept"]


async def test_owners_without_the_handler_say_so(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Deaf), new_system() as sender:
        with pytest.raises(UnknownKind, match="'ear'"):
            await sender.ask(EAR, Hear("a"))
    async with new_system(Ear.using(stage=stage)), new_system() as sender:
        with pytest.raises(UnknownMessageType, match=r"'ear'.*'Read'"):
            await sender.ask(EAR, Read())


async def test_nodes_without_actors_ask_by_class_and_by_name(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage)), new_system() as sender:
        assert await sender.ask(EAR, Hear("class")) == 1
        assert await sender.ask(EAR, RawMessage("Hear", {"word": "name"})) == 2
        await sender.tell(EAR, Hear("told"))
        assert await sender.ask(EAR, Heard()) == ["class", "name", "told"]
        for call in (
            lambda: sender.ask(EAR, Hear("a"), key="k"),
            lambda: sender.tell(EAR, Hear("a"), expires_in_s=1),
            lambda: sender.tell_many([(EAR, Hear("a"))]),
            lambda: sender.result(f"ear/e/{0:032x}"),
        ):
            with pytest.raises(NotSupported, match="kind 'ear' is volatile"):
                await call()


async def test_limits_travel(new_system: NewSystem, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.hold("slow")
    async with owner_and_others(new_system, stage, max_depth=2, max_activations=1) as (_, other):
        await other.tell(EAR, Hear("slow"))
        await stage.wait_for("slow")
        await other.tell(EAR, Hear("a"))
        await other.tell(EAR, Hear("b"))
        with pytest.raises(QueueDepthExceeded, match=r"ear/e.*2"):
            await other.ask(EAR, Hear("c"))
        with pytest.raises(ActorLimitExceeded, match="max_activations"):
            await other.ask(Ear.ref("second"), Hear("c"))
        try:
            await other.tell(EAR, Hear("d"))
        except QueueDepthExceeded:
            pass  # the refusal was quicker than the store's word that the message was heard
        else:
            # Whoever told has gone on already: the loss is logged.
            async def is_logged() -> bool:
                return "a tell to the volatile ear/e was lost" in caplog.text

            await until(is_logged)
        stage.release()
        await stage.wait_for("b")  # before that, there may be no room for a question
        assert await other.ask(EAR, Heard()) == ["slow", "a", "b"]


async def test_time_travels_as_a_duration(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with owner_and_others(new_system, stage) as (owner, other):
        assert 1 < await other.ask(EAR, TimeLeft(), timeout_s=3) < 3
        assert await other.ask(EAR, TimeLeft(), timeout_s=0) == float("inf")
        with pytest.raises(AskTimeout):
            await other.ask(EAR, Hear("slow"), timeout_s=0.1)
        with pytest.raises(AskTimeout):
            await other.ask(EAR, Hear("late"), timeout_s=0.1)
        host = parts_of(owner).host
        assert host is not None

        async def expired() -> bool:
            return not host.asked

        await until(expired)
        stage.release()
        # What had not begun in its time does not run.
        assert await other.ask(EAR, Heard()) == ["slow"]
        assert stage.log == ["slow"]


async def test_cancelled_asks_do_not_begin(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with owner_and_others(new_system, stage) as (owner, other):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(other.ask, EAR, Hear("slow"))
            await stage.wait_for("slow")
            task_group.start_soon(other.ask, EAR, Hear("given up"))
            host = parts_of(owner).host
            assert host is not None

            async def arrived() -> bool:
                return len(host.asked) == 2

            await until(arrived)
            task_group.cancel_scope.cancel()

        async def forgotten() -> bool:
            return not host.asked

        await until(forgotten)
        stage.release()
        assert await other.ask(EAR, Heard()) == ["slow"]
        assert stage.log == ["slow"]


async def test_each_sender_in_order(new_system: NewSystem, stage: Stage) -> None:
    async with owner_and_others(new_system, stage, others=2, max_depth=0) as systems:

        async def teller(number: int) -> None:
            system = systems[number % 3]
            for place in range(50):
                await system.tell(EAR, Hear(f"{number} {place}"))
            await system.ask(EAR, Hear(f"{number} 50"))

        async with anyio.create_task_group() as task_group:
            for number in range(9):
                task_group.start_soon(teller, number)
        words = await systems[1].ask(EAR, Heard())
        for number in range(9):
            mine = [word for word in words if word.startswith(f"{number} ")]
            assert mine == [f"{number} {place}" for place in range(51)]
        assert stage.most_running == 1


async def test_an_outbox_goes_to_other_nodes_in_order(
    new_system: NewSystem, stage: Stage, table: Table
) -> None:
    async with owner_and_others(new_system, stage) as (owner, other):
        there = elsewhere("ear", EAR)
        await hand_over(table, owner, other, partition_at(there))
        await owner.ask(EAR, Post(there.id, [str(number) for number in range(100)]))

        async def arrived() -> bool:
            return len(await other.ask(there, Heard())) == 100

        await until(arrived)
        assert await other.ask(there, Heard()) == [str(number) for number in range(100)]


async def test_nobody_owns_the_partition(new_system: NewSystem, stage: Stage) -> None:
    await register_ears(new_system, stage)
    async with new_system() as sender:
        with pytest.raises(OwnerUnavailable, match=r"ear/e: its partition has no owner"):
            await sender.ask(EAR, Hear("a"), timeout_s=0.2)
        routes = parts_of(sender).sender.routes
        assert routes is not None
        assert routes.looked_up <= 10
        replies: list[int] = []

        async def ask(word: str) -> None:
            replies.append(await sender.ask(EAR, Hear(word)))

        async with anyio.create_task_group() as task_group:
            for word in "bcd":
                task_group.start_soon(ask, word)
                await anyio.wait_all_tasks_blocked()
            async with new_system(Ear.using(stage=stage)) as owner:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(ask, "e")
                assert await owner.ask(EAR, Heard()) == list("bcde")
        assert sorted(replies) == [1, 2, 3, 4]  # tasks that are woken together go on in any order


async def test_a_partition_that_moves(new_system: NewSystem, stage: Stage, table: Table) -> None:
    async with owner_and_others(new_system, stage, others=2) as (first, second, sender):
        stop, told = anyio.Event(), 0

        async def teller() -> None:
            nonlocal told
            while not stop.is_set():
                await sender.tell(EAR, Hear(f"t {told}"))
                told += 1

        asked: list[str] = []

        async def asker() -> None:
            while not stop.is_set():
                asked.append(f"a {len(asked)}")
                try:
                    await sender.ask(EAR, Hear(asked[-1]))
                except AtomicActorsError as error:
                    stage.seen["errors"].append(error)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(teller)
            task_group.start_soon(asker)
            await stage.wait_for("a 20")
            await hand_over(table, first, second, partition_at(EAR))
            moved = len(asked)
            await stage.wait_for(f"a {moved + 5}")
            settled = {"a": len(asked), "t": told}
            await stage.wait_for(f"a {moved + 30}")
            stop.set()
        words = await sender.ask(EAR, Heard())
        # The new owner begins with nothing, and goes on in order.
        for letter, said in (("t", told), ("a", len(asked))):
            mine = [int(word[2:]) for word in words if word.startswith(letter)]
            later = [number for number in mine if number > settled[letter]]
            assert later == list(range(settled[letter] + 1, said))
            assert len(mine) == len(set(mine))
            assert mine[0] > 0
        # Only what ran while the partition was taken away may be in doubt; nothing ran twice.
        assert len(stage.seen["errors"]) <= 1
        assert len(stage.log) == len(set(stage.log))
        assert stage.most_running == 1
        assert stage.seen["activated"] == ["e", "e"]


async def test_what_does_not_end_in_time_ends_with_its_partition(
    new_system: NewSystem, stage: Stage, table: Table
) -> None:
    async with owner_and_others(new_system, stage, drain_timeout_s=0.3) as (first, second):
        stage.hold("slow")

        async def ask() -> None:
            with pytest.raises(Interrupted):
                await first.ask(EAR, Hear("slow"))

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ask)
            await stage.wait_for("slow")
            await hand_over(table, first, second, partition_at(EAR))
            # The next copy of the entity begins when this one has ended.
            assert first.statistics().volatile_activations == 0
            assert await second.ask(EAR, Hear("next")) == 1
        stage.release()


async def test_an_owner_that_leaves_loses_no_ask(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("19")
    replies: list[int] = []
    entered, leaves = anyio.Event(), anyio.Event()

    async def be_owner() -> None:
        async with new_system(Ear.using(stage=stage)):
            entered.set()
            await leaves.wait()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(be_owner)
        await entered.wait()
        async with new_system(Ear.using(stage=stage)), new_system(Ear.using(stage=stage)) as sender:

            async def asker() -> None:
                while len(replies) < 60:
                    replies.append(await sender.ask(EAR, Hear(str(len(replies)))))

            async with anyio.create_task_group() as asking:
                asking.start_soon(asker)
                await stage.wait_for("19")
                leaves.set()
                await anyio.wait_all_tasks_blocked()
                stage.release()
    # Each ran once, in order: first with one owner, then with another that knows nothing of it.
    assert stage.log == [str(number) for number in range(60)]
    ended = replies.index(1, 1)
    assert replies == [*range(1, ended + 1), *range(1, 61 - ended)]
    assert ended >= 20


@pytest.mark.parametrize("first", ["ear/o", "office/o"])
@pytest.mark.parametrize("second", ["ear", "office"])
async def test_chains_across_nodes(
    new_system: NewSystem, stage: Stage, first: str, second: str, table: Table
) -> None:
    """Path and deadline travel with asks, durable and volatile, from node to node."""
    start = EntityRef.parse(first)
    away = elsewhere(second, start)
    async with (
        new_system(Ear.using(stage=stage), Office) as one,
        new_system(Ear.using(stage=stage), Office) as other,
    ):
        await hand_over(table, one, other, partition_at(away))
        for system in (one, other):
            assert await system.ask(start, Along([str(away)])) == [first, str(away)]
            with anyio.fail_after(PATIENCE_S), pytest.raises(HandlerFailed, match="AskCycle") as cycle:
                await system.ask(start, Along([str(away), first]), timeout_s=60)
            assert f"{first} -> {away} -> {first}" in str(cycle.value)
            chain = [str(away), *(f"ear/c{number}" for number in range(4))]
            with anyio.fail_after(PATIENCE_S), pytest.raises(HandlerFailed, match=r"TooManyHops.*max_hops=3"):
                await system.ask(start, Along(chain), timeout_s=60)


async def test_durable_entities_of_other_nodes_ask(new_system: NewSystem, stage: Stage) -> None:
    async with (
        new_system(Ear.using(stage=stage), Desk.using(stage=stage)),
        new_system(Ear.using(stage=stage), Desk.using(stage=stage)) as other,
    ):
        await other.ask(desk(), Work("durable"))
        assert await other.ask(desk(), Read()) == ["durable"]
        assert await other.ask(EAR, Hear("volatile")) == 1
