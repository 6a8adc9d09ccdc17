"""Routes and hosts of volatile messages over a network that loses, repeats and delays frames.

The network here is a list: each frame is delivered or lost, and what the store says of it is the truth, a
shrug, or nothing for a while. Whatever happens, a message runs at most once, and one that is known not to have
run says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
from attrs import Factory, define
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._errors import (
    AcceptanceUnknown,
    AskTimeout,
    Interrupted,
    NotExecuted,
    OutcomeUnknown,
    OwnerUnavailable,
    QueueDepthExceeded,
    StoreUnavailable,
    SystemNotRunning,
)
from atomic_actors.base._oneshot import Backend
from atomic_actors.base._records import EntityRef
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import encode_plain, plain_of
from atomic_actors.codec._frames import Frame, ReportFrame, decode_frame, encode_frame
from atomic_actors.contracts._outcomes import RefusalReader
from atomic_actors.journal._protocol import JournalSettings, JournalUnavailable, LeaseState, ReadLease
from atomic_actors.node._inbox import NodeInbox
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.volatile._activations import Failed, Waiting
from atomic_actors.node.volatile._host import VolatileHost
from atomic_actors.node.volatile._routes import WAITING_MAX, VolatileRoutes

#: What becomes of a frame: whether it arrives, and what the store says of it.
Fate = Literal["arrives", "unheard", "lost", "arrives unknown", "twice", "later"]
FATES: tuple[Fate, ...] = ("arrives", "unheard", "lost", "arrives unknown", "twice", "later")


def identity_of(node_id: str) -> bytes:
    """What the lease of a node says of it."""
    identity = NodeIdentity(node_id=node_id, boot_id="", pid_namespace="", pid=1, start_time="")
    return identity.encode()


class Box:
    """A one-shot that nobody awaits."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def set(self, value: Any) -> None:
        self.values.append(value)

    def is_set(self) -> bool:
        return bool(self.values)


@define(eq=False, slots=False)
class World:
    """One sender, two nodes that may own the only partition, a store that knows which, and a network."""

    now_s: float = 100.0
    owner: str = "n1"
    claim: str = "c1"
    claims: int = 1
    fates: deque[Fate] = Factory(deque)
    late: list[tuple[str, bytes]] = Factory(list)
    acks: deque[tuple[Callable[[int | None], None], int | None]] = Factory(deque)
    sent: int = 0
    #: What ran where, in order: `(claim, name)`.
    ran: list[tuple[str, str]] = Factory(list)
    mailbox: list[Waiting] = Factory(list)
    store_away: bool = False
    is_heard: bool = True
    settings: JournalSettings = Factory(JournalSettings)

    def __attrs_post_init__(self) -> None:
        self.hosts = {name: self._host(name) for name in ("n1", "n2")}
        self.routes = VolatileRoutes(
            messenger=cast("Any", self),
            node_id="sender",
            backend=Backend(cast("Callable[[], Any]", Box), lambda: self.now_s),
            refusals=RefusalReader(Codec()),
            accept_timeout_s=5.0,
        )
        nowhere = cast("Any", None)
        self.inboxes = {name: NodeInbox(nowhere, nowhere, host, nowhere) for name, host in self.hosts.items()}
        self.inboxes["sender"] = NodeInbox(nowhere, nowhere, nowhere, self.routes)
        self.boxes: dict[str, Box] = {}

    def _host(self, name: str) -> VolatileHost:
        world = self

        class Back:
            def push(self, node_id: str, frame: Frame) -> None:
                world.carry(node_id, encode_frame(frame), None)

        class Volatile:
            def claim_of(self, partition: int) -> str:
                return world.claim if world.owner == name else ""

            def hand_over(self, kind: BoundKind, ref: EntityRef, partition: int, waiting: Waiting) -> None:
                world.mailbox.append(waiting)

        class Handler:
            class spec:
                raw = False
                location = "Test.handler"

            payload_coder = reply_coder = Codec().coder(Any)

        class TestKind:
            durable = False

            @staticmethod
            def handler_for(name: str) -> Any:
                return Handler

        return VolatileHost(
            volatile=cast("Any", Volatile()),
            kinds=cast("Any", {"ear": TestKind}),
            messenger=cast("Any", Back()),
            backend=Backend(cast("Callable[[], Any]", Box), lambda: self.now_s),
            codec=Codec(),
            max_payload_bytes=0,
        )

    # The journal and the channel of the sender.

    def submit(self, step: ReadLease, on_result: Callable[[Any], None]) -> None:
        if self.store_away:
            raise JournalUnavailable("away", sent=False)
        on_result(LeaseState(identity_of(self.owner), 1, self.claim, 0))

    def push(self, node_id: str, frame: Frame, on_sent: Callable[[int | None], None] | None = None) -> None:
        self.carry(node_id, encode_frame(frame), on_sent)

    def carry(self, to: str, data: bytes, on_sent: Callable[[int | None], None] | None) -> None:
        fate = self.fates.popleft() if self.fates else "arrives"
        if fate == "later" and to == "sender":
            fate = "arrives"  # a late answer is no more than a lost one
        if fate in ("arrives", "twice", "arrives unknown"):
            self.deliver(to, data)
        if fate == "twice":
            self.late.append((to, data))
        if fate == "later":
            self.late.append((to, data))
        if on_sent is not None:
            self.acks.append((on_sent, {"arrives": 1, "twice": 1, "unheard": 0}.get(fate)))

    def acknowledge(self) -> None:
        """The store says what became of the frames so far."""
        while self.acks:
            on_sent, heard = self.acks.popleft()
            on_sent(heard)

    def deliver(self, to: str, data: bytes) -> None:
        frame = decode_frame(data)
        assert isinstance(frame, ReportFrame) == (to == "sender")
        self.inboxes[to].receive(frame)

    # What happens.

    def send(self, *, ask: bool) -> str:
        name = str(self.sent)
        self.sent += 1
        outgoing = self.routes._send(  # pyright: ignore[reportPrivateUsage]
            cast("Any", self),
            0,
            entity="ear/e",
            name=name,
            payload=encode_plain(name),
            timeout_s=3.0,
            path=(),
            is_asked=ask,
        )
        self.boxes[name] = cast("Any", outgoing.oneshot)
        return name

    def serve(self) -> None:
        """The owner runs what waits."""
        waiting, self.mailbox = self.mailbox, []
        for each in waiting:
            if not each.done:
                self.ran.append((self.claim, each.message))
                each.resolve("ran " + each.message)

    def lose(self, owner: str) -> None:
        """The partition goes to another claim; what had not begun does not run."""
        waiting, self.mailbox = self.mailbox, []
        self.claims += 1
        self.owner, self.claim = owner, f"c{self.claims}" if owner else ""
        for each in waiting:
            each.resolve(Failed(OwnerUnavailable("lost")))

    def deliver_late(self) -> None:
        late, self.late = self.late, []
        for to, data in late:
            self.deliver(to, data)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.02) + 1):
            self.acknowledge()
            self.now_s += 0.02
            self.routes.tick(self.now_s)

    def settle(self) -> None:
        """From now on nothing is lost; go on until nobody waits any more."""
        self.fates.clear()
        for _ in range(4):
            self.deliver_late()
            self.wait(0.3)
            self.serve()
        self.wait(5)
        assert not self.mailbox

    def answer(self, name: str) -> Any:
        (value,) = self.boxes[name].values
        return plain_of(value) if isinstance(value, bytes) else value


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["ask", "ask", "tell", "serve", "n1", "n2", "nobody", "late", "wait", "long", "ack"]),
        st.lists(st.sampled_from(FATES), min_size=1, max_size=6).map(tuple),
    ),
    max_size=60,
)


@given(STEPS)
def test_at_most_once_and_never_silent(steps: list[Any]) -> None:
    world = World()
    for step in steps:
        match step:
            case "ask" | "tell":
                world.send(ask=step == "ask")
            case "serve":
                world.serve()
            case "n1" | "n2":
                world.lose(step)
            case "nobody":
                world.lose("")
            case "ack":
                world.acknowledge()
            case "late":
                world.deliver_late()
            case "wait" | "long":
                world.wait(0.1 if step == "wait" else 1.0)
            case _:
                world.fates.extend(step)
    world.settle()
    names = [name for _, name in world.ran]
    assert len(names) == len(set(names))
    for name, box in world.boxes.items():
        assert len(box.values) == 1
        value = world.answer(name)
        if value == f"ran {name}":
            assert name in names
        if isinstance(value, NotExecuted):
            assert name not in names
        assert value == f"ran {name}" or isinstance(value, int | NotExecuted | OutcomeUnknown | Interrupted)
    routes = world.routes
    (route,) = routes._routes.values() if world.boxes else [None]  # pyright: ignore[reportPrivateUsage]
    assert not routes._frames  # pyright: ignore[reportPrivateUsage]
    assert route is None or (not route.frames and not route.asks and not route.tells)


@given(st.lists(st.one_of(st.just("send"), st.just("wait"), st.sampled_from(FATES)), max_size=60))
def test_one_owner_runs_what_it_gets_in_order(steps: list[Any]) -> None:
    world = World()
    for step in steps:
        if step == "send":
            world.send(ask=world.sent % 2 == 0)
        elif step == "wait":
            world.wait(0.1)
        else:
            world.fates.append(step)
    world.settle()
    numbers = [int(name) for _, name in world.ran]
    assert numbers == sorted(numbers)


def test_what_nobody_heard_is_sent_again_in_order() -> None:
    world = World()
    world.fates.extend(["unheard", "arrives", "arrives"])
    names = [world.send(ask=True) for _ in range(3)]
    world.wait(0.1)
    world.serve()
    assert [name for _, name in world.ran] == names
    assert [world.answer(name) for name in names] == ["ran 0", "ran 1", "ran 2"]


def test_what_may_have_arrived_is_not_sent_again() -> None:
    world = World()
    world.fates.append("lost")
    asked = world.send(ask=True)
    world.fates.append("lost")
    told = world.send(ask=False)
    world.acknowledge()
    assert isinstance(world.answer(told), AcceptanceUnknown)
    later = world.send(ask=True)
    world.serve()
    assert world.answer(later) == "ran 2"
    world.wait(4)
    assert isinstance(world.answer(asked), AskTimeout)
    assert [name for _, name in world.ran] == [later]


def test_an_ask_ends_when_its_owner_is_gone() -> None:
    world = World()
    name = world.send(ask=True)
    taken, world.mailbox = world.mailbox, []
    assert [each.message for each in taken] == [name]
    world.lose("n2")
    world.wait(1.2)
    value = world.answer(name)
    assert isinstance(value, Interrupted)
    assert "no dead letters" in str(value)
    world.send(ask=True)
    assert not world.boxes["1"].values
    world.serve()
    assert world.answer("1") == "ran 1"


def test_nobody_owns_it() -> None:
    world = World()
    world.lose("")
    name = world.send(ask=True)
    before = world.routes.looked_up
    world.wait(3.1)
    assert isinstance(world.answer(name), OwnerUnavailable)
    assert "its partition has no owner" in str(world.answer(name))
    assert world.routes.looked_up - before <= 20


def test_the_store_is_away() -> None:
    world = World()
    world.store_away = True
    assert isinstance(world.answer(world.send(ask=True)), StoreUnavailable)
    told = world.send(ask=False)
    world.wait(0.1)
    assert isinstance(world.answer(told), StoreUnavailable)


def test_nothing_goes_out_before_answers_can_come() -> None:
    world = World()
    world.is_heard = False
    name = world.send(ask=True)
    world.wait(1)
    assert not world.mailbox
    world.is_heard = True
    world.routes.heard()
    world.serve()
    assert world.answer(name) == f"ran {name}"


def test_only_so_many_wait() -> None:
    world = World()
    world.lose("")
    for _ in range(WAITING_MAX):
        world.send(ask=False)
    with pytest.raises(QueueDepthExceeded, match="partition 0"):
        world.send(ask=False)


def test_leaving() -> None:
    world = World()
    sent = world.send(ask=True)
    world.lose("")
    world.wait(0.1)
    world.fates.append("unheard")
    waiting = world.send(ask=True)
    world.mailbox.clear()
    world.routes.abandon_all()
    assert isinstance(world.answer(waiting), SystemNotRunning)
    assert isinstance(world.answer(sent), OutcomeUnknown | SystemNotRunning)
