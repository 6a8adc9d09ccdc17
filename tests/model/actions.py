"""Who does what: the actions of clients, nodes and the network, and the faults.

An action is a pure function of a state: it gives the states that may follow, each with a label. Moves are what
the protocol does by itself; faults are what happens to it, as often as the configuration allows.

A node has at most one step on its way. It is sent in one action, and done and answered in a later one: anything
may happen between the two. While there is no answer, the node sends the same step again.
"""

from __future__ import annotations

from typing import Final

from atomic_actors.base._lifecycle import Event, decide_failure
from tests.model.configurations import Configuration, Fault, Guard
from tests.model.states import (
    ACTIVATION_LENGTH,
    CLAIM,
    COMMITS,
    FAILURES,
    FINAL,
    HANDLER_TURN,
    HELD,
    HELD_EPOCH,
    HOLDING_LENGTH,
    IDLE,
    IS_RECOVERY,
    KNOWN_TURN,
    LOG,
    MESSAGE,
    NODES,
    OFFERED,
    OWNER,
    RANK,
    READ_APPLIED,
    READ_VERSION,
    RUNNING,
    RUNNING_CLAIM,
    RUNS,
    SENT,
    STARTS,
    STATE,
    STATUS,
    STEP_LENGTH,
    STREAM,
    TURN,
    VALID,
    Alarm,
    Draft,
    Shape,
    Step,
    StepKind,
    read_step,
    write_step,
)
from tests.model.store import COUNT_MAX, ENDINGS, Answer, Dispatch, Store, Word

__all__ = ("Actions", "Label", "Successor")

#: What happened: a word, and the numbers or words of whom it concerns.
Label = tuple[str | int, ...]
Successor = tuple[Label, bytes]

#: What a client knows of its message.
UNSENT, UNANSWERED, ACCEPTED = range(3)

STEP_NAMES: Final = {
    StepKind.APPEND: "append",
    StepKind.TAKE: "take",
    StepKind.FINISH: "finish",
    StepKind.INTERRUPT: "interrupt",
    StepKind.CLAIM_PARTITION: "claim",
    StepKind.RELEASE: "release",
    StepKind.RELAY_IN: "relay in",
    StepKind.RELAY_ACK: "relay ack",
}
_EMPTY: Final = bytes(STEP_LENGTH)
_OF_OWNERS: Final = frozenset({StepKind.TAKE, StepKind.FINISH, StepKind.INTERRUPT})


class Actions:
    """All that can happen, for one configuration.

    Args:
        configuration: what there is, and what may go wrong.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.shape = Shape(configuration)
        self.store = Store(configuration, self.shape)
        self._specs = configuration.messages
        self._home = configuration.entity_partitions
        self._children = {spec.sends for spec in self._specs}
        self._allowed = configuration.allowed
        self._lease_kept = Guard.LEASE not in configuration.guards_off
        self._looks = Guard.LOOK not in configuration.guards_off

    # What the protocol does.

    def moves(self, state: bytes) -> list[Successor]:
        """What can happen though nothing goes wrong."""
        found: list[Successor] = []
        self._client_moves(state, found)
        for node in range(NODES):
            place = self.shape.sent_steps[node]
            if state[place]:
                draft = Draft(state)
                step = self._answer(draft, node)
                found.append((("answered", node, *step), bytes(draft)))
            else:
                self._owner_moves(state, node, found)
            self._handler_moves(state, node, found)
            self._lapse(state, node, found)
        late = self.shape.late_step
        if state[late]:
            draft = Draft(state)
            step = read_step(state, late)
            draft[late : late + STEP_LENGTH] = _EMPTY
            self.store.execute(draft, step)
            found.append((("arrives late", *step), bytes(draft)))
        return found

    def _client_moves(self, state: bytes, found: list[Successor]) -> None:
        for message, spec in enumerate(self._specs):
            sent = self.shape.histories[message] + SENT
            if state[sent] < ACCEPTED and message not in self._children:
                draft = Draft(state)
                self._append_by_client(draft, message)
                draft[sent] = ACCEPTED
                found.append((("appends", message), bytes(draft)))
            if spec.may_be_withdrawn:
                draft = Draft(state)
                if self.store.withdraw(draft, message):
                    found.append((("withdraws", message), bytes(draft)))

    def _append_by_client(self, draft: Draft, message: int) -> None:
        self.store.execute(draft, (StepKind.APPEND, 0, message + 1, 0, 0, 0, 0, 0))

    # A node and the partitions that it owns.

    def _owner_moves(self, state: bytes, node: int, found: list[Successor]) -> None:
        """What a node may send next; it has nothing on its way."""
        shape = self.shape
        for partition, block in enumerate(shape.partitions):
            holding = shape.holdings[node][partition]
            held = state[holding + HELD]
            if not held:
                if self._may_claim(state, node, partition) and not self._other_claims(state, node, partition):
                    found.append(self._claim(state, node, partition))
                continue
            if not state[holding + VALID] or state[block + CLAIM] != held:
                continue
            for entity, home in enumerate(self._home):
                if home == partition:
                    self._entity_moves(state, node, entity, held, found)
            if state[block + STREAM]:
                found.append(self._send(state, node, self._relay_step(state, node, partition, held)))
            if state[shape.releases] < self.configuration.releases and not self._is_busy(
                state, node, partition
            ):
                draft = Draft(state)
                draft[shape.releases] += 1
                found.append(self._send(draft, node, (StepKind.RELEASE, partition, 0, 0, held, 0, 0, 0)))

    def _send(self, state: bytes | Draft, node: int, step: Step) -> Successor:
        draft = Draft(state)
        write_step(draft, self.shape.sent_steps[node], step)
        return ("sends", node, *step), bytes(draft)

    def _is_busy(self, state: bytes, node: int, partition: int) -> bool:
        return any(
            state[self.shape.activations[node][entity] + STATUS]
            for entity, home in enumerate(self._home)
            if home == partition
        )

    def _claims_on_its_way(self, state: bytes, node: int, partition: int) -> int:
        """The claim that a node has asked for and not heard of."""
        kind, where, _, _, claim, *_ = read_step(state, self.shape.sent_steps[node])
        return claim if kind == StepKind.CLAIM_PARTITION and where == partition else 0

    def _other_claims(self, state: bytes, node: int, partition: int) -> bool:
        return any(
            self._claims_on_its_way(state, other, partition) for other in range(NODES) if other != node
        )

    def _may_claim(self, state: bytes, node: int, partition: int) -> bool:
        """Whether the lease is free, or has run out as far as this node has watched it."""
        if node not in self.configuration.claimants[partition]:
            return False
        lease = state[self.shape.partitions[partition] + CLAIM]
        if not lease or not self._lease_kept:
            return True
        return not any(
            state[self.shape.holdings[other][partition] + VALID]
            and lease
            in (
                state[self.shape.holdings[other][partition] + HELD],
                self._claims_on_its_way(state, other, partition),
            )
            for other in range(NODES)
            if other != node
        )

    def _claim(self, state: bytes, node: int, partition: int) -> Successor:
        draft = Draft(state)
        draft[self.shape.claims] += 1
        # The lease counts from before the claim was sent.
        draft[self.shape.holdings[node][partition] + VALID] = 1
        lease = state[self.shape.partitions[partition] + CLAIM]
        claim = draft[self.shape.claims]
        return self._send(draft, node, (StepKind.CLAIM_PARTITION, partition, 0, 0, claim, lease, node + 1, 0))

    def _entity_moves(self, state: bytes, node: int, entity: int, held: int, found: list[Successor]) -> None:
        """What a sweep finds."""
        block = self.shape.entities[entity]
        running = state[block + RUNNING]
        if running and state[block + RUNNING_CLAIM] != held:
            found.append(
                self._send(
                    state,
                    node,
                    (StepKind.INTERRUPT, entity, running, state[block + TURN], held, 1, 0, 0),
                )
            )
        activation = self.shape.activations[node][entity]
        if state[activation + STATUS] != IDLE:
            return
        is_unheard = running and state[block + RUNNING_CLAIM] == held
        if is_unheard and self._looks and state[block + TURN] > state[activation + KNOWN_TURN]:
            # It is taken again; or given back, where the partition is about to be released.
            turn = state[block + TURN]
            found.append(self._send(state, node, (StepKind.TAKE, entity, 0, 0, held, 0, 0, 0)))
            if state[self.shape.releases] < self.configuration.releases:
                found.append(
                    self._send(state, node, (StepKind.INTERRUPT, entity, running, turn, held, 0, 0, 0))
                )
        if not running and state[block + LOG]:
            found.append(self._send(state, node, (StepKind.TAKE, entity, 0, 0, held, 0, 0, 0)))
        if self.configuration.owner_appends:
            for message, spec in enumerate(self._specs):
                sent = self.shape.histories[message] + SENT
                if spec.entity == entity and state[sent] == UNSENT and message not in self._children:
                    draft = Draft(state)
                    draft[sent] = UNANSWERED
                    found.append(
                        self._send(draft, node, (StepKind.APPEND, entity, message + 1, 0, held, 0, 0, 0))
                    )

    def _relay_step(self, state: bytes, node: int, source: int, held: int) -> Step:
        """The page of a stream that is sent next."""
        block = self.shape.partitions[source]
        first = state[block + STREAM]
        second = state[block + STREAM + 1] if self.shape.stream_places > 1 else 0
        target = self._home[self._specs[first - 1].entity]
        return StepKind.RELAY_IN, target, first, self.store.oldest(state, source), held, second, source, 0

    # A node's answers.

    def _answer(self, draft: Draft, node: int) -> Step:
        """The step on its way is done, and its node hears of it."""
        place = self.shape.sent_steps[node]
        step = read_step(draft, place)
        draft[place : place + STEP_LENGTH] = _EMPTY
        before = draft[: self.shape.store_length]
        answer = self.store.execute(draft, step)
        kind, where, message, _, claim, _, source, _ = step
        if kind in _OF_OWNERS:
            self._watch_owner(draft, node, self._home[where], before)
        if kind == StepKind.CLAIM_PARTITION:
            self._on_claimed(draft, node, where, claim, answer)
            return step
        if kind == StepKind.RELAY_IN:
            holding = self.shape.holdings[node][source]
            if answer.word is Word.DONE and draft[holding + HELD] == claim:
                write_step(draft, place, (StepKind.RELAY_ACK, source, 0, answer.number, claim, 0, 0, 0))
            return step
        is_of_entity = kind in (StepKind.APPEND, StepKind.TAKE, StepKind.FINISH, StepKind.INTERRUPT)
        partition = self._home[where] if is_of_entity else where
        is_held = draft[self.shape.holdings[node][partition] + HELD] == claim
        if kind == StepKind.APPEND:
            draft[self.shape.histories[message - 1] + SENT] = ACCEPTED
        if kind == StepKind.FINISH and is_held:
            self._clear(draft, node, where)
        if is_held and (answer.word is Word.STALE or (kind == StepKind.RELEASE and answer.word is Word.DONE)):
            self._drop(draft, node, partition)
        elif is_held and answer.dispatch is not None:
            self._offer(draft, node, where, answer.dispatch)
        return step

    def _watch_owner(self, draft: Draft, node: int, partition: int, before: Draft) -> None:
        """Nobody but the owner changes anything with an owner's step, whatever the claims say."""
        block = self.shape.partitions[partition]
        if before[block + OWNER] != node + 1 and before != draft[: self.shape.store_length]:
            draft[self.shape.alarm] |= Alarm.STALE_WRITE

    def _on_claimed(self, draft: Draft, node: int, partition: int, claim: int, answer: Answer) -> None:
        holding = self.shape.holdings[node][partition]
        if answer.word is Word.DONE:
            lease = self.shape.partitions[partition]
            draft[holding + HELD] = draft[lease + CLAIM]
            draft[holding + HELD_EPOCH] = answer.number
        else:
            draft[holding + VALID] = 0

    def _offer(self, draft: Draft, node: int, entity: int, dispatch: Dispatch) -> None:
        block = self.shape.activations[node][entity]
        if dispatch.turn > draft[block + KNOWN_TURN] and draft[block + STATUS] == IDLE:
            draft[block + STATUS] = OFFERED
            draft[block + MESSAGE : block + KNOWN_TURN] = bytes(dispatch)

    def _clear(self, draft: Draft, node: int, entity: int) -> None:
        block = self.shape.activations[node][entity]
        draft[block : block + KNOWN_TURN] = bytes(KNOWN_TURN)

    # Handlers.

    def _handler_moves(self, state: bytes, node: int, found: list[Successor]) -> None:
        shape = self.shape
        for entity, partition in enumerate(self._home):
            block = shape.activations[node][entity]
            status = state[block + STATUS]
            if status == OFFERED and state[shape.holdings[node][partition] + VALID]:
                draft = Draft(state)
                self._begin(draft, node, entity)
                found.append((("begins", node, state[block + MESSAGE] - 1), bytes(draft)))
            elif status == RUNS and not state[shape.sent_steps[node]]:
                spec = self._specs[state[block + MESSAGE] - 1]
                for ending in spec.endings:
                    found.append(self._end(state, node, entity, ending))

    def _begin(self, draft: Draft, node: int, entity: int) -> None:
        """A handler starts; the monitors look at what that means."""
        shape = self.shape
        block = shape.activations[node][entity]
        message, turn = draft[block + MESSAGE] - 1, draft[block + HANDLER_TURN]
        draft[block + STATUS] = RUNS
        draft[block + KNOWN_TURN] = turn
        history = shape.histories[message]
        if turn <= draft[shape.begun_turns[entity]]:
            draft[shape.alarm] |= Alarm.BEGUN_TWICE
        elif any(
            spec.entity == entity
            and 0 < draft[shape.histories[other] + RANK] < draft[history + RANK]
            and draft[shape.messages[other] + STATE] not in FINAL
            for other, spec in enumerate(self._specs)
        ):
            draft[shape.alarm] |= Alarm.OUT_OF_ORDER
        draft[shape.begun_turns[entity]] = max(turn, draft[shape.begun_turns[entity]])
        if not draft[block + IS_RECOVERY]:
            draft[history + STARTS] = min(draft[history + STARTS] + 1, COUNT_MAX)

    def _end(self, state: bytes, node: int, entity: int, ending: Event) -> Successor:
        """A handler ends, and its commit is sent."""
        block = self.shape.activations[node][entity]
        message = state[block + MESSAGE]
        if ending is Event.FAIL:
            ending = decide_failure(state[block + FAILURES], 0, self._specs[message - 1].max_attempts)
        applied = state[block + READ_APPLIED] | 1 << (message - 1)
        partition = self._home[entity]
        step = (
            StepKind.FINISH,
            entity,
            message,
            state[block + HANDLER_TURN],
            state[self.shape.holdings[node][partition] + HELD],
            state[block + READ_VERSION],
            applied,
            ENDINGS.index(ending) + 1,
        )
        draft = Draft(state)
        self._clear(draft, node, entity)
        draft[block + STATUS] = COMMITS
        write_step(draft, self.shape.sent_steps[node], step)
        return ("ends", node, message - 1, ending.value), bytes(draft)

    # Giving up.

    def _lapse(self, state: bytes, node: int, found: list[Successor]) -> None:
        """A node notices that a lease has run out, or that the partition is somebody else's."""
        for partition, block in enumerate(self.shape.partitions):
            holding = self.shape.holdings[node][partition]
            held = state[holding + HELD]
            if held and (not state[holding + VALID] or state[block + CLAIM] != held):
                draft = Draft(state)
                self._drop(draft, node, partition)
                found.append((("gives up", node, partition), bytes(draft)))

    def _drop(self, draft: Draft, node: int, partition: int) -> None:
        """A partition's scope ends: what ran is settled, where that can still be sent."""
        for entity, home in enumerate(self._home):
            if home == partition:
                self._cut(draft, node, entity)
        holding = self.shape.holdings[node][partition]
        draft[holding : holding + HOLDING_LENGTH] = bytes(HOLDING_LENGTH)

    def _cut(self, draft: Draft, node: int, entity: int) -> None:
        """End an activation's turn; if it is not on its way to the store, settle it."""
        block = self.shape.activations[node][entity]
        place = self.shape.sent_steps[node]
        status = draft[block + STATUS]
        if status in (OFFERED, RUNS) and not draft[place]:
            held = draft[self.shape.holdings[node][self._home[entity]] + HELD]
            message, turn = draft[block + MESSAGE], draft[block + HANDLER_TURN]
            write_step(draft, place, (StepKind.INTERRUPT, entity, message, turn, held, status == RUNS, 0, 0))
        self._clear(draft, node, entity)

    # What goes wrong.

    def faults(self, state: bytes) -> list[Successor]:
        """What may go wrong now."""
        found: list[Successor] = []
        if self._allowed and state[self.shape.faults] < self.configuration.faults:
            counted = Draft(state)
            counted[self.shape.faults] += 1
            for node in range(NODES):
                self._node_faults(counted, node, found)
                if counted[self.shape.sent_steps[node]]:
                    self._answer_faults(counted, node, found)
            self._store_faults(counted, found)
            if Fault.APPEND_AGAIN in self._allowed:
                self._append_faults(counted, found)
        if state[self.shape.replica] == 1:
            found.append(self._fail_over_to_copy(state))
        return found

    def _node_faults(self, state: Draft, node: int, found: list[Successor]) -> None:
        shape = self.shape
        blocks = (
            (shape.holdings[node][0], len(shape.holdings[node]) * HOLDING_LENGTH),
            (shape.activations[node][0], shape.entity_count * ACTIVATION_LENGTH),
            (shape.sent_steps[node], STEP_LENGTH),
        )
        if Fault.CRASH in self._allowed and any(any(state[at : at + long]) for at, long in blocks):
            draft = Draft(state)
            for at, long in blocks:
                draft[at : at + long] = bytes(long)
            found.append((("crashes", node), bytes(draft)))
            if state[shape.sent_steps[node]] and not state[shape.late_step]:
                write_step(draft, shape.late_step, read_step(state, shape.sent_steps[node]))
                found.append((("crashes behind its step", node), bytes(draft)))
        valid = [block + VALID for block in shape.holdings[node] if state[block + VALID]]
        if Fault.PAUSE in self._allowed and valid:
            draft = Draft(state)
            for place in valid:
                draft[place] = 0
            found.append((("stands still", node), bytes(draft)))
        if Fault.CUT in self._allowed and not state[shape.sent_steps[node]]:
            for entity in range(shape.entity_count):
                if state[shape.activations[node][entity] + STATUS] in (OFFERED, RUNS):
                    draft = Draft(state)
                    self._cut(draft, node, entity)
                    found.append((("cuts", node, entity), bytes(draft)))
        if Fault.RACE in self._allowed and not state[shape.sent_steps[node]]:
            for partition in range(len(shape.partitions)):
                if (
                    not state[shape.holdings[node][partition] + HELD]
                    and self._other_claims(bytes(state), node, partition)
                    and self._may_claim(bytes(state), node, partition)
                ):
                    found.append(self._claim(bytes(state), node, partition))

    def _answer_faults(self, state: Draft, node: int, found: list[Successor]) -> None:
        place, late = self.shape.sent_steps[node], self.shape.late_step
        step = read_step(state, place)
        if Fault.ANSWER_LOST in self._allowed:
            draft = Draft(state)
            self.store.execute(draft, step)
            found.append((("answer lost", node, *step), bytes(draft)))
        if Fault.LATE_COPY in self._allowed and not state[late]:
            draft = Draft(state)
            write_step(draft, late, step)
            found.append((("copy is late", node, *step), bytes(draft)))

    def _store_faults(self, state: Draft, found: list[Successor]) -> None:
        shape = self.shape
        if Fault.FAILOVER in self._allowed:
            on_their_way = [place for place in shape.sent_steps if state[place]]
            if len(on_their_way) > 1:
                draft = Draft(state)
                for place in on_their_way:
                    self.store.execute(draft, read_step(draft, place))
                found.append((("fails over",), bytes(draft)))
        if Fault.LOSING_FAILOVER in self._allowed and not state[shape.replica]:
            draft = Draft(state)
            draft[shape.replica] = 1
            found.append((("replica falls behind",), bytes(draft) + bytes(draft[: shape.store_length])))

    def _fail_over_to_copy(self, state: bytes) -> Successor:
        shape = self.shape
        draft = Draft(state[: shape.length])
        draft[: shape.store_length] = state[shape.copy :]
        draft[shape.replica] = 2
        return ("fails over to the replica",), bytes(draft)

    def _append_faults(self, state: Draft, found: list[Successor]) -> None:
        for message in range(self.shape.message_count):
            sent = state[self.shape.histories[message] + SENT]
            if message in self._children:
                continue
            draft = Draft(state)
            self._append_by_client(draft, message)
            if sent == ACCEPTED:
                found.append((("append arrives again", message), bytes(draft)))
            else:
                draft[self.shape.histories[message] + SENT] = UNANSWERED
                found.append((("append without answer", message), bytes(draft)))
