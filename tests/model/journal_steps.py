"""The model's steps as steps of a journal, and both stores in words that can be compared."""

from __future__ import annotations

from typing import Final

from atomic_actors.base._lifecycle import Event, State
from atomic_actors.journal._protocol import (
    Append,
    ClaimPartition,
    Dispatch,
    Finish,
    Interrupt,
    JournalSettings,
    LeaseHeld,
    Outgoing,
    Rejected,
    RelayAck,
    RelayEntry,
    RelayIn,
    Release,
    Result,
    Settled,
    Stale,
    Take,
    Verdict,
    Withdraw,
    pack_body,
    split_outcome,
)
from atomic_actors.journal._protocol import Step as JournalStep
from atomic_actors.journal.memory._journal import MemoryJournal
from tests.model.actions import Actions
from tests.model.states import (
    APPLIED,
    ATTEMPTS,
    CLAIM,
    EPOCH,
    INTERRUPTIONS,
    LAST_IN,
    LAST_OUT,
    LOG,
    RECOVERING,
    RUNNING,
    RUNNING_CLAIM,
    STATE,
    STATES,
    STREAM,
    TURN,
    VERSION,
    Step,
    StepKind,
)
from tests.model.store import ENDINGS, Answer, Word

__all__ = ("Translation",)

NOW_MS: Final = 1_000
#: The journal numbers incarnations by its clock, which stands still here.
INCARNATION: Final = NOW_MS


class Translation:
    """The words of one configuration.

    Args:
        actions: of the configuration.
    """

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._shape = actions.shape
        self._specs = actions.configuration.messages
        self._home = actions.configuration.entity_partitions
        self._uids = [f"{NOW_MS:012x}-m{number}" for number in range(len(self._specs))]
        self._bodies = [
            pack_body(name=f"m{number}", deadline_ms=0, waited_for=True, key="", envelope=b"")
            for number in range(len(self._specs))
        ]
        self._policy = "".join(f"\nm{number}={spec.stamp}" for number, spec in enumerate(self._specs)) + "\n"

    def new_journal(self) -> MemoryJournal:
        """An empty journal that forgets nothing."""
        settings = JournalSettings(partitions=len(self._shape.partitions), result_ttl_ms=0, dedupe_ttl_ms=0)
        return MemoryJournal(settings, now_ms=lambda: NOW_MS)

    def _name(self, entity: int) -> str:
        return f"thing/{entity}"

    def _claim(self, claim: int) -> str:
        return f"claim-{claim}" if claim else ""

    def withdraw(self, message: int) -> JournalStep:
        """What a client sends to take a message back."""
        entity = self._specs[message].entity
        return Withdraw(self._home[entity], self._name(entity), self._uids[message])

    def step(self, step: Step) -> JournalStep:
        """What a journal is sent."""
        kind, where, message, turn, number, first, second, _ = step
        claim = self._claim(number)
        match StepKind(kind):
            case StepKind.APPEND:
                where = self._specs[message - 1].entity
                uid, body = self._uids[message - 1], self._bodies[message - 1]
                return Append(
                    partition=self._home[where],
                    entity=self._name(where),
                    uid=uid,
                    body=body,
                    claim=claim,
                    policy=self._policy,
                )
            case StepKind.TAKE:
                return Take(
                    partition=self._home[where], entity=self._name(where), claim=claim, policy=self._policy
                )
            case StepKind.FINISH:
                return self._finish(step)
            case StepKind.INTERRUPT:
                uids = (self._uids[message - 1],)
                return Interrupt(
                    partition=self._home[where],
                    entity=self._name(where),
                    claim=claim,
                    turn=turn,
                    uids=uids,
                    began=bool(first),
                )
            case StepKind.CLAIM_PARTITION:
                return ClaimPartition(
                    partition=where, claim=claim, node=b"node", expected_claim=self._claim(first)
                )
            case StepKind.RELEASE:
                return Release(where, claim)
            case StepKind.RELAY_IN:
                entries = [
                    self._entry(turn + place, entry - 1)
                    for place, entry in enumerate((message, first))
                    if entry
                ]
                return RelayIn(
                    partition=where, source=second, incarnation=INCARNATION, entries=tuple(entries)
                )
            case _:
                target = next(home for home in range(len(self._shape.partitions)) if home != where)
                return RelayAck(
                    partition=where, claim=claim, target=target, last=turn, incarnation=INCARNATION
                )

    def _entry(self, number: int, message: int) -> RelayEntry:
        entity = self._name(self._specs[message].entity)
        return RelayEntry(number, entity, self._uids[message], self._bodies[message])

    def _finish(self, step: Step) -> Finish:
        _, entity, message, turn, claim, version, applied, ending = step
        event = ENDINGS[ending - 1]
        completes = event is Event.COMPLETE
        sends = self._specs[message - 1].sends if completes else None
        outbox: tuple[Outgoing, ...] = ()
        if sends is not None:
            target = self._specs[sends].entity
            outbox = (
                Outgoing(
                    partition=self._home[target],
                    entity=self._name(target),
                    uid=self._uids[sends],
                    body=self._bodies[sends],
                ),
            )
        return Finish(
            partition=self._home[entity],
            entity=self._name(entity),
            claim=self._claim(claim),
            turn=turn,
            verdicts=(Verdict(uid=self._uids[message - 1], event=event.value),),
            state=bytes((applied,)) if completes else None,
            expected_version=version,
            outbox=outbox,
            policy=self._policy,
            run_limit=int(self._actions.configuration.takes_next),
        )

    # What was answered.

    def expected(self, answer: Answer) -> tuple[object, ...]:
        """A model's answer, to be compared with `answered`.

        Without the state: a journal leaves it out where the caller has it, and `stored` shows it.
        """
        dispatch = answer.dispatch
        if dispatch is None:
            return (answer.word.name,)
        return (
            answer.word.name,
            dispatch.turn,
            self._uids[dispatch.message - 1],
            dispatch.version,
            dispatch.failures,
            bool(dispatch.is_recovery),
        )

    def answered(self, result: Result) -> tuple[object, ...]:
        """A journal's answer in the model's words."""
        match result:
            case Stale():
                return (Word.STALE.name,)
            case Rejected():
                return (Word.REJECTED.name,)
            case LeaseHeld():
                return (Word.HELD.name,)
            case Settled(settlement="gone"):
                return (Word.GONE.name,)
            case _:
                offer = getattr(result, "offer", None)
                dispatch: Dispatch | None = offer.dispatch if offer is not None else None
                if dispatch is None:
                    return (Word.DONE.name,)
                (item,) = dispatch.messages
                return (
                    Word.DONE.name,
                    dispatch.turn,
                    item.uid,
                    dispatch.version,
                    item.attempt - item.interruptions,
                    dispatch.recovering,
                )

    # What is stored.

    def modelled(self, state: bytes) -> list[object]:
        """What the model's store holds."""
        shape, found = self._shape, list[object]()
        for partition in shape.partitions:
            stream = state[partition + STREAM : partition + STREAM + shape.stream_places]
            entries = [self._uids[entry - 1] for entry in stream if entry]
            numbers = (state[partition + LAST_OUT], state[partition + LAST_IN])
            found.append((self._claim(state[partition + CLAIM]), state[partition + EPOCH], entries, numbers))
        for block in shape.entities:
            log = [
                self._uids[entry - 1]
                for entry in state[block + LOG : block + LOG + shape.message_count]
                if entry
            ]
            running = state[block + RUNNING]
            out = (self._uids[running - 1], self._claim(state[block + RUNNING_CLAIM])) if running else None
            found.append((state[block + TURN], out, state[block + VERSION], state[block + APPLIED], log))
        for block in shape.messages:
            word = STATES[state[block + STATE]]
            counts = (state[block + ATTEMPTS], state[block + INTERRUPTIONS], bool(state[block + RECOVERING]))
            found.append((word.value, counts if word in (State.ENQUEUED, State.DISPATCHED) else None))
        return found

    def stored(self, journal: MemoryJournal) -> list[object]:
        """What a journal holds, in the same form."""
        found = list[object]()
        partitions = [journal._partitions.get(number) for number in range(len(self._shape.partitions))]
        for partition in partitions:
            if partition is None:
                found.append(("", 0, [], (0, 0)))
                continue
            entries = [entry.uid for stream in partition.streams.values() for _, entry in stream]
            numbers = (sum(partition.numbers_out.values()), sum(partition.numbers_in.values()))
            found.append((partition.lease.claim, partition.lease.epoch, entries, numbers))
        for entity, home in enumerate(self._home):
            partition = partitions[home]
            record = partition.entities.get(self._name(entity)) if partition is not None else None
            if record is None:
                found.append((0, None, 0, 0, []))
                continue
            running = record.running
            out = (running.uids[0], running.claim) if running is not None else None
            log = [uid for uid in record.log if uid in record.messages]
            found.append((record.turn, out, record.version, record.state[0] if record.state else 0, log))
        return found + [self._stored_message(journal, number) for number in range(len(self._specs))]

    def _stored_message(self, journal: MemoryJournal, number: int) -> object:
        entity = self._specs[number].entity
        partition = journal._partitions.get(self._home[entity])
        record = partition.entities.get(self._name(entity)) if partition is not None else None
        message = record.messages.get(self._uids[number]) if record is not None else None
        if message is not None:
            return message.state.value, (message.attempts, message.interruptions, message.recovering)
        kept = (
            partition.outcome(self._name(entity), self._uids[number], NOW_MS)
            if partition is not None
            else None
        )
        word = State.ABSENT.value if kept is None else split_outcome(kept)[0]
        return State.COMPLETED.value if word == "refused" else word, None
