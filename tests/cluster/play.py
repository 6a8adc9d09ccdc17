"""Plays one seed: clients, a driver of faults, and everything that must be true in the end."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import trio
from attrs import define, field

from atomic_actors import AtomicActorsError, EntityRef, Receipt
from atomic_actors.codec._envelope import plain_of
from atomic_actors.node.operations._reports import AuditReport
from atomic_actors.testing import Simulation, run_simulation
from atomic_actors.testing.checkers._history import Accepted, Began, Ended, PutBack
from atomic_actors.testing.simulation._faults import MOMENTS, NODE_FAULTS, CrashPoint
from atomic_actors.testing.simulation._node import SimulatedNode
from tests.cluster.actors import WORKER_MESSAGES, Add, Read, Worker
from tests.cluster.actors import Counter as CounterActor
from tests.cluster.plan import LEASE_TTL_S, Swarm, draw_plan, draw_swarm

STEPS_MIN = 1_000
FAULTS_MIN = 20
NODES_MIN, NODES_MAX = 3, 5
#: Steps that only look whether somebody is there, and change nothing for a message.
WATCHING = ("Renew", "ReadLease", "Audit")
#: In virtual seconds: how long a run may take, one call, and the healed cluster until it is quiet.
RUN_LIMIT_S = 300.0
CALL_LIMIT_S = 60.0
QUIET_LIMIT_S = 120.0
#: Clients hold back while more messages wait: what is drawn out adds nothing.
BACKLOG_MAX = 40


class CounterModel:
    """What a counter does, one message at a time."""

    def initial(self) -> int:
        return 0

    def apply(self, state: int, input: Add | Read) -> tuple[int, int]:
        amount = input.amount if isinstance(input, Add) else 0
        return state + amount, state + amount


def steps_of(simulation: Simulation) -> int:
    """How many steps the nodes have sent so far, of every kind."""
    return simulation.faults.step_kinds.total()


def watching_of(simulation: Simulation) -> int:
    """How many of them only looked whether somebody is there."""
    return sum(simulation.faults.step_kinds[kind] for kind in WATCHING)


@define(eq=False)
class Play:
    """One run."""

    simulation: Simulation
    swarm: Swarm
    steps_min: int = STEPS_MIN
    rng: random.Random = field(init=False)
    receipts: list[Receipt[Any]] = field(factory=list, init=False)
    errors: Counter[str] = field(factory=Counter, init=False)
    stop: bool = field(default=False, init=False)
    #: Of clients, what they do now.
    doing: dict[int, str] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.rng = random.Random(self.swarm.seed ^ 0xC11E)

    async def run(self) -> None:
        """The crash phase, then the healed one, then the verdict."""
        simulation = self.simulation
        with trio.move_on_after(RUN_LIMIT_S) as limit:
            try:
                await self._crash_phase()
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
        if limit.cancelled_caught:
            simulation.fail([f"after {RUN_LIMIT_S:g} s clients hang in {self.doing}"])
        await self._settle()
        if self.swarm.loses_history:
            # What was lost cannot be checked by its answers and states; the rules know what holds all the same.
            simulation.check()
            return
        simulation.check(models={"counter": CounterModel()})
        await self._check_books()
        self._check_chains()
        self._check_strictly_once()

    async def _crash_phase(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drive_faults)
            nursery.start_soon(self._stand_by)
            if self.swarm.loses_history:
                nursery.start_soon(self._lose_history)
            for number in range(self.swarm.clients):
                nursery.start_soon(self._client, number)
            while self._is_too_early():  # noqa: ASYNC110 - steps and faults are counted
                await trio.sleep(0.1)
            self.stop = True
            while self.doing:  # noqa: ASYNC110 - the clients are counted
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    # Clients.

    async def _client(self, number: int) -> None:
        while not self.stop:
            await trio.sleep(self.rng.random() * self.swarm.rest_s)
            if self._backlog() > BACKLOG_MAX:
                continue
            verb = self.rng.choice(self.swarm.verbs)
            self.doing[number] = verb
            began_s = trio.current_time()
            try:
                await getattr(self, f"_do_{verb}")()
            except AtomicActorsError as error:
                self.errors[type(error).__name__] += 1
            took_s = trio.current_time() - began_s
            if took_s > CALL_LIMIT_S:
                self.simulation.broke(f"{verb} took {took_s:.0f} s")
            del self.doing[number]

    def _backlog(self) -> int:
        return sum(partition.counts["enqueued"] for partition in self.simulation.store.partitions())

    def _message(self) -> tuple[EntityRef, Any]:
        cls = WORKER_MESSAGES[self.rng.choice(self.swarm.messages)]
        return EntityRef("worker", self.rng.choice(self.swarm.workers)), cls(draw_plan(self.rng, self.swarm))

    async def _do_tell(self) -> None:
        self.receipts.append(await self.simulation.system.tell(*self._message()))

    async def _do_ask(self) -> None:
        await self.simulation.system.ask(*self._message())

    async def _do_count(self) -> None:
        message = Read() if self.rng.random() < 0.3 else Add(self.rng.choice((1, 10, 100)))
        await self.simulation.system.ask(EntityRef("counter", self.rng.choice(self.swarm.counters)), message)

    async def _do_tell_many(self) -> None:
        self.receipts += await self.simulation.system.tell_many([self._message() for _ in range(4)])

    async def _do_ask_short(self) -> None:
        await self.simulation.system.ask(*self._message(), timeout_s=0.05 + self.rng.random() * 0.3)

    async def _do_ask_cancelled(self) -> None:
        on_cancel: Any = self.rng.choice(("withdraw", "detach"))
        with trio.move_on_after(self.rng.random() * 0.2):
            await self.simulation.system.ask(*self._message(), on_cancel=on_cancel)

    async def _do_tell_keyed(self) -> None:
        await self.simulation.system.tell(*self._message(), key=f"k{self.rng.randrange(10)}")

    async def _do_tell_expiring(self) -> None:
        receipt = await self.simulation.system.tell(*self._message(), expires_in_s=self.rng.random() * 0.5)
        self.receipts.append(receipt)

    def _receipt(self) -> Receipt[Any] | None:
        return self.rng.choice(self.receipts[-20:]) if self.receipts else None

    async def _do_withdraw(self) -> None:
        receipt = self._receipt()
        if receipt is not None and await self.simulation.system.withdraw(receipt):
            end = self._end_of(receipt)
            if end != "withdraw":
                self.simulation.broke(f"withdraw of {receipt.message_id} said yes, but its end is {end!r}")

    async def _do_result(self) -> None:
        receipt = self._receipt()
        if receipt is None:
            return
        value = await self.simulation.system.result(receipt, timeout_s=1.0)
        ended = self._ended(receipt)
        if ended is None or ended.event != "complete" or plain_of(ended.reply) != value:
            self.simulation.broke(f"result of {receipt.message_id} is {value!r}, but it ended as {ended}")

    def _ended(self, receipt: Receipt[Any]) -> Ended | None:
        uid = receipt.message_id.rpartition("/")[2]
        for record in reversed(self.simulation.history.records):
            if isinstance(record, Ended) and record.uid == uid:
                return record
        return None

    def _end_of(self, receipt: Receipt[Any]) -> str:
        ended = self._ended(receipt)
        return ended.event if ended is not None else ""

    async def _do_passivate(self) -> None:
        with trio.move_on_after(5):
            await self.simulation.system.passivate(self._message()[0])

    async def _do_pause_entity(self) -> None:
        entity = self._message()[0]
        await self.simulation.system.pause(entity)
        await trio.sleep(self.rng.random() * 0.3)
        await self.simulation.system.resume(entity)

    async def _do_replay(self) -> None:
        # A counter's model does not know of replays: nobody calls them.
        letters = await self.simulation.system.dead_letters.list("worker")
        if letters:
            letter = self.rng.choice(letters)
            at: Any = self.rng.choice(("head", "tail"))
            await self.simulation.system.dead_letters.replay(letter.message_id, at=at)

    # Faults of nodes.

    async def _drive_faults(self) -> None:
        kinds = [kind for kind in NODE_FAULTS if kind in self.swarm.kinds]
        while not self.stop:
            rest_s = self.rng.random() * 2 * self.swarm.node_fault_every_s
            while rest_s > 0 and not self._is_behind():
                await trio.sleep(min(rest_s, 0.02))
                rest_s -= 0.02
            await trio.sleep(0.001)
            node = self.simulation.living()
            if node is not None and not self.stop:
                self._hurt(node, self.rng.choice(kinds))

    async def _lose_history(self) -> None:
        """Now and then the store is again as it was a while ago."""
        while not self.stop:
            lose = self.simulation.back_up()
            await trio.sleep(self.rng.choice((0.01, 0.1, 0.5)))
            if not self.stop:
                lose()
                await trio.sleep(self.rng.choice((1.0, 3.0)))

    def _is_too_early(self) -> bool:
        simulation = self.simulation
        return steps_of(simulation) < self.steps_min or simulation.faults.fired.total() < FAULTS_MIN

    def _is_behind(self) -> bool:
        """Whether there were fewer faults than there should be after so many steps."""
        fired = self.simulation.faults.fired.total()
        return steps_of(self.simulation) * FAULTS_MIN > (fired + 1) * self.steps_min

    def _hurt(self, node: SimulatedNode, kind: str) -> None:
        simulation, rng = self.simulation, self.rng
        if kind in ("crash", "crash, process gone"):
            node.die(kind, process_gone=kind != "crash")
        elif kind == "crash at a step":
            kinds = rng.choice(tuple(MOMENTS.values()))
            side: Any = rng.choice(("before", "after", "late"))
            node.journal.arm(CrashPoint(kinds, rng.randint(1, 5 if kinds else 40), side))
        elif kind == "crash at an await":
            node.die_at_await(rng.randint(1, 400))
        elif kind == "pause":
            simulation.pause(rng.choice((0.05, 0.5, 1.2, 2.5)) * LEASE_TTL_S, node.number)
        elif kind == "clock drift":
            rate = rng.uniform(0.99, 1.01)
            node.process.set_clock_rate(rate)
            simulation.faults.fire(node.number, kind, f"{rate:.4f}")
        elif kind == "join" and simulation.size < NODES_MAX:
            simulation.size += 1
            simulation.faults.fire(simulation.join().number, kind)
        elif kind == "leave":
            simulation.size = max(NODES_MIN, simulation.size - rng.choice((0, 1)))
            simulation.faults.fire(node.number, kind)
            node.leave()
        elif kind == "deaf" and not node.channels.is_deaf:
            simulation.faults.fire(node.number, kind)
            node.channels.set_deaf(True)
            simulation.after(rng.choice((0.1, 1.0)), lambda: node.channels.set_deaf(False))
        elif kind == "cut off":
            for_s = rng.choice((0.1, 0.5, 2.0)) * LEASE_TTL_S
            node.journal.cut_off_until_s = trio.current_time() + for_s
            simulation.faults.fire(node.number, kind, f"for {for_s:g} s")

    # The verdict.

    async def _settle(self) -> None:
        """Heal everything, and do what a person on call does: make room for letters, resume what is parked."""
        simulation = self.simulation
        simulation.faults.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stand_by)
            await simulation.settle(QUIET_LIMIT_S)
            end_s = trio.current_time() + QUIET_LIMIT_S
            while any(entity.messages for entity in simulation.store.entities()):
                if trio.current_time() > end_s:
                    simulation.fail([f"not everything has ended: {simulation.unfinished()}"])
                await trio.sleep(0.1)
            await simulation.settle(QUIET_LIMIT_S)
            nursery.cancel_scope.cancel()

    async def _stand_by(self) -> None:
        """What a person on call does: make room for dead letters, and resume what is parked."""
        simulation = self.simulation
        while True:
            await trio.sleep(0.2)
            parked = [
                entity.name for entity in simulation.store.entities() if entity.parked and entity.messages
            ]
            for name in parked:
                kind, _, identifier = name.partition("/")
                try:
                    letters = await simulation.system.dead_letters.list(kind)
                    await simulation.system.dead_letters.purge(*(letter.message_id for letter in letters))
                    await simulation.system.resume(EntityRef(kind, identifier))
                except AtomicActorsError as error:
                    self.errors[type(error).__name__] += 1

    async def _check_books(self) -> None:
        report = await self._audit()
        accepted = sum(isinstance(record, Accepted) for record in self.simulation.history.records)
        if not report.is_balanced or report.accepted != accepted:
            self.simulation.fail(
                [f"audit: {report.problems}, {report.accepted} accepted, but {accepted} were seen"]
            )

    async def _audit(self) -> AuditReport:
        end_s = trio.current_time() + QUIET_LIMIT_S
        while True:
            try:
                return await self.simulation.system.audit()
            except AtomicActorsError:
                # A node may not have noticed yet that its way to the store is open again.
                if trio.current_time() > end_s:
                    raise
                await trio.sleep(0.1)

    def _check_chains(self) -> None:
        """Each state is what the messages that completed make of an empty one, in their order."""
        names: dict[str, str] = {}
        chains: defaultdict[str, list[str]] = defaultdict(list)
        for record in self.simulation.history.records:
            if isinstance(record, Accepted):
                names[record.uid] = record.name
            elif (
                isinstance(record, Ended)
                and record.event == "complete"
                and record.entity.startswith("worker/")
            ):
                chains[record.entity].append(record.uid)
        for entity in self.simulation.store.entities():
            if not entity.name.startswith("worker/"):
                continue
            held = plain_of(entity.state)["uids"] if entity.state else []
            if held != chains[entity.name]:
                expected = chains[entity.name]
                self.simulation.fail(
                    [f"the state of {entity.name} holds {held}, committed were {expected}"], entity.name
                )

    def _check_strictly_once(self) -> None:
        """A handler that may not run again never does, unless it said itself that it failed."""
        names: dict[str, str] = {}
        began: dict[str, Began] = {}
        for record in self.simulation.history.records:
            if isinstance(record, Accepted):
                names[record.uid] = record.name
            elif isinstance(record, PutBack) and record.event == "retry":
                for uid in record.uids:
                    began.pop(uid, None)
            elif isinstance(record, Began) and names[record.uid] in ("Work", "Add"):
                before = began.get(record.uid)
                if before is not None:
                    self.simulation.fail(
                        [f"{record.uid} of {record.entity} ran again: {before}, then {record}"],
                        record.entity,
                    )
                began[record.uid] = record


def play_seed(seed: int, *, steps_min: int = STEPS_MIN) -> Play:
    """Play a seed.

    Raises:
        SimulationFailed: something was broken.
    """
    swarm = draw_swarm(seed)

    async def main(simulation: Simulation) -> Play:
        simulation.faults.frame_rate = swarm.frame_rate
        play = Play(simulation, swarm, steps_min)
        await play.run()
        return play

    return run_simulation(
        main,
        Worker,
        CounterActor,
        seed=seed,
        nodes=swarm.nodes,
        faults=swarm.kinds,
        fault_rate=swarm.call_rate,
        **swarm.settings,
    )
