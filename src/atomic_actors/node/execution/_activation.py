"""One entity, alive in memory: its state, and the task that runs its turns.

The store is the mailbox, so an activation's own mailbox is a single slot: the store never has more
than one dispatch out for an entity. The task loops over what the store offers:

    offer -> turn (handler, handler, ...) -> commit -> the answer brings the next offer

Most turns find their successor in the answer to their own commit, and a message for an idle entity is
taken by the very step that accepted it. No task, timer or cancel scope is made for a message: one
scope covers turn after turn and is replaced only after a turn was cut off by its deadline.

Who may end a turn, and what becomes of it:

* its deadline, or a child task that raised: the sweeper or the child cuts it; it failed;
* the partition's scope (lease about to end, shutdown): it is interrupted, and settled if the claim is
  still ours;
* the system's own errors: likewise, and the system reports them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import anyio
from attrs import define, field

from atomic_actors.actors._declarations import Outbox
from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._errors import NotSupported, SystemFailed
from atomic_actors.base._lifecycle import Event
from atomic_actors.base._records import EntityRef
from atomic_actors.codec._envelope import Failure
from atomic_actors.journal._protocol import (
    NOTHING,
    Dispatch,
    Finish,
    Finished,
    Interrupt,
    JournalUnavailable,
    Offer,
    Rejected,
    Result,
    Stale,
    Verdict,
)
from atomic_actors.journal.commit._batches import OVERTAKEN_MAX
from atomic_actors.node.execution._entity_state import EntityState, Unreadable
from atomic_actors.node.execution._mailbox import Mailbox
from atomic_actors.node.execution._owned_partition import OwnedPartition
from atomic_actors.node.execution._turn import (
    COMPLETE,
    Turn,
    TurnCalls,
    TurnContext,
    current_activation,
    failure_of,
    failure_verdict,
)
from atomic_actors.node.execution._turn_runner import NodeParts, Stateless, TurnRunner, Unhandled
from atomic_actors.node.execution._turn_scope import TurnScope

__all__ = ("Activation", "Host")

#: The asker's answer, by event; the other events leave the message where it can run again.
_OUTCOME_WORDS: Final = {
    Event.COMPLETE.value: b"completed\n",
    Event.REFUSE.value: b"refused\n",
    Event.FAIL.value: b"failed\n",
    Event.INTERRUPT.value: b"interrupted\n",
}
#: What a commit can tell by itself: whether there is room for a dead letter, only its answer says.
_CERTAIN: Final = (Event.COMPLETE.value, Event.REFUSE.value)


class Host(Protocol):
    """Keeps the activations of a node, and finds work for them; the `Supervisor`."""

    calls: TurnCalls
    #: The turns here that wait for each entity.
    awaited: dict[str, int]

    def take(self, activation: Activation) -> None:
        """Ask the store for an entity's next work."""
        ...

    def follow_up(self, activation: Activation, offer: Offer) -> None:
        """Do what an offer asks for, other than running a turn in an active activation."""
        ...

    def committed(self, activation: Activation, step: Finish) -> None:
        """A turn is committed: wake the targets of its outbox."""
        ...

    def went_idle(self) -> None:
        """There may be room for another entity now."""
        ...

    def ended(self, activation: Activation, *, was_closing: bool) -> None:
        """An activation is gone."""
        ...


@define(eq=False, kw_only=True)
class Activation:
    """An entity in memory. `status` goes only forward: reserved, active, closing, ended."""

    host: Host
    node: NodeParts
    kind: BoundKind
    ref: EntityRef
    entity: str
    partition: OwnedPartition
    status: Literal["reserved", "active", "closing", "ended"] = field(default="reserved", init=False)
    #: When it last began or ended a turn, on the backend's clock.
    used_at_s: float = field(init=False)
    mailbox: Mailbox = field(factory=Mailbox, init=False)
    state: EntityState = field(init=False)
    turn_scope: TurnScope = field(factory=TurnScope, init=False)
    _runner: TurnRunner = field(init=False)
    _turn: Turn | None = field(default=None, init=False)
    _finished: Result | JournalUnavailable | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        config = self.node.config
        self.used_at_s = self.node.backend.clock()
        self.state = EntityState(self.kind, self.entity, config.max_payload_bytes)
        outbox = Outbox(config.max_outbox_messages)
        self._runner = TurnRunner(
            node=self.node,
            kind=self.kind,
            entity=self.entity,
            partition=self.partition,
            context=TurnContext(self, outbox),
            outbox=outbox,
            state=self.state,
            turn_scope=self.turn_scope,
        )

    def __repr__(self) -> str:
        return (
            f"<Activation {self.entity} {self.status}{' busy' if self.is_busy else ''} v{self.state.version}>"
        )

    # What the node does with it.

    @property
    def calls(self) -> TurnCalls:
        """The sender of its system (`CurrentActivation`)."""
        return self.host.calls

    @property
    def context(self) -> TurnContext:
        """What the running handler sees."""
        return self._runner.context

    @property
    def is_busy(self) -> bool:
        """Whether a turn runs, or something waits to become one."""
        # A turn whose commit is answered is over, though the task may not have run since.
        runs = self._turn is not None and self._finished is None
        return runs or self.mailbox.offer is not None or self.mailbox.admitted > 0

    @property
    def is_running(self) -> bool:
        """Whether a turn is in a handler or on its way to the store."""
        return self._turn is not None

    @property
    def begun(self) -> Dispatch | None:
        """What a handler has begun with, and no answer of the store has ended."""
        turn = self._turn
        return turn.dispatch if turn is not None and turn.began and self._finished is None else None

    def offered(self, offer: Offer) -> None:
        """An append that was admitted here is answered (`LocalTake`)."""
        self.mailbox.admitted -= 1
        self.mailbox.backlog += offer.more
        self.accept(offer)
        if not self.mailbox.admitted and (self.status == "closing" or self._is_leaving()):
            self._wake()  # it stayed only for this answer
        self._heed_bell()

    def accept(self, offer: Offer) -> None:
        """Take what the store offers; a dispatch that is known already is dropped."""
        dispatch = offer.dispatch
        if dispatch is None:
            if offer.more and (self._turn is not None or self.mailbox.offer is not None):
                return  # the commit of what runs will take it
            if offer is not NOTHING and self.mailbox.offer is None:
                self.host.follow_up(self, offer)
            elif self.status == "reserved" and not self.mailbox.admitted:
                self.status = "ended"
                self.host.ended(self, was_closing=False)
            return
        settling = self.node.settlements.under_way
        if self.knows(dispatch.turn) or (settling and dispatch.turn <= settling.get(self.entity, 0)):
            return
        self.mailbox.offer = offer
        if self.status != "active":
            self.host.follow_up(self, offer)
        self._wake()

    def knows(self, turn: int) -> bool:
        """Whether a turn has begun here, or is about to."""
        dispatch = self.mailbox.offer.dispatch if self.mailbox.offer is not None else None
        return turn <= self.mailbox.last_turn or (dispatch is not None and turn <= dispatch.turn)

    def _heed_bell(self) -> None:
        """Ask the store once more, if the doorbell rang while an older answer was on its way."""
        if self.mailbox.recheck_due and not self.is_busy and self.status in ("active", "closing"):
            self.host.take(self)

    def _wake(self) -> None:
        waiting = self.mailbox.waiter
        if waiting is not None:
            self.mailbox.waiter = None
            waiting.set(None)

    def inherit(self, other: Activation) -> None:
        """Take over the memory of the activation before, so that its state need not be read again."""
        self.mailbox.last_turn = max(self.mailbox.last_turn, other.mailbox.last_turn)
        if self.state.version < other.state.version and not self._runner.is_alive:
            self.state.inherit(other.state)

    def take_offer(self) -> Offer | None:
        """Give up what it has not begun, for its successor."""
        offer, self.mailbox.offer = self.mailbox.offer, None
        return offer

    def close(self) -> None:
        """Ask it to passivate as soon as nothing runs."""
        if self.status == "active":
            self.status = "closing"
            self._wake()

    # Its task.

    async def run(self) -> None:
        """Live until passivated or cancelled. The partition's task group runs it."""
        self.status = "active"
        self.used_at_s = self.node.backend.clock()
        current_activation.set(self)
        try:
            async with anyio.create_task_group() as self._runner.children.task_group:
                await self._serve()
        finally:
            was_closing = self._is_closing()
            self.status = "ended"
            self._leave_turn()
            self.host.ended(self, was_closing=was_closing)

    def _is_closing(self) -> bool:
        return self.status == "closing"

    def _is_leaving(self) -> bool:
        """Whether no more is taken for it: its partition is given up, and no turn here waits for it."""
        return self.partition.is_leaving and self.entity not in self.host.awaited

    def _leave_turn(self) -> None:
        """The task ends while a turn is on: if it is not on its way to the store, settle it."""
        turn = self._turn
        if turn is None:
            return
        if turn.committing:
            if isinstance(self._finished, Rejected):
                self._rejected(turn, self._finished.text)
            return
        self._turn = None
        self._settle(turn, began=turn.began)

    def _settle(self, turn: Turn, *, began: bool) -> None:
        uids = tuple(item.uid for item in turn.dispatch.messages)
        partition = self.partition
        step = Interrupt(
            partition=partition.number,
            entity=self.entity,
            claim=partition.claim,
            turn=turn.dispatch.turn,
            uids=uids,
            began=began,
        )
        self.node.settlements.settle(step)

    async def _serve(self) -> None:
        while True:
            with anyio.CancelScope() as scope:
                self.turn_scope.scope = scope
                await self._work()
                return
            # Only a cut turn comes here: the partition's own cancel passes through the scope.
            self.turn_scope.scope = None
            await self._runner.children.end()
            self._after_cut()

    async def _work(self) -> None:
        while True:
            turn = self._turn
            if turn is None:
                offer = await self._next_offer()
                if offer is None:
                    await self._runner.passivate()
                    return
                turn = await self._begin(offer)
                if turn is None:
                    continue
            messages = turn.dispatch.messages
            try:
                while turn.position < len(messages) and not turn.ended:
                    self._conclude(turn, await self._runner.run(turn, messages[turn.position]))
                    if self.turn_scope.cut_by is not None:
                        # It came as the handler ended, and must not hit the next one: the commit takes it.
                        turn.ended = True
            except Unhandled as unhandled:
                turn.ended = True
                if not turn.position:
                    self._leave_turn()
                    partition = self.partition
                    self.node.deferred.leave(partition.number, self.entity, partition.claim, unhandled.name)
                    continue
            await self._commit(turn)

    async def _next_offer(self) -> Offer | None:
        while self.mailbox.offer is None:
            if (self._is_closing() or self._is_leaving()) and not self.mailbox.admitted:
                return None
            oneshot = self.mailbox.waiter = self.node.backend.new_oneshot()
            self.host.went_idle()  # may close this very activation, and set the one-shot
            await oneshot
        return self.take_offer()

    async def _begin(self, offer: Offer) -> Turn | None:
        """Make an offer the running turn; None if it is not to be run here."""
        dispatch = offer.dispatch
        if dispatch is None:
            self.host.follow_up(self, offer)
            return None
        turn = Turn(dispatch=dispatch)
        self._turn = turn
        self.mailbox.last_turn = dispatch.turn
        self.used_at_s = self.node.backend.clock()
        if not self.partition.is_valid():
            self._turn = None
            self.partition.lose("its lease had run out before a turn")
            return None
        try:
            await self._runner.adopt(dispatch)
        except Stateless:
            # The state in memory was taken for granted, and is not there any more: ask again for all of it.
            self._turn, self.mailbox.last_turn = None, dispatch.turn - 1
            self.state.version = -1
            self.host.take(self)
            return None
        except Unreadable as error:
            self._leave_turn()
            self.node.parking.park(self.partition.number, self.entity, str(error))
            return None
        except Exception as error:
            # The constructor or `on_activate` raised: the first message pays for it, as for its handler.
            self._runner.forget()
            item = dispatch.messages[0]
            turn.members.append(None)
            failure = failure_of(error)
            self._conclude(turn, failure_verdict(self.kind, item, failure, self.kind.settings.max_attempts))
            turn.ended = True
        return turn

    # One message.

    def _conclude(self, turn: Turn, verdict: Verdict) -> None:
        turn.verdicts.append(verdict)
        turn.position += 1
        if verdict.event == COMPLETE:
            return
        died = verdict.event in (Event.FAIL.value, Event.INTERRUPT.value)
        if died and self.kind.settings.on_dead == "park":
            turn.park = True
        if verdict.event == Event.RETRY.value or turn.park or died:
            # A dead letter ends the run too: if there is no room for it, nothing may follow it.
            turn.ended = True

    def _after_cut(self) -> None:
        """A deadline or a child cut the turn: unless it was past its handler already, it failed."""
        why, self.turn_scope.cut_by = self.turn_scope.cut_by, None
        turn = self._turn
        if turn is None or turn.committing or turn.position >= len(turn.dispatch.messages):
            return
        child_error = self._runner.children.take_error()
        if why == "child" and child_error is not None:
            failure = failure_of(child_error)
        else:
            failure = Failure("DeadlineExceeded", "the handler was still running at its deadline")
        self._conclude(turn, self._runner.cut(turn, failure))

    # The commit.

    async def _commit(self, turn: Turn) -> None:
        if not turn.committing:
            self._submit(turn)
        while self._finished is None:
            self.mailbox.waiter = self.node.backend.new_oneshot()
            await self.mailbox.waiter
            if self._turn is not turn:
                return  # committed long ago: it was left asleep until there was something to do
        result, self._finished = self._finished, None
        self._turn = None
        if isinstance(result, Finished):
            self._heed_bell()
            return
        if isinstance(result, JournalUnavailable):
            return
        if isinstance(result, Stale):
            self.partition.lose(f"another owner has it ({result.what} of {self.entity})")
            return
        if isinstance(result, Rejected):
            self._rejected(turn, result.text)
            return
        raise SystemFailed(f"the commit of {self.entity} was answered with {result!r}")

    def _rejected(self, turn: Turn, why: str) -> None:
        """Nothing of the turn counts, and nothing that it left in memory may be taken for granted."""
        self._turn = None
        self._runner.forget()
        self.state.version = -1
        why = f"the commit of turn {turn.dispatch.turn} was refused: {why}"
        self.node.parking.park(self.partition.number, self.entity, why)
        # A handler has run: the store's record of that must not be taken for one that never began.
        self._settle(turn, began=True)

    def _submit(self, turn: Turn) -> None:
        messages = turn.dispatch.messages
        verdicts = (
            *turn.verdicts,
            *(Verdict(uid=item.uid, event=Event.REQUEUE.value) for item in messages[turn.position :]),
        )
        state = self.state
        step = Finish(
            partition=self.partition.number,
            entity=self.entity,
            claim=self.partition.claim,
            turn=turn.dispatch.turn,
            verdicts=verdicts,
            state=state.staged if state.staged != state.committed else None,
            expected_version=turn.dispatch.version,
            outbox=tuple(turn.outbox),
            park=turn.park,
            policy=self.kind.policy,
            run_limit=0 if self._is_leaving() else self.kind.settings.max_run_length,
            pushes=self._pack_replies(turn),
        )
        turn.committing = True
        # It must not be refused, and is kept until the store answers.
        self.node.commits.enqueue(
            step,
            lambda result: self._on_committed(turn, step, result),
            overtakes=self.mailbox.backlog > OVERTAKEN_MAX,
        )

    def _pack_replies(self, turn: Turn) -> tuple[tuple[bytes, bytes], ...]:
        """What the store is to tell askers on other nodes, so that they need not wait for this one to hear."""
        packed: list[tuple[bytes, bytes]] = []
        replies = self.node.replies
        for verdict, member in zip(turn.verdicts, turn.members, strict=True):
            if member is None or verdict.event not in _CERTAIN:
                continue
            sender = member.sender
            if not sender or sender == replies.node_id:
                continue
            push = replies.packed_reply(
                sender, self.entity, verdict.uid, _OUTCOME_WORDS[verdict.event], verdict.reply
            )
            if push is not None:
                packed.append(push)
                turn.notified.add(verdict.uid)
        return tuple(packed)

    def _on_committed(self, turn: Turn, step: Finish, result: Result | JournalUnavailable) -> None:
        """The store's answer, as soon as it was read; not in the activation's task.

        The activation is woken before the askers: its next commit is what a hot entity waits for, and what
        the askers send next can be made ready meanwhile.
        """
        if isinstance(result, Finished):
            self.state.version = result.version
            self.state.committed = self.state.staged
            dispatch = result.offer.dispatch
            self.mailbox.backlog = (
                max(0, self.mailbox.backlog - len(dispatch.messages)) if dispatch is not None else 0
            )
            if result.offer.more:
                # Nothing runs that would take it. Who gives the partition up asks for no more.
                self.mailbox.recheck_due = self.mailbox.recheck_due or not self._is_leaving()
            elif result.offer is not NOTHING:
                self.accept(result.offer)
        self.used_at_s = self.node.backend.clock()
        if isinstance(result, Rejected) and self.status == "ended":
            # Its task is gone and cannot say that the handler has run.
            self._rejected(turn, result.text)
            return
        if (
            self.mailbox.offer is not None
            or self.status != "active"
            or self._is_leaving()
            or not isinstance(result, Finished)
        ):
            self._finished = result
            self._wake()
        else:
            # Nothing to do: the task sleeps on where it is.
            self._turn = None
            self._heed_bell()
            self.host.went_idle()
        if isinstance(result, Finished):
            self._tell_outcomes(turn, step, result)

    def _tell_outcomes(self, turn: Turn, step: Finish, result: Finished) -> None:
        replies, events = self.node.replies, self.node.events
        for verdict, member in zip(turn.verdicts, turn.members, strict=True):
            word = _OUTCOME_WORDS.get(verdict.event)
            if word is not None and verdict.uid not in result.not_buried:
                sender = "" if member is None or verdict.uid in turn.notified else member.sender
                replies.reply(sender, self.entity, verdict.uid, word + verdict.reply)
            if events.listeners.active:
                events.ended(self.ref, member, verdict)
        events.committed(step)
        self.host.committed(self, step)

    # Children of a turn, and the end.

    def start_child(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Run `function(*args)` beside the handler; the turn commits after it has ended.

        Raises:
            NotSupported: no handler runs now.
        """
        if self._turn is None or self._turn.committing:
            raise NotSupported("context.start_soon: only while the handler runs")
        self._runner.children.start(function, args)
