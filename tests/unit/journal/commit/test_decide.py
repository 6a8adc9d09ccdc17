"""When a step leaves, as a table; and what a batch takes along."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    Audit,
    Dispatch,
    Finish,
    Finished,
    Offer,
    Result,
    Stale,
    Step,
    Verdict,
)
from atomic_actors.journal.commit._batches import (
    GATHER,
    OVERTAKE,
    OVERTAKEN_MAX,
    SEND,
    SPLIT_STEPS_MIN,
    WAIT,
    Batch,
    Decision,
    Entry,
    Queue,
    cut_batch,
    decide,
    learn,
)

LIMITS = {"steps_max": 256, "bytes_max": 1 << 20}


def ignore(_: object) -> None:
    pass


def entry(step: Step, *, overtakes: bool = False) -> Entry:
    return Entry(step=step, on_result=ignore, refusable=False, overtakes=overtakes)


def append(entity: str = "account/a", size: int = 10) -> Append:
    return Append(partition=1, entity=entity, uid="0" * 32, body=b"x" * size)


def commit(messages: int = 1, entity: str = "account/a") -> Finish:
    return Finish(
        partition=1,
        entity=entity,
        claim="claim",
        turn=1,
        verdicts=(Verdict(uid="0" * 32, event="complete"),) * messages,
        state=None,
        expected_version=0,
    )


def queue_with(
    *before: Step,
    in_flight: int = 0,
    is_direct: bool = True,
    contended: bool = False,
    last_size: int = 0,
    commit_due: bool = False,
    failing: bool = False,
    answering: bool = False,
    overtaken: int = 0,
) -> Queue:
    queue = Queue(
        places=2,
        is_direct=is_direct,
        last_size=last_size,
        commit_due=commit_due,
        failing=failing,
        answering=answering,
        overtaken=overtaken,
    )
    queue.pace.contended = contended
    queue.pending.extend(entry(step) for step in before)
    queue.in_flight.extend(Batch(entries=[entry(Audit(0))], appends=set()) for _ in range(in_flight))
    return queue


FEW = (append("account/b"), append("account/c"))
ROW = tuple(append(f"account/{number}") for number in range(SPLIT_STEPS_MIN - 1))


@pytest.mark.parametrize(
    ("queue", "step", "decision"),
    [
        # A lone step leaves at once; beside a batch it leaves with that one's answer.
        (queue_with(), append(), SEND),
        (queue_with(in_flight=1), append(), WAIT),
        (queue_with(in_flight=2), append(), WAIT),
        (queue_with(answering=True), append(), WAIT),
        # Under load the steps of one tick go together.
        (queue_with(last_size=2), append(), GATHER),
        (queue_with(last_size=2, in_flight=1), append(), WAIT),
        (queue_with(*ROW, last_size=2, in_flight=1), append(), GATHER),
        (queue_with(*ROW, last_size=2, in_flight=2), append(), WAIT),
        # The only turn there is has begun: its commit will take the message along.
        (queue_with(commit_due=True), append(), GATHER),
        (queue_with(commit_due=True), commit(), SEND),
        # A store that cannot be sent to directly needs a task.
        (queue_with(is_direct=False), append(), GATHER),
        (queue_with(is_direct=False), commit(), GATHER),
        (queue_with(is_direct=False, in_flight=1), commit(), WAIT),
        # A commit leaves beside another batch, unless the store is busy with others.
        (queue_with(last_size=1, in_flight=1), commit(), SEND),
        (queue_with(last_size=1, in_flight=1, contended=True), commit(), WAIT),
        (queue_with(last_size=1, contended=True), commit(), SEND),
        (queue_with(last_size=2, in_flight=1), commit(), SEND),
        (queue_with(last_size=3), commit(), GATHER),
        (queue_with(last_size=3, in_flight=1), commit(), WAIT),
        # A run's is a batch by itself.
        (queue_with(last_size=99, in_flight=1, contended=True), commit(SPLIT_STEPS_MIN), SEND),
        (queue_with(last_size=99, in_flight=2), commit(SPLIT_STEPS_MIN), WAIT),
    ],
)
def test_a_step_leaves(queue: Queue, step: Step, decision: Decision) -> None:
    added = entry(step)
    queue.pending.append(added)
    assert decide(queue, added) is decision


@pytest.mark.parametrize(
    ("queue", "decision"),
    [
        (queue_with(append(), last_size=9), OVERTAKE),
        (queue_with(append(), append(), last_size=1), OVERTAKE),
        (queue_with(*[append()] * (OVERTAKEN_MAX - 1)), OVERTAKE),
        (queue_with(*[append()] * OVERTAKEN_MAX), SEND),
        # Nothing waits that could be overtaken.
        (queue_with(), SEND),
        # Others' messages could begin before it, and so could what follows a turn.
        (queue_with(append("account/b")), SEND),
        (queue_with(append(), Audit(1)), SEND),
        (queue_with(append(), in_flight=1), SEND),
        (queue_with(append(), in_flight=1, last_size=9), WAIT),
        # Not for ever.
        (queue_with(append(), overtaken=OVERTAKEN_MAX - 1), OVERTAKE),
        (queue_with(append(), overtaken=OVERTAKEN_MAX), SEND),
        # What was sent and not answered comes first.
        (queue_with(append(), failing=True), SEND),
        (queue_with(append(), is_direct=False), GATHER),
    ],
)
def test_a_commit_overtakes(queue: Queue, decision: Decision) -> None:
    added = entry(commit(), overtakes=True)
    queue.pending.append(added)
    assert decide(queue, added) is decision
    added.overtakes = False
    assert decide(queue, added) is not OVERTAKE


def cut(queue: Queue, **limits: int) -> list[Step] | None:
    batch = cut_batch(queue, **{**LIMITS, **limits})
    return None if batch is None else [entry.step for entry in batch.entries]


def test_no_batch_while_none_may_leave() -> None:
    assert cut(queue_with()) is None
    assert cut(queue_with(append(), in_flight=2)) is None
    assert cut(queue_with(append(), failing=True)) is None
    assert cut(queue_with(append(), in_flight=1)) == [append()]


def test_a_batch_ends_at_a_limit() -> None:
    assert len(cut(queue_with(*FEW, *FEW), steps_max=3) or ()) == 3
    big = append("account/big", size=5_000)
    assert cut(queue_with(FEW[0], big), bytes_max=1_000) == [FEW[0]]
    assert cut(queue_with(big, FEW[0]), bytes_max=1_000) == [big]


def test_two_batches_share_what_waits() -> None:
    many: Sequence[Step] = [append(f"account/{number:03}") for number in range(100)]
    queue = queue_with(*many)
    assert len(cut(queue) or ()) == 50
    assert len(queue.pending) == 50


def test_two_batches_do_not_append_to_one_entity() -> None:
    queue = queue_with(append("account/b"), append("account/a"), append("account/c"))
    queue.in_flight.append(Batch(entries=[entry(append("account/a"))], appends={"account/a"}))
    assert cut(queue) == [append("account/b")]
    assert cut(queue) is None


def test_only_appends_are_sorted() -> None:
    steps: list[Step] = [append("account/b"), append("account/a"), append("account/b")]
    assert cut(queue_with(*steps)) == [append("account/a"), append("account/b"), append("account/b")]
    assert cut(queue_with(*steps, Audit(0))) == [*steps, Audit(0)]


TURN = Offer(dispatch=Dispatch(turn=1, messages=(), recovering=False, version=0, state=None))


@pytest.mark.parametrize(
    ("steps", "results", "last_size", "commit_due"),
    [
        ([Audit(0)], [Stale("claim")], 1, False),
        ([append()], [Appended("0" * 32, False, None, TURN)], 1, True),
        ([append()], [Appended("0" * 32, False, None, NOTHING)], 1, False),
        ([commit()], [Finished(1, TURN)], 1, True),
        # The commit of a run answers many senders, and they are about to send.
        ([commit(5)], [Finished(1, TURN)], 5, False),
        ([append()] * 3, [Appended("0" * 32, False, None, TURN)] * 3, 3, False),
    ],
)
def test_an_answer_says_what_comes_next(
    steps: list[Step], results: list[Result], last_size: int, commit_due: bool
) -> None:
    queue = queue_with(commit_due=not commit_due)
    learn(queue, Batch(entries=[entry(step) for step in steps], appends=set()), results, 0.0)
    assert (queue.last_size, queue.commit_due) == (last_size, commit_due)
